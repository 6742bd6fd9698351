"""Parts of /sys trees, to be laid out below a folder.

Each line is `F PATH CONTENT` (a Python literal) or `L PATH TARGET`, a link. Those of `RECORDED`
were read in the project's test machine (Linux 6.12 of Debian 12), where each device was really
made: nbd by qemu-nbd, NVMe and iSCSI by the kernel's own targets over the loopback interface, the
SCSI disk of the mirror by scsi_debug. NVMe is there with the kernel's multipath, its default, and
without. Those of `WRITTEN` are put together from the documents that stand beside them, with the
paths that the same driver has in a recorded one.
"""

import ast
import os
from pathlib import Path

_VIRTUAL = "/sys/devices/virtual/block"

_TEXT = Path(__file__).with_name("recorded.txt").read_text(encoding="utf-8")
RECORDED = {name: tree for name, _, tree in (one.partition("]\n") for one in _TEXT.split("[")[1:])}


def lay_out(root: Path, tree: str) -> str:
    """Write a tree below a folder, and return the folder that takes the place of /sys."""
    for line in filter(None, tree.splitlines()):
        kind, rest = line[0], line[2:]
        name, _, value = rest.partition(" ")
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "L":
            os.symlink(value, path)
        else:
            path.write_text(ast.literal_eval(value))
    for name in ("sys/dev/block", "sys/class/block"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return str(root / "sys")


def _nvme(model: str, transport: str = "pcie") -> str:
    """Return the namespace of a controller on PCI, multipath as by default."""
    controller = "/sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0"
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    return f"""
L /sys/dev/block/259:0 ../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1
F {subsystem}/nvme0n1/size '131072\\n'
F {subsystem}/nvme0n1/queue/rotational '0\\n'
F {subsystem}/model {model.ljust(40)!r}
L {subsystem}/nvme0n1/device ../../nvme-subsys0
L {subsystem}/nvme0 ../../../pci0000:00/0000:00:04.0/nvme/nvme0
F {controller}/transport {transport!r}
F {controller}/model {model.ljust(40)!r}
"""


def _scsi(host: str, address: str, model: str, vendor: str = "") -> str:
    """Return the disk at an address below the folder of a SCSI host."""
    target = f"target{address.rpartition(':')[0]}"
    path = f"{host}/{target}/{address}"
    return f"""
L /sys/dev/block/8:0 ../../{path.removeprefix("/sys/")}/block/sda
F {path}/block/sda/size '131072\\n'
F {path}/block/sda/queue/rotational '1\\n'
F {path}/model {model.ljust(16)!r}
F {path}/vendor {vendor.ljust(8)!r}
L {path}/block/sda/device ../../../{address}
"""


_VMBUS = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"
_VIRTIO = "/sys/devices/pci0000:00/0000:00:03.0/virtio0/host0"

WRITTEN = {
    # The models: docs.aws.amazon.com, "Map Amazon EBS volumes to NVMe device names"; Google's
    # 65-gce-disk-naming.rules; README of Azure/azure-vm-utils; what lsblk prints at Alibaba's.
    "EBS": _nvme("Amazon Elastic Block Store"),
    "instance store": _nvme("Amazon EC2 NVMe Instance Storage"),
    "Google's persistent disk, NVMe": _nvme("nvme_card-pd"),
    "Google's local SSD, NVMe": _nvme("nvme_card3"),
    "Google's persistent disk, SCSI": _scsi(_VIRTIO, "0:0:1:0", "PersistentDisk", "Google"),
    "Google's local SSD, SCSI": _scsi(_VIRTIO, "0:0:2:0", "EphemeralDisk", "Google"),
    "Azure's remote disk, NVMe": _nvme("MSFT NVMe Accelerator v1.0"),
    "Azure's local disk, NVMe": _nvme("Microsoft NVMe Direct Disk v2"),
    "Alibaba's": _nvme("Alibaba Cloud Elastic Block Storage"),
    "Oracle's": _scsi(_VIRTIO, "0:0:0:1", "BlockVolume", "ORACLE"),
    # 66-azure-storage.rules of WALinuxAgent; the path is that of an AKS node.
    "Azure's system, generation 1": _scsi(
        f"{_VMBUS}/00000000-0000-8899-0000-000000000000/host0", "0:0:0:0", "Virtual Disk", "Msft"
    ),
    "Azure's temporary disk, generation 1": _scsi(
        f"{_VMBUS}/00000000-0001-8899-0000-000000000000/host1", "1:0:1:0", "Virtual Disk", "Msft"
    ),
    "Azure's system, generation 2": _scsi(
        f"{_VMBUS}/f8b3781a-1e82-4818-a1c3-63d806ec15bb/host0", "0:0:0:0", "Virtual Disk", "Msft"
    ),
    "Azure's temporary disk, generation 2": _scsi(
        f"{_VMBUS}/f8b3781a-1e82-4818-a1c3-63d806ec15bb/host0", "0:0:0:1", "Virtual Disk", "Msft"
    ),
    "Azure's data, generation 2": _scsi(
        f"{_VMBUS}/f8b3781b-1e82-4818-a1c3-63d806ec15bb/host1", "1:0:0:3", "Virtual Disk", "Msft"
    ),
    "Hyper-V's": _scsi(
        f"{_VMBUS}/9b1a3c55-0c0f-4d3e-8f8a-1b2c3d4e5f60/host0", "0:0:0:0", "Virtual Disk", "Msft"
    ),
    # scsi_transport_fc puts a remote port between host and target.
    "Fibre Channel": _scsi(
        "/sys/devices/pci0000:00/0000:00:05.0/host2/rport-2:0-3", "2:0:3:0", "LUN C-Mode", "NETAPP"
    ),
    "SAS": _scsi(
        "/sys/devices/pci0000:00/0000:00:05.0/host2/port-2:0/end_device-2:0", "2:0:0:0", "ST16000NM"
    ),
    "NVMe, fc": _nvme("NetApp ONTAP Controller", "fc"),
    "NVMe, rdma": _nvme("Linux", "rdma"),
    "NVMe, pcie": _nvme("SAMSUNG MZQL23T8HCLS-00A07"),
    # drivers/block: rbd.c, drbd_int.h, aoeblk.c and rnbd-clt-sysfs.c name their disks so.
    "rbd": "L /sys/dev/block/252:0 ../../devices/rbd/0/block/rbd0\n"
    "F /sys/devices/rbd/0/block/rbd0/queue/rotational '0\\n'",
    # Some show the disk below in `slaves`, although reads may go to the other machine.
    "drbd": f"L /sys/dev/block/147:0 ../../devices/virtual/block/drbd0\n"
    f"F {_VIRTUAL}/drbd0/queue/rotational '0\\n'\n"
    f"L {_VIRTUAL}/drbd0/slaves/vdb ../../../../pci0000:00/0000:00:08.0/virtio7/block/vdb\n"
    "F /sys/devices/pci0000:00/0000:00:08.0/virtio7/block/vdb/queue/rotational '0\\n'",
    "aoe": f"L /sys/dev/block/152:0 ../../devices/virtual/block/etherd!e1.1\n"
    f"F {_VIRTUAL}/etherd!e1.1/queue/rotational '0\\n'",
    "rnbd": f"L /sys/dev/block/251:0 ../../devices/virtual/block/rnbd0\n"
    f"F {_VIRTUAL}/rnbd0/queue/rotational '0\\n'",
    # drivers/block/ublk_drv.c: a program answers, and nothing says from where.
    "ublk": f"L /sys/dev/block/259:0 ../../devices/virtual/block/ublkb0\n"
    f"F {_VIRTUAL}/ublkb0/queue/rotational '0\\n'",
    # Without DAX it is a disk; with it the mount option says so.
    "pmem": "L /sys/dev/block/259:0 ../../devices/platform/e820_pmem/ndbus0/region0/pmem0\n"
    "F /sys/devices/platform/e820_pmem/ndbus0/region0/pmem0/queue/rotational '0\\n'",
    # A striped volume of LVM over a local disk and one behind iSCSI, which spins.
    "volume of two": f"L /sys/dev/block/254:0 ../../devices/virtual/block/dm-0\n"
    f"F {_VIRTUAL}/dm-0/dm/name 'vg-models\\n'\n"
    f"F {_VIRTUAL}/dm-0/queue/rotational '1\\n'\n"
    f"L {_VIRTUAL}/dm-0/slaves/vda2 ../../../../pci0000:00/0000:00:05.0/virtio4/block/vda/vda2\n"
    "F /sys/devices/pci0000:00/0000:00:05.0/virtio4/block/vda/vda2/partition '2\\n'\n"
    "F /sys/devices/pci0000:00/0000:00:05.0/virtio4/block/vda/queue/rotational '0\\n'\n"
    f"L {_VIRTUAL}/dm-0/slaves/sdb "
    "../../../../platform/host1/session1/target1:0:0/1:0:0:0/block/sdb\n" + RECORDED["iSCSI"],
}
