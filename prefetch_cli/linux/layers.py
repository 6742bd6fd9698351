"""What a file system lies on: the layers of an overlay, the folder that a FUSE mount shows.

Looking there touches the storage, which may hang: not for the main thread.
"""

import contextlib
import os
import re
from collections.abc import Callable

from prefetch_cli.linux.mountinfo import Mount

_LAYER = re.compile(r"(?:\\.|[^:\\])+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# Files that say that a folder is what an encrypting file system lies on.
_GOCRYPTFS_MARKS = ("gocryptfs.conf", "gocryptfs.diriv")
_CRYFS_MARKS = ("cryfs.config",)
_MERGERFS_PATH = "user.mergerfs.fullpath"


def of_overlay(overlay: Mount) -> list[str]:
    """Return the folders that make up an overlay and can be seen from here, topmost first."""
    # From inside a container most layers are not visible. A relative path started where mount(8)
    # ran, so skip it. docker shortens long names by symlinks, so resolve them.
    return [
        os.path.realpath(layer)
        for layer in _layers(overlay)
        if os.path.isabs(layer) and os.path.isdir(layer)
    ]


def inside(mount: Mount, folder: str, path: str) -> str:
    """Return the path below a folder that a file has in a mount."""
    below = os.path.join(mount.root, os.path.relpath(path, mount.mount_point)).lstrip("/")
    return os.path.normpath(os.path.join(folder, below))


def below_fuse(mount: Mount, path: str) -> str | None:
    """Return where a file of a FUSE mount, or its folder, lies below, None where that is hidden.

    Known for: mergerfs, which tells it for each file as an extended attribute; bindfs, whose source
    is the folder that it shows (it mounts as plain `fuse`: naming a source takes away libfuse's
    subtype); gocryptfs and cryfs, whose source is the folder with the encrypted files. encfs,
    fuse-overlayfs and the other unions show nothing of what they lie on.
    """
    look = _LOOKS.get(mount.type)
    return None if look is None else look(mount, path)


def _bound(mount: Mount, path: str) -> str | None:
    if not os.path.isabs(mount.source):
        return None
    place = inside(mount, mount.source, path)
    # Any program can call its source so, and the folder of a mount from another namespace may be
    # another one here: only the same file, by size and time, proves it.
    try:
        here, there = os.lstat(path), os.lstat(place)
    except (OSError, ValueError):
        return None
    same = (here.st_mode, here.st_size, here.st_mtime_ns) == (
        there.st_mode,
        there.st_size,
        there.st_mtime_ns,
    )
    return place if same and place != path else None


def _merged(_mount: Mount, path: str) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        place = os.fsdecode(os.getxattr(path, _MERGERFS_PATH))
        if os.path.isabs(place) and os.path.lexists(place):
            return place
    return None


def _encrypted(folder: str, marks: tuple[str, ...]) -> str | None:
    if os.path.isabs(folder) and any(os.path.lexists(os.path.join(folder, mark)) for mark in marks):
        return folder
    return None


_LOOKS: dict[str, Callable[[Mount, str], str | None]] = {
    "fuse": _bound,
    "fuse.bindfs": _bound,
    "fuse.mergerfs": _merged,
    "fuse.gocryptfs": lambda mount, _path: _encrypted(mount.source, _GOCRYPTFS_MARKS),
    "fuse.cryfs": lambda mount, _path: _encrypted(
        mount.source.removeprefix("cryfs@"), _CRYFS_MARKS
    ),
}


def _layers(overlay: Mount) -> list[str]:
    r"""Return the directories that make up an overlay, topmost first.

    ovl_show_options() in fs/overlayfs shows `upperdir` and `lowerdir` as the user wrote them, with
    `:` between layers and `\` before a colon in a name; since Linux 6.8 also one unescaped
    `lowerdir+` for each layer.
    """
    upper, lower = [], []
    for option in overlay.options:
        name, _, value = option.partition("=")
        if name == "upperdir":
            upper.append(_ESCAPED.sub(r"\1", value))
        elif name == "lowerdir":
            lower += [_ESCAPED.sub(r"\1", layer) for layer in _LAYER.findall(value)]
        elif name == "lowerdir+":
            lower.append(value)
    return upper + lower
