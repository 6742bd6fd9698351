"""What cachestat(2) says of a range of a file (Linux 6.5). A thin layer over the system call.

Sources: filemap_cachestat() in mm/filemap.c, __remove_mapping() in mm/vmscan.c, mm/workingset.c.
"""

import ctypes
import mmap
import os
from dataclasses import dataclass

_PAGE_BYTES = mmap.PAGESIZE

# The number is the same on every architecture with the unified table. On others it may be another
# system call.
_CACHESTAT = 451
_MACHINE = os.uname().machine
_UNIFIED_TABLE = {"x86_64", "aarch64", "riscv64", "ppc64le", "ppc64", "s390x", "loongarch64"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class Reclaimed:
    """What the cache held until the kernel dropped it to free memory: at least this much.

    Each such page leaves a shadow entry, which cachestat(2) counts as evicted (__remove_mapping()
    in mm/vmscan.c). No other loss leaves one: neither posix_fadvise(2), drop_caches and truncation
    nor a file system that drops its pages itself. They even remove the entries of their range, as
    does the next read of the page, and the kernel when it forgets the inode or has too many of them
    (count_shadow_nodes() in mm/workingset.c). So pages without an entry may have been here, too.
    """

    size_bytes: int
    # Of that, what the kernel would put on its active list at once if it were read again now
    # (workingset_test_recent()). It measures this by other evictions, not by time.
    recent_bytes: int


@dataclass(frozen=True)
class State:
    """What the cache holds of a range, and held."""

    resident_bytes: int
    dirty_bytes: int  # not written back yet, or being written back: cannot be dropped
    reclaimed: Reclaimed


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    )


def ask(descriptor: int, offset: int, length: int) -> State | None:
    """Return what cachestat(2) says about the range; None where it refuses or is missing."""
    stat = _call(descriptor, offset, length)
    if stat is None:
        return None
    resident = min(stat.cache * _PAGE_BYTES, length)
    gone = length - resident
    return State(
        resident_bytes=resident,
        dirty_bytes=(stat.dirty + stat.writeback) * _PAGE_BYTES,
        reclaimed=Reclaimed(
            size_bytes=min(stat.evicted * _PAGE_BYTES, gone),
            recent_bytes=min(stat.recently_evicted * _PAGE_BYTES, gone),
        ),
    )


def _call(descriptor: int, offset: int, length: int) -> _Stat | None:
    if _MACHINE not in _UNIFIED_TABLE:
        return None
    stat = _Stat()
    failed = _libc.syscall(
        ctypes.c_long(_CACHESTAT),
        ctypes.c_uint(descriptor),
        ctypes.byref(_Range(offset, length)),
        ctypes.byref(stat),
        ctypes.c_uint(0),
    )
    return None if failed else stat
