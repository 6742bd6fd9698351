"""A range of a file, mapped, looked at, and faulted in as a loader does. Thin over system calls.

Sources: mincore(2), madvise(2), faultin_page_range() in mm/gup.c, do_sync_mmap_readahead() in
mm/filemap.c, fuse_file_mmap() in fs/fuse/file.c.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

_MADV_POPULATE_READ = 22  # Linux 5.14

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
_MAP_FAILED = ctypes.c_void_p(-1).value


@contextmanager
def mapped(descriptor: int, offset: int, length: int) -> Iterator[int]:
    """Map a range that begins at a page, and yield its address; raises OSError."""
    # Private, since FUSE refuses shared mappings of files that it does not cache (FOPEN_DIRECT_IO).
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, offset)
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


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
