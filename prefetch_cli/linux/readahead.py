"""How far the kernel reads ahead on a file system, from the mount's options and /sys."""

import glob
import mmap
import os

from prefetch_cli.linux import procfs
from prefetch_cli.linux.filesystem import FileSystem

_KIB = 1024
_LARGEST_RSIZE = 1024 * _KIB  # NFS_MAX_FILE_IO_SIZE, include/linux/nfs_xdr.h
_DEFAULT_READ_AHEAD = 128 * _KIB  # VM_READAHEAD_PAGES: what a bdi starts with, mm/backing-dev.c
_BTRFS_READ_AHEAD = 4096 * _KIB  # the least that open_ctree() sets, fs/btrfs/disk-io.c
# Doubling it speeds up sendfile(2) on ext4 on a fast disk by a third at 128 KiB, the default, by a
# tenth at 256 KiB, and not at all at 512 KiB.
_AMPLE_READ_AHEAD = 512 * _KIB


def read_step_bytes(fs: FileSystem, sys_root: str = "/sys") -> int:
    """Return how many bytes one WILLNEED reads at most, in whole pages, at least one.

    The kernel silently drops what exceeds max(io_pages, ra_pages) (force_page_cache_ra() in
    mm/readahead.c), so an unknown figure is guessed low. If `reads_ahead_little`, we double the
    ra_pages of each file that we open.
    """
    window = _read_ahead_bytes(fs, sys_root)
    if window is None:
        window = _BTRFS_READ_AHEAD if fs.type == "btrfs" else _rsize(fs)
    elif window < _AMPLE_READ_AHEAD:
        window *= 2
    step = max(_request_bytes(fs, sys_root), window)
    return max(step // mmap.PAGESIZE, 1) * mmap.PAGESIZE


def reads_ahead_little(fs: FileSystem, sys_root: str = "/sys") -> bool:
    """Return whether it pays to double the read-ahead of each open file."""
    window = _read_ahead_bytes(fs, sys_root)
    return window is not None and window < _AMPLE_READ_AHEAD


def _request_bytes(fs: FileSystem, sys_root: str) -> int:
    """Return the file system's io_pages, in bytes."""
    if fs.is_nfs:
        return _rsize(fs) or _DEFAULT_READ_AHEAD
    if fs.type == "9p":
        # Both are `msize` less a header (Linux 5.16): even 128 KiB could be a page too many.
        return 0
    return _queue_bytes(fs, sys_root, "max_sectors_kb") or _DEFAULT_READ_AHEAD


def _read_ahead_bytes(fs: FileSystem, sys_root: str) -> int | None:
    """Return the file system's ra_pages in bytes, None if /sys does not tell."""
    if window := _queue_bytes(fs, sys_root, "read_ahead_kb"):
        return window
    # NFS and FUSE name their bdi by device number, fuseblk adds its name, others use their type and
    # a serial number that does not lead to the mount (super_setup_bdi() in fs/super.c): take the
    # smallest of the type. 0 means a mount without cache, which no step would help.
    bdi = os.path.join(glob.escape(sys_root), "class/bdi")
    names = (fs.device, f"{fs.device}-fuseblk", f"{glob.escape(fs.type)}-*")
    paths = [path for name in names for path in glob.iglob(f"{bdi}/{name}/read_ahead_kb")]
    return min((size for path in paths if (size := _kib_in(path))), default=None)


def _queue_bytes(fs: FileSystem, sys_root: str, limit: str) -> int:
    """Return a limit of the block device's queue in bytes, 0 if there is no block device.

    Device mapper and md inherit these limits from the devices below them (Linux 4.20).
    """
    # fuseblk is on a block device, yet has its own bdi (fuse_bdi_init()).
    if fs.is_fuse:
        return 0
    device = os.path.join(sys_root, "dev/block", fs.device)
    # A partition has no queue; its disk, the parent directory, does.
    return _kib_in(f"{device}/queue/{limit}") or _kib_in(f"{device}/../queue/{limit}")


def _kib_in(path: str) -> int:
    try:
        return int(procfs.read(path)) * _KIB
    except (OSError, ValueError):
        return 0


def _rsize(fs: FileSystem) -> int:
    return min(fs.int_option("rsize") or 0, _LARGEST_RSIZE)
