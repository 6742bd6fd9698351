"""One path -> a file that can be read, or what is wrong with it."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefetch_cli.base.amounts import format_size
from prefetch_cli.checkpoint.files import File, Finding, Incomplete, Skipped
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import RealFolder, file_type, open_to_read, real_path_of
from prefetch_cli.linux.pagecache import PAGE_BYTES

# huggingface_hub appends this to a file's name until its download has ended.
UNFINISHED_SUFFIX = ".incomplete"

_UNFINISHED = "its download has not ended"
_POINTER = "a Git LFS pointer, not the file itself"
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_MOST_BYTES = 1024  # Git LFS's own bound

_HEADER_LENGTH_BYTES = 8
# safetensors refuses longer headers (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_HEADER_MOST_BYTES = 100_000_000
_HEADER_STEP_BYTES = 128 * 1024  # of each thread; most headers are shorter
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*([0-9]{1,20})\s*,\s*([0-9]{1,20})\s*\]')
_OVERLAP_BYTES = 256  # longer than any match of _OFFSETS


def examine(path: str, *, weight: bool, real_folder: RealFolder = os.path.realpath) -> Finding:
    """Return the file at `path`, or why it is left out, or what is missing of it.

    Reads at most the header of a safetensors file, or the first bytes of what may be a Git LFS
    pointer, and leaves the page cache as it was. Opens regular files only. Pass a cached
    `real_folder` when you examine many files.
    """
    try:
        file = file_at(path, weight=weight, real_folder=real_folder)
    except OSError as error:
        return _unreachable(path, error)
    if isinstance(file, Skipped):
        return file
    if file.real_path.endswith(UNFINISHED_SUFFIX):
        return Incomplete(path, _UNFINISHED, file)
    try:
        return _looked_into(file)
    except OSError:
        return file  # reading it will fail too, and report the error


def file_at(path: str, *, weight: bool, real_folder: RealFolder) -> File | Skipped:
    """Return the file at `path`, unopened, or Skipped if it is not a regular one.

    Raises OSError if it is missing or out of reach.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        found = file_type(status.st_mode)
        return Skipped(path, f"expected a file, found {found}", failed=False)
    real_path = real_path_of(path, real_folder)
    return File(path, real_path, status.st_size, weight, status.st_dev, status.st_ino)


def _unreachable(path: str, error: OSError) -> Skipped | Incomplete:
    # An index may name anything, hence ENOTDIR and ENAMETOOLONG.
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return Incomplete(path, _absence(path), None)
    if error.errno == errno.ELOOP:
        return Skipped(path, "a symbolic link that leads to itself", failed=False)
    return Skipped(path, error.strerror or str(error), failed=True)


def _absence(path: str) -> str:
    is_link = os.path.islink(path)
    if os.path.lexists((os.path.realpath(path) if is_link else path) + UNFINISHED_SUFFIX):
        return _UNFINISHED
    return "a symbolic link to nothing" if is_link else "not there"


def _looked_into(file: File) -> File | Incomplete:
    """Return the file, or what is missing of it by its first bytes; raises OSError."""
    is_safetensors = file.weight and file.path.endswith(".safetensors") and file.size_bytes > 0
    if not is_safetensors and not 0 < file.size_bytes < _POINTER_MOST_BYTES:
        return file
    with _glance(file.path) as glance:
        first = glance.read(0, PAGE_BYTES)
        if first.startswith(_POINTER_START):
            return Incomplete(file.path, _POINTER, None)
        promised = _promised_bytes(glance, first) if is_safetensors else 0
    if promised <= file.size_bytes:
        return file
    reason = (
        f"its header promises {format_size(promised)} ({promised:,} bytes), "
        f"it has {format_size(file.size_bytes)} ({file.size_bytes:,} bytes)"
    )
    return Incomplete(file.path, reason, file)


class _Glance:
    """Reads an open file and leaves the page cache as it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._method = pagecache.exact_method(descriptor)
        pagecache.read_only_what_is_asked(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return a range that begins at the start of a page."""
        cold = self._cold(offset, -(-length // PAGE_BYTES) * PAGE_BYTES)
        content = os.pread(self._descriptor, length, offset)
        with suppress(OSError):  # then the pages stay
            for start, size in cold:
                pagecache.drop(self._descriptor, start, size)
        return content

    def _cold(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the runs of pages that are known to be absent from the page cache."""
        if not self._method.exact:
            return []
        resident = pagecache.resident_bytes(self._descriptor, offset, length, self._method)
        if resident == length:
            return []
        if resident == 0:
            return [(offset, length)]
        # Without permission mincore reports every page as resident: nothing is dropped.
        return list(pagecache.missing(self._descriptor, offset, length))


@contextmanager
def _glance(path: str) -> Iterator[_Glance]:
    descriptor = open_to_read(path)
    try:
        yield _Glance(descriptor)
    finally:
        os.close(descriptor)


def _promised_bytes(glance: _Glance, first: bytes) -> int:
    """Return the size that a safetensors file should have by its header.

    The format: the header's length in 8 bytes, little-endian; the header, JSON with the
    `data_offsets` of each tensor; the data. We search the header instead of parsing it: a
    hostile one costs no memory, and quotes inside a JSON string are escaped and do not match.
    """
    header_bytes = int.from_bytes(first[:_HEADER_LENGTH_BYTES], "little")
    data_start = _HEADER_LENGTH_BYTES + header_bytes
    if header_bytes > _HEADER_MOST_BYTES:
        return data_start
    largest = 0
    kept = b""
    for chunk in _chunks(glance, first, data_start):
        text = kept + chunk
        for match in _OFFSETS.finditer(text):
            largest = max(largest, int(match[2]))
        kept = text[-_OVERLAP_BYTES:]
    return data_start + largest


def _chunks(glance: _Glance, first: bytes, end: int) -> Iterator[bytes]:
    """Yield `first`, then what follows it up to `end` or the end of the file."""
    yield first[:end]
    offset = PAGE_BYTES
    while offset < end and (chunk := glance.read(offset, min(_HEADER_STEP_BYTES, end - offset))):
        yield chunk
        offset += len(chunk)
