"""Engine, threads and step size, chosen while reading: pure state machines.

They hold no clock and no lock: measured times are handed in, and the caller takes turns.
"""

import enum
import math
from collections import Counter
from dataclasses import dataclass, replace

from prefetch_cli.base.words import Engine

STEP_BYTES = 1024 * 1024  # read by one call: the grain of progress and of stopping
MOST_STEP_BYTES = 4 * STEP_BYTES  # fewer, larger calls cost less where calls are fast

# Comparing engines
_COMPARISONS = 2  # that must agree
_PORTIONS = 2  # per thread and engine, each half a block
_WORTH = 16  # compare only if there is this many times as much to read as a comparison reads
# On near media, do not compare once the likely engine is this fast: the trial would cost more
# processor time than any other engine could save.
_FAST_BYTES_PER_SECOND = 1_000_000_000
_TOO_SLOW = 0.5  # leave an engine mid-portion when its rate falls below this part of the likely one
_TOO_SLOW_SECONDS = 0.2  # its rate is not known earlier

# Threads that climb: each step doubles them.
_CLIMB_SECONDS = 0.25
_CLIMB_AGAIN = 20  # steps after which a settled number is tested again
_STALLED_SECONDS = 2.0  # without a byte: whoever holds the turn hangs


@dataclass(frozen=True)
class Trial:
    """How to find the engine on one kind of medium."""

    engines: tuple[Engine, ...]  # the likely one first
    better: float  # another must read this many times as fast to replace it
    fast_is_enough: bool  # keep the likely one without a trial where it is fast
    portion_bytes: int = STEP_BYTES  # read by one thread with one engine at a time

    def pays(self, size_bytes: int, threads: int) -> bool:
        """Return whether the trial is a small part of reading this much."""
        others = len(self.engines) - 1
        return size_bytes >= _WORTH * _PORTIONS * others * threads * self.portion_bytes


# The prior: which engine measured best, and which may beat it. Far away, if advice is ignored or
# harmful, `read` is what helps: `splice` then asks for a pipe's 64 KiB at a time. A wrong choice
# there costs more than a right one gains, so it takes a wider margin.
_FAR = Trial((Engine.ADVISE, Engine.READ), better=1.3, fast_is_enough=False)
_NEAR = Trial((Engine.SPLICE, Engine.ADVISE), better=1.1, fast_is_enough=True)


