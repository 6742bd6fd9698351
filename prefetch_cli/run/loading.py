"""Watches in a thread of its own which weights COMMAND uses, and whether it has loaded them."""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import counted
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.threads import Thread, spawn
from prefetch_cli.linux.uses import Place, Tree, Uses
from prefetch_cli.residency.keep import SETTLE_SECONDS, Loading

_BUSY = 0.05  # the most of a processor that looking takes
_BLIND_LOOKS = 3  # that see no process, until that is said
NOBODY_LOOKS = (
    "the system killed the thread that looks at COMMAND's processes, as a seccomp filter may, or "
    "had no memory for it"
)


class Tunables(NamedTuple):
    """Times of the watch."""

    look_seconds: float = 0.25  # a loader may have a small file open for that long
    settle_seconds: float = SETTLE_SECONDS
    unused_seconds: float = 600.0  # with no file opened, until that is said


TUNABLES = Tunables()


class Looks:
    """Looks again and again which of some files COMMAND's processes have mapped or open."""

    def __init__(
        self,
        pid: int,
        files: Sequence[File],
        stop: Stop,
        look_seconds: float,
        record: Callable[[Uses, float], None],
    ) -> None:
        """Take who is told of each look, with the moment of it on the monotonic clock."""
        places = [Place(file.real_path, file.identity) for file in files]
        self._tree = Tree(pid, places, without=os.getpid())
        self._stop = stop
        self._record = record
        self.look_seconds = look_seconds  # between two, or more where looking takes long
        self._thread: Thread | None = None
        self._defect: BaseException | None = None

    def start(self) -> None:
        """Look until the run is interrupted; raises RuntimeError where no thread can be started."""
        self._thread = spawn(self._run)

    @property
    def are_over(self) -> bool:
        """Whether nobody looks any more: the system killed the thread, or had no memory for it.

        Re-raises an unexpected exception of a look.
        """
        if self._defect is not None:
            raise self._defect
        ended = self._thread is not None and not self._thread.is_alive()
        return ended and not self._stop.interrupted

    def _run(self) -> None:
        try:
            while not self._stop.interrupted:
                began = time.thread_time()
                self._record(self._tree.look(), time.monotonic())
                took = time.thread_time() - began
                self._stop.pause(max(self.look_seconds, took / _BUSY))
        except MemoryError:
            return  # as `are_over` tells
        except BaseException as error:  # noqa: BLE001 - a defect: whoever asks re-raises it
            self._defect = error


class Watch:
    """Tells whether COMMAND has loaded its weights."""

    def __init__(
        self, pid: int, files: Sequence[File], stop: Stop, tunables: Tunables = TUNABLES
    ) -> None:
        self._files = len(files)
        self._loading = Loading(range(len(files)), tunables.settle_seconds)
        self._looks = Looks(pid, files, stop, tunables.look_seconds, self._record)
        self._tunables = tunables
        self._began = time.monotonic()
        self._blind_looks = 0

    def start(self) -> None:
        """Look until the run is stopped; raises RuntimeError where no thread can be started."""
        self._looks.start()

    @property
    def is_over(self) -> bool:
        """Whether COMMAND has loaded all files and has none of them in use."""
        return self._loading.is_over(time.monotonic()) and not self._looks.are_over

    @property
    def doubt(self) -> str | None:
        """Why it may never be known that COMMAND has loaded them, None while there is hope."""
        if self._looks.are_over:
            return f"{NOBODY_LOOKS}: it is kept until COMMAND ends"
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

    def _record(self, uses: Uses, now: float) -> None:
        self._blind_looks = 0 if uses.processes else self._blind_looks + 1
        self._loading.record(uses.files, now)
