"""Watches in a thread of its own whether COMMAND has loaded its weights."""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import counted
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.threads import spawn
from prefetch_cli.linux.uses import Place, Tree
from prefetch_cli.residency.keep import SETTLE_SECONDS, Loading

_BUSY = 0.05  # the most of a processor that looking takes
_BLIND_LOOKS = 3  # that see no process, until that is said


class Tunables(NamedTuple):
    """Times of the watch."""

    look_seconds: float = 0.25  # a loader may have a small file open for that long
    settle_seconds: float = SETTLE_SECONDS
    unused_seconds: float = 600.0  # with no file opened, until that is said


TUNABLES = Tunables()


class Watch:
    """Looks which of the files COMMAND's processes have mapped or open, until stopped."""

    def __init__(
        self, pid: int, files: Sequence[File], stop: Stop, tunables: Tunables = TUNABLES
    ) -> None:
        places = [Place(file.real_path, file.identity) for file in files]
        self._files = len(files)
        self._tree = Tree(pid, places, without=os.getpid())
        self._loading = Loading(range(len(files)), tunables.settle_seconds)
        self._stop = stop
        self._tunables = tunables
        self._began = time.monotonic()
        self._blind_looks = 0

    def start(self) -> None:
        """Look until the run is stopped; raises RuntimeError where no thread can be started."""
        spawn(self._run)

    @property
    def is_over(self) -> bool:
        """Whether COMMAND has loaded all files and has none of them in use."""
        return self._loading.is_over(time.monotonic())

    @property
    def doubt(self) -> str | None:
        """Why it may never be known that COMMAND has loaded them, None while there is hope."""
        if self._blind_looks >= _BLIND_LOOKS:
            return (
                "which files COMMAND's processes use is hidden from this user (they are another "
                "user's, or not COMMAND's children): it is kept until COMMAND ends"
            )
        unused = len(self._loading.unused)
        if unused == self._files and time.monotonic() - self._began > self._tunables.unused_seconds:
            return (
                f"COMMAND has opened none of {counted(self._files, 'weight file')} so far: it is "
                "kept until COMMAND has loaded them or ends"
            )
        return None

    def _run(self) -> None:
        while not self._stop.interrupted:
            began = time.thread_time()
            uses = self._tree.look()
            self._blind_looks = 0 if uses.processes else self._blind_looks + 1
            self._loading.record(uses.files, time.monotonic())
            took = time.thread_time() - began
            self._stop.pause(max(self._tunables.look_seconds, took / _BUSY))
