"""Types of file systems by what they lie on, as /proc/self/mountinfo names them.

Where they come from: `fs/` of the kernel's tree; the remote ones of coreutils (src/stat.c), the
network ones of systemd (fstype_is_network()) and of util-linux (mnt_fstype_is_netfs()); the mount
helpers of vendors. A few were seen on real mounts; tests/README.md says which.
"""

# fmt: off
NETWORK_TYPES = frozenset({
    # In the kernel's tree, now or before.
    "nfs", "nfs4", "ceph", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs", "ocfs2", "gfs2", "gfs",
    "pvfs2", "coda", "ncpfs", "vboxsf",
    # Parallel and cluster file systems with modules of their own.
    "lustre", "gpfs", "beegfs", "beegfs_nodev", "fhgfs", "wekafs", "panfs", "glusterfs", "dvs",
    "acfs", "cvfs", "snfs", "ibrix", "auristorfs",
    # Folders of the host of a virtual machine, and of Windows below WSL 1.
    "vmhgfs", "prl_fs", "virtio_fs", "drvfs", "fakeowner",
    "davfs",
})
# `fuse` and `fuse.*` count as network, except for these subtypes.
LOCAL_FUSE = frozenset({
    # File systems on a block device, and images and archives in a file.
    "ntfs", "ntfs-3g", "lowntfs-3g", "exfat", "ext2", "ext3", "ext4", "fuseext2", "fuse2fs",
    "squashfuse", "squashfuse_ll", "snapfuse", "dwarfs", "erofsfuse", "fuseiso", "fuse-zip",
    "archivemount", "ratarmount", "rar2fs", "dislocker", "veracrypt",
    # Views of other folders. Where those can be seen, they decide.
    "bindfs", "mergerfs", "mhddfs", "unionfs", "unionfs-fuse", "fuse-overlayfs", "rofiles-fuse",
    "encfs", "gocryptfs", "cryfs", "securefs",
    # Of the desktop and of containers.
    "lxcfs", "portal", "gvfsd-fuse", "revokefs-fuse", "vmware-vmblock",
})
IN_MEMORY_TYPES = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
# fmt: on
