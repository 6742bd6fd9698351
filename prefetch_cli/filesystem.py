"""The file system that holds a path: its type, network or not, and what its mount says of caching.

The one source is the kernel's table of mounts, `/proc/self/mountinfo` (proc(5)). Looking below
an overlay and triggering an automount touch the storage, which may hang: not for the main thread.
"""

import contextlib
import glob
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefetch_cli.progress import Monitor

# fmt: off
NETWORK_TYPES = frozenset({
    "nfs", "nfs4", "lustre", "ceph", "cifs", "smb3", "smbfs", "afs", "gpfs", "beegfs",
    "beegfs_nodev", "wekafs", "panfs", "pvfs2", "ocfs2", "gfs2", "glusterfs", "9p", "virtiofs",
    "vboxsf",
    "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.gcsfuse", "fuse.goofys", "fuse.s3fs",
    "fuse.blobfuse2", "fuse.rclone", "fuse.sshfs", "fuse.seaweedfs", "fuse.cubefs", "fuse.daos",
    "fuse.hf3fs", "fuse.alluxio-fuse", "fuse.quobyte", "fuse.mfs",
})
# fmt: on
# These mount as plain `fuse`, without a subtype, and give their name as the source.
NETWORK_FUSE_SOURCES = frozenset({"mountpoint-s3", "cvmfs2"})
IN_MEMORY_TYPES = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
SMB_TYPES = frozenset({"cifs", "smb3"})

