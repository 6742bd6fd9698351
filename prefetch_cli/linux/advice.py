"""What the administrator of a mount could set, so that reading it takes less time.

From the mount's options and what the client counts: nothing is read and nothing is tried.
"""

import re
from collections.abc import Iterable, Iterator

from prefetch_cli.base.amounts import format_size
from prefetch_cli.linux import lustre, mountstats
from prefetch_cli.linux.filesystem import FileSystem

_KIB = 1024
_SMALL_RSIZE = 256 * _KIB
_BEST_RSIZE = 1024 * _KIB  # the most that Linux asks for: NFS_MAX_FILE_IO_SIZE
# One connection has at most 6 MiB in flight (the default of net.ipv4.tcp_rmem): above this round
# trip that is less than 1.2 GB/s.
_FAR_SECONDS = 0.005
_FEWEST_CALLS = 5
_SHORT_CALLS = frozenset({"GETATTR", "LOOKUP", "ACCESS"})
# Calls, transmissions, time-outs, bytes sent and received; ms in the queue, until the answer.
_CALL = re.compile(r"^\s*([A-Z_]+): [0-9]+ ([0-9]{1,18})(?: [0-9]+){4} ([0-9]{1,18}) ")
_LARGE_FILE = 1 << 30
_MOST_FILES = 8  # of a file system that are asked how they are striped


def advise(
    fs: FileSystem, files: Iterable[tuple[str, int]], block_bytes: int, root: str = "/"
) -> Iterator[str]:
    """Yield a line for each setting that is far off.

    `files` are those of the file system, each with its size in bytes; `block_bytes` is how much a
    thread reads at a time. Tests give another `root`. Never raises.
    """
    if fs.is_nfs:
        yield from _of_nfs(fs, root)
    elif fs.type == "lustre":
        yield from _of_lustre(fs, files, block_bytes, root)


def _of_nfs(fs: FileSystem, root: str) -> Iterator[str]:
    rsize = fs.int_option("rsize")
    if rsize is not None and rsize < _SMALL_RSIZE:
        yield (
            f"{fs.mount_point}: NFS reads {format_size(rsize)} in one request (rsize); mount it "
            f"with rsize={_BEST_RSIZE} if the server grants that"
        )
    # It is shown only where there is more than one (nfs_show_mount_options() in fs/nfs/super.c).
    if fs.int_option("nconnect") is None and "proto=rdma" not in fs.options:
        seconds = round_trip_seconds(fs.mount_point, root)
        if seconds is not None and seconds >= _FAR_SECONDS:
            yield (
                f"{fs.mount_point}: one connection to an NFS server that took "
                f"{seconds * 1000:.0f} ms to answer on average; mount it with nconnect=8"
            )


def round_trip_seconds(mount_point: str, root: str = "/") -> float | None:
    """Return how long an NFS server took to answer short calls, None without enough of them.

    The mean since the mount; fs/nfs and net/sunrpc/stats.c write the table.
    """
    calls = milliseconds = 0
    for line in mountstats.lines_of(mount_point, root):
        if (match := _CALL.match(line)) and match[1] in _SHORT_CALLS:
            calls += int(match[2])
            milliseconds += int(match[3])
    return milliseconds / calls / 1000 if calls >= _FEWEST_CALLS else None


def _of_lustre(
    fs: FileSystem, files: Iterable[tuple[str, int]], block_bytes: int, root: str
) -> Iterator[str]:
    ahead = lustre.read_ahead_bytes(fs, root)
    if ahead is not None and ahead < block_bytes:
        yield (
            f"{fs.mount_point}: Lustre reads at most {format_size(ahead)} ahead of a file "
            "(llite.*.max_read_ahead_per_file_mb), less than one block; raise it with lctl"
        )
    large = [path for path, size in files if size >= _LARGE_FILE][:_MOST_FILES]
    single = [path for path in large if lustre.stripe_count(path) == 1]
    if single:
        more = f" and {len(single) - 1} more" if len(single) > 1 else ""
        yield (
            f"{single[0]}{more}: each lies on one Lustre target (stripe_count 1); "
            "lfs migrate -c -1 spreads it over all"
        )