def trial(engine: Engine, *, far: bool, block_bytes: int) -> Trial:
    """Return how to find the engine that was asked for: only AUTO leaves a choice."""
    prior = _FAR if far else _NEAR
    if engine is not Engine.AUTO:
        prior = replace(prior, engines=(engine,))
    # The other engine may be far slower, so a thread reads half a block with it.
    return replace(prior, portion_bytes=max(STEP_BYTES, block_bytes // 2))


@dataclass(frozen=True)
class Portion:
    """What a thread reads next."""

    engine: Engine
    size_bytes: int
    measured: bool  # its time counts in the comparison


class EngineTuner:
    """Finds the engine that reads fastest here, by trying each.

    No engine wins everywhere. All threads try the same one at a time, because side by side the one
    that fills the device's queue first would win at the other's expense. Another engine replaces
    the likely one at once if it is far faster, otherwise only if a second comparison agrees: one
    comparison takes a few dozen milliseconds, in which the machine may have been busy.
    """

    def __init__(self, trial: Trial, *, threads: int, compare: bool) -> None:
        self._trial = trial
        self._threads = threads
        self._likely = self._chosen = trial.engines[0]
        self._others = trial.engines[1:] if compare else ()
        self._comparisons = _COMPARISONS if self._others else 0
        # The first portions do not count: a connection opens its window, a disk's queue fills.
        self._settling = threads
        self._in_flight: Counter[Engine] = Counter()
        self._untried: list[Engine] = []  # the next one last
        self._compare()

    def pick(self, most_bytes: int) -> Portion:
        """Return what to read next, of at most this size; `record` must follow."""
        engine = self._untried[-1] if self._untried else self._chosen
        # Beside portions of another engine, the time would measure both.
        measured = self._in_flight.total() == self._in_flight[engine]
        self._in_flight[engine] += 1
        if not self._untried:
            return Portion(engine, most_bytes, measured=False)
        if measured and self._settling > 0:
            self._settling -= 1
            measured = False
        elif measured:
            self._left -= 1
            if self._left <= 0:
                self._next()
        return Portion(engine, min(most_bytes, self._trial.portion_bytes), measured)

    def abandon(self, engine: Engine, size_bytes: int, seconds: float) -> bool:
        """Return whether to leave a portion that has read so much in so long; its trial ends."""
        if seconds < _TOO_SLOW_SECONDS or engine is self._likely:
            return False
        if size_bytes / seconds >= _TOO_SLOW * self._rate(self._likely):
            return False
        if self._untried and self._untried[-1] is engine:
            self._next()
        return True

    def record(self, portion: Portion, size_bytes: int, seconds: float) -> None:
        """Take what was read of a portion, and how long that took."""
        self._in_flight[portion.engine] -= 1
        if portion.measured:
            self._bytes[portion.engine] += size_bytes
            self._seconds[portion.engine] += seconds
        compared = self._comparisons and not self._untried
        if compared and not any(self._in_flight[other] for other in self._others):
            self._judge()

    def _compare(self) -> None:
        self._bytes: Counter[Engine] = Counter()
        self._seconds: dict[Engine, float] = dict.fromkeys(self._trial.engines, 0.0)
        self._left = self._quota
        if self._comparisons:
            self._untried = [*reversed(self._others), self._likely]

    def _judge(self) -> None:
        """Choose, or compare the best two again where that is in doubt."""
        likely = self._rate(self._likely)
        best = max(self._others, key=self._rate)
        better = self._rate(best) > self._trial.better * likely > 0
        self._comparisons = self._comparisons - 1 if better else 0
        if self._comparisons and _TOO_SLOW * self._rate(best) < likely:
            self._others = (best,)
            self._compare()
        elif better:
            self._comparisons = 0
            self._chosen = best

    def _next(self) -> None:
        self._untried.pop()
        self._left = self._quota
        rate = self._rate(self._likely) * self._threads
        if self._trial.fast_is_enough and rate > _FAST_BYTES_PER_SECOND:
            self._untried.clear()
            self._comparisons = 0

    @property
    def _quota(self) -> int:
        return _PORTIONS * self._threads

    def _rate(self, engine: Engine) -> float:
        seconds = self._seconds[engine]
        return self._bytes[engine] / seconds if seconds > 0 else 0.0


class Climb(enum.Enum):
    """Why threads begin with one, and by which factor a step must raise the rate to stand."""

    # Each turn of the head costs as much as reading a megabyte. A virtual disk only says that it
    # spins, and is faster with more: that is found within a second.
    SPINNING = 1.15
    # Others use the disk too. Beside one other reader, two threads get 4/3 of one thread's share of
    # a saturated disk.
    YIELDING = 1.5


class ThreadTuner:
    """Says how many threads read: all, or as few as the rate needs where more may do harm.

    On a disk that others use, their request waits behind all of ours, and a disk that one thread
    saturates is no faster with eight. So one starts, and their number doubles as long as that pays.
    A single thread that reads a file end to end also gets the largest folios, which a loader maps
    fastest.
    """

    def __init__(self, most: int, climb: Climb | None, *, now: float) -> None:
        self.admitted = most if climb is None else 1
        self.fixed = self.admitted == most  # nothing to tune
        self._worth = math.inf if climb is None else climb.value
        self._most = most
        self._since = now
        self._bytes = 0
        self._before = 1  # threads of the step before
        self._rate_before = 0.0  # with those
        self._settled = 0  # steps since more threads did not pay; 0 while climbing

    def record(self, size_bytes: int, now: float) -> None:
        """Count what was read, and decide once in a while."""
        self._bytes += size_bytes
        seconds = now - self._since
        if seconds >= _CLIMB_SECONDS:
            self._step(self._bytes / seconds, now)

    def look(self, now: float) -> None:
        """Admit more where nothing has been read for long: whoever reads hangs."""
        if now - self._since > _STALLED_SECONDS:
            self._admit(2 * self.admitted, now)

    def end(self, now: float) -> None:
        """Admit all: nothing is left to read."""
        self._admit(self._most, now)

    def _step(self, rate: float, now: float) -> None:
        if self._settled:
            self._settled += 1
            if self._settled > _CLIMB_AGAIN:
                self._settled = 0
                self._rate_before = 0.0
                self._admit(self.admitted // 2, now)
        elif rate < self._worth * self._rate_before:
            self._settled = 1
            self._admit(self._before, now)
        elif self.admitted == self._most:
            self._settled = 1
        else:
            self._before, self._rate_before = self.admitted, rate
            self._admit(2 * self.admitted, now)
        self._bytes, self._since = 0, now

    def _admit(self, threads: int, now: float) -> None:
        self.admitted = max(1, min(threads, self._most))
        self._since = now


class StepTuner:
    """Sizes one thread's calls on far media: twice as much after a short one, half after a long."""

    def __init__(self, short_seconds: float, long_seconds: float) -> None:
        self.size_bytes = STEP_BYTES
        self._short_seconds = short_seconds
        self._long_seconds = long_seconds

    def record(self, seconds: float) -> None:
        """Take how long the last call took."""
        if seconds < self._short_seconds:
            self.size_bytes = min(2 * self.size_bytes, MOST_STEP_BYTES)
        elif seconds > self._long_seconds:
            self.size_bytes = max(self.size_bytes // 2, STEP_BYTES)
