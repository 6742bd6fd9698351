"""Locks ranges of files in memory with mlock(2), and tells beforehand whether that is allowed.

Sources: mlock(2), can_do_mlock() and do_mlock() in mm/mlock.c, populate_vma_page_range() in
mm/gup.c.
"""

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.mapping import lock, lock_when_touched, mapped, reserved

_PAGE_BYTES = mmap.PAGESIZE
_PIECE_BYTES = 64 * 1024 * 1024  # locked by one call, between two looks at the stop
# Each range is a mapping of its own, of which a process may have 65,530 (vm.max_map_count).
MOST_RANGES = 16_384


class Range(NamedTuple):
    """A range of the file that lies at a path, and nowhere else if that one is replaced."""

    path: str
    identity: tuple[int, int]  # device and inode
    offset: int  # bytes
    length: int  # bytes


def limit_bytes() -> int | None:
    """Return how much this process may lock (RLIMIT_MEMLOCK), None where that has no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY else limit


def refusal(size_bytes: int) -> OSError | None:
    """Return how the kernel refuses to lock so many bytes, None where it does not.

    Locks as many addresses with nothing behind them, which count against the limit as if there
    were. Capabilities do not tell: a user namespace grants CAP_IPC_LOCK, but the kernel asks for
    that of the first one.
    """
    length = -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES
    if length == 0:
        return None
    try:
        with reserved(length) as address:
            lock_when_touched(address, length)
    except OSError as error:
        return error
    return None


class Locks:
    """Ranges of files that are locked in memory until the block ends."""

    def __init__(self) -> None:
        self._mappings = ExitStack()

    def __enter__(self) -> "Locks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def add(self, wanted: Range) -> Iterator[int]:
        """Lock a range piece by piece, and yield the bytes of each piece that is locked.

        What of it is not resident is read. Raises OSError where the kernel refuses, or the file is
        not the one that is meant; what is locked by then stays so.
        """
        start = wanted.offset // _PAGE_BYTES * _PAGE_BYTES
        end = wanted.offset + wanted.length
        descriptor = open_to_read(wanted.path)
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != wanted.identity or status.st_size < end:
                raise OSError(errno.ESTALE, "it was replaced or cut short")
            address = self._mappings.enter_context(mapped(descriptor, start, end - start))
        finally:
            close(descriptor)
        for piece in range(start, end, _PIECE_BYTES):
            size_bytes = min(_PIECE_BYTES, end - piece)
            lock(address + piece - start, size_bytes)
            yield size_bytes - max(0, wanted.offset - piece)

    def release(self) -> None:
        """Unlock all ranges; the kernel may drop their pages now."""
        self._mappings.close()