# `dax=never` and `dax=inode` leave files in the page cache, unless a file asks otherwise.
_DAX = frozenset({"dax", "dax=always"})
_UNCACHED = frozenset({"cache=none", "directio", "forcedirectio", "direct_io"})
_9P_CACHED = frozenset({"loose", "fscache"})
_9P_UNCACHED = frozenset({"cache=0", "cache=0x0"})

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_LAYER = re.compile(r"(?:\\.|[^:\\])+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OVERLAY_DEPTH = 2  # FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h

_KIB = 1024
_LARGEST_RSIZE = 1024 * _KIB  # NFS_MAX_FILE_IO_SIZE, include/linux/nfs_xdr.h
_DEFAULT_READ_AHEAD = 128 * _KIB  # VM_READAHEAD_PAGES: what a bdi starts with, mm/backing-dev.c
_BTRFS_READ_AHEAD = 4096 * _KIB  # the least that open_ctree() sets, fs/btrfs/disk-io.c
# With 128 KiB, the default, twice as much makes sendfile(2) a third faster on ext4 behind a fast
# disk, with 256 KiB a tenth, with 512 KiB nothing any more.
_AMPLE_READ_AHEAD = 512 * _KIB

_DEFAULT_CLOSETIMEO = 1  # seconds: SMB3_DEF_DCLOSETIMEO, fs/smb/client/fs_context.h
_LATE_CLOSE_FACTOR = 1.5  # the close is the work of a queue, which may begin late
_LONGEST_LATE_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class FileSystem:
    """What is known of a mounted file system.

    `type` is mountinfo's ("ext4", "nfs4", "fuse.juicefs"), or "unknown"; below an overlay that can
    be looked through, all is of the layer that holds the file. `network` and `in_memory` may both
    be true (virtiofs with DAX). `bypasses_cache` is true only where the mount options say that
    read() does not fill the page cache. `device` is "major:minor"; `options` holds those of the
    mount and those of the file system.
    """

    type: str
    mount_point: str
    source: str
    network: bool
    in_memory: bool
    bypasses_cache: bool
    device: str
    options: frozenset[str]


UNKNOWN = FileSystem(
    type="unknown",
    mount_point="/",
    source="unknown",
    network=False,
    in_memory=False,
    bypasses_cache=False,
    device="0:0",
    options=frozenset(),
)


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo, with its escapes undone; `root` is the part that is mounted."""

    id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    type: str
    source: str
    options: tuple[str, ...]

    def file_system(self) -> FileSystem:
        """Return what the mount says of its file system, an overlay not looked through."""
        options = frozenset(self.options)
        fuse_source = self.type == "fuse" and self.source in NETWORK_FUSE_SOURCES
        return FileSystem(
            type=self.type,
            mount_point=self.mount_point,
            source=self.source,
            network=self.type in NETWORK_TYPES or fuse_source,
            in_memory=self.type in IN_MEMORY_TYPES or bool(options & _DAX),
            bypasses_cache=_bypasses_cache(self.type, options),
            device=self.device,
            options=options,
        )


class MountTable:
    """The mounts of this process, ready for many look-ups."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.mounts = _visible(mounts)
        self._by_point = {mount.mount_point: mount for mount in self.mounts}
        self._by_directory: dict[str, Mount | None] = {}
        self._layers: dict[str, list[str]] = {}
        self._file_systems = {point: mount.file_system() for point, mount in self._by_point.items()}

    @classmethod
    def read(cls, path: str = "/proc/self/mountinfo") -> "MountTable":
        """Return the table of this process; an empty one where /proc is not mounted."""
        try:
            with open(path, "rb") as file:
                return cls.parse(file.read())
        except OSError:
            return cls(())

    @classmethod
    def parse(cls, text: bytes | str) -> "MountTable":
        """Return the table that `text` holds; a malformed line is left out, none raises.

        Bytes that are not UTF-8 come out as surrogates (PEP 383), as in every path of Python's.
        """
        lines = (text if isinstance(text, bytes) else os.fsencode(text)).split(b"\n")
        return cls([mount for line in lines if (mount := _parse_line(line))])

    def of(self, real_path: str) -> FileSystem:
        """Return the file system that holds an absolute path without symlinks.

        The longest mount point above the path decides, the later of two equal ones, as in the
        kernel's path walk. An overlay is looked through where its layers can be seen from here.
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
        return UNKNOWN if mount is None else self._file_systems[mount.mount_point]

    def _mount_of(self, path: str) -> Mount | None:
        # A single file can be a mount point too, so only what is above it is remembered.
        if mount := self._by_point.get(path):
            return mount
        directory = os.path.dirname(path)
        if directory not in self._by_directory:
            found = (self._by_point.get(above) for above in (directory, *_above(directory)))
            self._by_directory[directory] = next(filter(None, found), None)
        return self._by_directory[directory]

    def _places_in_layers(self, overlay: Mount, path: str) -> Iterator[str]:
        """Yield where a path in an overlay would lie in each of its layers, the topmost first."""
        if overlay.mount_point not in self._layers:
            # Seen from a container, most layers are not there. A relative one was meant from
            # where mount(8) ran, and docker shortens long names by symlinks.
            self._layers[overlay.mount_point] = [
                os.path.realpath(layer)
                for layer in _layers(overlay)
                if os.path.isabs(layer) and os.path.isdir(layer)
            ]
        inside = os.path.join(overlay.root, os.path.relpath(path, overlay.mount_point)).lstrip("/")
        for layer in self._layers[overlay.mount_point]:
            yield os.path.normpath(os.path.join(layer, inside))


def inspect(real_paths: Sequence[str], monitor: Monitor | None = None) -> tuple[FileSystem, ...]:
    """Return the file system of each path, in their order, mounting what autofs holds back.

    The monitor is told which path or folder the storage is asked about. Never raises: what cannot
    be opened is left to the reader to report.
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


def late_close_seconds(fs: FileSystem) -> float:
    """Return how long after the last close of a file its cached pages may still be dropped.

    The SMB client closes a file `closetimeo` seconds after its last user did (cifs_close(), Linux
    5.13), and with cache=strict, the default, it lets go of the pages then: whoever opens the file
    next reads it anew (cifsFileInfo_put_final() in fs/smb/client/file.c). At most 5 s.
    """
    if fs.type not in SMB_TYPES:
        return 0.0
    seconds = _number_of(fs, "closetimeo")
    if seconds is None:
        seconds = _DEFAULT_CLOSETIMEO
    return min(seconds * _LATE_CLOSE_FACTOR, _LONGEST_LATE_CLOSE_SECONDS)


def read_step_bytes(fs: FileSystem, sys_root: str = "/sys") -> int:
    """Return the most bytes that one WILLNEED reads whole, in whole pages, at least one.

    The kernel drops what is above max(io_pages, ra_pages) and says nothing
    (force_page_cache_ra() in mm/readahead.c), so where a figure is unknown the answer is low. Of a
    file that is opened where `reads_ahead_little`, ra_pages is taken to be doubled.
    """
    window = _read_ahead_bytes(fs, sys_root)
    if window is None:
        window = _BTRFS_READ_AHEAD if fs.type == "btrfs" else _rsize(fs)
    elif window < _AMPLE_READ_AHEAD:
        window *= 2
    step = max(_request_bytes(fs, sys_root), window)
    return max(step // mmap.PAGESIZE, 1) * mmap.PAGESIZE


def reads_ahead_little(fs: FileSystem, sys_root: str = "/sys") -> bool:
    """Return whether files should be read ahead twice as far as the kernel does by itself."""
    window = _read_ahead_bytes(fs, sys_root)
    return window is not None and window < _AMPLE_READ_AHEAD


def _request_bytes(fs: FileSystem, sys_root: str) -> int:
    """Return the file system's io_pages, in bytes."""
    if fs.type in ("nfs", "nfs4"):
        return _rsize(fs) or _DEFAULT_READ_AHEAD
    if fs.type == "9p":
        # Both are `msize` less a header (Linux 5.16): even 128 KiB would be a page too many.
        return 0
    return _queue_bytes(fs, sys_root, "max_sectors_kb") or _DEFAULT_READ_AHEAD


def _read_ahead_bytes(fs: FileSystem, sys_root: str) -> int | None:
    """Return the file system's ra_pages, in bytes, or None where nothing tells."""
    if window := _queue_bytes(fs, sys_root, "read_ahead_kb"):
        return window
    # NFS and FUSE name their bdi by the device number, fuseblk with its name behind it, others
    # by type and a running number (super_setup_bdi() in fs/super.c) that says nothing of the
    # mount: there the smallest counts. 0 is a mount without cache, which no step would help.
    bdi = os.path.join(glob.escape(sys_root), "class/bdi")
    names = (fs.device, f"{fs.device}-fuseblk", f"{glob.escape(fs.type)}-*")
    paths = [path for name in names for path in glob.iglob(f"{bdi}/{name}/read_ahead_kb")]
    return min((size for path in paths if (size := _kib_in(path))), default=None)


def _queue_bytes(fs: FileSystem, sys_root: str, limit: str) -> int:
    """Return a limit of the block device's queue, or 0 where there is no block device.

    Device mapper and md show there what they took over from what is below them (Linux 4.20).
    """
    # fuseblk lies on a block device and yet has a bdi of its own (fuse_bdi_init()).
    if fs.type == "fuseblk":
        return 0
    device = os.path.join(sys_root, "dev/block", fs.device)
    # A partition has no queue; its disk, the directory above, has.
    return _kib_in(f"{device}/queue/{limit}") or _kib_in(f"{device}/../queue/{limit}")


def _kib_in(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return int(file.read()) * _KIB
    except (OSError, ValueError):
        return 0


def _rsize(fs: FileSystem) -> int:
    return min(_number_of(fs, "rsize") or 0, _LARGEST_RSIZE)


def _number_of(fs: FileSystem, name: str) -> int | None:
    """Return the value of a mount option, or None where it is not given as a number."""
    head = f"{name}="
    values = (option[len(head) :] for option in fs.options if option.startswith(head))
    value = next(values, "")
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else None


def _bypasses_cache(type_: str, options: frozenset[str]) -> bool:
    if options & _UNCACHED:
        return True
    if type_ != "9p":
        return False
    # 9p says nothing where it has no cache, its default (v9fs_show_options() in fs/9p/v9fs.c).
    # Kernels before 6.4 show a mode by its bare name, and one of them, `mmap`, leaves read()
    # uncached (v9fs_mmap_file_operations). Later ones show `cache=` and a bit mask in hex, and
    # with any bit of it read() fills the cache (v9fs_fid_add_modes() in fs/9p/fid.h), although
    # `mmap` and `readahead` may keep the pages only while the file is open: that is measured.
    by_mask = {option for option in options if option.startswith("cache=")} - _9P_UNCACHED
    return not by_mask and not options & _9P_CACHED


def _parse_line(line: bytes) -> Mount | None:
    """Return the mount of a line of mountinfo, or None where the line is malformed."""
    place, _, what = line.partition(b" - ")
    # By single spaces: a source may be empty.
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
            # A comma inside a value is escaped, so commas first, escapes after.
            options=tuple(map(_decode, mount_options.split(b",") + super_options.split(b","))),
        )
    except ValueError:
        return None


def _decode(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def _visible(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return the mounts that a path can still reach, in the order of the table.

    A mount over a directory hides what was mounted below that directory before. The two have one
    parent: what is mounted there afterwards has the covering mount itself as its parent.
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
    """Yield each directory above a path, the nearest first."""
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _layers(overlay: Mount) -> list[str]:
    r"""Return the directories that an overlay is made of, the topmost first.

    By ovl_show_options() in fs/overlayfs: `upperdir` and `lowerdir` as the user wrote them, with
    `:` between layers and `\` before a colon that belongs to a name; since Linux 6.8 also one
    `lowerdir+` for each layer, which escapes nothing.
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
