"""The page cache of a file: what it holds, how to fill it and empty it. Thin over system calls.

Sources: mm/mincore.c, preadv2(2), getrusage(2), posix_fadvise(2) with mm/fadvise.c and
mm/readahead.c.
"""

import ctypes
import enum
import errno
import mmap
import os
import resource
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.linux import cachestat
from prefetch_cli.linux.cachestat import Reclaimed
from prefetch_cli.linux.mapping import mapped, resident_pages

PAGE_BYTES = mmap.PAGESIZE

# statfs.f_type of file systems whose files read through another file's cache. cachestat looks at
# the outer file's cache, which is empty; a mapping, and so mincore, reaches the inner one.
_STACKED = {0x794C7630, 0x61756673, 0x65735546}  # overlay, aufs, FUSE (passthrough)
# And of those that read more than a page at a time whatever they are advised: with Linux 6.12 a
# sample of 1,024 pages brought in most of a share.
_READ_MORE = {0xFF534D42, 0xFE534D42, 0x517B}  # cifs, smb2, smbfs

_STATFS_LONGS = 32  # more than struct statfs has; f_type is the first

_WINDOW_BYTES = 256 * 1024 * 1024  # mapped at a time for mincore: a vector of 64 KiB
# mincore lies if it calls a page resident that is this far beyond the end of the file: not even a
# huge page at the file's tail reaches there.
_BEYOND_END_BYTES = 64 * 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Method(enum.Enum):
    """How residency was found, the surest method first."""

    MINCORE = "mincore"
    CACHESTAT = "cachestat"
    NOWAIT = "nowait"
    TIMED = "timed"
    UNKNOWN = "unknown"

    @property
    def exact(self) -> bool:
        """Whether each page was looked at; if not, the figure is an estimate, or there is none."""
        return self in {Method.MINCORE, Method.CACHESTAT}


class Counted(NamedTuple):
    """What an exact method says of a range."""

    resident_bytes: int
    reclaimed: Reclaimed | None  # None where the method cannot tell


class Sample(NamedTuple):
    """How many of the sampled pages were resident."""

    hits: int
    pages: int


def surest_method(descriptor: int) -> Method:
    """Return MINCORE, or UNKNOWN where it lies; it does not count pages whose read is in flight."""
    return Method.MINCORE if _mincore_is_true(descriptor) else Method.UNKNOWN


class Counter:
    """Counts the resident pages of an open file, by the surest method that tells the truth of it.

    CACHESTAT comes first, since its cost hardly grows with the size. It refuses a process that may
    not know (Linux 6.14, and the stable kernels with that fix). mincore reports every page as
    resident instead, so we ask it about a page that cannot be.
    """

    def __init__(self, descriptor: int, *, reads_in_flight: bool = False) -> None:
        """With `reads_in_flight` ask mincore only: cachestat counts their pages already."""
        self._descriptor = descriptor
        self._mincore_only = reads_in_flight
        self._method: Method | None = None

    @property
    def method(self) -> Method:
        """The method of what was counted; UNKNOWN before that, and where none tells the truth."""
        return self._method or Method.UNKNOWN

    def count(self, offset: int, length: int) -> Counted | None:
        """Return what is resident of the range; None where no method can tell. Raises OSError."""
        if self._method is not None:
            return self._by(self._method, offset, length)
        if not self._mincore_only:
            state = cachestat.ask(self._descriptor, offset, length)
            if state is not None and not _is_stacked(self._descriptor):
                self._method = Method.CACHESTAT
                return Counted(state.resident_bytes, state.reclaimed)
        self._method = surest_method(self._descriptor)
        return self._by(self._method, offset, length)

    def _by(self, method: Method, offset: int, length: int) -> Counted | None:
        if method is Method.CACHESTAT:
            state = cachestat.ask(self._descriptor, offset, length)
            if state is not None:
                return Counted(state.resident_bytes, state.reclaimed)
            if not _mincore_is_true(self._descriptor):
                raise OSError(errno.EPERM, "cachestat refused")
        elif method is Method.UNKNOWN:
            return None
        resident = sum(run for _, run, cached in _runs(self._descriptor, offset, length) if cached)
        return Counted(min(resident, length), None)


