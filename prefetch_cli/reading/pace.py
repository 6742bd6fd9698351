"""How much one call reads, and with --max-rate how long to wait before it."""

import threading
import time
from collections.abc import Callable

from prefetch_cli.base.stop import Stop
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.reading.prior import STEP_BYTES

MOST_STEP_BYTES = 4 * STEP_BYTES  # fewer, larger calls cost less where calls are fast


class Limiter:
    """Spreads bytes evenly over time."""

    def __init__(
        self, bytes_per_second: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._earliest = 0.0  # that it can be by now, even by a clock that stands still

    def step_bytes(self, most_bytes: int) -> int:
        """Return how much to read at once: at most a tenth of a second's worth."""
        if self._rate is None:
            return most_bytes
        pages = self._rate // 10 // PAGE_BYTES
        return min(most_bytes, max(1, pages) * PAGE_BYTES)

    def wait(self, size_bytes: int, stop: Stop) -> bool:
        """Return True once this many bytes may be read, or False when it is time to stop."""
        if self._rate is None:
            return True
        with self._lock:
            now = max(self._clock(), self._earliest)
            turn = max(now, self._next)
            self._next = turn + size_bytes / self._rate
        stop.sleep(turn - now)
        with self._lock:
            self._earliest = max(self._earliest, turn)
        return not stop.requested

    def give_back(self, size_bytes: int) -> None:
        """Return what `wait` granted but a short read did not use."""
        if self._rate is not None:
            with self._lock:
                self._next -= size_bytes / self._rate


class Steps:
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
