"""A slow disk made from a fast one: the kernel limits what a group of processes may read.

The limit covers the reads of all processes in the group together, through the page cache and
read-ahead included: cgroup v1's `blkio.throttle.read_bps_device` (block/blk-throttle.c).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_CONTROLLER = "/sys/fs/cgroup/blkio"
_LIMIT = "blkio.throttle.read_bps_device"
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_LONGEST_SECONDS = 10.0
_PROGRAMS = ("losetup", "mount", "umount")
_MKFS = {"ext4": ("-E", "lazy_itable_init=0,lazy_journal_init=0")}
_ROOM = 1.1  # for the file system itself


class ThrottleError(Exception):
    """Why no limit can be set here, in one line."""


@contextmanager
def throttled(paths: Sequence[str], bytes_per_second: int) -> Iterator[tuple[str, ...]]:
    """Yield a command prefix under which a process reads the disks of `paths` at this rate.

    The process shares the limit of each disk with its children. Raises ThrottleError if the limit
    cannot be set.
    """
    group = os.path.join(_CONTROLLER, f"prefetch-bench-{os.getpid()}")
    disks = sorted({_disk(path) for path in paths})
    try:
        os.mkdir(group)
    except OSError as error:
        raise ThrottleError(
            f"needs cgroup v1's blkio controller, and root: {group}: {error.strerror}"
        ) from None
    try:
        for disk in disks:
            _limit(group, disk, bytes_per_second)
        yield ("sh", "-c", _JOIN, group)
    finally:
        _remove(group)


@contextmanager
def own_disk(
    directory: str,
    size_bytes: int,
    *,
    read_ahead_bytes: int | None = None,
    kind: str = "ext4",
    spins: bool | None = None,
) -> Iterator[str]:
    """Yield a folder on a disk of its own, backed by a file below `directory`.

    Its reads bypass the page cache of that file, so nothing is cached twice. With
    `read_ahead_bytes` the kernel reads that far ahead. `kind` is ext4, xfs or btrfs. With `spins`
    the disk says so or not, whatever the one below says. Raises ThrottleError if there can be none.
    """
    programs = (*_PROGRAMS, f"mkfs.{kind}")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise ThrottleError(f"needs root, and {', '.join(missing or programs)}")
    image, folder = (os.path.join(directory, name) for name in ("disk.img", "disk"))
    os.mkdir(folder)
    with open(image, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(size_bytes * _ROOM) + (64 << 20))
    device = _run("losetup", "--find", "--show", "--direct-io=on", image).strip()
    try:
        _run(f"mkfs.{kind}", "-q", *_MKFS.get(kind, ()), device)
        _run("mount", "-o", "noatime", device, folder)
        try:
            queue = f"/sys/block/{os.path.basename(device)}/queue"
            if read_ahead_bytes is not None:
                _write(f"{queue}/read_ahead_kb", read_ahead_bytes // 1024)
            if spins is not None:
                _write(f"{queue}/rotational", int(spins))
            yield folder
        finally:
            _run("umount", folder)
    finally:
        _run("losetup", "--detach", device)
        os.unlink(image)
        os.rmdir(folder)


def _write(path: str, value: int) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, errors="replace")
    except subprocess.CalledProcessError as error:
        raise ThrottleError(f"{command[0]}: {' '.join(error.stderr.split())}") from None
    return str(done.stdout)


def _disk(path: str) -> str:
    """Return the device number of the whole disk below a path, as `8:0`."""
    device = os.stat(path).st_dev
    place = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(os.path.join(place, "partition")):
        place = os.path.dirname(place)
    try:
        with open(os.path.join(place, "dev"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        raise ThrottleError(f"{path}: expected a file system on a block device") from None


def _limit(group: str, disk: str, bytes_per_second: int) -> None:
    try:
        with open(os.path.join(group, _LIMIT), "w", encoding="ascii") as file:
            file.write(f"{disk} {bytes_per_second}")
    except OSError as error:
        raise ThrottleError(f"{_LIMIT} of {disk}: {error.strerror}") from None


def _remove(group: str) -> None:
    """Remove the group once its last process, which may still be exiting, has left it."""
    until = time.monotonic() + _LONGEST_SECONDS
    while True:
        try:
            os.rmdir(group)
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            return
