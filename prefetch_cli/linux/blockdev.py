"""What a block device is in the end: a disk, something behind a network, or memory.

Read from sysfs: Documentation/ABI/stable/sysfs-block and testing/sysfs-class-nvme in the kernel's
tree, and the folders in which the drivers put their devices. The models of cloud disks are those
that the providers' own udev rules and documents name: read, not measured.
"""

import contextlib
import enum
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prefetch_cli.linux import procfs

# By the kernel's name of the device, without its number. drivers/block: nbd, rbd, drbd, rnbd, aoe.
_NETWORK_NAMES = frozenset({"nbd", "rbd", "drbd", "rnbd", "etherd!e"})
_MEMORY_NAMES = frozenset({"zram", "ram"})
# Another process or machine answers for these, and nothing here says from where.
_UNKNOWN_NAMES = frozenset({"ublkb"})
_NAME = re.compile(r"([a-z!]+)[0-9]")

# The folder of an iSCSI session, or of a remote port of Fibre Channel, above a SCSI disk.
_REMOTE_SCSI = re.compile(r"/(?:session[0-9]+|rport-[0-9:-]+)/")
_NETWORK_TRANSPORTS = frozenset({"tcp", "rdma", "fc"})  # of NVMe over fabrics
_NETWORK_MODELS = (
    "Amazon Elastic Block Store",
    "nvme_card-pd",  # Google's persistent disks and hyperdisks by NVMe; local ones are "nvme_card"
    "PersistentDisk",  # the same by SCSI; local ones are "EphemeralDisk"
    "MSFT NVMe Accelerator",  # Azure's remote disks; local ones are "Microsoft NVMe Direct Disk"
    "Alibaba Cloud Elastic Block Storage",
    "BlockVolume",  # Oracle's, also where the hypervisor attaches them
)
# Azure's SCSI disks all have one model. The controller tells: azure-vm-utils' udev rules.
_AZURE_MODEL = "Virtual Disk"
_AZURE_REMOTE = re.compile(
    r"/(?:00000000-0000-8899-[0-9a-f-]+"  # the disk of the system, generation 1
    r"|f8b3781a-1e82-4818-a1c3-63d806ec15bb/.*/[0-9]+:[0-9]+:[0-9]+:0"  # generation 2
    r"|f8b3781[b-d]-1e82-4818-a1c3-63d806ec15bb)/"  # disks for data
)
_MOST_BELOW = 64  # devices, on whatever level
_SECTOR_BYTES = 512  # in sysfs, whatever the device's own are


class Kind(enum.Enum):
    """Where the bytes of a device lie, as far as it can be seen."""

    DISK = "disk"
    NETWORK = "network"
    MEMORY = "memory"
    UNKNOWN = "unknown"


class BlockDevice(NamedTuple):
    """The device below a file system; of several below each other, the one that is farthest."""

    name: str  # the kernel's: "nbd0"
    kind: Kind
    rotational: bool  # as the kernel says; many virtual disks say so too


# Where the file at a path lies: for the backing file of a loop device.
KindOfFile = Callable[[str], Kind]


def device_below(
    number: str, source: str, kind_of_file: KindOfFile, sys_root: str = "/sys"
) -> BlockDevice | None:
    """Return the device that in the end holds a mount, None where none can be seen.

    `number` is the mount's "major:minor". btrfs, bcachefs and FUSE have one of their own, so for
    them `source` names the device, or several that are joined by colons.
    """
    tops = [os.path.join(sys_root, "dev/block", number)]
    if not os.path.isdir(tops[0]):
        nodes = source.split(":") if source.startswith("/dev/") else []
        tops = [top for node in nodes for top in _tops(node, sys_root)]
    bottoms = _bottoms([os.path.realpath(top) for top in tops if os.path.isdir(top)])
    found = [_described(path, kind_of_file) for path in bottoms]
    farthest = (Kind.NETWORK, Kind.UNKNOWN, Kind.DISK, Kind.MEMORY)
    best = min(found, key=lambda one: farthest.index(one.kind), default=None)
    if best is None:
        return None
    # One that spins slows all down.
    return BlockDevice(best.name, best.kind, any(one.rotational for one in found))


