"""Follows in a thread of its own where COMMAND's loader is."""

import threading
import time
from collections.abc import Sequence

from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.uses import Uses
from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.loaders import Loaders, Lost, Name, Patience
from prefetch_cli.plan.window import Where
from prefetch_cli.run.loading import Looks

_LOOK_SECONDS = 0.1
_IDLE_LOOK_SECONDS = 1.0  # while COMMAND imports, or serves from what it has mapped
_IDLE_SECONDS = 10.0  # without any change, until that is so


class Follower:
    """Where the slowest of COMMAND's processes is in what it reads."""

    def __init__(
        self,
        pid: int,
        files: Sequence[File],
        order: Sequence[Extent],
        window_bytes: int,
        stop: Stop,
        patience: Patience,
    ) -> None:
        """Take all files, those parts of them that are read in load order, and the window."""
        self._lock = threading.Lock()
        self._numbers = sorted({extent.file for extent in order})
        self._loaders = Loaders(order, window_bytes, time.monotonic(), patience)
        self._held: dict[Name, dict[int, int]] = {}
        self._changed = time.monotonic()
        mine = [files[number] for number in self._numbers]
        self._looks = Looks(pid, mine, stop, _LOOK_SECONDS, self._record)

    def start(self) -> None:
        """Look until the run is interrupted; raises RuntimeError where no thread can be started."""
        self._looks.start()

    def where(self) -> Where:
        """Return where the loader is."""
        with self._lock:
            return self._loaders.where(time.monotonic())

    @property
    def lost(self) -> Lost | None:
        """Why it cannot be followed; None while it can."""
        if self._looks.are_over:
            return Lost.KILLED
        with self._lock:
            return self._loaders.lost

    def _record(self, uses: Uses, now: float) -> None:
        held = {
            name: {self._numbers[number]: offset for number, offset in files.items()}
            for name, files in uses.held.items()
        }
        if held != self._held:
            self._held, self._changed = held, now
        idle = now - self._changed >= _IDLE_SECONDS
        self._looks.look_seconds = _IDLE_LOOK_SECONDS if idle else _LOOK_SECONDS
        with self._lock:
            self._loaders.record(held, now)
