"""A request to stop, by a signal or because the time is up."""

import threading
import time


class Stop:
    """A request to stop: made by a signal, or by a deadline that has passed."""

    def __init__(self, time_limit_seconds: float | None = None) -> None:
        self._event = threading.Event()
        self._deadline = (
            None if time_limit_seconds is None else time.monotonic() + time_limit_seconds
        )
        self._paused_until = 0.0

    def request(self) -> None:
        """Ask everything that waits on this to stop at its next step."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether to stop now, by request or because the time is up."""
        return self._event.is_set() or self.time_is_up

    @property
    def interrupted(self) -> bool:
        """Whether someone asked to stop."""
        return self._event.is_set()

    @property
    def time_is_up(self) -> bool:
        """Whether the time limit has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def overdue_seconds(self) -> float:
        """Seconds since the time limit passed; negative or zero while it has not.

        A pause does not count: it is no sign of a storage that hangs.
        """
        if self._deadline is None:
            return 0.0
        return time.monotonic() - max(self._deadline, self._paused_until)

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the stop."""
        if self._deadline is not None:
            seconds = min(seconds, self._deadline - time.monotonic())
        if seconds > 0:
            self._event.wait(seconds)

    def pause(self, seconds: float) -> None:
        """Wait, whatever the time limit, but no longer than until someone asks to stop."""
        if seconds > 0:
            self._paused_until = time.monotonic() + seconds
            self._event.wait(seconds)
