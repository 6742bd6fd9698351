"""Ranges of files in load order: pure functions over them."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Extent(NamedTuple):
    """A contiguous range of one file."""

    file: int  # its place in the load order
    offset: int  # bytes
    length: int  # bytes

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


def whole(sizes: Sequence[int], files: Iterable[int]) -> Iterator[Extent]:
    """Yield one extent for each file that is not empty."""
    return (Extent(file, 0, sizes[file]) for file in files if sizes[file] > 0)


def head(sizes: Sequence[int], limit_bytes: int, page_bytes: int) -> Extent | None:
    """Return the head of the file that crosses `limit_bytes` in load order; None: all files fit.

    Files before it fit, files after it do not. It ends at a page, since the cache holds whole
    pages.
    """
    left = limit_bytes
    for file, size in enumerate(sizes):
        if -(-size // page_bytes) * page_bytes > left:
            return Extent(file, 0, min(left // page_bytes * page_bytes, size))
        left -= -(-size // page_bytes) * page_bytes
    return None


def within(extents: Iterable[Extent], cut: Extent | None) -> Iterator[Extent]:
    """Yield the parts of `extents` within the limit, `cut` being what `head` returned."""
    for extent in extents:
        if cut is None or extent.file < cut.file:
            yield extent
        elif extent.file == cut.file and extent.offset < cut.length:
            yield extent._replace(length=min(extent.length, cut.length - extent.offset))


def without(extents: Iterable[Extent], pieces: Sequence[Extent]) -> Iterator[Extent]:
    """Yield what is left of `extents` without `pieces`, which do not overlap."""
    by_file: dict[int, list[Extent]] = {}
    for piece in sorted(pieces):
        by_file.setdefault(piece.file, []).append(piece)
    ends = {file: [piece.end for piece in group] for file, group in by_file.items()}
    for extent in extents:
        offset = extent.offset
        # There may be thousands on both sides: begin with the first piece that can overlap.
        group = by_file.get(extent.file, [])
        for number in range(bisect_right(ends.get(extent.file, []), offset), len(group)):
            piece = group[number]
            if piece.offset >= extent.end:
                break
            if piece.offset > offset:
                yield Extent(extent.file, offset, piece.offset - offset)
            offset = piece.end
        if offset < extent.end:
            yield Extent(extent.file, offset, extent.end - offset)


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield extents that do not overlap in their order, those that touch as one."""
    ordered = sorted(extents)
    start = ordered[:1]
    for before, after in pairwise(ordered):
        if (before.file, before.end) != (after.file, after.offset):
            yield start[0]._replace(length=before.end - start[0].offset)
            start = [after]
    if ordered:
        yield start[0]._replace(length=ordered[-1].end - start[0].offset)


def blocks(extent: Extent, block_bytes: int) -> Iterator[Extent]:
    """Yield the extent in blocks of at most `block_bytes`, cut at multiples of it."""
    offset = extent.offset
    while offset < extent.end:
        end = min(extent.end, (offset // block_bytes + 1) * block_bytes)
        yield Extent(extent.file, offset, end - offset)
        offset = end
