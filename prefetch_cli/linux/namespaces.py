"""Where a path leads by the kernel's own word, in whatever mount namespace that is.

A link like /proc/PID/root leads into the namespace of that process, although it reads as `/`: a
path that is put together from what links say is then one of this namespace, and wrong.
"""

import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from prefetch_cli.linux import mountinfo, procfs
from prefetch_cli.linux.files import close
from prefetch_cli.linux.mountinfo import Mount

_MAGIC = re.compile(
    r"/proc/(self|thread-self|[0-9]+)/(?:task/[0-9]+/)?(?:root|cwd|exe|fd|map_files)\b"
)
_MAGIC_LINK = re.compile(r"/[0-9]+/(?:root|cwd|exe|fd/[0-9]+|map_files/[^/]+)$")
_MOST_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_MOUNT_ID = re.compile(rb"^mnt_id:\s*([0-9]{1,18})$", re.MULTILINE)
_MOST_NAMESPACES = 256  # whose mounts are looked through


class Place(NamedTuple):
    """What a path leads to: the kernel's number of the mount, and the path in its namespace.

    `device` is the file's st_dev, which btrfs and overlay give in their own way.
    """

    mount_id: int
    real_path: str
    device: int


class Foreign(NamedTuple):
    """A mount of another namespace, and the way to that from here: `/proc/PID/root`."""

    mount: Mount
    root: str


def placed(path: str) -> Place | None:
    """Return where a path leads, None where the kernel does not tell.

    By O_PATH, which opens nothing: it needs no permission for the file itself, and acts on no
    device. The number stands in /proc/self/fdinfo since Linux 3.15.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        match = _MOUNT_ID.search(procfs.read(f"/proc/self/fdinfo/{descriptor}"))
        real_path = os.readlink(f"/proc/self/fd/{descriptor}")
        device = os.fstat(descriptor).st_dev
    except (OSError, ValueError):
        return None
    finally:
        close(descriptor)
    return Place(int(match[1]), real_path, device) if match else None


def beside(folder: Place, path: str) -> Place | None:
    """Return where a file lies in a folder that was placed, None where that must be asked.

    It lies on the folder's mount unless it is a link or has another device. Only a file of the same
    file system that is mounted over this one has neither: the caller must know the mount points.
    """
    name = os.path.basename(path)
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    if name in {"", ".", ".."} or stat.S_ISLNK(status.st_mode) or status.st_dev != folder.device:
        return None
    return Place(folder.mount_id, os.path.join(folder.real_path, name), folder.device)


def real_path(path: str) -> str:
    """Return what os.path.realpath returns, but keep links that lead where their text does not.

    Such a link is /proc/PID/root of a process in another namespace: what lies behind it has no
    other name here. A link behind it is followed as the kernel does, from our root if absolute.
    """
    if not path.startswith("/"):
        path = os.path.join(current_folder(), path)
    found, left, links = "", path.split("/")[::-1], 0
    while left:
        name = left.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            # Only the kernel knows what is above the end of such a link.
            kept = found.endswith("/..") or _is_kept(found)
            found = f"{found}/.." if kept else found.rpartition("/")[0]
            continue
        step = f"{found}/{name}"
        target = _target(step) if links < _MOST_LINKS else None
        if target is None:
            found = step
            continue
        links += 1
        if target.startswith("/"):
            found = ""
        left += target.split("/")[::-1]
    return found or "/"


def current_folder() -> str:
    """Return a path of the current folder: `/proc/self/cwd` where it has no other one here.

    A folder of another namespace has none for getcwd(2), or that of a folder of this namespace. The
    shell, which went there by a path, may have told it.
    """
    here = placed(".")
    for folder in (_cwd, lambda: os.environ.get("PWD", "")):
        if (path := folder()).startswith("/") and here is not None and placed(path) == here:
            return path
    return "/proc/self/cwd" if here is not None else os.getcwd()


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _target(path: str) -> str | None:
    """Return what a link says, None where there is no link or it is to be kept."""
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return None
    return None if _is_kept(path) else target


def _is_kept(path: str) -> bool:
    if not _MAGIC_LINK.search(path):
        return False
    try:
        target = os.path.join(os.path.dirname(path), os.readlink(path))
    except OSError:
        return False
    there = placed(path)
    return there is None or placed(target) != there


def is_magic(path: str) -> bool:
    """Return whether a path begins with a link that may lead into another namespace."""
    return _MAGIC.match(path) is not None


class Elsewhere:
    """The mounts of other namespaces, as far as this process may see them."""

    def __init__(self) -> None:
        self._found: dict[int, Foreign | None] = {}

    def mount(self, mount_id: int, path: str) -> Foreign | None:
        """Return a mount by the kernel's number, which is one for all namespaces, None if unseen.

        Its mount point is a path from here, through /proc/PID/root of a process that sees it: of
        the one that the path names, if it does.
        """
        if mount_id not in self._found:
            self._found[mount_id] = next(_mounts(mount_id, path), None)
        return self._found[mount_id]


def _mounts(mount_id: int, path: str) -> Iterator[Foreign]:
    seen: set[tuple[str, str]] = set()
    for pid in _processes(path):
        try:
            key = os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root")
        except OSError:
            continue  # it has ended, or belongs to another user
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > _MOST_NAMESPACES:
            return
        root = f"/proc/{pid}/root"
        for mount in mountinfo.read(f"/proc/{pid}/mountinfo"):
            if mount.id == mount_id:
                point = f"{root}{mount.mount_point}".rstrip("/")
                yield Foreign(mount._replace(mount_point=point), root)


def _processes(path: str) -> list[str]:
    named = _MAGIC.match(path)
    first = [named[1]] if named else []
    try:
        return first + [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return first
