"""Ranges of files in load order: pure functions over them."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.checkpoint.files import File, Range


class Extent(NamedTuple):
    """A contiguous range of one file."""

    file: int  # its place in the load order
    offset: int  # bytes
    length: int  # bytes

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


def needed(files: Iterable[File]) -> Iterator[Extent]:
    """Yield what is needed of the files, in load order."""
    return (Extent(number, *part) for number, file in enumerate(files) for part in file.ranges)


def in_pages(file: File, page_bytes: int, gap_bytes: int) -> File:
    """Return a file with the parts that are read for those that are needed.

    They are whole pages, since the cache holds these, and include each gap of at most `gap_bytes`,
    but none beside a single page: the kernel reads nothing ahead of that.
    """
    if file.parts is None:
        return file
    pages = []
    for offset, length in file.parts:
        start = offset // page_bytes * page_bytes
        end = -(-(offset + length) // page_bytes) * page_bytes
        pages.append(Extent(0, start, min(end, file.size_bytes) - start))
    pages = list(joined(pages))
    large = joined((one for one in pages if one.length > page_bytes), gap_bytes)
    parts = (Range(one.offset, one.length) for one in joined((*large, *pages)))
    return file._replace(parts=tuple(parts))


def head(extents: Iterable[Extent], limit_bytes: int, page_bytes: int) -> Extent | None:
    """Return the head of the file that crosses `limit_bytes` in load order; None: all extents fit.

    What lies before its end fits, what lies behind it does not. It ends at a page, since the cache
    holds whole pages, and so each extent begins at one.
    """
    left = limit_bytes
    for extent in extents:
        pages_bytes = -(-extent.length // page_bytes) * page_bytes
        if pages_bytes > left:
            fits = min(left // page_bytes * page_bytes, extent.length)
            return Extent(extent.file, 0, extent.offset + fits)
        left -= pages_bytes
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


def joined(extents: Iterable[Extent], gap_bytes: int = 0) -> Iterator[Extent]:
    """Yield extents in load order, as one those with at most `gap_bytes` between them."""
    last: Extent | None = None
    for extent in sorted(extents):
        if last is None or last.file != extent.file or last.end + gap_bytes < extent.offset:
            if last is not None:
                yield last
            last = extent
        else:
            last = last._replace(length=max(last.end, extent.end) - last.offset)
    if last is not None:
        yield last


def blocks(extent: Extent, block_bytes: int) -> Iterator[Extent]:
    """Yield the extent in blocks of at most `block_bytes`, cut at multiples of it."""
    offset = extent.offset
    while offset < extent.end:
        end = min(extent.end, (offset // block_bytes + 1) * block_bytes)
        yield Extent(extent.file, offset, end - offset)
        offset = end
