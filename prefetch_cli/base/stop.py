"""A request to stop, because of a signal or a time limit."""

import signal
import threading
import time

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # each ends a run, with a summary


class Stop:
    """A request to stop, which worker threads look at before each step and while they wait."""

    def __init__(
        self, time_limit_seconds: float | None = None, above: "Stop | None" = None
    ) -> None:
        self._above = above
        self._event = threading.Event()
        self._deadline = (
            None if time_limit_seconds is None else time.monotonic() + time_limit_seconds
        )
        self._paused_until = 0.0

    def request(self) -> None:
        """Ask every thread to stop at its next step."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether to stop now, because of a request or the time limit."""
        above = self._above is not None and self._above.requested
        return above or self._event.is_set() or self.time_is_up

    @property
    def interrupted(self) -> bool:
        """Whether `request` was called."""
        return self._event.is_set()

    @property
    def time_is_up(self) -> bool:
        """Whether the time limit has passed."""
        deadline = self._deadline
        return deadline is not None and time.monotonic() >= deadline

    @property
    def overdue_seconds(self) -> float:
        """Seconds since the time limit passed; zero or negative until then.

        A pause does not count: it does not mean that the storage hangs.
        """
        deadline = self._deadline  # another thread may lift it
        if deadline is None:
            return 0.0
        return time.monotonic() - max(deadline, self._paused_until)

    def lift_time_limit(self) -> None:
        """Let the time limit pass unnoticed from now on."""
        self._deadline = None

    def within(self, seconds: float) -> "Stop":
        """Return a stop that is requested with this one, or after so many seconds."""
        return Stop(seconds, self)

    def sleep(self, seconds: float) -> None:
        """Wait, but return at a request or at the time limit."""
        if self._deadline is not None:
            seconds = min(seconds, self._deadline - time.monotonic())
        if seconds > 0:
            self._event.wait(seconds)

    def pause(self, seconds: float) -> None:
        """Wait, even past the time limit, but return at a request."""
        if seconds > 0:
            self._paused_until = time.monotonic() + seconds
            self._event.wait(seconds)
