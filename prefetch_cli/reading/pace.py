"""--max-rate: how long to wait before each read."""

import threading
import time
from collections.abc import Callable

from prefetch_cli.base.stop import Stop
from prefetch_cli.linux.pagecache import PAGE_BYTES


class Limiter:
    """Spreads bytes evenly over time."""

    def __init__(
        self, bytes_per_second: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

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
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + size_bytes / self._rate
        stop.sleep(turn - now)
        return not stop.requested

    def give_back(self, size_bytes: int) -> None:
        """Return what `wait` granted but a short read did not use."""
        if self._rate is not None:
            with self._lock:
                self._next -= size_bytes / self._rate
