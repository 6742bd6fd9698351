"""The mount table: which file system holds a path, from /proc/self/mountinfo (proc(5)).

Looking below an overlay and triggering an automount touch the storage, which may hang: not for the
main thread.
"""

import contextlib
import os
from collections.abc import Sequence
from itertools import repeat

from prefetch_cli.base.progress import Monitor
from prefetch_cli.linux import layers, mountinfo
from prefetch_cli.linux.blockdev import BlockDevice, Kind, device_below
from prefetch_cli.linux.files import close
from prefetch_cli.linux.filesystem import UNKNOWN, FileSystem
from prefetch_cli.linux.mountinfo import Mount
from prefetch_cli.linux.namespaces import Elsewhere, Place, beside, is_magic, placed

_OVERLAY_DEPTH = 2  # FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h
_DEEPEST = 8  # FUSE mounts and loop devices on top of each other


class MountTable:
    """The mounts of this process, indexed for many look-ups."""

    def __init__(self, mounts: Sequence[Mount], sys_root: str = "/sys") -> None:
        self.mounts = mountinfo.visible(mounts)
        self._sys_root = sys_root
        self._by_id = {mount.id: mount for mount in mounts}
        self._by_point = {mount.mount_point: mount for mount in self.mounts}
        self._by_directory: dict[str, Mount | None] = {}
        self._layers: dict[Mount, list[str]] = {}
        self._file_systems: dict[tuple[Mount, bool], FileSystem] = {}
        self._depth = 0

    @classmethod
    def read(cls, path: str = "/proc/self/mountinfo") -> "MountTable":
        """Return this process's table; an empty one if /proc is not mounted."""
        return cls(mountinfo.read(path))

    @classmethod
    def parse(cls, text: bytes | str, sys_root: str = "/sys") -> "MountTable":
        """Return the table in `text`, without malformed lines; never raises."""
        return cls(mountinfo.parse(text), sys_root)

    def of(self, real_path: str) -> FileSystem:
        """Return the file system that holds an absolute path without symlinks.

        The longest mount point above the path wins, of two equal ones the later, as in the kernel's
        path walk. For an overlay, return its layer's file system if that is visible from here.
        """
        mount = self._mount_of(real_path)
        return UNKNOWN if mount is None else self.of_mount(mount, real_path)

    def is_point(self, real_path: str) -> bool:
        """Return whether something is mounted right there."""
        return real_path in self._by_point

    def with_id(self, mount_id: int) -> Mount | None:
        """Return the mount that the kernel knows by a number, None if this table lacks it."""
        return self._by_id.get(mount_id)

    def of_mount(self, mount: Mount, path: str) -> FileSystem:
        """Return the file system of a mount, of this table or not, that holds a path."""
        outermost = mount
        for _ in range(_OVERLAY_DEPTH):
            if mount.type != "overlay":
                break
            below, holder = self._below_overlay(mount, path)
            if holder is None:
                break
            path, mount = below, holder
        if mount.type == "overlay":
            mount = outermost
        key = mount, mount is not outermost
        if key not in self._file_systems:
            self._file_systems[key] = FileSystem.of_mount(
                mount, block=self._block(mount), overlaid=key[1]
            )
        found = self._file_systems[key]
        if found.is_fuse and found.block is None and self._depth < _DEEPEST:
            place = layers.below_fuse(mount, path)
            if place is not None:
                return FileSystem.of_mount(mount, below=self._deeper(os.path.realpath(place)))
        return found

    def _mount_of(self, path: str) -> Mount | None:
        # A single file can be a mount point too, so cache by directory only.
        if mount := self._by_point.get(path):
            return mount
        directory = os.path.dirname(path)
        if directory not in self._by_directory:
            places = (directory, *mountinfo.above(directory))
            found = (self._by_point.get(place) for place in places)
            self._by_directory[directory] = next(filter(None, found), None)
        return self._by_directory[directory]

    def _below_overlay(self, overlay: Mount, path: str) -> tuple[str, Mount | None]:
        """Return where a file of an overlay lies in its layers, and the mount that holds it."""
        if overlay not in self._layers:
            self._layers[overlay] = layers.of_overlay(overlay)
        for layer in self._layers[overlay]:
            place = layers.inside(overlay, layer, path)
            if os.path.lexists(place):
                return place, self._mount_of(place)
        return path, None

    def _deeper(self, real_path: str) -> FileSystem:
        self._depth += 1
        try:
            return self.of(real_path)
        finally:
            self._depth -= 1

    def _block(self, mount: Mount) -> BlockDevice | None:
        return device_below(mount.device, mount.source, self._kind_of_file, self._sys_root)

    def _kind_of_file(self, real_path: str) -> Kind:
        """Return where a file lies, which holds a loop device."""
        if self._depth >= _DEEPEST:
            return Kind.UNKNOWN
        found = self._deeper(real_path)
        if found.network:
            return Kind.NETWORK
        if found.in_memory:
            return Kind.MEMORY
        return Kind.UNKNOWN if found.storage is None else found.storage.kind


