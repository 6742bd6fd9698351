"""Regular files: open one safely, name what else a path leads to, resolve its links."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from prefetch_cli.base.errors import is_of_the_path

_PIECE_BYTES = 64 * 1024
_AGAIN_SECONDS = (0.01, 0.02, 0.05, 0.1)
_MOST_LINKS = 40  # the kernel's MAXSYMLINKS

RealFolder = Callable[[str], str]


def open_to_read(path: str) -> int:
    """Return a descriptor of the regular file at `path`.

    Opens without blocking: a FIFO may have replaced the file since somebody looked. Raises
    OSError if the path cannot be opened or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"expected a file, found {file_type(mode)}")
        os.set_blocking(descriptor, True)
    except BaseException:
        close(descriptor)
        raise
    return descriptor


def close(descriptor: int) -> None:
    """Close a descriptor of something that was only read.

    An error (EINTR, EIO, what a FUSE server says of a FLUSH) changes nothing of what was read, and
    the descriptor is gone all the same (close(2)).
    """
    with contextlib.suppress(OSError):
        os.close(descriptor)


def read(descriptor: int, size_bytes: int) -> bytes:
    """Return the next bytes of a file, at most so many, empty at its end; raises OSError.

    A FUSE server may say EAGAIN, of which Python's own files make None: it is asked again.
    """
    for seconds in _AGAIN_SECONDS:
        try:
            return os.read(descriptor, size_bytes)
        except BlockingIOError:
            time.sleep(seconds)
    return os.read(descriptor, size_bytes)


def pieces(descriptor: int, most_bytes: int) -> Iterator[bytes]:
    """Yield what a file has from here on, at most so much; raises OSError."""
    left = most_bytes
    while left > 0 and (piece := read(descriptor, min(left, _PIECE_BYTES))):
        left -= len(piece)
        yield piece


def read_head(path: str, size_bytes: int) -> bytes | None:
    """Return the first bytes of a regular file, or None if `path` leads to no regular file.

    Raises OSError if the file exists but cannot be read.
    """
    try:
        # Opening a device may act on it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    descriptor = open_to_read(path)
    try:
        return read(descriptor, size_bytes)
    finally:
        close(descriptor)


def mode_of(path: str) -> int:
    """Return st_mode of what a path leads to, 0 if that is nothing or out of this user's reach.

    Raises OSError if the system fails: os.path.isdir() would say no.
    """
    try:
        return os.stat(path).st_mode
    except ValueError:  # a NUL byte
        return 0
    except OSError as error:
        if is_of_the_path(error):
            return 0
        raise


def file_type(mode: int) -> str:
    """Return the name of a file type: `a file`, `a directory`, `a FIFO`."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def real_path_of(path: str, real_folder: RealFolder) -> str:
    """Return what os.path.realpath returns, given a cached `real_folder` for the folders.

    os.path.realpath itself would look at every folder again for each file.
    """
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        folder = real_folder(folder)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
