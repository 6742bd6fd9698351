"""A window that moves with a loader: what to read next, and what to drop to make room for it.

Pure: values in load order, in and out.
"""

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.plan.extents import Extent, joined, without


class Wish(enum.Enum):
    """Who wants a window."""

    GIVEN = "given"  # the user, whether it fits or not
    DEFAULT = "default"  # we do, where it does not fit
    NONE = "none"  # nobody, but there could be one


class Ahead(NamedTuple):
    """A window that moves ahead of COMMAND's loader."""

    size_bytes: int
    wish: Wish


@dataclass(frozen=True, order=True)
class Position:
    """A place in the load order."""

    file: int
    offset: int  # bytes


class Where(NamedTuple):
    """Where a loader is."""

    at: Position  # of its slowest process
    had: frozenset[int]  # the files that any of its processes has had mapped or open
    passed: frozenset[int]  # those that no process has now, or may still come to
    over: bool  # it has had the last file, and has none any more


class Turn(NamedTuple):
    """What to do next, the dropping first."""

    drop: tuple[Extent, ...]
    read: tuple[Extent, ...]
    cut: Extent | None = None  # the head of the file in which the window ends


class Window:
    """What the page cache holds of what a loader reads, as far as that is known.

    `order` is what it reads, in load order and apart; `held` what is resident of that when the
    window opens. The window reaches `size_bytes` ahead, to the end of a page at most.
    """

    def __init__(
        self, order: Sequence[Extent], size_bytes: int, page_bytes: int, held: Iterable[Extent]
    ) -> None:
        self.order = tuple(order)
        self.size_bytes = size_bytes
        self.furthest_bytes = 0  # that any reading has ended ahead of the loader
        self.dropped_bytes = 0
        self._page_bytes = page_bytes
        self._held = tuple(joined(held))
        self._counted: frozenset[int] = frozenset()  # as held, since the loader has read them

    def turn(self, where: Where, room_bytes: int, most_bytes: int) -> Turn:
        """Return what to drop and then to read, at most so much at once.

        The page cache may hold `room_bytes`. Where it would hold more, what has been passed is
        dropped: the first files first, and each as a whole.
        """
        self._count(where)
        ahead = list(self._ahead(where.at))
        wanted = tuple(self._first(without(ahead, self._held), most_bytes))
        near = {extent.file for extent in ahead}  # a loader that begins anew is there
        held_bytes = total(self._held)
        drop: list[Extent] = []
        for file in sorted(where.passed - near):
            if held_bytes + total(wanted) <= room_bytes:
                break
            if gone_bytes := total(self._of(self._held, file)):
                drop += self._of(self.order, file)
                held_bytes -= gone_bytes
        read = tuple(self._first(wanted, room_bytes - held_bytes))
        return Turn(tuple(drop), read, self._cut(ahead))

    def _cut(self, ahead: Sequence[Extent]) -> Extent | None:
        """Return the head of the file in which the window ends, None where it ends with one."""
        if not ahead:
            return None
        last = ahead[-1]
        end = max(extent.end for extent in self._of(self.order, last.file))
        return None if last.end == end else Extent(last.file, 0, last.end)

    def rest_of_head(self, had: Collection[int], room_bytes: int) -> tuple[Extent, ...]:
        """Return what is missing of the head that fits, for a loader that is not followed.

        What that has had takes room too.
        """
        self.record_read(extent for extent in self.order if extent.file in had)
        missing = without(self._first(self.order, room_bytes), self._held)
        return tuple(self._first(missing, room_bytes - total(self._held)))

    def record_read(self, extents: Iterable[Extent], at: Position | None = None) -> None:
        """Take what was read while the loader was there, None where that does not matter."""
        extents = tuple(extents)
        self._held = tuple(joined((*without(extents, self._held), *self._held)))
        if at is not None and extents:
            last = extents[-1]
            ahead_bytes = self._before(Position(last.file, last.end)) - self._before(at)
            self.furthest_bytes = max(self.furthest_bytes, ahead_bytes)

    def record_dropped(self, extents: Sequence[Extent]) -> None:
        """Take what was dropped."""
        left = tuple(without(self._held, extents))
        self.dropped_bytes += total(self._held) - total(left)
        self._held = left

    def _count(self, where: Where) -> None:
        """Count what the loader itself has read: all of the files that it has passed."""
        read = where.passed & where.had
        new = read - self._counted
        self._counted = read
        self.record_read(extent for extent in self.order if extent.file in new)

    def _ahead(self, at: Position) -> Iterator[Extent]:
        """Yield the window: as far as it reaches from there."""
        start = at.offset // self._page_bytes * self._page_bytes
        yield from self._first(self._behind(at.file, start), self.size_bytes + at.offset - start)

    def _behind(self, file: int, start: int) -> Iterator[Extent]:
        """Yield what lies behind an offset of a file."""
        for extent in self.order:
            if extent.file > file:
                yield extent
            elif extent.file == file and extent.end > start:
                offset = max(extent.offset, start)
                yield Extent(file, offset, extent.end - offset)

    def _before(self, at: Position) -> int:
        """Return how much lies before a place."""
        behind = self._behind(at.file, at.offset)
        return total(self.order) - total(behind)

    def _first(self, extents: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
        """Yield the first bytes of extents, up to the end of a page."""
        for extent in extents:
            if extent.length > size_bytes:
                end = (extent.offset + max(0, size_bytes)) // self._page_bytes * self._page_bytes
                if end > extent.offset:
                    yield extent._replace(length=end - extent.offset)
                return
            yield extent
            size_bytes -= extent.length

    @staticmethod
    def _of(extents: Iterable[Extent], file: int) -> list[Extent]:
        return [extent for extent in extents if extent.file == file]


def total(extents: Iterable[Extent]) -> int:
    """Return the bytes of extents."""
    return sum(extent.length for extent in extents)