def inspect(
    paths: Sequence[str], monitor: Monitor | None = None, devices: Sequence[int] | None = None
) -> tuple[FileSystem, ...]:
    """Return the file system of what each path leads to, in order; triggers automounts.

    The kernel is asked which mount that is, because a path may lead into another mount namespace,
    as /proc/PID/root does. Where that cannot be told, the file system is `UNKNOWN`, never that of
    the same path here.

    `devices` are the paths' st_dev, where they are known and no path is a link: then a folder is
    looked at once for all files on its device.

    The monitor sees which path or directory we wait for. Never raises: the reader will report what
    cannot be opened.
    """
    monitor = monitor or Monitor()
    found = _look_up(paths, monitor, devices)
    waiting = {
        os.path.dirname(path)
        for path, file_system in zip(paths, found, strict=True)
        if file_system.type == "autofs"
    }
    if not waiting:
        return found
    # autofs mounts when a directory is opened; stat() and O_PATH do not trigger it.
    for directory in sorted(waiting):
        with monitor.waiting(directory), contextlib.suppress(OSError):
            close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK))
    return _look_up(paths, monitor)


def _look_up(
    paths: Sequence[str], monitor: Monitor, devices: Sequence[int] | None = None
) -> tuple[FileSystem, ...]:
    finder = _Finder()
    found = []
    for path, device in zip(paths, devices or repeat(None), strict=False):
        known = None if device is None else finder.in_known_folder(path, device)
        if known is None:
            with monitor.waiting(path):
                known = finder.find(path)
        found.append(known)
    return tuple(found)


class _Finder:
    """Looks paths up, in this namespace and in others."""

    def __init__(self) -> None:
        self._table = MountTable.read()
        self._elsewhere = Elsewhere()
        self._missed: set[int] = set()
        self._folders: dict[str, Place | None] = {}
        # Of folders all of whose files lie on one file system, unless one is mounted there.
        self._whole: dict[str, FileSystem] = {}

    def in_known_folder(self, path: str, device: int) -> FileSystem | None:
        """Return the file system of a file by its folder, None where it must be looked at."""
        folder, _, name = path.rpartition("/")
        found = self._whole.get(folder)
        place = self._folders.get(folder)
        if found is None or place is None or place.device != device:
            return None
        return None if self._table.is_point(f"{place.real_path}/{name}") else found

    def find(self, path: str) -> FileSystem:
        place = self._beside(path)
        if place is None:
            return self._placed(path, placed(path))
        found = self._placed(path, place)
        mount = self._table.with_id(place.mount_id)
        # An overlay has layers, a FUSE mount may show several folders, and autofs is to be mounted.
        if mount is not None and mount.type not in {"overlay", "autofs"} and not found.is_fuse:
            self._whole[os.path.dirname(path)] = found
        return found

    def _placed(self, path: str, place: Place | None) -> FileSystem:
        if place is None:
            return UNKNOWN if is_magic(path) else self._table.of(os.path.realpath(path))
        if not self._table.with_id(place.mount_id) and place.mount_id not in self._missed:
            # The walk to the file may have triggered an automount.
            self._missed.add(place.mount_id)
            self._table = MountTable.read()
        if mount := self._table.with_id(place.mount_id):
            return self._table.of_mount(mount, place.real_path)
        foreign = self._elsewhere.mount(place.mount_id, path)
        if foreign is None:
            return UNKNOWN
        return self._table.of_mount(foreign.mount, foreign.root + place.real_path)

    def _beside(self, path: str) -> Place | None:
        """Return where a file lies by its folder, which saves most of the work for many files."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = placed(folder)
        known = self._folders[folder]
        place = None if known is None else beside(known, path)
        return None if place is None or self._table.is_point(place.real_path) else place
