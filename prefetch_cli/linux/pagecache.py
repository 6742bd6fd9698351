"""What the page cache holds of a file, and how to fill and empty it: thin over the system calls.

Sources: cachestat(2) and mm/filemap.c, mincore(2) and mm/mincore.c, preadv2(2), getrusage(2),
posix_fadvise(2) with mm/fadvise.c and mm/readahead.c, fuse_file_mmap() in fs/fuse/file.c.
"""

import contextlib
import ctypes
import enum
import errno
import mmap
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BYTES = mmap.PAGESIZE

# The same number on every architecture that uses the unified table; elsewhere it may be
# another call.
_CACHESTAT = 451
_MACHINE = os.uname().machine
_UNIFIED_TABLE = {"x86_64", "aarch64", "riscv64", "ppc64le", "ppc64", "s390x", "loongarch64"}

# statfs.f_type of file systems whose files read through another file's cache: cachestat looks
# at the empty cache of the outer file, while a mapping, and so mincore, reaches the inner one.
_STACKED = {0x794C7630, 0x61756673, 0x65735546}  # overlay, aufs, FUSE (passthrough)

_WINDOW_BYTES = 256 * 1024 * 1024  # mapped at a time by mincore: a vector of 64 KiB
# The page that is asked about to find out whether mincore tells the truth: so far behind the
# end of the file that not even a huge page of its tail can cover it.
_BEYOND_END_BYTES = 64 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long
_MAP_FAILED = ctypes.c_void_p(-1).value


class Method(enum.Enum):
    """How residency was found, the surest first."""

    MINCORE = "mincore"
    CACHESTAT = "cachestat"
    NOWAIT = "nowait"
    UNKNOWN = "unknown"

    @property
    def exact(self) -> bool:
        """Whether each page was looked at; otherwise the figure is an estimate or none."""
        return self in {Method.MINCORE, Method.CACHESTAT}


@dataclass(frozen=True)
class CacheState:
    """The pages of a range that the cache holds, in bytes."""

    resident_bytes: int
    dirty_bytes: int  # not written back, or being written back: they cannot be dropped


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    )


