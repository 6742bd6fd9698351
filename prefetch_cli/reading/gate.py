"""Whose turn it is to read, and in which way: the tuners, and what they are told."""

import threading
import time
from collections import Counter
from collections.abc import Mapping

from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.reading.plan import Medium
from prefetch_cli.reading.tune import TOO_SLOW_SECONDS, Portion, Setting, Tuner

_LOOK_SECONDS = 0.1  # how often a thread that waits its turn looks at the stop


class Gate:
    """Holds back the threads that no tuner admits, and counts what the others read."""

    def __init__(self, tuners: Mapping[Medium, Tuner]) -> None:
        self._tuners = tuners
        # Of the medium that was last read from; the first of them is read first.
        self._current = next(iter(tuners.values()), None)
        self._lock = threading.Lock()  # a condition's own methods would be called at each step
        self._changed = threading.Condition(self._lock)
        self._entered = 0
        self._bytes: Counter[tuple[Engine, int]] = Counter()
        self._admitted = 0
        with self._lock:
            self._update()

    @property
    def threads(self) -> int:
        """How many threads may read."""
        return self._admitted

    @property
    def bytes_read(self) -> int:
        """What has been read by now."""
        return self._bytes.total()

    @property
    def used(self) -> Setting | None:
        """What has read the most."""
        with self._lock:
            if not self._bytes:
                return None
            return Setting(*max(self._bytes, key=self._bytes.__getitem__))

    def _update(self) -> None:
        """Take over what the tuners say by now."""
        before = self._admitted
        tuners = [one for one in self._tuners.values() if one.reads or one is self._current]
        self._admitted = max((one.threads for one in tuners), default=0)
        if self._admitted > before:
            self._changed.notify_all()

    def number(self) -> int:
        """Return the number of the thread that asks, from 0."""
        with self._lock:
            self._entered += 1
            return self._entered - 1

    def admits(self, number: int) -> bool:
        """Return whether it is this thread's turn now."""
        return number < self._admitted

    def admit(self, number: int, stop: Stop) -> bool:
        """Return True when it is this thread's turn, or False when it is time to stop."""
        with self._changed:
            while not self.admits(number) and not stop.requested:
                self._changed.wait(_LOOK_SECONDS)
        return not stop.requested

    def tuner(self, medium: Medium) -> Tuner:
        """Return the tuner of a medium, for what follows; only this gate may ask it."""
        return self._tuners[medium]

    def pick(self, number: int, tuner: Tuner, most_bytes: int) -> Portion:
        """Return what this thread reads next, of at most this size; `end` must follow."""
        with self._lock:
            before, self._current = self._current, tuner
            portion = tuner.pick(number, most_bytes)
            if tuner is not before:
                self._update()
            return portion

    def end(self, number: int, tuner: Tuner) -> None:
        """Note that a thread no longer reads its portion."""
        with self._lock:
            tuner.end(number)

    def record(
        self, number: int, tuner: Tuner, engine: Engine, size_bytes: int, seconds: float, now: float
    ) -> None:
        """Count what a step of a thread has read by this engine in so long."""
        with self._lock:
            self._bytes[engine, self._admitted] += size_bytes
            if tuner.record(number, size_bytes, seconds, now):
                self._update()

    def abandon(
        self, tuner: Tuner, portion: Portion, size_bytes: int, seconds: float, now: float
    ) -> bool:
        """Return whether to leave a portion that has read so much in so long."""
        if seconds < TOO_SLOW_SECONDS:  # so no lock for most steps
            return False
        with self._lock:
            leave = tuner.abandon(portion.engine, size_bytes, seconds, now)
            self._update()
            return leave

    def look(self) -> None:
        """Admit more where whoever reads hangs."""
        with self._lock:
            if self._current is not None:
                self._current.look(time.monotonic())
                self._update()

    def limit(self, threads: int) -> None:
        """Admit no more than these: the system refuses more."""
        with self._lock:
            for tuner in self._tuners.values():
                tuner.limit(threads)
            self._update()

    def open(self) -> None:
        """Let all threads see that nothing is left."""
        with self._lock:
            for tuner in self._tuners.values():
                tuner.finish()
            self._update()
