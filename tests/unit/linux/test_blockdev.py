"""What holds a file system in the end: recorded and crafted /sys trees."""

import os
from pathlib import Path

import pytest

from prefetch_cli.linux.blockdev import BlockDevice, Kind, device_below
from prefetch_cli.linux.mounts import MountTable
from tests.unit.linux.trees import RECORDED, WRITTEN, lay_out

DISK, NETWORK, MEMORY, UNKNOWN = Kind.DISK, Kind.NETWORK, Kind.MEMORY, Kind.UNKNOWN


def not_asked(path: str) -> Kind:
    raise AssertionError(f"nobody should ask where {path} lies")


def number_in(sys_root: str) -> str:
    """Return the number of the one device that a tree has."""
    [number] = os.listdir(os.path.join(sys_root, "dev/block"))
    return number


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("brd", BlockDevice("ram0", MEMORY, rotational=False)),
        ("zram", BlockDevice("zram0", MEMORY, rotational=False)),
        ("nbd", BlockDevice("nbd0", NETWORK, rotational=False)),
        ("partition of nbd", BlockDevice("nbd0", NETWORK, rotational=False)),
        ("dm on a partition of nbd", BlockDevice("nbd0", NETWORK, rotational=False)),
        ("bcache", BlockDevice("vdc", DISK, rotational=True)),
        ("NVMe, loop", BlockDevice("nvme0n1", DISK, rotational=False)),
        ("NVMe, tcp", BlockDevice("nvme1n1", NETWORK, rotational=False)),
        ("NVMe, loop, one path", BlockDevice("nvme0n1", DISK, rotational=False)),
        ("NVMe, tcp, one path", BlockDevice("nvme1n1", NETWORK, rotational=False)),
        ("iSCSI", BlockDevice("sdb", NETWORK, rotational=True)),
    ],
)
def test_devices_as_a_machine_showed_them(tmp_path: Path, name: str, device: BlockDevice) -> None:
    root = lay_out(tmp_path, RECORDED[name])
    assert device_below(number_in(root), "/dev/x", not_asked, root) == device


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("EBS", NETWORK),
        ("instance store", DISK),
        ("Google's persistent disk, NVMe", NETWORK),
        ("Google's local SSD, NVMe", DISK),
        ("Google's persistent disk, SCSI", NETWORK),
        ("Google's local SSD, SCSI", DISK),
        ("Azure's remote disk, NVMe", NETWORK),
        ("Azure's local disk, NVMe", DISK),
        ("Alibaba's", NETWORK),
        ("Oracle's", NETWORK),
        ("Azure's system, generation 1", NETWORK),
        ("Azure's temporary disk, generation 1", DISK),
        ("Azure's system, generation 2", NETWORK),
        ("Azure's temporary disk, generation 2", DISK),
        ("Azure's data, generation 2", NETWORK),
        ("Hyper-V's", DISK),
        ("Fibre Channel", NETWORK),
        ("SAS", DISK),
        ("NVMe, fc", NETWORK),
        ("NVMe, rdma", NETWORK),
        ("NVMe, pcie", DISK),
        ("rbd", NETWORK),
        ("drbd", NETWORK),
        ("aoe", NETWORK),
        ("rnbd", NETWORK),
        ("ublk", UNKNOWN),
        ("pmem", DISK),
    ],
)
def test_devices_as_documents_describe_them(tmp_path: Path, name: str, kind: Kind) -> None:
    root = lay_out(tmp_path, WRITTEN[name])
    found = device_below(number_in(root), "", not_asked, root)
    assert found is not None
    assert found.kind is kind


def test_each_tree_is_tested(request: pytest.FixtureRequest) -> None:
    text = Path(str(request.node.path)).read_text(encoding="utf-8")
    assert [name for name in (*RECORDED, *WRITTEN) if f'"{name}"' not in text] == []


def test_of_several_devices_the_farthest_counts_and_one_that_spins(tmp_path: Path) -> None:
    root = lay_out(tmp_path, WRITTEN["volume of two"])
    found = device_below("254:0", "/dev/mapper/vg-models", not_asked, root)
    assert found == BlockDevice("sdb", NETWORK, rotational=True)


