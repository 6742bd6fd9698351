"""What a file system is: its type, network or not, and what its mount says of caching."""

import re
from dataclasses import dataclass

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
DAX = frozenset({"dax", "dax=always"})
_UNCACHED = frozenset({"cache=none", "directio", "forcedirectio", "direct_io"})
_9P_CACHED = frozenset({"loose", "fscache"})
_9P_UNCACHED = frozenset({"cache=0", "cache=0x0"})

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


def late_close_seconds(fs: FileSystem) -> float:
    """Return how long after the last close of a file its cached pages may still be dropped.

    The SMB client closes a file `closetimeo` seconds after its last user did (cifs_close(), Linux
    5.13), and with cache=strict, the default, it lets go of the pages then: whoever opens the file
    next reads it anew (cifsFileInfo_put_final() in fs/smb/client/file.c). At most 5 s.
    """
    if fs.type not in SMB_TYPES:
        return 0.0
    seconds = number_of(fs, "closetimeo")
    if seconds is None:
        seconds = _DEFAULT_CLOSETIMEO
    return min(seconds * _LATE_CLOSE_FACTOR, _LONGEST_LATE_CLOSE_SECONDS)


def number_of(fs: FileSystem, name: str) -> int | None:
    """Return the value of a mount option, or None where it is not given as a number."""
    head = f"{name}="
    values = (option[len(head) :] for option in fs.options if option.startswith(head))
    value = next(values, "")
    return int(value) if re.fullmatch("[0-9]{1,18}", value) else None


def bypasses_cache_by(type_: str, options: frozenset[str]) -> bool:
    """Whether a mount with these options keeps read() out of the page cache."""
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
