"""Drops a share from the page cache, and reports what stayed and why.

Where no exact method may look, a survey behind it has the word: `stayed`, `concluded`.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import cachestat, pagecache, processes
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.mapping import HUGE_PAGE_BYTES
from prefetch_cli.linux.pagecache import Counter
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency.survey import Survey

# The first try starts the write-back of dirty pages; a later one can drop them.
_TRIES = 10
_TRIES_CLEAN = 3  # pages may wait in another core's batch (mm/swap.c)
_RETRY_SECONDS = 0.1


class Eviction(NamedTuple):
    """The result of dropping a share."""

    bytes_evicted: int | None  # None where this process may not know what was resident
    elapsed_seconds: float
    complete: bool | None  # None where it may not know what stayed, either
    failed: tuple[tuple[str, str], ...]  # path, and what stayed or failed, and why
    unproven: frozenset[int] = frozenset()  # files that were dropped, but nothing exact can look


class _Dropped(NamedTuple):
    evicted_bytes: int | None  # None where no exact method may look
    error: str | None = None


def evict(
    files: Sequence[File],
    extents: Sequence[Extent],
    *,
    threads: int,
    monitor: Monitor,
    stop: Stop,
) -> Eviction:
    """Return the result of dropping the extents from the page cache.

    The kernel drops pages that are clean and unused. That takes no privilege, only the right to
    read the file.
    """
    began = time.monotonic()
    groups = [(file, list(group)) for file, group in groupby(extents, attrgetter("file"))]

    def drop(group: tuple[int, list[Extent]]) -> _Dropped:
        file, wanted = group
        path = files[file].path
        try:
            with monitor.waiting(path):
                return _drop(files[file], wanted, stop)
        except OSError as error:
            return _Dropped(None, error.strerror or str(error))

    # Three descriptors: the file, /proc, and one process's maps.
    dropped = map_threads(drop, groups, threads, descriptors=3)
    known = [one.evicted_bytes for one in dropped if one.evicted_bytes is not None]
    unproven = frozenset(
        file
        for (file, _), one in zip(groups, dropped, strict=True)
        if one.evicted_bytes is None and one.error is None
    )
    failed = tuple(
        (files[file].path, one.error)
        for (file, _), one in zip(groups, dropped, strict=True)
        if one.error is not None
    )
    return Eviction(
        bytes_evicted=None if unproven or (groups and not known) else sum(known),
        elapsed_seconds=time.monotonic() - began,
        complete=False if failed or stop.interrupted else None if unproven else True,
        failed=failed,
        unproven=unproven,
    )


def stayed(eviction: Eviction, after: Survey) -> Mapping[int, int]:
    """Return how much of each unproven file seems to be resident, by a survey behind it.

    Empty too where the survey cannot tell: `after.resident_bytes` is None then.
    """
    found = after.sampled
    drawn = set() if found is None else {page.file for page in found.drawn}
    sizes = {
        file: size
        for file, size in after.resident_by_file.items()
        # What is said of a file without a page in the sample is what is said of the others.
        if size and file in eviction.unproven and (not drawn or file in drawn)
    }
    exact = sum(
        size
        for file, size in after.resident_by_file.items()
        if size is not None and file not in eviction.unproven
    )
    return {} if found is not None and found.low_bytes <= exact else sizes


def concluded(
    files: Sequence[File], eviction: Eviction, after: Survey, elapsed_seconds: float
) -> Eviction:
    """Return the eviction with what a survey behind it says of what was unproven."""
    if not eviction.unproven:
        return eviction
    left = stayed(eviction, after)
    failed = (
        *eviction.failed,
        *((files[file].path, _why(files[file], left[file], None)) for file in sorted(left)),
    )
    return eviction._replace(
        elapsed_seconds=elapsed_seconds,
        complete=False if failed else None if after.resident_bytes is None else True,
        failed=failed,
    )


def _drop(file: File, extents: Sequence[Extent], stop: Stop) -> _Dropped:
    descriptor = open_to_read(file.path)
    try:
        counter = Counter(descriptor)

        def resident() -> int:
            found = [counter.count(extent.offset, extent.length) for extent in extents]
            return sum(one.resident_bytes for one in found if one is not None)

        before = resident()
        for tried in range(1, _TRIES + 1):
            for extent in (
                extents if tried == 1 and counter.method.exact else map(_in_folios, extents)
            ):
                pagecache.drop(descriptor, extent.offset, extent.length)
            if not counter.method.exact:
                return _Dropped(None)
            after = resident()
            dirty = _dirty_bytes(descriptor, extents)
            enough = dirty == 0 and tried >= _TRIES_CLEAN
            if after == 0 or enough or stop.requested:
                break
            stop.sleep(_RETRY_SECONDS)
        return _Dropped(max(0, before - after), _why(file, after, dirty) if after else None)
    finally:
        close(descriptor)


def _in_folios(extent: Extent) -> Extent:
    """Return an extent with the huge pages around its ends.

    The kernel drops a folio as a whole or not at all (find_lock_entries() in mm/filemap.c), and
    each lies at a multiple of its size.
    """
    start = extent.offset // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    end = -(-extent.end // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    return extent._replace(offset=start, length=end - start)


def _dirty_bytes(descriptor: int, extents: Sequence[Extent]) -> int:
    states = (cachestat.ask(descriptor, extent.offset, extent.length) for extent in extents)
    return sum(state.dirty_bytes for state in states if state is not None)


def _why(file: File, resident_bytes: int, dirty_bytes: int | None) -> str:
    """Return why so much stays; with dirty_bytes None that is an estimate."""
    stay = f"{format_size(resident_bytes)} stay"
    if dirty_bytes is None:
        stay = f"about {stay}, by a sample"
    if dirty_bytes:
        return f"{stay}: dirty, not yet written back: run sync, then evict again"
    if users := processes.mapping(file.real_path, file.inode):
        names = ", ".join(f"process {one.pid} ({printable(one.name)})" for one in users[:3])
        return f"{stay}: mapped by {names}: evict again after they exit"
    dirty = "dirty, mapped" if dirty_bytes is None else "mapped"
    return f"{stay}: {dirty} or locked by a process that this user cannot see"