def test_a_name_with_a_slash_is_shown_with_it(tmp_path: Path) -> None:
    found = device_below("152:0", "", not_asked, lay_out(tmp_path, WRITTEN["aoe"]))
    assert found is not None
    assert found.name == "etherd/e1.1"


# Loop devices


def backed_by(tmp_path: Path, tree: str, shown: str, size_bytes: int) -> tuple[str, str]:
    """Lay a tree out with its loop device on a file of this size; return /sys and the file."""
    file = tmp_path / "image"
    with file.open("wb") as image:
        image.truncate(size_bytes)
    return lay_out(tmp_path, tree.replace(shown, str(file))), os.path.realpath(file)


@pytest.mark.parametrize("kind", [DISK, NETWORK, MEMORY, UNKNOWN])
def test_a_loop_device_is_where_its_file_is(tmp_path: Path, kind: Kind) -> None:
    root, file = backed_by(tmp_path, RECORDED["loop"], "/dev/shm/i", 64 << 20)
    asked = []

    def kind_of_file(path: str) -> Kind:
        asked.append(path)
        return kind

    found = device_below("7:0", "", kind_of_file, root)
    assert found == BlockDevice("loop0", kind, rotational=False)
    assert asked == [file]


def test_a_mirror_of_a_disk_and_a_file_on_the_network(tmp_path: Path) -> None:
    root, _ = backed_by(tmp_path, RECORDED["mirror"], "/dev/shm/m", 64 << 20)
    assert device_below("9:0", "", lambda _: NETWORK, root) == BlockDevice("loop1", NETWORK, False)
    assert device_below("9:0", "", lambda _: MEMORY, root) == BlockDevice("sda", DISK, False)


def test_a_path_that_another_file_has_here_says_nothing(tmp_path: Path) -> None:
    root, _ = backed_by(tmp_path, RECORDED["loop"], "/dev/shm/i", (64 << 20) - 1)
    assert device_below("7:0", "", not_asked, root) == BlockDevice("loop0", UNKNOWN, False)


@pytest.mark.parametrize("shown", ["/nowhere/image", "/image (deleted)", "", "/image\\0"])
def test_a_file_that_cannot_be_seen_says_nothing(tmp_path: Path, shown: str) -> None:
    root = lay_out(tmp_path, RECORDED["loop"].replace("/dev/shm/i", shown))
    assert device_below("7:0", "", not_asked, root) == BlockDevice("loop0", UNKNOWN, False)


def test_a_loop_device_whose_file_lies_on_itself_ends(tmp_path: Path) -> None:
    root, file = backed_by(tmp_path, RECORDED["loop"], "/dev/shm/i", 64 << 20)
    table = MountTable.parse("1 0 7:0 / / rw - ext4 /dev/loop0 rw", sys_root=root)
    found = table.of(file)
    assert found.storage == BlockDevice("loop0", UNKNOWN, rotational=False)
    assert not found.network


# Devices that the number of a mount does not name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/dev/nbd0", "nbd0"),
        ("/dev/sdz9:/dev/nbd0", "nbd0"),  # bcachefs
        ("nbd0", None),
        ("server:/dev/nbd0", None),  # NFS
        ("/dev/", None),
        ("/dev/nowhere/", None),
        ("/dev/nowhere/..", None),
        ("", None),
    ],
)
def test_the_source_names_the_device_of_a_number_of_its_own(
    tmp_path: Path, source: str, name: str | None
) -> None:
    root = lay_out(
        tmp_path, RECORDED["nbd"] + "L /sys/class/block/nbd0 ../../devices/virtual/block/nbd0"
    )
    found = device_below("0:40", source, not_asked, root)
    assert (None if found is None else found.name) == name


def test_a_mapped_device_is_found_by_its_name(tmp_path: Path) -> None:
    link = "L /sys/class/block/dm-0 ../../devices/virtual/block/dm-0"
    root = lay_out(tmp_path, WRITTEN["volume of two"] + link)
    found = device_below("0:40", "/dev/mapper/vg-models", not_asked, root)
    assert found is not None
    assert found.name == "sdb"
    assert device_below("0:40", "/dev/mapper/vg-other", not_asked, root) is None


def test_without_sysfs_there_is_no_device(tmp_path: Path) -> None:
    assert device_below("8:0", "/dev/sda", not_asked, str(tmp_path)) is None


