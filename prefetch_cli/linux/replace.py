"""Replaces a file as a whole: whoever reads it meanwhile sees the old one or the new one."""

import errno
import os
import stat
from contextlib import suppress

from prefetch_cli.linux.files import file_type

_MODE = 0o644  # whatever the umask: another user's program reads it
_TO_WRITE = os.O_WRONLY | os.O_CLOEXEC


def replace_file(path: str, content: bytes) -> None:
    """Write a file, through one beside it that is renamed once it is on the disk.

    A link is followed, and what it leads to is replaced. Raises OSError where that is something
    else than a regular file (a device would be replaced by a file), or cannot be written; nothing
    has changed then. The name of the other file does not end as those do that node_exporter reads
    (*.prom).
    """
    path = os.path.realpath(path)
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"expected a file, found {file_type(mode)}")
    folder = os.path.dirname(path)
    # Not by pid: in containers, several processes have the same one.
    beside = os.path.join(folder, f".prefetch-cli-{os.urandom(8).hex()}.tmp")
    try:
        if not _write_unnamed(folder, beside, content):
            _write(os.open(beside, _TO_WRITE | os.O_CREAT | os.O_EXCL, _MODE), content)
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _write_unnamed(folder: str, name: str, content: bytes) -> bool:
    """Return whether a file was written that gets its name last; raises OSError where it was not.

    Nothing is left of it if the process is killed while the disk is busy. NFS, FUSE and others have
    no files without a name.
    """
    try:
        descriptor = os.open(folder, _TO_WRITE | os.O_TMPFILE, _MODE)
    except OSError:
        return False
    named = os.dup(descriptor)
    try:
        _write(descriptor, content)
        # With a directory's descriptor, os.link calls linkat(2), which follows the link.
        os.link(f"/proc/self/fd/{named}", name, src_dir_fd=named, follow_symlinks=True)
    except FileNotFoundError:
        return False  # no /proc
    finally:
        os.close(named)
    return True


def _write(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, _MODE)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
