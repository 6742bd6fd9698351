"""Independent measures of the page cache, and the means to start a run from a known state.

Nothing here shares code with the tool, whose claims these check.
"""

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

ALLOWED_WARM = 0.01  # the share that other users of the machine may bring back meanwhile
_ATTEMPTS = 6
_PATHS_PER_CALL = 1000  # one command line holds some 2 MB
_PRETOUCH = """
import contextlib, mmap, sys, time
size, passes = map(int, sys.argv[1:])
before = float("inf")
for _ in range(passes):
    start = time.perf_counter()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory[::mmap.PAGESIZE] = bytes(-(-size // mmap.PAGESIZE))
    memory.close()
    took = time.perf_counter() - start
    if took > 0.85 * before:
        break
    before = took
"""
_PRETOUCH_PASSES = 6
_CACHESTAT = 451  # asm-generic/unistd.h, since Linux 6.5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_MAP_FAILED = ctypes.c_void_p(-1).value
_watched: set[str] = set()


def about(size_bytes: int) -> Any:
    """Return a value that equals this size within 1 %: cached pages may go at any time."""
    return pytest.approx(size_bytes, rel=ALLOWED_WARM)


class OracleError(RuntimeError):
    """A measurement cannot be taken, or a state cannot be reached."""


def oracle_name() -> str | None:
    """Return the measuring tool, `fincore` or `vmtouch`, or None if neither is installed."""
    return next((name for name in ("fincore", "vmtouch") if shutil.which(name)), None)


def resident_bytes(paths: Sequence[str]) -> int:
    """Return how many bytes of the files are in the page cache, by fincore or vmtouch.

    Both call mincore, which reports files that this user may not write as fully resident: use it
    on your own files. Raises OracleError if neither tool is installed or one fails.
    """
    watch(paths)
    measure = {"fincore": _by_fincore, "vmtouch": _by_vmtouch}.get(oracle_name() or "")
    if measure is None:
        raise OracleError("expected fincore (util-linux) or vmtouch, found neither; install one")
    return sum(measure(part) for part in _parts(paths))


def resident_within(path: str, offset: int, length: int) -> int:
    """Return how many bytes of a range lie in resident pages, by mincore(2).

    It reports files that this user may not write as fully resident: use it on your own files.
    """
    if length == 0:
        return 0
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with open(path, "rb") as file:
        behind = min(offset + length, os.fstat(file.fileno()).st_size)
        size = behind - first
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), first)
    if address in (None, _MAP_FAILED):
        raise OracleError(f"cannot map {path}: {os.strerror(ctypes.get_errno())}")
    try:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if _libc.mincore(address, size, pages):
            raise OracleError(f"mincore failed: {os.strerror(ctypes.get_errno())}")
    finally:
        _libc.munmap(address, size)
    found = 0
    for number, page in enumerate(pages):
        start = max(offset, first + number * mmap.PAGESIZE)
        end = min(behind, first + (number + 1) * mmap.PAGESIZE)
        found += (page & 1) * (end - start)
    return found


def evict(paths: Sequence[str]) -> None:
    """Ask the kernel to drop the files from the page cache; dirty pages go to disk first."""
    watch(paths)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def watch(paths: Sequence[str]) -> None:
    """Remember these files for `reclaimed_pages`, like those evicted or measured."""
    _watched.update(paths)


def forget() -> None:
    """Forget the watched files."""
    _watched.clear()


def reclaimed_pages() -> int:
    """Return how many pages of the watched files the kernel has reclaimed.

    Reclaim leaves a shadow entry where each page was; posix_fadvise(2) and truncation do not. No
    other counter shows DAMON's reclaim. Returns 0 if the kernel has no cachestat(2).
    """
    pages = 0
    for path in _watched:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue  # the test has removed or unmounted it
        try:
            # Offset 0 and length 0 mean the whole file. Found: cached, dirty, in writeback,
            # evicted, recently evicted.
            whole = (ctypes.c_uint64 * 2)()
            found = (ctypes.c_uint64 * 5)()
            if _libc.syscall(_CACHESTAT, descriptor, whole, found, 0) == 0:
                pages += found[3]
        finally:
            os.close(descriptor)
    return pages


def make_cold(paths: Sequence[str]) -> int:
    """Evict the files and return the bytes that stayed resident, at most 1 %.

    Raises OracleError if more stays, e.g. pages that another process maps.
    """
    total_bytes = sum(os.path.getsize(path) for path in paths)
    left = 0
    for attempt in range(_ATTEMPTS):
        # Pages in another core's batch, or still being read ahead, survive the first call.
        time.sleep(0.2 * attempt)
        evict(paths)
        left = resident_bytes(paths)
        if left <= ALLOWED_WARM * total_bytes:
            return left
    raise OracleError(f"expected cold files, found {left} of {total_bytes} bytes still resident")


def available_bytes() -> int:
    """Return the memory that new pages may take, by the kernel's own estimate."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise OracleError("expected MemAvailable in /proc/meminfo, found none")


def pretouch(size_bytes: int) -> None:
    """Touch and free as much memory as a run will fill, up to 80 % of what is available.

    A virtual machine returns freed pages to its host and gets each one back slowly, at its first
    touch: that can make one run five times as long as the next. So the memory is touched until a
    pass is no faster than the one before, and in huge pages, because small ones come from lists
    that the page cache's large folios do not use. A child process does it, so that nothing stays
    here; the host begins to take pages back about two seconds later.
    """
    size_bytes = min(size_bytes, available_bytes() * 8 // 10)
    if size_bytes > 0:
        numbers = (str(size_bytes), str(_PRETOUCH_PASSES))
        subprocess.run([sys.executable, "-I", "-S", "-c", _PRETOUCH, *numbers], check=True)


def _parts(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), _PATHS_PER_CALL):
        yield paths[start : start + _PATHS_PER_CALL]


def _by_fincore(paths: Sequence[str]) -> int:
    # Only the numbers: a file name may contain anything.
    return sum(map(int, _output("fincore", "--bytes", "--raw", "-n", "-o", "RES", *paths).split()))


def _by_vmtouch(paths: Sequence[str]) -> int:
    found = re.search(r"Resident Pages:\s*(\d+)/", _output("vmtouch", "-f", *paths))
    if found is None:
        raise OracleError("expected 'Resident Pages: N/N' from vmtouch, found none")
    return int(found[1]) * os.sysconf("SC_PAGE_SIZE")


def _output(*command: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise OracleError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout
