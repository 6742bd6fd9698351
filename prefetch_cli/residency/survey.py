"""A share -> how much of it is resident, and what is missing: by the best method that is true."""

import os
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.plan.extents import Extent, blocks

_SAMPLES = 1024  # pages asked about in a checkpoint: each may start a read of its own
# Looked at in one piece: where cachestat tells that all or none of it is resident, which costs
# next to nothing, no page needs to be looked at; otherwise its parts are looked at likewise.
_PIECES_BYTES = (1024 * 1024 * 1024, 16 * 1024 * 1024)
# A piece in more pieces than this is read whole: the list would outgrow what it saves.
_MOST_RUNS = 4096


@dataclass(frozen=True)
class Survey:
    """What was found of a share."""

    resident_bytes: int | None  # None: no method can tell
    total_bytes: int
    method: Method
    missing: tuple[Extent, ...]  # not known to be resident, in load order
    resident_by_file: dict[int, int | None]
    failed: tuple[tuple[str, str], ...]  # path and error of each file that cannot be opened

    @property
    def exact_bytes(self) -> int | None:
        """The resident bytes where each page was looked at, else None."""
        return self.resident_bytes if self.method.exact else None

    def resident_bytes_without(self, files: Container[int]) -> int | None:
        """Return the resident bytes of all but these files; None where no method can tell."""
        if self.resident_bytes is None:
            return None
        found = self.resident_by_file.items()
        return sum(size or 0 for file, size in found if file not in files)


@dataclass(frozen=True)
class _Found:
    """What was found of one file."""

    file: int
    method: Method
    resident_bytes: int
    missing: list[Extent]
    error: str | None = None


def survey(
    files: Sequence[File],
    extents: Sequence[Extent],
    *,
    threads: int,
    monitor: Monitor,
    settled: bool = True,
) -> Survey:
    """Return how much of the extents is resident.

    Each file is opened anew, since some file systems (FUSE without FOPEN_KEEP_CACHE) drop a
    file's pages at the next open: what a server would find is what counts. Not `settled` means
    that reads may still be under way, whose pages cachestat would count. A file that cannot be
    opened counts as not resident.
    """
    groups = [(file, list(group)) for file, group in groupby(extents, attrgetter("file"))]

    def look(group: tuple[int, list[Extent]]) -> _Found:
        file, wanted = group
        try:
            with _opened(files[file].path, monitor) as descriptor:
                return _look(file, descriptor, wanted, settled=settled)
        except OSError as error:
            return _failed(file, wanted, error)

    found = _estimated(files, map_threads(look, groups, threads), monitor)
    # The least sure method is the one that the sum rests on; a share without bytes is known.
    method = max((one.method for one in found), key=list(Method).index, default=Method.MINCORE)
    resident = sum(one.resident_bytes for one in found)
    return Survey(
        resident_bytes=None if method is Method.UNKNOWN else resident,
        total_bytes=sum(extent.length for extent in extents),
        method=method,
        missing=tuple(extent for one in found for extent in one.missing),
        resident_by_file={
            one.file: None if one.method is Method.UNKNOWN else one.resident_bytes for one in found
        },
        failed=tuple((files[one.file].path, one.error) for one in found if one.error is not None),
    )


@contextmanager
def _opened(path: str, monitor: Monitor) -> Iterator[int]:
    with monitor.waiting(path):
        descriptor = open_to_read(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _look(file: int, descriptor: int, extents: Sequence[Extent], *, settled: bool) -> _Found:
    method = pagecache.exact_method(descriptor) if settled else pagecache.surest_method(descriptor)
    if method is Method.UNKNOWN:
        return _Found(file, method, 0, list(extents))
    resident = 0
    missing: list[Extent] = []
    for extent in extents:
        for piece in blocks(extent, _PIECES_BYTES[0]):
            found = pagecache.resident_bytes(descriptor, piece.offset, piece.length, method)
            resident += found
            missing += _missing(descriptor, piece, found, method)
    return _Found(file, method, resident, missing)


def _missing(descriptor: int, piece: Extent, resident_bytes: int, method: Method) -> list[Extent]:
    if resident_bytes >= piece.length:
        return []
    if resident_bytes == 0:
        return [piece]
    if method is Method.CACHESTAT and piece.length > _PIECES_BYTES[1]:
        return [
            run
            for part in blocks(piece, _PIECES_BYTES[1])
            for run in _missing(
                descriptor,
                part,
                pagecache.resident_bytes(descriptor, part.offset, part.length, method),
                method,
            )
        ]
    if pagecache.surest_method(descriptor) is Method.UNKNOWN:
        return [piece]
    runs = [
        Extent(piece.file, offset, length)
        for offset, length in pagecache.missing(descriptor, piece.offset, piece.length)
    ]
    return runs if len(runs) <= _MOST_RUNS else [piece]


def _estimated(files: Sequence[File], found: list[_Found], monitor: Monitor) -> list[_Found]:
    """Return what was found, by NOWAIT where it was UNKNOWN, unless that cannot tell either."""
    unknown = [one for one in found if one.method is Method.UNKNOWN]
    total = sum(files[one.file].size_bytes for one in unknown)
    instead: dict[int, _Found] = {}
    for one in unknown:
        size, wanted = files[one.file].size_bytes, sum(extent.length for extent in one.missing)
        try:
            with _opened(files[one.file].path, monitor) as descriptor:
                hits = pagecache.sample(descriptor, size, max(1, _SAMPLES * size // max(1, total)))
        except OSError as error:
            # Gone, or out of reach, since it was opened to be looked at.
            instead[one.file] = _failed(one.file, one.missing, error)
            continue
        if hits is None:
            # A sum of some estimates and some blanks would be none.
            instead = {file: other for file, other in instead.items() if other.error is not None}
            break
        instead[one.file] = replace(
            one, method=Method.NOWAIT, resident_bytes=wanted * hits[0] // max(1, hits[1])
        )
    return [instead.get(one.file, one) for one in found]


def _failed(file: int, wanted: list[Extent], error: OSError) -> _Found:
    return _Found(file, Method.MINCORE, 0, wanted, error.strerror or str(error))
