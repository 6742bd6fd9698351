"""A range of a file, mapped, looked at, and faulted in as a loader does. Thin over system calls.

Sources: mincore(2), madvise(2), mlock(2), faultin_page_range() in mm/gup.c,
do_sync_mmap_readahead() in mm/filemap.c, fuse_file_mmap() in fs/fuse/file.c.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

HUGE_PAGE_BYTES = 2 * 1024 * 1024  # a page table's worth of pages of 4 KiB
HUGE_READ_BYTES = 2 * HUGE_PAGE_BYTES  # what a fault in a mapping for huge pages reads

_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22  # Linux 5.14
_MLOCK_ONFAULT = 1
# Faults read huge pages since Linux 5.18, but before 6.9 one that fails is tried for ever
# (madvise_populate() in mm/madvise.c).
_HUGE_READS_SINCE = (6, 9)
# Who keeps files in folios of 2 MiB, so that a huge page is one; elsewhere `populate` gains nothing
# (ext4_should_enable_large_folio(), mapping_set_large_folios() in fs/xfs/).
_HUGE_FOLIOS_SINCE = {"ext4": (6, 16), "xfs": (5, 18)}

# Through libc: Python's mmap duplicates the descriptor, gives the address only of a writable
# mapping, and its madvise holds the interpreter's lock while the storage answers.
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
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


@contextmanager
def mapped(descriptor: int, offset: int, length: int) -> Iterator[int]:
    """Map a range that begins at a page, and yield its address; raises OSError."""
    # Private, since FUSE refuses shared mappings of files that it does not cache (FOPEN_DIRECT_IO).
    with _mapped(length, mmap.MAP_PRIVATE, descriptor, offset) as address:
        yield address


@contextmanager
def reserved(length: int) -> Iterator[int]:
    """Reserve so many bytes of addresses with nothing behind them; raises OSError."""
    with _mapped(length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) as address:
        yield address


@contextmanager
def _mapped(length: int, flags: int, descriptor: int, offset: int) -> Iterator[int]:
    address = _libc.mmap(None, length, mmap.PROT_READ, flags, descriptor, offset)
    if address == _MAP_FAILED:
        raise _last_error()
    try:
        yield address
    finally:
        _libc.munmap(address, length)


def resident_pages(address: int, length: int) -> bytes:
    """Return a byte for each page of a mapping: its lowest bit says whether that is resident.

    Raises OSError.
    """
    vector = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    if _libc.mincore(address, length, vector):
        raise _last_error()
    return vector.raw


def fault_in(address: int, length: int) -> None:
    """Fault in the pages of a mapping, one after the other, as their first reader would.

    Unlike that reader, nobody gets a signal (SIGBUS) where the storage fails: OSError is raised, as
    it is where the kernel does not know this advice.
    """
    if _libc.madvise(address, length, _MADV_POPULATE_READ):
        raise _last_error()


def lock(address: int, length: int) -> None:
    """Lock a part of a mapping in memory until it is unmapped; raises OSError.

    What of it is not resident is read.
    """
    if _libc.mlock(address, length):
        raise _last_error()


def lock_when_touched(address: int, length: int) -> None:
    """Lock a part of a mapping as soon as its pages are touched; raises OSError.

    The kernel asks for the whole length whether it may be locked.
    """
    mlock2 = getattr(_libc, "mlock2", None)  # glibc 2.27
    if mlock2 is not None and mlock2(
        ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_uint(_MLOCK_ONFAULT)
    ):
        raise _last_error()


def populate(descriptor: int, offset: int, length: int) -> None:
    """Bring in a range of a file that lies in one aligned huge page; raises OSError.

    Each fault reads HUGE_READ_BYTES from a multiple of HUGE_PAGE_BYTES on, whatever the file's
    read-ahead is, in folios as large as the file system has them, and even if transparent huge
    pages are switched off. While a fault waits for the storage, it holds no lock of the address
    space (maybe_unlock_mmap_for_io()).
    """
    start = offset // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    end = offset + length
    with mapped(descriptor, start, end - start) as address:
        if _libc.madvise(address, end - start, _MADV_HUGEPAGE):
            raise _last_error()
        fault_in(address + first - start, end - first)


@functools.cache
def populates() -> bool:
    """Return whether `populate` does here what it says.

    Larger pages make huge pages of 32 MiB and more, too much to read at once.
    """
    if mmap.PAGESIZE != 4096 or _kernel() < _HUGE_READS_SINCE:
        return False
    with contextlib.suppress(OSError), reserved(mmap.PAGESIZE) as address:
        # EINVAL if the kernel was built without huge pages.
        if _libc.madvise(address, mmap.PAGESIZE, _MADV_HUGEPAGE) == 0:
            fault_in(address, mmap.PAGESIZE)
            return True
    return False


def keeps_huge_folios(filesystem_type: str) -> bool:
    """Return whether this kernel keeps files of such a file system in folios of 2 MiB."""
    since = _HUGE_FOLIOS_SINCE.get(filesystem_type)
    return since is not None and _kernel() >= since


def _kernel() -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