def _tops(node: str, sys_root: str) -> Iterator[str]:
    """Yield the sysfs folder of a device node, by its number or, without one, by its name."""
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(node)
        if stat.S_ISBLK(status.st_mode):
            number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            yield os.path.join(sys_root, "dev/block", number)
        return
    # A container has no nodes of the host's disks.
    name = os.path.basename(node)
    if name in {"", ".", ".."}:
        return
    yield os.path.join(sys_root, "class/block", name)
    for path in glob.iglob(os.path.join(glob.escape(sys_root), "class/block/dm-*")):
        if _text(path, "dm/name") == name:
            yield path


def _bottoms(tops: list[str]) -> Iterator[str]:
    """Yield the sysfs folders of the disks that devices lie on in the end."""
    pending = list(tops)
    seen: set[str] = set()
    while pending and len(seen) < _MOST_BELOW:
        path = pending.pop(0)
        if os.path.exists(os.path.join(path, "partition")):
            path = os.path.dirname(path)
        if path in seen:
            continue
        seen.add(path)
        slaves = os.path.join(path, "slaves")
        below = [] if _stem(path) in _NETWORK_NAMES else _names_in(slaves)
        if not below:
            yield path
        pending += [os.path.realpath(os.path.join(slaves, name)) for name in below]


def _described(path: str, kind_of_file: KindOfFile) -> BlockDevice:
    # A slash in a name, as in etherd/e1.1, is an exclamation mark in sysfs.
    name = os.path.basename(path).replace("!", "/")
    return BlockDevice(name, _kind(path, kind_of_file), _text(path, "queue/rotational") == "1")


def _kind(path: str, kind_of_file: KindOfFile) -> Kind:
    stem = _stem(path)
    if stem in _NETWORK_NAMES or _REMOTE_SCSI.search(path):
        return Kind.NETWORK
    if stem in _MEMORY_NAMES:
        return Kind.MEMORY
    if stem in _UNKNOWN_NAMES:
        return Kind.UNKNOWN
    if stem == "loop":
        backing = _backing_file(path)
        return Kind.UNKNOWN if backing is None else kind_of_file(backing)
    if stem == "nvme" and not _NETWORK_TRANSPORTS.isdisjoint(_nvme_transports(path)):
        return Kind.NETWORK
    model = _text(path, "device/model")
    remote = model.startswith(_NETWORK_MODELS) or (
        model == _AZURE_MODEL and _AZURE_REMOTE.search(path)
    )
    return Kind.NETWORK if remote else Kind.DISK


def _stem(path: str) -> str:
    match = _NAME.match(os.path.basename(path))
    return match[1] if match else ""


def _backing_file(path: str) -> str | None:
    """Return the backing file of a loop device, None where it cannot be seen from here.

    The kernel names it by a path that may lead elsewhere here: it was opened in another mount
    namespace, or is deleted. A file that is too small for the device is another one.
    """
    name = _text(path, "loop/backing_file")
    with contextlib.suppress(OSError, ValueError):
        least = int(_text(path, "size")) * _SECTOR_BYTES + int(_text(path, "loop/offset"))
        status = os.stat(name)
        if stat.S_ISBLK(status.st_mode) or status.st_size >= least > 0:
            return os.path.realpath(name)
    return None


def _nvme_transports(path: str) -> Iterator[str]:
    """Yield the transport of a namespace's controller, or of each path of a multipath one."""
    device = os.path.realpath(os.path.join(path, "device"))
    yield _text(device, "transport")
    for controller in _names_in(device):
        if re.fullmatch("nvme[0-9]+", controller):
            yield _text(os.path.join(device, controller), "transport")


def _names_in(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _text(path: str, name: str) -> str:
    return procfs.text(os.path.join(path, name))
