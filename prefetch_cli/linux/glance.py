"""Reads one byte of a page and looks at the clock: what a reader can tell of a page by itself.

Sources: getrusage(2), filemap_read() in mm/filemap.c; statx(2).
"""

import ctypes
import os
import resource
import time
from typing import NamedTuple

_EMPTY_PATH, _FORCE_SYNC = 0x1000, 0x2000  # of statx(2), for a descriptor
_SIZE = 0x200
_STATX_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)


class Glance(NamedTuple):
    """What reading one byte cost this thread."""

    wall_ns: int
    cpu_ns: int
    # How often the thread gave up the processor to wait. A page that is in the cache is copied
    # without a wait; one that is fetched over a network or from a daemon is waited for.
    sleeps: int
    preempted: int  # how often it was taken off the processor
    # What was read on its behalf, in blocks of 512 bytes. Not every file system counts it.
    blocks: int


def glance(descriptor: int, offset: int) -> Glance:
    """Return what reading the byte at `offset` cost; raises OSError."""
    # No call between the two usages lets other Python threads run, except pread(2) itself.
    before = resource.getrusage(resource.RUSAGE_THREAD)
    cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
    os.pread(descriptor, 1, offset)
    wall_ns = time.perf_counter_ns() - wall_ns
    cpu_ns = time.thread_time_ns() - cpu_ns
    after = resource.getrusage(resource.RUSAGE_THREAD)
    return Glance(
        wall_ns=wall_ns,
        cpu_ns=cpu_ns,
        sleeps=after.ru_nvcsw - before.ru_nvcsw,
        preempted=after.ru_nivcsw - before.ru_nivcsw,
        blocks=after.ru_inblock - before.ru_inblock,
    )


def ask_for_attributes(descriptor: int) -> None:
    """Make the kernel ask for a file's attributes now, even where it believes the old ones.

    FUSE and network file systems do so before a read when these are older than a second or so. A
    glance would wait for that, too. Does nothing where libc has no statx(2).
    """
    if hasattr(_libc, "statx"):
        unused = ctypes.create_string_buffer(_STATX_BYTES)
        _libc.statx(descriptor, b"", _EMPTY_PATH | _FORCE_SYNC, _SIZE, unused)
