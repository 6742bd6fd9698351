"""The mount table: which file system holds a path, from /proc/self/mountinfo (proc(5)).

Looking below an overlay and triggering an automount touch the storage, which may hang: not for the
main thread.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefetch_cli.base.progress import Monitor
from prefetch_cli.linux.filesystem import UNKNOWN, FileSystem

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_LAYER = re.compile(r"(?:\\.|[^:\\])+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OVERLAY_DEPTH = 2  # FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo, unescaped; `root` is the directory that is mounted."""

    id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    type: str
    source: str
    options: tuple[str, ...]

    def file_system(self) -> FileSystem:
        """Return the mounted file system: of an overlay, the overlay itself."""
        return FileSystem.of_mount(
            type_=self.type,
            mount_point=self.mount_point,
            source=self.source,
            device=self.device,
            options=self.options,
        )


class MountTable:
    """The mounts of this process, indexed for many look-ups."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.mounts = _visible(mounts)
        self._by_point = {mount.mount_point: mount for mount in self.mounts}
        self._by_directory: dict[str, Mount | None] = {}
        self._layers: dict[str, list[str]] = {}
        self._file_systems: dict[str, FileSystem] = {}

    @classmethod
    def read(cls, path: str = "/proc/self/mountinfo") -> "MountTable":
        """Return this process's table; an empty one if /proc is not mounted."""
        try:
            with open(path, "rb") as file:
                return cls.parse(file.read())
        except OSError:
            return cls(())

    @classmethod
    def parse(cls, text: bytes | str) -> "MountTable":
        """Return the table in `text`, without malformed lines; never raises.

        Bytes that are not UTF-8 become surrogates (PEP 383), as in all of Python's paths.
        """
        lines = (text if isinstance(text, bytes) else os.fsencode(text)).split(b"\n")
        return cls([mount for line in lines if (mount := _parse_line(line))])

    def of(self, real_path: str) -> FileSystem:
        """Return the file system that holds an absolute path without symlinks.

        The longest mount point above the path wins, of two equal ones the later, as in the kernel's
        path walk. For an overlay, return its layer's file system if that is visible from here.
        """
        mount = outermost = self._mount_of(real_path)
        for _ in range(_OVERLAY_DEPTH):
            if mount is None or mount.type != "overlay":
                break
            below = next(filter(os.path.lexists, self._places_in_layers(mount, real_path)), None)
            if below is None:
                break
            real_path = below
            mount = self._mount_of(real_path)
        if mount is None or mount.type == "overlay":
            mount = outermost
        if mount is None:
            return UNKNOWN
        if mount.mount_point not in self._file_systems:
            self._file_systems[mount.mount_point] = mount.file_system()
        return self._file_systems[mount.mount_point]

    def _mount_of(self, path: str) -> Mount | None:
        # A single file can be a mount point too, so cache by directory only.
        if mount := self._by_point.get(path):
            return mount
        directory = os.path.dirname(path)
        if directory not in self._by_directory:
            found = (self._by_point.get(above) for above in (directory, *_above(directory)))
            self._by_directory[directory] = next(filter(None, found), None)
        return self._by_directory[directory]

    def _places_in_layers(self, overlay: Mount, path: str) -> Iterator[str]:
        """Yield the path that a file in an overlay would have in each layer, topmost first."""
        if overlay.mount_point not in self._layers:
            # From inside a container most layers are not visible. A relative path started where
            # mount(8) ran, so skip it. docker shortens long names by symlinks, so resolve them.
            self._layers[overlay.mount_point] = [
                os.path.realpath(layer)
                for layer in _layers(overlay)
                if os.path.isabs(layer) and os.path.isdir(layer)
            ]
        inside = os.path.join(overlay.root, os.path.relpath(path, overlay.mount_point)).lstrip("/")
        for layer in self._layers[overlay.mount_point]:
            yield os.path.normpath(os.path.join(layer, inside))


def inspect(real_paths: Sequence[str], monitor: Monitor | None = None) -> tuple[FileSystem, ...]:
    """Return the file system of each path, in order; triggers automounts.

    The monitor sees which path or directory we wait for. Never raises: the reader will report what
    cannot be opened.
    """
    monitor = monitor or Monitor()
    found = _look_up(real_paths, monitor)
    waiting = {
        os.path.dirname(path)
        for path, file_system in zip(real_paths, found, strict=True)
        if file_system.type == "autofs"
    }
    if not waiting:
        return found
    # autofs mounts when a directory is opened; stat() and O_PATH do not trigger it.
    for directory in sorted(waiting):
        with monitor.waiting(directory), contextlib.suppress(OSError):
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK))
    return _look_up(real_paths, monitor)


def _look_up(real_paths: Sequence[str], monitor: Monitor) -> tuple[FileSystem, ...]:
    table = MountTable.read()
    found = []
    for path in real_paths:
        with monitor.waiting(path):
            found.append(table.of(path))
    return tuple(found)


def _parse_line(line: bytes) -> Mount | None:
    """Return the mount of a line of mountinfo, None if it is malformed."""
    place, _, what = line.partition(b" - ")
    # Split at single spaces: a source may be empty.
    fields, tail = place.split(b" "), what.split(b" ")
    try:
        id_, parent_id, device, root, mount_point, mount_options = fields[:6]
        type_, source, super_options = tail
        if not type_:
            return None
        return Mount(
            id=int(id_),
            parent_id=int(parent_id),
            device=_decode(device),
            root=_decode(root),
            mount_point=_decode(mount_point),
            type=_decode(type_),
            source=_decode(source),
            # A comma inside a value is escaped, so split first, then unescape.
            options=tuple(map(_decode, mount_options.split(b",") + super_options.split(b","))),
        )
    except ValueError:
        return None


def _decode(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def _visible(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return the mounts that a path can still reach, in the order of the table.

    Mounting over a directory hides the mounts below it that share its parent. Later mounts below it
    have the new mount as their parent.
    """
    later_points: dict[int, set[str]] = {}
    hidden = set()
    for mount in reversed(mounts):
        later = later_points.setdefault(mount.parent_id, set())
        if not later.isdisjoint(_above(mount.mount_point)):
            hidden.add(mount.id)
        later.add(mount.mount_point)
    while inside := {mount.id for mount in mounts if mount.parent_id in hidden} - hidden:
        hidden |= inside
    return tuple(mount for mount in mounts if mount.id not in hidden)


def _above(path: str) -> Iterator[str]:
    """Yield each directory above a path, nearest first."""
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


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
