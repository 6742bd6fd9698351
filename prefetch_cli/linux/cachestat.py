"""What cachestat(2) says of a range of a file (Linux 6.5). A thin layer over the system call.

Sources: filemap_cachestat() in mm/filemap.c, __remove_mapping() in mm/vmscan.c, mm/workingset.c.
"""

import ctypes
import mmap
import os
import threading
from typing import NamedTuple

_PAGE_BYTES = mmap.PAGESIZE

# The number is the same on every architecture with the unified table. On others it may be another
# system call.
_CACHESTAT = 451
_MACHINE = os.uname().machine
_UNIFIED_TABLE = {"x86_64", "aarch64", "riscv64", "ppc64le", "ppc64", "s390x", "loongarch64"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (
    *(ctypes.c_long, ctypes.c_uint),
    *(ctypes.c_void_p, ctypes.c_void_p),
    ctypes.c_uint,
)


class Reclaimed(NamedTuple):
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


class State(NamedTuple):
    """What the cache holds of a range, and held."""

    resident_bytes: int
    dirty_bytes: int  # not written back yet, or being written back: cannot be dropped
    reclaimed: Reclaimed


class _Buffers(threading.local):
    """What a call reads and writes (struct cachestat_range, struct cachestat): one a thread."""

    def __init__(self) -> None:
        self.range, self.found = (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)()
        self.pointers = ctypes.byref(self.range), ctypes.byref(self.found)


_buffers = _Buffers()


def ask(descriptor: int, offset: int, length: int) -> State | None:
    """Return what cachestat(2) says about the range; None where it refuses or is missing."""
    if _MACHINE not in _UNIFIED_TABLE:
        return None
    buffers = _buffers
    buffers.range[0], buffers.range[1] = offset, length
    if _libc.syscall(_CACHESTAT, descriptor, *buffers.pointers, 0):
        return None
    cached, dirty, written_back, evicted, recently_evicted = buffers.found
    resident = min(cached * _PAGE_BYTES, length)
    gone = length - resident
    reclaimed = Reclaimed(
        size_bytes=min(evicted * _PAGE_BYTES, gone),
        recent_bytes=min(recently_evicted * _PAGE_BYTES, gone),
    )
    return State(resident, (dirty + written_back) * _PAGE_BYTES, reclaimed)
