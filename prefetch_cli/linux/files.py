"""Regular files: how to open one safely, what else a path may lead to, where its links end."""

import errno
import os
import stat
from collections.abc import Callable

_MOST_LINKS = 40  # the kernel's own bound (MAXSYMLINKS)

RealFolder = Callable[[str], str]


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


def real_path_of(path: str, real_folder: RealFolder) -> str:
    """Return what os.path.realpath does, which would ask about each folder of each path anew."""
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        folder = real_folder(folder)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