def test_devices_that_lie_on_each_other_end(tmp_path: Path) -> None:
    circle = "\n".join(
        f"L /sys/devices/virtual/block/dm-{one}/slaves/dm-{two} ../../dm-{two}"
        for one, two in [(0, 1), (1, 2), (2, 0)]
    )
    root = lay_out(tmp_path, "L /sys/dev/block/254:0 ../../devices/virtual/block/dm-0\n" + circle)
    assert device_below("254:0", "", not_asked, root) is None


def striped(tmp_path: Path, *disks: str, spinning: str = "") -> BlockDevice | None:
    """Return the device below a striped one over these."""
    many = "\n".join(
        f"F /sys/devices/virtual/block/{name}/queue/rotational '{int(name == spinning)}'\n"
        f"L /sys/devices/virtual/block/md0/slaves/{name} ../../{name}"
        for name in disks
    )
    root = lay_out(tmp_path, "L /sys/dev/block/9:0 ../../devices/virtual/block/md0\n" + many)
    return device_below("9:0", "", not_asked, root)


def test_a_thousand_devices_below_one_are_not_all_looked_at(tmp_path: Path) -> None:
    disks = [f"disk{number:03}" for number in range(1000)]
    assert striped(tmp_path, *disks, "nbd0") == BlockDevice("disk000", DISK, rotational=False)


@pytest.mark.parametrize(
    ("disks", "name", "kind"),
    [
        (("ram0", "ublkb0", "vda"), "ublkb0", UNKNOWN),
        (("nbd0", "ublkb0", "vda"), "nbd0", NETWORK),
        (("ublkb0", "zram0", "rbd0"), "rbd0", NETWORK),
        (("ram0", "vda"), "vda", DISK),
    ],
)
def test_what_might_be_far_comes_before_what_is_near(
    tmp_path: Path, disks: tuple[str, ...], name: str, kind: Kind
) -> None:
    assert striped(tmp_path, *disks) == BlockDevice(name, kind, rotational=False)


def test_a_disk_that_spins_counts_beside_one_that_is_farther(tmp_path: Path) -> None:
    assert striped(tmp_path, "nbd0", "sda", spinning="sda") == BlockDevice("nbd0", NETWORK, True)


# The file systems on them


@pytest.mark.parametrize(
    ("line", "network", "by_type", "name"),
    [
        ("1 0 43:0 / /m rw - ext4 /dev/nbd0 rw", True, False, "nbd0"),
        ("1 0 0:40 / /m rw - btrfs /dev/nbd0 rw", True, False, "nbd0"),
        ("1 0 43:0 / /m rw - fuseblk /dev/nbd0 rw", True, False, "nbd0"),
        ("1 0 0:40 / /m rw - fuse /dev/nbd0 rw", True, False, "nbd0"),
        ("1 0 0:40 / /m rw - fuse.ext4 /dev/nbd0 rw", True, False, "nbd0"),
        ("1 0 43:0 / /m rw - ocfs2 /dev/nbd0 rw", True, True, "nbd0"),
        ("1 0 0:40 / /m rw - zfs pool/models rw", False, False, None),
        ("1 0 0:40 / /m rw - nfs4 server:/models rw", True, True, None),
    ],
)
def test_a_file_system_is_as_far_as_its_device(
    tmp_path: Path, line: str, network: bool, by_type: bool, name: str | None
) -> None:
    link = "L /sys/class/block/nbd0 ../../devices/virtual/block/nbd0"
    root = lay_out(tmp_path, RECORDED["nbd"] + link)
    found = MountTable.parse(line, sys_root=root).of("/m/x")
    assert (found.network, found.network_type) == (network, by_type)
    assert (None if found.storage is None else found.storage.name) == name


def test_fuse_on_a_local_disk_is_local(tmp_path: Path) -> None:
    link = "L /sys/class/block/vdc ../../devices/pci0000:00/0000:00:07.0/virtio6/block/vdc"
    root = lay_out(tmp_path, RECORDED["bcache"] + link)
    found = MountTable.parse("1 0 0:40 / /m rw - fuse /dev/vdc rw", sys_root=root).of("/m/x")
    assert (found.network, found.is_fuse) == (False, True)
