"""Compares what was read with what stayed, and names the likely cause: a pure function."""

from collections.abc import Sequence

from prefetch_cli.base.amounts import format_percent, format_size
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.memory import Memory

_ENOUGH = 0.99
_OUTSIDE_THE_CACHE = {"9p", "gpfs", "beegfs", "beegfs_nodev"}


def doubt(
    *,
    read_bytes: int,
    before_bytes: int | None,
    after_bytes: int | None,
    share_bytes: int,
    filesystems: Sequence[FileSystem],
    memory: Memory,
) -> str | None:
    """Return a warning if less than 99 % of what was read is still resident, else None.

    All figures are bytes of the share without the files that failed, which have warnings of their
    own. A figure is None where no method can tell; the summary says "unknown" then, so there is no
    warning. `memory` is what was available before the read.
    """
    if after_bytes is None or read_bytes == 0:
        return None
    expected = min(share_bytes, read_bytes + (before_bytes or 0))
    if after_bytes >= _ENOUGH * expected:
        return None
    found = (
        f"{format_size(after_bytes)} of the {format_size(expected)} that were read or resident "
        f"stayed in the page cache ({format_percent(after_bytes, expected)})"
    )
    return f"{found}: {_cause(expected, filesystems, memory)}"


def _cause(expected_bytes: int, filesystems: Sequence[FileSystem], memory: Memory) -> str:
    in_cgroup = memory.limited_by != "host"
    bound = f"the cgroup {memory.limited_by}" if in_cgroup else "the host"
    if expected_bytes > memory.available_bytes:
        return f"likely the memory limit of {bound}; --partial keeps the head"
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
    return f"likely other processes needed the memory of {bound}, or its limit was lowered"
