"""One path of a checkpoint -> a file that can be read, or what is wrong with it."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from prefetch_cli import pagecache
from prefetch_cli.pagecache import PAGE_BYTES
from prefetch_cli.sizes import format_size

# What huggingface_hub appends to a file's name until its download has ended.
UNFINISHED_SUFFIX = ".incomplete"

_UNFINISHED = "its download has not ended"
_POINTER = "a Git LFS pointer, not the file itself"
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_MOST_BYTES = 1024  # Git LFS's own bound
_MOST_LINKS = 40  # the kernel's own bound (MAXSYMLINKS)
_HEADER_LENGTH_BYTES = 8
# safetensors refuses longer headers (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_HEADER_MOST_BYTES = 100_000_000
# Of each thread; most headers are shorter.
_HEADER_STEP_BYTES = 128 * 1024
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*([0-9]{1,20})\s*,\s*([0-9]{1,20})\s*\]')
_OFFSETS_MOST_BYTES = 256  # longer than any match: what two steps overlap by

RealFolder = Callable[[str], str]


@dataclass(frozen=True)
class File:
    """A regular file of the checkpoint."""

    path: str  # as it is opened and shown
    real_path: str
    size_bytes: int
    weight: bool  # else config or tokenizer
    device: int
    inode: int


@dataclass(frozen=True)
class Skipped:
    """Something that cannot be read as a file, and why; the rest can."""

    path: str
    reason: str
    failed: bool  # a file that should have been read: the exit code tells


@dataclass(frozen=True)
class Incomplete:
    """A file that is not, or not wholly, there, and why."""

    path: str
    reason: str
    file: File | None  # what there is of it


Finding = File | Skipped | Incomplete


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
        real_path = _real_path(path, real_folder)
    except OSError as error:
        return _unreachable(path, error)
    file = File(path, real_path, status.st_size, weight, status.st_dev, status.st_ino)
    if real_path.endswith(UNFINISHED_SUFFIX):
        return Incomplete(path, _UNFINISHED, file)
    try:
        return _looked_into(file)
    except OSError:
        return file  # the reader meets the same error and reports it


def open_to_read(path: str) -> int:
    """Return a descriptor of the regular file at `path`.

    Non-blocking only while it is opened: what was a file a moment ago may be a FIFO now. Raises
    OSError where it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"expected a file, found {kind(mode)}")
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def kind(mode: int) -> str:
    """Return in words what a mode says that something is."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _real_path(path: str, real_folder: RealFolder) -> str:
    """Return what os.path.realpath does, which would ask about each folder of each path anew."""
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        folder = real_folder(folder)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


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
