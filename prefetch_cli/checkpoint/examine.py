"""One path -> a file that can be read, or what is wrong with it."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefetch_cli.base.amounts import format_size
from prefetch_cli.checkpoint import headers
from prefetch_cli.checkpoint.files import File, Finding, Incomplete, Skipped
from prefetch_cli.linux import namespaces, pagecache
from prefetch_cli.linux.files import RealFolder, close, file_type, open_to_read, real_path_of
from prefetch_cli.linux.pagecache import PAGE_BYTES, Counter

# Downloaders keep a file with such a suffix beside NAME, or in its place, until it has ended:
# huggingface_hub, aria2 (its control file), wget and Firefox, Chromium.
UNFINISHED_SUFFIXES = (".incomplete", ".aria2", ".part", ".crdownload")
# Ollama's, whose file has its whole length from the start.
_UNFINISHED_BLOB = re.compile(r"sha256-[0-9a-fA-F]{64}-partial")
_OLLAMAS_SUFFIX = "-partial"

_UNFINISHED = "its download has not ended"
_POINTER = "a Git LFS pointer, not the file itself"
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_MOST_BYTES = 1024  # Git LFS's own bound


def is_unfinished(path: str) -> bool:
    """Return whether a downloader's file beside `path` says that its download has not ended."""
    return any(os.path.lexists(path + suffix) for suffix in UNFINISHED_SUFFIXES)


def examine(
    path: str,
    *,
    weight: bool,
    unfinished: bool = False,
    named: bool = False,
    promised_bytes: int | None = None,
    real_folder: RealFolder = namespaces.real_path,
) -> Finding:
    """Return the file at `path`, or why it is left out, or what is missing of it.

    It is `unfinished` where that is known already, as from the listing of its folder, and
    incomplete where it has another size than was promised, or is `named`, as by an index, and no
    file.

    Reads at most the header of a weight file and its last 64 KiB, or the first bytes of what may be
    a Git LFS pointer, and leaves the page cache as it was. Opens regular files only. Pass a cached
    `real_folder` when you examine many files.
    """
    file: Finding
    try:
        file = file_at(path, weight=weight, real_folder=real_folder)
    except OSError as error:
        file = _unreachable(path, error)
    if named and isinstance(file, Skipped) and not file.failed:
        return Incomplete(path, file.reason, None)
    if not isinstance(file, File):
        return file
    name = os.path.basename(file.real_path)
    if unfinished or name.endswith(UNFINISHED_SUFFIXES) or _UNFINISHED_BLOB.fullmatch(name):
        return Incomplete(path, _UNFINISHED, file)
    if promised_bytes not in (None, file.size_bytes):
        return Incomplete(path, _of_another_size(promised_bytes, file.size_bytes), file)
    try:
        return _looked_into(file)
    except OSError:
        return file  # reading it will fail too, and report the error


def is_gguf(path: str) -> bool:
    """Return whether a regular file begins as GGUF does; leaves the page cache as it was.

    False where it cannot be read.
    """
    try:
        with glance(path) as looked:
            return looked.read(0, PAGE_BYTES).startswith(headers.GGUF_MAGIC)
    except OSError:
        return False


def gguf_type(path: str) -> str | None:
    """Return the `general.type` of a GGUF file, None where it has none or cannot be read.

    Leaves the page cache as it was.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with glance(path) as looked:
            return headers.gguf_type(looked.read(0, PAGE_BYTES), looked.read)
    except OSError:
        return None


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


def _of_another_size(promised_bytes: int, size_bytes: int) -> str:
    return (
        f"its manifest promises {format_size(promised_bytes)} ({promised_bytes:,} bytes), "
        f"it has {format_size(size_bytes)} ({size_bytes:,} bytes)"
    )


def _absence(path: str) -> str:
    is_link = os.path.islink(path)
    whole = namespaces.real_path(path) if is_link else path
    if is_unfinished(whole) or os.path.lexists(whole + _OLLAMAS_SUFFIX):
        return _UNFINISHED
    return "a symbolic link to nothing" if is_link else "not there"


def _looked_into(file: File) -> File | Incomplete:
    """Return the file, or what is missing of it by its header or its end; raises OSError."""
    may_be_pointer = 0 < file.size_bytes < _POINTER_MOST_BYTES
    if not file.weight and not may_be_pointer:
        return file
    with glance(file.path) as looked:
        first = looked.read(0, PAGE_BYTES)
        if first.startswith(_POINTER_START):
            return Incomplete(file.path, _POINTER, None)
        if not file.weight:
            return file
        reason = headers.what_is_missing(file.path, file.size_bytes, first, looked.read)
    return file if reason is None else Incomplete(file.path, reason, file)


class Glance:
    """Reads an open file and leaves the page cache as it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size
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
        found = Counter(self._descriptor).count(offset, length)
        if found is None or found.resident_bytes == length:
            return []
        if found.resident_bytes == 0:
            return [(offset, length)]
        # Without permission mincore reports every page as resident: nothing is dropped.
        return list(pagecache.missing(self._descriptor, offset, length))


@contextmanager
def glance(path: str) -> Iterator[Glance]:
    """Yield a regular file, opened to look into; raises OSError."""
    descriptor = open_to_read(path)
    try:
        yield Glance(descriptor)
    finally:
        close(descriptor)
