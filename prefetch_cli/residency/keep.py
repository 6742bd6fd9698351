"""What the kernel dropped of what is to stay, what to read again, and when to give up: pure."""

import enum
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.plan.extents import Extent, blocks, without
from prefetch_cli.residency.survey import Survey

_MOST_DROPS = 3  # of the same bytes: memory is simply short
_BLOCK_BYTES = 1024 * 1024  # how finely drops are counted
_NOISE = 0.05  # of a file: an estimate that finds less missing has found nothing
SETTLE_SECONDS = 30.0  # a loader may close one file some time before it opens the next


class Ended(enum.Enum):
    """Why keeping has ended."""

    DURATION = "duration"
    LOADED = "loaded"
    NOTHING_HELD = "nothing-held"
    GIVEN_UP = "given-up"
    RELEASED = "released"
    UNKNOWN = "unknown"
    INTERRUPTED = "interrupted"


class Loss(NamedTuple):
    """A range of which some, or all, is no longer resident."""

    extent: Extent
    size_bytes: int


class Turn(NamedTuple):
    """What follows from a look."""

    again: tuple[Extent, ...]  # to be read again, in load order
    given_up: tuple[Extent, ...]  # dropped for the third time


def losses(found: Survey, held: Iterable[Extent]) -> list[Loss] | None:
    """Return what a look did not find of what is held; None where no method can tell.

    An exact method says which pages are missing. An estimate only says how much of a file is, so
    all of that file is read again, which costs nothing where it is resident; and what lies within
    the noise of a sample is no loss, nor is anything where all may be there.
    """
    if found.resident_bytes is None or found.high_bytes is None:
        return None
    if found.method.exact:
        return [Loss(extent, extent.length) for extent in found.missing]
    if found.high_bytes >= found.total_bytes:
        return []
    held_bytes = Counter[int]()
    for extent in held:
        held_bytes[extent.file] += extent.length
    missing_bytes = Counter[int]()
    for extent in found.missing:
        missing_bytes[extent.file] += extent.length
    lost: list[Loss] = []
    for extent in found.missing:
        # Of a file that was sampled all is listed as missing.
        gone_bytes = held_bytes[extent.file] - (found.resident_by_file[extent.file] or 0)
        part = gone_bytes / missing_bytes[extent.file]
        if part >= _NOISE:
            lost.append(Loss(extent, round(part * extent.length)))
    return lost


class Keeper:
    """Counts what is dropped, and gives up what is dropped for the third time."""

    def __init__(self, held: Sequence[Extent]) -> None:
        """Take what is to stay: extents in load order that do not overlap."""
        self.held = tuple(held)
        self._dropped_bytes: Counter[tuple[int, int]] = Counter()  # by file and block

    def record(self, lost: Iterable[Loss]) -> Turn:
        """Return what to read again and what is given up, which is held no more."""
        again: list[Extent] = []
        given_up: list[Extent] = []
        for loss in lost:
            for piece in blocks(loss.extent, _BLOCK_BYTES):
                key = piece.file, piece.offset // _BLOCK_BYTES
                dropped = self._dropped_bytes[key]
                dropped += -(-piece.length * loss.size_bytes // loss.extent.length)
                self._dropped_bytes[key] = dropped
                mine = list(self._of_block(piece.file, key[1] * _BLOCK_BYTES))
                # More than twice all of it: so some of it was dropped three times.
                if dropped > (_MOST_DROPS - 1) * sum(extent.length for extent in mine):
                    given_up += mine
                else:
                    again.append(piece)
        if given_up:
            given_up = sorted(set(given_up))
            self.held = tuple(without(self.held, given_up))
            again = list(without(again, given_up))
        return Turn(_joined(again), _joined(given_up))

    def forget(self, files: Iterable[int]) -> None:
        """Hold these files no more."""
        gone = frozenset(files)
        self.held = tuple(extent for extent in self.held if extent.file not in gone)

    def _of_block(self, file: int, start: int) -> Iterator[Extent]:
        """Yield what is held of a block."""
        end = start + _BLOCK_BYTES
        number = max(0, bisect_right(self.held, (file, start)) - 1)
        while number < len(self.held) and self.held[number][:2] < (file, end):
            extent = self.held[number]
            first, last = max(start, extent.offset), min(end, extent.end)
            if extent.file == file and first < last:
                yield Extent(file, first, last - first)
            number += 1


class Loading:
    """Tells from looks at a loader's files when it has loaded all of them."""

    def __init__(self, files: Iterable[int], settle_seconds: float = SETTLE_SECONDS) -> None:
        self.unused = set(files)  # that it has not had mapped or open yet
        self._settle_seconds = settle_seconds
        self._last_used = 0.0

    def record(self, used: Iterable[int], now: float) -> None:
        """Take the files that are mapped or open at a moment, in seconds of any clock."""
        for file in used:
            self.unused.discard(file)
            self._last_used = now

    def is_over(self, now: float) -> bool:
        """Return whether all were used and, for long enough, none is any more."""
        return not self.unused and now - self._last_used >= self._settle_seconds


def _joined(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """Return the extents, each joined with those that it touches."""
    found: list[Extent] = []
    for extent in extents:
        last = found[-1] if found else None
        if last is not None and (last.file, last.end) == (extent.file, extent.offset):
            found[-1] = last._replace(length=last.length + extent.length)
        else:
            found.append(extent)
    return tuple(found)
