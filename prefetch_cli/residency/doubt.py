"""Compares what was read with what stayed, and says why as far as that is known: pure functions."""

from collections.abc import Container, Sequence

from prefetch_cli.base.amounts import format_percent, format_size
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.memory import Memory
from prefetch_cli.residency.survey import Survey

_ENOUGH = 0.99
_MOST_OF_IT = 0.5
_OUTSIDE_THE_CACHE = {"9p", "gpfs", "beegfs", "beegfs_nodev"}


def reclaimed_since(
    before: Survey, after: Survey, *, failed: Container[int], whole: bool
) -> int | None:
    """Return how many bytes the kernel dropped to free memory between the two; None: not known.

    The files that `failed` do not count. With `whole`, all that `before` did not find resident has
    been read, which removed every earlier trace of reclaim; otherwise we only know that at least
    the difference is new.
    """
    earlier, found = before.reclaimed_without(failed), after.reclaimed_without(failed)
    if found is None:
        return None
    if whole:
        return found.size_bytes
    return None if earlier is None else max(0, found.size_bytes - earlier.size_bytes)


def doubt(
    *,
    read_bytes: int,
    before_bytes: int | None,
    after_bytes: int | None,
    sampled_pages: int | None = None,
    reclaimed_bytes: int | None,
    share_bytes: int,
    filesystems: Sequence[FileSystem],
    memory: Memory,
) -> str | None:
    """Return a warning if less than 99 % of what was read is still resident, else None.

    All figures are bytes of the share without the files that failed, which have warnings of their
    own. A figure is None where no method can tell; the summary says "unknown" then, so there is no
    warning. Where it was sampled, `after_bytes` is the most that may be resident, by so many pages.
    `reclaimed_bytes` is what the kernel has dropped since to free memory: a fact, unlike
    the causes behind "likely". `memory` is what was available before the read.
    """
    if after_bytes is None or read_bytes == 0:
        return None
    expected = min(share_bytes, read_bytes + (before_bytes or 0))
    if after_bytes >= _ENOUGH * expected:
        return None
    most, how = "", ""
    if sampled_pages is not None:
        most, how = "at most ", f", by a sample of {sampled_pages:,} pages"
    found = (
        f"{most}{format_size(after_bytes)} of the {format_size(expected)} that were read or "
        f"resident stayed in the page cache ({format_percent(after_bytes, expected)}{how})"
    )
    lost = expected - after_bytes
    if reclaimed_bytes is not None and reclaimed_bytes >= _MOST_OF_IT * lost:
        dropped = f"{format_size(reclaimed_bytes)} were dropped again to free memory"
        return f"{found}: {dropped}, {_shortage(expected, memory)}"
    if reclaimed_bytes is None and expected > memory.available_bytes:
        return f"{found}: {_shortage(expected, memory)}"
    if (cause := _filesystem(filesystems)) is not None:
        return f"{found}: {cause}"
    # Traces of reclaim may be lost, above all where much more was read than fits.
    if reclaimed_bytes is None or expected > memory.available_bytes:
        return f"{found}: {_shortage(expected, memory)}"
    return (
        f"{found}: likely a program dropped the rest (drop_caches, posix_fadvise), or the files "
        "were changed meanwhile"
    )


def _shortage(expected_bytes: int, memory: Memory) -> str:
    in_cgroup = memory.limited_by != "host"
    bound = f"the cgroup {memory.limited_by}" if in_cgroup else "the host"
    if expected_bytes > memory.available_bytes:
        return f"likely because of the memory limit of {bound}; --partial keeps the head"
    return f"likely because other processes needed the memory of {bound}, or its limit was lowered"


def _filesystem(filesystems: Sequence[FileSystem]) -> str | None:
    if any(one.is_smb for one in filesystems):
        return (
            "likely the SMB client dropped the pages when it closed the files: closetimeo seconds "
            "after their last use, or at once without a lease or oplock; mount it with a longer "
            "closetimeo, or with cache=loose if nobody writes to the files"
        )
    if any(one.is_fuse for one in filesystems):
        return (
            "likely the FUSE file system drops cached pages when a file is opened again, or "
            "bypasses the cache (direct I/O), and a server's own open will too; mount it with "
            "kernel caching"
        )
    if outside := {one.type for one in filesystems} & _OUTSIDE_THE_CACHE:
        return (
            f"likely {', '.join(sorted(outside))} keeps its data outside the page cache, or "
            "drops it at close; some mount options and direct I/O do that"
        )
    return None
