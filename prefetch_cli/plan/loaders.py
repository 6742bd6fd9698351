"""Where a loader is, from looks at which files its processes have mapped or open: pure.

A process is at the first of the files that it has. One that has none any more may be between two
files, so it still counts for a while.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.window import Position, Where

Name = tuple[int, int]  # of a process, as whoever looks at them tells them apart

# A loader of several threads may open a file before the one in front of it.
_MOST_STUMBLES = 2
# One that is at an earlier file again has begun anew, or looks at all headers first.
_MOST_RETURNS = 2


class Lost(enum.Enum):
    """Why a loader cannot be followed."""

    HIDDEN = "hidden"  # no process can be looked into
    UNUSED = "unused"  # none has opened a file for long
    ORDER = "order"  # it reads in another order
    SPREAD = "spread"  # it has files at once that lie farther apart than the window reaches
    KILLED = "killed"  # the system has killed the thread that looks


class Patience(NamedTuple):
    """How long something must last, in seconds, until it means anything."""

    settle: float = 10.0  # without a file, until a process has loaded
    hidden: float = 2.0
    unused: float = 600.0
    spread: float = 5.0


@dataclass
class _Process:
    """What has been seen of one process."""

    first: int  # of the files that it had when it was last seen with any
    last: int
    offset: int  # up to which it has read the first one
    seen: float
    holding: bool = True
    forward: bool = False  # it has gone on to a later file
    stumbles: int = 0
    returns: int = 0

    @property
    def at(self) -> Position:
        return Position(self.first, self.offset) if self.holding else Position(self.last + 1, 0)

    @property
    def least(self) -> int:
        """The first file that it may still come to; which way it goes is not known at once."""
        return self.first if self.forward else 0

    @property
    def strays(self) -> bool:
        return self.stumbles > _MOST_STUMBLES or self.returns > _MOST_RETURNS

    def hold(self, files: Mapping[int, int], now: float) -> None:
        first = min(files)
        if first > self.first:
            self.forward, self.stumbles = True, 0
        elif first < self.first and self.first in files:
            self.stumbles += 1
        elif first < self.first:
            # Backwards at the first step is no return.
            self.returns += 1 if self.forward else _MOST_RETURNS + 1
            self.forward = False
        self.first, self.last, self.offset = first, max(files), files[first]
        self.holding, self.seen = True, now


class Loaders:
    """The processes of one loader, seen again and again."""

    def __init__(
        self, order: Sequence[Extent], window_bytes: int, now: float, patience: Patience
    ) -> None:
        """Take what the loader reads, in load order, and how far the window reaches."""
        self._starts: dict[int, int] = {}
        start = 0
        for extent in order:
            self._starts.setdefault(extent.file, start)
            start += extent.length
        self._last = order[-1].file
        self._window_bytes = window_bytes
        self._patience = patience
        self._processes: dict[Name, _Process] = {}
        self._had: set[int] = set()
        self._at = Position(order[0].file, 0)
        self._seen = self._began = self._together = now
        self.lost: Lost | None = None

    def record(self, held: Mapping[Name, Mapping[int, int]], now: float) -> None:
        """Take the files of each process, with the offset up to which it has read each."""
        for gone in self._processes.keys() - held.keys():
            del self._processes[gone]
        for name, files in held.items():
            process = self._processes.get(name)
            if files and process is None:
                first = min(files)
                self._processes[name] = _Process(first, max(files), files[first], now)
            elif files and process is not None:
                process.hold(files, now)
            elif process is not None:
                process.holding = False
            self._had |= files.keys()
        self._seen = now if held else self._seen
        self._together = self._together if self._is_spread() else now
        self.lost = self.lost or self._loss(now)

    def where(self, now: float) -> Where:
        """Return where the loader is."""
        counted = [one for one in self._processes.values() if self._counts(one, now)]
        if counted:
            self._at = min(one.at for one in counted)
            passed = set(range(min(one.least for one in counted)))
        else:
            passed = self._had
        # Of one that has gone back, what it left out counts as still to come.
        if not counted or any(one.returns for one in counted):
            passed = passed & self._had
        over = self._last in self._had and not counted
        return Where(self._at, frozenset(self._had), frozenset(passed), over)

    def _counts(self, process: _Process, now: float) -> bool:
        return process.holding or now - process.seen < self._patience.settle

    def _is_spread(self) -> bool:
        return any(
            one.holding
            and self._starts[one.last] - self._starts[one.first] - one.offset > self._window_bytes
            for one in self._processes.values()
        )

    def _loss(self, now: float) -> Lost | None:
        if any(one.strays for one in self._processes.values()):
            return Lost.ORDER
        if now - self._together >= self._patience.spread:
            return Lost.SPREAD
        if now - self._seen >= self._patience.hidden:
            return Lost.HIDDEN
        if not self._had and now - self._began >= self._patience.unused:
            return Lost.UNUSED
        return None
