"""One path of a checkpoint -> a file that can be read, or what is wrong with it."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefetch_cli.base.amounts import format_size
from prefetch_cli.checkpoint.files import File, Finding, Incomplete, Skipped
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import RealFolder, kind, open_to_read, real_path_of
from prefetch_cli.linux.pagecache import PAGE_BYTES

# What huggingface_hub appends to a file's name until its download has ended.
UNFINISHED_SUFFIX = ".incomplete"

_UNFINISHED = "its download has not ended"
_POINTER = "a Git LFS pointer, not the file itself"
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_MOST_BYTES = 1024  # Git LFS's own bound

_HEADER_LENGTH_BYTES = 8
# safetensors refuses longer headers (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_HEADER_MOST_BYTES = 100_000_000
# Of each thread; most headers are shorter.
_HEADER_STEP_BYTES = 128 * 1024
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*([0-9]{1,20})\s*,\s*([0-9]{1,20})\s*\]')
_OFFSETS_MOST_BYTES = 256  # longer than any match: what two steps overlap by


def examine(path: str, *, weight: bool, real_folder: RealFolder = os.path.realpath) -> Finding:
    """Return the file at `path`, or why it is left out, or what is missing of it.

    Reads at most the header of a safetensors file, or the first bytes of what may be a Git LFS
    pointer, and leaves the page cache as it was. Never opens anything but a regular file.
    `real_folder` resolves the links in a folder's path, for many files the same.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return Skipped(path, f"expected a file, found {kind(status.st_mode)}", failed=False)
        real_path = real_path_of(path, real_folder)
    except OSError as error:
        return _unreachable(path, error)
    file = File(path, real_path, status.st_size, weight, status.st_dev, status.st_ino)
    if real_path.endswith(UNFINISHED_SUFFIX):
        return Incomplete(path, _UNFINISHED, file)
    try:
        return _looked_into(file)
    except OSError:
        return file  # the reader meets the same error and reports it


def _unreachable(path: str, error: OSError) -> Skipped | Incomplete:
    # ENOTDIR and ENAMETOOLONG: an index may name anything.
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
    """Return the file, or what its first bytes say is missing of it; raises OSError."""
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
    """An open file whose reads leave the page cache as it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._method = pagecache.exact_method(descriptor)
        pagecache.read_only_what_is_asked(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range that begins with a page."""
        cold = self._cold(offset, -(-length // PAGE_BYTES) * PAGE_BYTES)
        content = os.pread(self._descriptor, length, offset)
        with suppress(OSError):  # refused, it stays
            for start, size in cold:
                pagecache.drop(self._descriptor, start, size)
        return content

    def _cold(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the runs of whole pages that are known not to be resident."""
        if not self._method.exact:
            return []
        resident = pagecache.resident_bytes(self._descriptor, offset, length, self._method)
        if resident == length:
            return []
        if resident == 0:
            return [(offset, length)]
        # Where mincore may not tell, it calls everything resident, and nothing is dropped.
        return list(pagecache.missing(self._descriptor, offset, length))


@contextmanager
def _glance(path: str) -> Iterator[_Glance]:
    descriptor = open_to_read(path)
    try:
        yield _Glance(descriptor)
    finally:
        os.close(descriptor)


def _promised_bytes(glance: _Glance, first: bytes) -> int:
    """Return the size that a safetensors file has by its header.

    Source: the format's own description: 8 bytes with the header's length, little-endian, JSON
    with `data_offsets` of each tensor, then the data. Searched rather than parsed, so that a
    hostile header costs no memory; inside a JSON string the quotes are escaped and do not
    match.
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
        kept = text[-_OFFSETS_MOST_BYTES:]
    return data_start + largest


def _chunks(glance: _Glance, first: bytes, end: int) -> Iterator[bytes]:
    """Yield the bytes up to `end`, or to the end of the file, of which `first` are the first."""
    yield first[:end]
    offset = PAGE_BYTES
    while offset < end and (chunk := glance.read(offset, min(_HEADER_STEP_BYTES, end - offset))):
        yield chunk
        offset += len(chunk)
