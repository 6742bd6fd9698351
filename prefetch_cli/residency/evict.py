"""Drops a share from the page cache, and reports what stayed and why."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import cachestat, pagecache, processes
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.plan.extents import Extent

# The first try starts the write-back of dirty pages; a later one can drop them.
_TRIES = 10
_TRIES_CLEAN = 3  # pages may wait in another core's batch (mm/swap.c)
_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Eviction:
    """The result of dropping a share."""

    bytes_evicted: int | None  # None where this process may not know what was resident
    elapsed_seconds: float
    complete: bool
    failed: tuple[tuple[str, str], ...]  # path, and what stayed or failed, and why


@dataclass(frozen=True)
class _Dropped:
    evicted_bytes: int | None
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
    failed = tuple(
        (files[file].path, one.error)
        for (file, _), one in zip(groups, dropped, strict=True)
        if one.error is not None
    )
    return Eviction(
        bytes_evicted=sum(known) if known or not groups else None,
        elapsed_seconds=time.monotonic() - began,
        complete=not failed,
        failed=failed,
    )


def _drop(file: File, extents: Sequence[Extent], stop: Stop) -> _Dropped:
    descriptor = open_to_read(file.path)
    try:
        method = pagecache.exact_method(descriptor)

        def resident() -> int:
            return sum(
                pagecache.resident_bytes(descriptor, extent.offset, extent.length, method)
                for extent in extents
            )

        before = resident() if method.exact else 0
        for tried in range(1, _TRIES + 1):
            for extent in extents:
                pagecache.drop(descriptor, extent.offset, extent.length)
            if not method.exact:
                return _Dropped(None)
            after = resident()
            dirty = _dirty_bytes(descriptor, extents)
            enough = dirty == 0 and tried >= _TRIES_CLEAN
            if after == 0 or enough or stop.requested:
                break
            stop.sleep(_RETRY_SECONDS)
        return _Dropped(max(0, before - after), _why(file, after, dirty) if after else None)
    finally:
        os.close(descriptor)


def _dirty_bytes(descriptor: int, extents: Sequence[Extent]) -> int:
    states = (cachestat.ask(descriptor, extent.offset, extent.length) for extent in extents)
    return sum(state.dirty_bytes for state in states if state is not None)


def _why(file: File, resident_bytes: int, dirty_bytes: int) -> str:
    stay = f"{format_size(resident_bytes)} stay"
    if dirty_bytes:
        return f"{stay}: dirty, not yet written back: run sync, then evict again"
    if users := processes.mapping(file.real_path, file.inode):
        names = ", ".join(f"process {one.pid} ({printable(one.name)})" for one in users[:3])
        return f"{stay}: mapped by {names}: evict again after they exit"
    return f"{stay}: mapped or locked by a process that this user cannot see"
