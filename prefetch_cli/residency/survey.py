"""How much of a share is resident, and what is missing: by the best method that is truthful."""

import errno
import os
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.cachestat import Reclaimed
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.glance import ask_for_attributes
from prefetch_cli.linux.pagecache import Counted, Counter, Method
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.plan.extents import Extent, blocks
from prefetch_cli.residency import samples
from prefetch_cli.residency.draw import Page
from prefetch_cli.residency.samples import Sampled

# Ask cachestat about 1 GiB at a time. Only where the answer is "some of it", ask about 16 MiB
# pieces, and only of those look at each page.
_PIECE_BYTES = 1024 * 1024 * 1024
_SMALL_PIECE_BYTES = 16 * 1024 * 1024
_MOST_RUNS = 4096  # a piece with more missing runs is read whole: the list would cost more


class Survey(NamedTuple):
    """The residency of a share."""

    resident_bytes: int | None  # None: no method can tell
    total_bytes: int
    method: Method
    missing: tuple[Extent, ...]  # not known to be resident, in load order
    resident_by_file: dict[int, int | None]
    failed: tuple[tuple[str, str], ...]  # path and error of each file that cannot be opened
    # Of each file that can be opened; None where its method cannot tell.
    reclaimed_by_file: Mapping[int, Reclaimed | None] = MappingProxyType({})
    sampled: Sampled | None = None  # how far to trust an estimate; None where there is none

    @property
    def reclaimed(self) -> Reclaimed | None:
        """What was resident and is no more; None where that is not known of every file."""
        return self.reclaimed_without(())

    @property
    def low_bytes(self) -> int | None:
        """The fewest resident bytes; None where no method can tell."""
        return self.resident_bytes if self.sampled is None else self.sampled.low_bytes

    @property
    def high_bytes(self) -> int | None:
        """The most resident bytes; None where no method can tell."""
        return self.resident_bytes if self.sampled is None else self.sampled.high_bytes

    @property
    def exact_bytes(self) -> int | None:
        """The resident bytes if each page was looked at, else None."""
        return self.resident_bytes if self.method.exact else None

    def resident_bytes_without(self, files: Container[int]) -> int | None:
        """Return the resident bytes of all other files; None where no method can tell."""
        if self.resident_bytes is None:
            return None
        found = self.resident_by_file.items()
        return sum(size or 0 for file, size in found if file not in files)

    def reclaimed_without(self, files: Container[int]) -> Reclaimed | None:
        """Return what was resident of all other files; None where that is not known of each."""
        return _sum([one for file, one in self.reclaimed_by_file.items() if file not in files])


def _sum(parts: Sequence[Reclaimed | None]) -> Reclaimed | None:
    known = [one for one in parts if one is not None]
    if not known or len(known) < len(parts):
        return None
    return Reclaimed(sum(one.size_bytes for one in known), sum(one.recent_bytes for one in known))


class _Found(NamedTuple):
    """The residency of one file."""

    file: int
    method: Method
    resident_bytes: int
    missing: list[Extent]
    error: str | None = None
    reclaimed: Reclaimed | None = None
    known: bool = True  # also of a file that is gone, of which nothing is resident


def survey(
    files: Sequence[File],
    extents: Sequence[Extent],
    *,
    threads: int,
    monitor: Monitor,
    reads_in_flight: bool = False,
    avoid: Collection[Page] = (),
) -> Survey:
    """Return how much of the extents is resident.

    Opens each file anew: some file systems (FUSE without FOPEN_KEEP_CACHE) drop a file's pages at
    the next open, and a server would open it too. With `reads_in_flight` cachestat is not asked:
    it counts their pages already. A file that cannot be opened counts as not resident. A timed
    sample looks at no page of `avoid`, those of an earlier one, if it can.
    """
    groups = [(file, list(group)) for file, group in groupby(extents, attrgetter("file"))]

    def look(group: tuple[int, list[Extent]]) -> _Found:
        file, wanted = group
        try:
            with _opened(files[file].path, monitor) as descriptor:
                found = _look(file, descriptor, wanted, reads_in_flight=reads_in_flight)
                error = _shrunk(files[file].size_bytes, descriptor)
                return found if error is None else found._replace(error=error)
        except OSError as error:
            return _failed(file, wanted, error)

    found, sampled = _with_samples(files, map_threads(look, groups, threads), monitor, avoid)
    # The sum is as sure as its least sure part; of an empty share everything is known.
    methods = [one.method for one in found if one.known]
    if methods or not found:
        method = max(methods, key=list(Method).index, default=Method.MINCORE)
    else:
        method = Method.UNKNOWN
    resident = sum(one.resident_bytes for one in found)
    if sampled is not None:
        resident = sampled.likely_bytes
    return Survey(
        resident_bytes=None if method is Method.UNKNOWN else resident,
        total_bytes=sum(extent.length for extent in extents),
        method=method,
        missing=tuple(extent for one in found for extent in one.missing),
        resident_by_file={
            one.file: None if one.method is Method.UNKNOWN else one.resident_bytes for one in found
        },
        failed=tuple((files[one.file].path, one.error) for one in found if one.error is not None),
        reclaimed_by_file={one.file: one.reclaimed for one in found if one.error is None},
        sampled=sampled,
    )


