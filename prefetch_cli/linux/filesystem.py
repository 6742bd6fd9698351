"""File systems: near or far, cached or not, by their type and mount options."""

import re
from typing import NamedTuple

from prefetch_cli.linux.blockdev import BlockDevice, Kind
from prefetch_cli.linux.fstypes import IN_MEMORY_TYPES, LOCAL_FUSE, NETWORK_TYPES
from prefetch_cli.linux.mountinfo import Mount

# With `dax=never` and `dax=inode` files use the page cache, unless a file asks otherwise.
_DAX = frozenset({"dax", "dax=always"})
_UNCACHED = frozenset({"cache=none", "directio", "forcedirectio", "direct_io"})
_9P_CACHED = frozenset({"loose", "fscache"})
_9P_UNCACHED = frozenset({"cache=0", "cache=0x0"})

_DEFAULT_CLOSETIMEO = 1  # seconds: SMB3_DEF_DCLOSETIMEO, fs/smb/client/fs_context.h
_LATE_CLOSE_FACTOR = 1.5  # a work queue closes the file, and may run late
_LONGEST_LATE_CLOSE_SECONDS = 5.0


class FileSystem(NamedTuple):
    """A mounted file system.

    `type` is mountinfo's ("ext4", "nfs4", "fuse.juicefs"), or "unknown". For a file on an overlay
    all fields describe the layer that holds the file, if that layer can be seen from here.
    `device` is "major:minor"; `options` holds those of the mount and those of the file system.
    `block` is the block device that holds it in the end, None where there is none or it cannot be
    seen. `below` is what a FUSE mount shows, if that can be seen: FUSE has pages of its own, so
    only the distance of the data is that of the file system below. `overlaid` says that an overlay
    lies over it.
    """

    type: str
    mount_point: str
    source: str
    device: str
    options: frozenset[str]
    block: BlockDevice | None = None
    below: "FileSystem | None" = None
    overlaid: bool = False

    @classmethod
    def of_mount(
        cls,
        mount: Mount,
        *,
        block: BlockDevice | None = None,
        below: "FileSystem | None" = None,
        overlaid: bool = False,
    ) -> "FileSystem":
        """Return the file system that a line of mountinfo describes."""
        return cls(
            type=mount.type,
            mount_point=mount.mount_point,
            source=mount.source,
            device=mount.device,
            options=frozenset(mount.options),
            block=block,
            below=below,
            overlaid=overlaid,
        )

    @property
    def is_fuse(self) -> bool:
        """Whether a FUSE server answers; for virtiofs it runs on the host."""
        return self.type.partition(".")[0] in {"fuse", "fuseblk", "virtiofs"}

    @property
    def is_nfs(self) -> bool:
        """Whether this is NFS, of any version."""
        return self.type in {"nfs", "nfs4"}

    @property
    def is_smb(self) -> bool:
        """Whether this is SMB."""
        return self.type in {"cifs", "smb3"}

    @property
    def storage(self) -> BlockDevice | None:
        """The block device that holds the data in the end, None where none is known."""
        return self.block if self.below is None else self.below.storage

    @property
    def network(self) -> bool:
        """Whether the data come over a network, so that warming pays."""
        return self.network_type or self.network_device

    @property
    def network_type(self) -> bool:
        """Whether the file system itself, by its type, is one that uses a network."""
        if self.below is not None:
            return self.below.network_type
        kind, _, subtype = self.type.partition(".")
        if kind == "fuse":
            # A rule, because nobody can list them all: most FUSE file systems are clients of some
            # storage, and to read what is near costs less than to leave what is far.
            return subtype not in LOCAL_FUSE and self.block is None
        if kind == "erofs":
            # Without a block device, an image fetched on demand (fscache): nydus and the like.
            return any(option.startswith("fsid=") for option in self.options)
        return self.type in NETWORK_TYPES

    @property
    def network_device(self) -> bool:
        """Whether it lies on a block device behind a network."""
        return self.storage is not None and self.storage.kind is Kind.NETWORK

    @property
    def known(self) -> bool:
        """Whether it is known at all which file system this is."""
        return self.type != UNKNOWN.type

    @property
    def far(self) -> bool:
        """Whether a request takes long, so that many in flight pay: network or any FUSE."""
        return self.network or self.is_fuse

    @property
    def in_memory(self) -> bool:
        """Whether the data are in memory already; a network one can be, as virtiofs with DAX."""
        return self.type in IN_MEMORY_TYPES or not self.options.isdisjoint(_DAX)

    @property
    def bypasses_cache(self) -> bool:
        """Whether the mount options say that read() does not fill the page cache."""
        if self.options & _UNCACHED:
            return True
        if self.type != "9p":
            return False
        # 9p shows no option when it does not cache, its default (v9fs_show_options() in
        # fs/9p/v9fs.c). Before Linux 6.4 it shows a mode by its bare name, and one of them, `mmap`,
        # leaves read() uncached (v9fs_mmap_file_operations). Later it shows `cache=` and a bit mask
        # in hex: with any bit set read() fills the cache (v9fs_fid_add_modes() in fs/9p/fid.h).
        # `mmap` and `readahead` may keep the pages only while the file is open: we measure that.
        mask = {option for option in self.options if option.startswith("cache=")} - _9P_UNCACHED
        return not mask and not self.options & _9P_CACHED

    @property
    def late_close_seconds(self) -> float:
        """How long after the last close of a file its cached pages may still be dropped.

        The SMB client closes a file on the server `closetimeo` seconds after its last user did
        (cifs_close(), Linux 5.13). With cache=strict, the default, it gives up its lease then, and
        the next open reads anew (cifsFileInfo_put_final() in fs/smb/client/file.c). At most 5 s.
        """
        if not self.is_smb:
            return 0.0
        seconds = self.int_option("closetimeo")
        if seconds is None:
            seconds = _DEFAULT_CLOSETIMEO
        return min(seconds * _LATE_CLOSE_FACTOR, _LONGEST_LATE_CLOSE_SECONDS)

    def int_option(self, name: str) -> int | None:
        """Return the value of a mount option, None if it is not given or not a number."""
        head = f"{name}="
        values = (option[len(head) :] for option in self.options if option.startswith(head))
        value = next(values, "")
        return int(value) if re.fullmatch("[0-9]{1,18}", value) else None


UNKNOWN = FileSystem("unknown", "/", "unknown", "0:0", frozenset())
