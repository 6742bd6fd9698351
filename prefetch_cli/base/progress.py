"""What is under way: the one value that several threads write and read."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import NamedTuple


class Wait(NamedTuple):
    """A call into the storage that has not returned yet."""

    path: str
    offset: int | None  # bytes; None for a look-up, which has no offset
    seconds: float


class Progress(NamedTuple):
    """The progress at one moment."""

    total_bytes: int
    done_bytes: int
    total_files: int
    done_files: int
    elapsed_seconds: float
    longest_wait: Wait | None
    idle_seconds: float  # since the storage last answered, while any thread waits for it
    done_by_part: Mapping[str, int] = MappingProxyType({})  # bytes
    part_seconds: float = 0.0  # since the current part began

    @property
    def bytes_per_second(self) -> float:
        """The rate since reading began."""
        return self.done_bytes / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    @property
    def left_seconds(self) -> float | None:
        """The time that the rest takes at this rate; None where there is no rate yet."""
        rate = self.bytes_per_second
        return (self.total_bytes - self.done_bytes) / rate if rate > 0 else None


class Monitor:
    """The observer of a run: the stages report to it, the main thread polls it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Per thread, the nested calls it waits in: path, offset, start. The innermost is last.
        self._waits: dict[int, list[tuple[str, int | None, float]]] = {}
        self._last_arrival = 0.0
        self._started: float | None = None
        self._stopped: float | None = None
        self._total_bytes = self._total_files = self._done_files = 0
        self._parts_left = 0
        self._part = ""
        self._part_started = 0.0
        self._done_by_part: dict[str, int] = {}

    def waiting(self, path: str, offset: int | None = None) -> AbstractContextManager[None]:
        """Report a call into the storage, until it returns."""
        return _Waiting(self, path, offset)

    def _wait(self, path: str, offset: int | None) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._waits:
                self._last_arrival = now
            self._waits.setdefault(threading.get_ident(), []).append((path, offset, now))

    def _arrive(self) -> None:
        thread, now = threading.get_ident(), time.monotonic()
        with self._lock:
            self._last_arrival = now
            waits = self._waits[thread]
            waits.pop()
            if waits:
                # The storage has answered: the outer call starts waiting again now.
                waits[-1] = (*waits[-1][:2], now)
            else:
                del self._waits[thread]

    def announce(self, parts: Mapping[str, tuple[int, int]]) -> None:
        """Report which parts will be read, with the bytes and files of each."""
        with self._lock:
            self._total_bytes = sum(size_bytes for size_bytes, _ in parts.values())
            self._total_files = sum(files for _, files in parts.values())
            self._parts_left = len(parts)

    @contextmanager
    def reading_part(self, name: str) -> Iterator[None]:
        """Report that an announced part is being read, until the block ends."""
        with self._lock:
            self._part, self._part_started = name, time.monotonic()
            self._started = self._started or self._part_started
        yield
        with self._lock:
            self._parts_left -= 1
            if self._parts_left == 0:
                self._stopped = time.monotonic()

    def advance(self, size_bytes: int) -> None:
        """Report that more of the current part has been read."""
        with self._lock:
            self._done_by_part[self._part] = self._done_by_part.get(self._part, 0) + size_bytes

    def finish_file(self) -> None:
        """Report that a file is finished."""
        with self._lock:
            self._done_files += 1

    @property
    def reading(self) -> bool:
        """Whether reading has begun."""
        return self._started is not None

    def snapshot(self) -> Progress:
        """Return the current progress."""
        with self._lock:
            now = time.monotonic()
            waits = (waits[-1] for waits in self._waits.values())
            oldest = min(waits, key=lambda wait: wait[2], default=None)
            return Progress(
                total_bytes=self._total_bytes,
                done_bytes=sum(self._done_by_part.values()),
                total_files=self._total_files,
                done_files=self._done_files,
                elapsed_seconds=(
                    0.0 if self._started is None else (self._stopped or now) - self._started
                ),
                longest_wait=(
                    None if oldest is None else Wait(oldest[0], oldest[1], now - oldest[2])
                ),
                idle_seconds=now - self._last_arrival if self._waits else 0.0,
                done_by_part=dict(self._done_by_part),
                part_seconds=(self._stopped or now) - self._part_started,
            )


class _Waiting(AbstractContextManager[None]):
    """A call into the storage: no generator, because each step of a run makes one."""

    __slots__ = ("_monitor", "_offset", "_path")

    def __init__(self, monitor: Monitor, path: str, offset: int | None) -> None:
        self._monitor = monitor
        self._path = path
        self._offset = offset

    def __enter__(self) -> None:
        self._monitor._wait(self._path, self._offset)

    def __exit__(self, *_: object) -> None:
        self._monitor._arrive()


class Aside(Monitor):
    """Reports waits to another monitor, and none of what is read as its progress."""

    def __init__(self, above: Monitor) -> None:
        super().__init__()
        self._above = above

    def waiting(self, path: str, offset: int | None = None) -> AbstractContextManager[None]:
        """Report a call into the storage to the other monitor, until it returns."""
        return self._above.waiting(path, offset)