class _StatFs(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def exact_method(descriptor: int) -> Method:
    """Return the surest way that tells the truth about this open file, or UNKNOWN.

    Cachestat comes first because its cost hardly grows with the size; it refuses where this
    process may not know (since Linux 6.14, and the stable kernels that took the fix). Mincore
    does not refuse: it reports every page as resident, so it is asked about a page that cannot
    be.
    """
    if _cachestat(descriptor, 0, PAGE_BYTES) is not None and not _is_stacked(descriptor):
        return Method.CACHESTAT
    return Method.MINCORE if _mincore_is_true(descriptor) else Method.UNKNOWN


def surest_method(descriptor: int) -> Method:
    """Return MINCORE or UNKNOWN: the way that counts no page whose read is still under way."""
    return Method.MINCORE if _mincore_is_true(descriptor) else Method.UNKNOWN


def resident_bytes(descriptor: int, offset: int, length: int, method: Method) -> int:
    """Return how many bytes of the range are resident, by an exact method.

    Raises OSError where the system call fails after all.
    """
    if method is Method.CACHESTAT:
        state = cache_state(descriptor, offset, length)
        if state is None:
            raise OSError(errno.EPERM, "cachestat refused")
        return state.resident_bytes
    resident = sum(run for _, run, cached in _runs(descriptor, offset, length) if cached)
    return min(resident, length)


def missing(descriptor: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length, in bytes, of each run of pages that is not resident.

    Only true where `surest_method` is MINCORE.
    """
    for start, size, cached in _runs(descriptor, offset, length):
        if not cached:
            yield start, size


def cache_state(descriptor: int, offset: int, length: int) -> CacheState | None:
    """Return what cachestat(2) says of the range; None where it cannot be asked."""
    stat = _cachestat(descriptor, offset, length)
    if stat is None:
        return None
    return CacheState(
        resident_bytes=min(stat.cache * PAGE_BYTES, length),
        dirty_bytes=(stat.dirty + stat.writeback) * PAGE_BYTES,
    )


def sample(descriptor: int, size_bytes: int, pages: int) -> tuple[int, int] | None:
    """Return how many of about `pages` pages could be read without waiting, and of how many.

    One page of each of as many equal stretches of the file, none of them twice; None where the
    file system cannot tell. A page that is missed may be read by the asking, so it is chosen
    anew each time, and asked for by a descriptor without read-ahead. A disk that answers at once
    (zram, pmem, some virtual ones) has read it before the call looks again and returns it: what
    cost this thread block input was not resident.
    """
    read_only_what_is_asked(descriptor)
    buffer = bytearray(1)
    count = -(-size_bytes // PAGE_BYTES)
    stretch = -(-count // min(pages, count))
    start = int.from_bytes(os.urandom(4), "little") % stretch
    hits = 0
    asked = range(min(start, count - 1), count, stretch)
    for page in asked:
        blocks_before = _blocks_read()
        try:
            got = os.preadv(descriptor, [buffer], page * PAGE_BYTES, os.RWF_NOWAIT)
        except BlockingIOError:
            continue
        except OSError:  # EOPNOTSUPP: NFS, FUSE, overlay, tmpfs
            return None
        if got and _blocks_read() == blocks_before:
            hits += 1
    return hits, len(asked)


def advise(descriptor: int, offset: int, length: int, step_bytes: int) -> None:
    """Ask the kernel to read the range ahead, without waiting.

    One call reads at most max(io_pages, ra_pages) and drops the rest without a word
    (force_page_cache_ra in mm/readahead.c), so it is made in steps that are no larger.
    """
    for start in range(offset, offset + length, step_bytes):
        size = min(step_bytes, offset + length - start)
        _advise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


def drop(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to drop the range: it drops pages that are clean and not in use.

    Raises OSError where it refuses.
    """
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def read_only_what_is_asked(descriptor: int) -> None:
    """Switch off read-ahead for this open file, so that no byte beyond a range is read."""
    _advise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def read_ahead_twice_as_far(descriptor: int) -> None:
    """Double the read-ahead of this open file, its ra_pages (generic_fadvise() in mm/fadvise.c)."""
    _advise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _advise(descriptor: int, offset: int, length: int, advice: int) -> None:
    # Refused, by the seccomp profile of a container, it is advice that was not taken.
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, offset, length, advice)


def _cachestat(descriptor: int, offset: int, length: int) -> _Stat | None:
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


def _blocks_read() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def _is_stacked(descriptor: int) -> bool:
    statfs = _StatFs()
    if _libc.fstatfs(descriptor, ctypes.byref(statfs)):
        return True
    return (statfs.type & 0xFFFFFFFF) in _STACKED


def _mincore_is_true(descriptor: int) -> bool:
    beyond = os.fstat(descriptor).st_size + _BEYOND_END_BYTES
    try:
        page = _mincore(descriptor, beyond // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    except OSError:
        return False
    return not page[0] & 1


def _mincore(descriptor: int, offset: int, length: int) -> bytes:
    # Through libc: Python's own mmap would duplicate the descriptor and needs a writable
    # mapping to give its address away. Private, since FUSE refuses to share the mapping of a
    # file that it does not cache (FOPEN_DIRECT_IO).
    address = _checked(
        _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, offset),
        _MAP_FAILED,
    )
    try:
        vector = ctypes.create_string_buffer(-(-length // PAGE_BYTES))
        _checked(_libc.mincore(address, length, vector), -1)
    finally:
        _libc.munmap(address, length)
    return vector.raw


def _checked(result: int, failure: int | None) -> int:
    if result == failure:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _runs(descriptor: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield offset, length and whether it is resident, of each run of like pages."""
    end = offset + length
    start = offset // PAGE_BYTES * PAGE_BYTES
    while start < end:
        size = min(_WINDOW_BYTES, end - start)
        pages = _mincore(descriptor, start, size)
        for first, behind, cached in _alike(pages):
            run_start = max(offset, start + first * PAGE_BYTES)
            run_end = min(end, start + behind * PAGE_BYTES)
            yield run_start, run_end - run_start, cached
        start += size


# The other bits of a byte of the vector are reserved.
_LOW_BIT = bytes(value & 1 for value in range(256))


def _alike(pages: bytes) -> Iterator[tuple[int, int, bool]]:
    pages = pages.translate(_LOW_BIT)
    first = 0
    while first < len(pages):
        cached = pages[first]
        behind = pages.find(1 - cached, first)
        behind = len(pages) if behind < 0 else behind
        yield first, behind, bool(cached)
        first = behind