def _shrunk(expected_bytes: int, descriptor: int) -> str | None:
    if os.fstat(descriptor).st_size >= expected_bytes:
        return None
    # FUSE takes a short answer for the end of the file, until it asks for the size again.
    ask_for_attributes(descriptor)
    found_bytes = os.fstat(descriptor).st_size
    if found_bytes >= expected_bytes:
        return None
    return f"it was cut short or replaced: expected {expected_bytes:,} bytes, found {found_bytes:,}"


@contextmanager
def _opened(path: str, monitor: Monitor) -> Iterator[int]:
    with monitor.waiting(path):
        descriptor = open_to_read(path)
        try:
            yield descriptor
        finally:
            close(descriptor)


def _look(
    file: int, descriptor: int, extents: Sequence[Extent], *, reads_in_flight: bool
) -> _Found:
    counter = Counter(descriptor, reads_in_flight=reads_in_flight)
    resident = 0
    reclaimed: list[Reclaimed | None] = []
    missing: list[Extent] = []
    for extent in extents:
        for piece in blocks(extent, _PIECE_BYTES):
            found = counter.count(piece.offset, piece.length)
            if found is None:
                return _Found(file, Method.UNKNOWN, 0, list(extents))
            resident += found.resident_bytes
            reclaimed.append(found.reclaimed)
            missing += _missing(descriptor, piece, found, counter)
    return _Found(file, counter.method, resident, missing, reclaimed=_sum(reclaimed))


def _missing(
    descriptor: int, piece: Extent, found: Counted | None, counter: Counter
) -> list[Extent]:
    if found is None or found.resident_bytes == 0:
        return [piece]
    if found.resident_bytes >= piece.length:
        return []
    if counter.method is Method.CACHESTAT and piece.length > _SMALL_PIECE_BYTES:
        return [
            run
            for part in blocks(piece, _SMALL_PIECE_BYTES)
            for run in _missing(descriptor, part, counter.count(part.offset, part.length), counter)
        ]
    if pagecache.surest_method(descriptor) is Method.UNKNOWN:
        return [piece]
    try:
        runs = [
            Extent(piece.file, offset, length)
            for offset, length in pagecache.missing(descriptor, piece.offset, piece.length)
        ]
    except OSError:
        # No mapping, or no memory for one: how much is missing is known all the same.
        return [piece]
    return runs if len(runs) <= _MOST_RUNS else [piece]


def _with_samples(
    files: Sequence[File], found: list[_Found], monitor: Monitor, avoid: Collection[Page]
) -> tuple[list[_Found], Sampled | None]:
    """Return what was found, with an estimate for each file whose residency is unknown.

    All or none: a sum of estimates and blanks would say nothing.
    """
    unknown = {one.file: one for one in found if one.method is Method.UNKNOWN}
    if not unknown:
        return found, None
    extents = [extent for one in unknown.values() for extent in one.missing]
    estimate = samples.estimate(files, extents, monitor=monitor, avoid=avoid)
    for file, error in estimate.errors.items():
        # Deleted or unreachable since the first look.
        unknown[file] = _failed(file, unknown[file].missing, error)
    known = sum(one.resident_bytes for one in found if one.method is not Method.UNKNOWN)
    for file, resident_bytes in estimate.resident_by_file.items():
        unknown[file] = unknown[file]._replace(
            method=estimate.method, resident_bytes=resident_bytes
        )
    sampled = estimate.sampled and estimate.sampled._replace(
        low_bytes=known + estimate.sampled.low_bytes,
        likely_bytes=known + estimate.sampled.likely_bytes,
        high_bytes=known + estimate.sampled.high_bytes,
    )
    return [unknown.get(one.file, one) for one in found], sampled


def _failed(file: int, wanted: list[Extent], error: OSError) -> _Found:
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return _Found(file, Method.MINCORE, 0, wanted, error.strerror or str(error), known=gone)