def missing(descriptor: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the offset and length, in bytes, of each run of pages that are not resident.

    Call it only if `surest_method` is MINCORE.
    """
    for start, size, cached in _runs(descriptor, offset, length):
        if not cached:
            yield start, size


def sample(descriptor: int, ranges: Sequence[range], pages: int) -> Sample | None:
    """Return how many of about `pages` pages can be read without waiting (RWF_NOWAIT).

    Takes one page from each of `pages` equal stretches of these ranges of pages, which are not all
    empty; None where the file system does not support it. A miss may start a read of that page, so
    each call starts at a random offset, without read-ahead. Very fast disks (zram, pmem, some
    virtual ones) can finish that read before RWF_NOWAIT checks again: if the thread's ru_inblock
    grew, it counts as a miss.
    """
    read_only_what_is_asked(descriptor)
    buffer = bytearray(1)
    count = sum(map(len, ranges))
    stretch = -(-count // min(pages, count))
    start = int.from_bytes(os.urandom(4), "little") % stretch
    hits = 0
    asked = list(_each(ranges, min(start, count - 1), stretch))
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
    return Sample(hits, len(asked))


def _each(ranges: Sequence[range], start: int, step: int) -> Iterator[int]:
    """Yield every so many numbers of all ranges together."""
    for one in ranges:
        yield from one[start::step]
        start -= len(one)
        start = start % step if start < 0 else start


def advise(descriptor: int, offset: int, length: int, step_bytes: int) -> None:
    """Ask the kernel to read the range ahead, without waiting.

    One call reads at most max(io_pages, ra_pages) and silently drops the rest
    (force_page_cache_ra() in mm/readahead.c), so `step_bytes` must not be larger.
    """
    for start in range(offset, offset + length, step_bytes):
        size = min(step_bytes, offset + length - start)
        _advise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


def drop(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to drop the pages of the range that are clean and unused; raises OSError."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def read_only_what_is_asked(descriptor: int) -> bool:
    """Switch off read-ahead for this open file, so that nothing beyond a range is read.

    Returns whether the kernel takes such advice; see `reads_more`.
    """
    return _advise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def reads_more(descriptor: int) -> bool:
    """Return whether the file system reads more than a range, whatever was advised."""
    return _type(descriptor) in _READ_MORE


def read_ahead_twice_as_far(descriptor: int) -> None:
    """Double the read-ahead of this open file, its ra_pages (generic_fadvise() in mm/fadvise.c)."""
    _advise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _advise(descriptor: int, offset: int, length: int, advice: int) -> bool:
    # It is only advice: a container's seccomp profile may refuse it.
    try:
        os.posix_fadvise(descriptor, offset, length, advice)
    except OSError:
        return False
    return True


def _blocks_read() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def _is_stacked(descriptor: int) -> bool:
    found = _type(descriptor)
    return found is None or found in _STACKED


def _type(descriptor: int) -> int | None:
    statfs = (ctypes.c_long * _STATFS_LONGS)()
    if _libc.fstatfs(descriptor, ctypes.byref(statfs)):
        return None
    return int(statfs[0]) & 0xFFFFFFFF


def _mincore_is_true(descriptor: int) -> bool:
    beyond = os.fstat(descriptor).st_size + _BEYOND_END_BYTES
    try:
        page = _mincore(descriptor, beyond // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES)
    except OSError:
        return False
    return not page[0] & 1


def _mincore(descriptor: int, offset: int, length: int) -> bytes:
    with mapped(descriptor, offset, length) as address:
        return resident_pages(address, length)


def _runs(descriptor: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield runs of pages that are alike: offset, length, and whether they are resident."""
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


# Only the lowest bit of each byte says "resident"; mincore(2) reserves the others.
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
