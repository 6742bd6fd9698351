"""File systems: crafted mount tables, the kernel's own rules as the oracle, and real mounts."""

import json
import mmap
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.base.progress import Monitor
from prefetch_cli.linux.filesystem import UNKNOWN, FileSystem
from prefetch_cli.linux.fstypes import IN_MEMORY_TYPES, NETWORK_TYPES
from prefetch_cli.linux.mountinfo import Mount
from prefetch_cli.linux.mounts import MountTable, inspect
from prefetch_cli.linux.readahead import read_step_bytes, reads_ahead_little
from tests.helpers.command import ROOT

KIB = 1024
MIB = 1024 * KIB


def line(
    point: str,
    type_: str = "ext4",
    source: str = "/dev/sda1",
    options: str = "rw",
    *,
    mount_id: int = 36,
    parent_id: int = 0,
    device: str = "8:1",
    root: str = "/",
) -> str:
    """Return one line as the kernel writes it, with both kinds of optional fields."""
    return (
        f"{mount_id} {parent_id} {device} {root} {point} rw,relatime shared:1 master:2"
        f" - {type_} {source} {options}"
    )


def table(*lines: str) -> MountTable:
    return MountTable.parse("\n".join(lines) + "\n", sys_root="/nowhere")


def mounted(type_: str, options: str = "rw", source: str = "/dev/sda1") -> FileSystem:
    return table(line("/m", type_, source, options)).of("/m/model.safetensors")


# What type and options say


# Written out once more, so that none gets lost.
NETWORK = [
    *("nfs", "nfs4", "lustre", "ceph", "cifs", "smb3", "smbfs", "afs", "gpfs", "beegfs"),
    *("beegfs_nodev", "wekafs", "panfs", "pvfs2", "ocfs2", "gfs2", "glusterfs", "9p", "virtiofs"),
    *("vboxsf", "coda", "ncpfs", "gfs", "fhgfs", "dvs", "acfs", "cvfs", "snfs", "ibrix"),
    *("auristorfs", "vmhgfs", "prl_fs", "virtio_fs", "drvfs", "fakeowner", "davfs"),
]
# FUSE by subtype: those that were in a list once, and those that were missing from it.
NETWORK_FUSE = [
    *("glusterfs", "ceph", "juicefs", "gcsfuse", "goofys", "s3fs", "blobfuse2", "rclone", "sshfs"),
    *("seaweedfs", "cubefs", "daos", "hf3fs", "alluxio-fuse", "quobyte", "mfs", "hf-mount"),
    *("ossfs", "ossfs2", "GooseFS", "jindo-fuse", "cvmfs", "vmhgfs-fuse", "grpcfuse", "osxfs"),
    *("ceph-fuse", "curlftpfs", "objectivefs", "xtreemfs", "rawBridge", "passthrough", "a.b"),
]
LOCAL = [
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "squashfs", "erofs"),
    *("iso9660", "vfat", "exfat", "ntfs3", "autofs", "overlay", "nfsd", "nfs5", "ecryptfs"),
    *("fuseblk", "fuseblk.ntfs", "fusectl"),
    *(f"fuse.{name}" for name in ("ntfs-3g", "ntfs", "lowntfs-3g", "exfat", "ext4", "fuse2fs")),
    *(f"fuse.{name}" for name in ("squashfuse", "squashfuse_ll", "snapfuse", "dwarfs")),
    *(f"fuse.{name}" for name in ("bindfs", "mergerfs", "mhddfs", "unionfs", "unionfs-fuse")),
    *(f"fuse.{name}" for name in ("encfs", "gocryptfs", "cryfs", "fuse-overlayfs", "lxcfs")),
    *(f"fuse.{name}" for name in ("portal", "gvfsd-fuse", "archivemount", "vmware-vmblock")),
]


def test_the_network_types_are_these() -> None:
    assert frozenset(NETWORK) == NETWORK_TYPES


@pytest.mark.parametrize("type_", NETWORK)
def test_network_types(type_: str) -> None:
    found = mounted(type_, source="server:/export")
    assert (found.type, found.network, found.in_memory) == (type_, True, False)
    assert found.source == "server:/export"


@pytest.mark.parametrize("subtype", NETWORK_FUSE)
def test_fuse_is_network_unless_it_is_known_to_be_local(subtype: str) -> None:
    found = mounted(f"fuse.{subtype}", source="server:/export")
    assert (found.network, found.network_type, found.network_device) == (True, True, False)


@pytest.mark.parametrize("type_", LOCAL)
def test_everything_else_is_local(type_: str) -> None:
    found = mounted(type_, source="here")
    assert (found.network, found.in_memory, found.bypasses_cache) == (False, False, False)


@pytest.mark.parametrize(
    "source",
    [
        "mountpoint-s3",
        "cvmfs2",
        "mfs#storage.example.net:9421",  # MooseFS, as RunPod mounts its volumes
        "hf-mount",
        "ossfs",
        "GooseFS",
        "JindoFS",
        "/dev/fuse",  # libfuse's word where the program gives none
        "/nowhere/to/be/seen",
        "",
    ],
)
def test_plain_fuse_is_network_whatever_its_source_says(source: str) -> None:
    assert mounted("fuse", source=source).network


def test_erofs_without_a_device_is_fetched_on_demand() -> None:
    assert mounted("erofs", "ro,fsid=8a1b,domain_id=d", source="erofs").network
    assert not mounted("erofs", "ro,user_xattr,cache_strategy=readaround").network


@pytest.mark.parametrize(
    ("type_", "fuse", "far"),
    [
        ("fuse", True, True),
        ("fuse.sshfs", True, True),
        ("fuse.ntfs-3g", True, True),
        ("fuseblk", True, True),
        ("virtiofs", True, True),
        ("fusectl", False, False),
        ("nfs4", False, True),
        ("ext4", False, False),
        ("unknown", False, False),
    ],
)
def test_every_fuse_file_system_is_far_although_not_all_are_network(
    type_: str, fuse: bool, far: bool
) -> None:
    found = mounted(type_)
    assert (found.is_fuse, found.far) == (fuse, far)


@pytest.mark.parametrize("type_", sorted(IN_MEMORY_TYPES))
def test_in_memory_types(type_: str) -> None:
    assert {"tmpfs", "ramfs", "hugetlbfs"} == IN_MEMORY_TYPES
    assert mounted(type_).in_memory


@pytest.mark.parametrize(
    ("options", "in_memory"),
    [
        ("rw,dax", True),
        ("rw,dax=always,logbufs=8", True),
        ("rw,dax=never", False),
        ("rw,dax=inode", False),
        ("rw,nodax", False),
    ],
)
def test_dax_is_in_memory_already(options: str, in_memory: bool) -> None:
    assert mounted("xfs", options).in_memory is in_memory
    assert mounted("virtiofs", options).in_memory is in_memory


@pytest.mark.parametrize(
    ("type_", "options", "bypasses"),
    [
        ("9p", "rw,trans=virtio", True),  # cache=none is not shown
        ("9p", "rw,cache=none,trans=virtio", True),
        ("9p", "rw,sync,dirsync,access=client,trans=virtio", True),
        # By name: before Linux 6.4.
        ("9p", "rw,sync,dirsync,loose,access=client,trans=virtio", False),
        ("9p", "rw,sync,dirsync,fscache,cachetag=x,access=client,trans=virtio", False),
        ("9p", "rw,sync,dirsync,mmap,access=client,trans=virtio", True),
        # By bits, in hex, with 0x in front in the latest kernels.
        ("9p", "rw,access=client,cache=1,trans=virtio", False),  # readahead
        ("9p", "rw,access=client,cache=5,trans=virtio", False),  # mmap
        ("9p", "rw,access=client,cache=f,trans=virtio", False),  # loose
        ("9p", "rw,access=client,cache=8f,trans=virtio", False),  # fscache
        ("9p", "rw,access=client,cache=0xf,trans=virtio", False),
        ("9p", "rw,access=client,cache=2,trans=virtio", False),  # any bit will do
        ("9p", "rw,access=client,cache=0,trans=virtio", True),
        ("9p", "rw,access=client,cache=0x0,trans=virtio", True),
        ("9p", "rw,access=client,cache=f,directio,trans=virtio", True),
        # As the user wrote it (before 4.13, and gVisor): unknown, so measured.
        ("9p", "rw,cache=loose,trans=virtio", False),
        ("9p", "rw,cache=remote_revalidating,trans=fd", False),
        ("cifs", "rw,vers=3.1.1,cache=none", True),
        ("cifs", "rw,vers=3.1.1,cache=strict", False),
        ("smb3", "rw,cache=loose", False),
        ("cifs", "rw,forcedirectio", True),
        ("nfs", "rw,directio", True),
        ("nfs4", "rw,lookupcache=none,local_lock=none,fsc", False),
        ("fuse.sshfs", "rw,direct_io", True),
        ("fuse.sshfs", "rw,user_id=0", False),
        ("ext4", "rw", False),
    ],
)
def test_options_that_say_that_reads_are_not_cached(
    type_: str, options: str, bypasses: bool
) -> None:
    assert mounted(type_, options).bypasses_cache is bypasses


@pytest.mark.parametrize(
    ("type_", "options", "seconds"),
    [
        ("cifs", "rw,vers=3.1.1,cache=strict,actimeo=1,closetimeo=1", 1.5),
        ("smb3", "rw,cache=strict,closetimeo=2", 3.0),
        ("cifs", "rw,cache=strict,actimeo=1", 1.5),  # some kernels do not show it
        ("cifs", "rw,closetimeo=0", 0.0),
        ("cifs", "rw,closetimeo=30", 5.0),
        ("cifs", "rw,closetimeo=18446744073709551615", 1.5),
        ("cifs", "rw,closetimeo=soon", 1.5),
        ("nfs4", "rw,closetimeo=3", 0.0),
        ("ext4", "rw", 0.0),
    ],
)
def test_how_long_after_a_close_pages_may_be_dropped(
    type_: str, options: str, seconds: float
) -> None:
    assert mounted(type_, options).late_close_seconds == seconds


# Which mount holds a path


def test_the_fields_of_a_line() -> None:
    found = table(line("/data", "nfs4", "fs1:/vol", "rw,rsize=1048576", device="0:51")).of(
        "/data/a"
    )
    assert found == FileSystem(
        type="nfs4",
        mount_point="/data",
        source="fs1:/vol",
        device="0:51",
        options=frozenset({"rw", "relatime", "rsize=1048576"}),
    )
    assert (found.network, found.in_memory, found.bypasses_cache) == (True, False, False)


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/", "/"),
        ("/x", "/"),
        ("/data", "/data"),
        ("/data/x", "/data"),
        ("/database/x", "/"),
        ("/data/models", "/data/models"),
        ("/data/models/a/b/c", "/data/models"),
        ("/data/modelsx/a", "/data"),
        ("/data/one.safetensors", "/data/one.safetensors"),  # a file that is a mount point
        ("/data/two.safetensors", "/data"),
        ("relative", "/"),
        ("", "/"),
    ],
)
def test_the_longest_mount_point_holds_the_path(path: str, point: str) -> None:
    mounts = table(
        line("/data/models", mount_id=3, parent_id=2),
        line("/", mount_id=1),
        line("/data", mount_id=2, parent_id=1),
        line("/data/one.safetensors", mount_id=4, parent_id=2),
    )
    expected = UNKNOWN.mount_point if not path.startswith("/") else point
    assert mounts.of(path).mount_point == expected
    assert mounts.of(path).mount_point == expected, "the second time from the cache"


def test_the_later_of_two_equal_mount_points_wins() -> None:
    mounts = table(line("/data", "ext4"), line("/data", "nfs4"), line("/data", "tmpfs"))
    assert mounts.of("/data/x").type == "tmpfs"


def test_a_mount_over_a_directory_hides_what_was_mounted_below_it() -> None:
    mounts = table(
        line("/", "ext4", mount_id=1),
        line("/data/models", "nfs4", mount_id=2, parent_id=1),
        line("/data/models/deep", "tmpfs", mount_id=3, parent_id=2),
        line("/data", "xfs", mount_id=4, parent_id=1),
        line("/data/later", "ramfs", mount_id=5, parent_id=4),
    )
    assert mounts.of("/data/models/x").type == "xfs"
    assert mounts.of("/data/models/deep/x").type == "xfs"
    assert mounts.of("/data/later/x").type == "ramfs"


def test_escapes_are_undone() -> None:
    mounts = table(
        line(r"/mnt/with\040space", source=r"//host/a\040b", options=r"rw,name=a\054b"),
        line(r"/mnt/\011tab\012line\134back\043hash"),
        line(r"/mnt/\1literal\9"),
    )
    found = mounts.of("/mnt/with space/x")
    assert found.mount_point == "/mnt/with space"
    assert found.source == "//host/a b"
    assert "name=a,b" in found.options
    assert mounts.of("/mnt/\ttab\nline\\back#hash/x").mount_point.endswith("#hash")
    assert mounts.of(r"/mnt/\1literal\9/x").mount_point == r"/mnt/\1literal\9"


def test_bytes_that_are_not_utf8_are_kept() -> None:
    text = line("/mnt/caf?").encode().replace(b"?", b"\xe9")
    found = MountTable.parse(text).of(os.fsdecode(b"/mnt/caf\xe9/x"))
    assert os.fsencode(found.mount_point) == b"/mnt/caf\xe9"


def test_an_empty_source_is_no_malformed_line() -> None:
    found = MountTable.parse("9 1 0:5 / /m rw - tmpfs  rw").of("/m/x")
    assert (found.type, found.source) == ("tmpfs", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "1 2 3",
        "36 35 8:1 / /m rw - ext4",
        "36 35 8:1 / /m rw - ext4 /dev/sda",
        "36 35 8:1 / /m rw ext4 /dev/sda rw",
        "x 35 8:1 / /m rw - ext4 /dev/sda rw",
        " - ",
        "36 35 8:1 / /m - ext4 /dev/sda rw",
    ],
)
def test_malformed_lines_are_left_out(text: str) -> None:
    assert MountTable.parse(text).of("/m/x") == UNKNOWN
    assert MountTable.parse(f"{text}\n{line('/m')}\n").of("/m/x").type == "ext4"


def test_without_proc_everything_is_unknown_and_local(tmp_path: Path) -> None:
    found = MountTable.read(str(tmp_path / "mountinfo")).of("/data/x")
    assert (found.type, found.network, found.in_memory) == ("unknown", False, False)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_bytes_make_the_parser_raise(text: bytes) -> None:
    MountTable.parse(text).of("/a/b")
    MountTable.parse(line("/m").encode() + text + b"\n" + line("/n").encode()).of("/m/b")


names = st.sampled_from(["a", "b", "ab", "a b", "\\040", "é"])
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))


def mount_at(point: str, mount_id: int, parent_id: int) -> Mount:
    return Mount(mount_id, parent_id, "8:1", "/", point, "ext4", str(mount_id), ())


@settings(deadline=None)
@given(st.lists(paths, max_size=8), st.lists(paths, min_size=1, max_size=8))
def test_look_up_agrees_with_a_naive_longest_prefix(points: list[str], asked: list[str]) -> None:
    # Unrelated parents: nothing hides anything.
    mounts = MountTable([mount_at(point, i, -1 - i) for i, point in enumerate(points)])
    for path in asked:
        best: str | None = None
        for i, point in enumerate(points):
            holds = path == point or path.startswith(point.rstrip("/") + "/")
            if holds and (best is None or len(point) >= len(points[int(best)])):
                best = str(i)
        assert mounts.of(path).source == (best or UNKNOWN.source)


@settings(deadline=None)
@given(st.lists(paths, max_size=8), st.lists(paths, min_size=1, max_size=8))
def test_look_up_agrees_with_the_kernels_path_walk(points: list[str], asked: list[str]) -> None:
    mounts = [mount_at("/", 0, -1)]
    mounted_on: dict[tuple[int, str], Mount] = {}

    def walk(path: str) -> Mount:
        at = mounts[0]
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            place = "/" + "/".join(parts[:depth])
            while (at.id, place) in mounted_on:
                at = mounted_on[at.id, place]
        return at

    for mount_id, point in enumerate(points, 1):
        parent = walk(point)
        mounts.append(mount_at(point, mount_id, parent.id))
        mounted_on[parent.id, point] = mounts[-1]
    of = MountTable(mounts).of
    assert [of(path).source for path in asked] == [walk(path).source for path in asked]


def test_ten_thousand_paths_over_hundreds_of_mounts_are_quick() -> None:
    mounts = table(*(line(f"/mnt/{i}", mount_id=i, parent_id=0) for i in range(600)))
    asked = [f"/mnt/{i % 700}/deep/er/{i % 50}/model-{i}.safetensors" for i in range(10_000)]
    started = time.process_time()
    found = [mounts.of(path).mount_point for path in asked]
    # Two hundred times what it takes: it only catches quadratic time.
    assert time.process_time() - started < 5
    assert found[599:601] == ["/mnt/599", "/"]


def test_a_path_as_deep_as_can_be() -> None:
    assert table(line("/")).of("/a" * 2047).mount_point == "/"


# Below an overlay


def layered(tmp_path: Path, options: str, *, root: str = "/", point: str = "/o") -> MountTable:
    """Return an overlay with these options (`@` means tmp_path) over two mounts."""
    return table(
        line("/", "ext4", mount_id=1),
        line(str(tmp_path / "nfs"), "nfs4", "fs1:/vol", "rw,rsize=524288", mount_id=2, parent_id=1),
        line(str(tmp_path / "mem"), "tmpfs", mount_id=3, parent_id=1),
        line(
            point,
            "overlay",
            "overlay",
            "rw," + options.replace("@", str(tmp_path)),
            mount_id=4,
            parent_id=1,
            device="0:77",
            root=root,
        ),
    )


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_overlay_reports_the_layer_that_holds_the_file(tmp_path: Path) -> None:
    put(tmp_path / "mem/up/new")
    put(tmp_path / "mem/up/both")
    put(tmp_path / "nfs/low/both")
    put(tmp_path / "nfs/low/sub/old")
    put(tmp_path / "disk/base")
    mounts = layered(
        tmp_path, "lowerdir=@/nfs/low:@/disk,upperdir=@/mem/up,workdir=@/mem/work,uuid=on"
    )
    assert mounts.of("/o/new").type == "tmpfs"
    assert mounts.of("/o/both").type == "tmpfs"
    assert mounts.of("/o/base").type == "ext4"
    found = mounts.of("/o/sub/old")
    assert (found.type, found.network, found.mount_point) == (
        "nfs4",
        True,
        str(tmp_path / "nfs"),
    )
    assert read_step_bytes(found, str(tmp_path)) == 512 * KIB
    gone = mounts.of("/o/nowhere")
    assert (gone.type, gone.mount_point, gone.device) == ("overlay", "/o", "0:77")


def test_overlay_of_which_only_a_part_is_mounted(tmp_path: Path) -> None:
    put(tmp_path / "nfs/low/sub/models/old")
    mounts = layered(tmp_path, "lowerdir=@/nfs/low", root="/sub/models", point="/m")
    assert mounts.of("/m/old").type == "nfs4"
    alone = layered(tmp_path, "lowerdir=@/nfs/low", root="/sub/models/old", point="/m/file")
    assert alone.of("/m/file").type == "nfs4"


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (r"lowerdir=/nothing:@/nfs/a\134:b", "a:b"),
        (r"lowerdir=@/nfs/a\134\134b", "a\\b"),
        (r"lowerdir=@/nfs/a\054b:/nothing", "a,b"),
        (r"lowerdir=@/nfs/a\040b", "a b"),
        (r"lowerdir+=/nothing,lowerdir+=@/nfs/a:b", "a:b"),
        (r"lowerdir+=@/nfs/a\134b,datadir+=/nothing", "a\\b"),
        (r"upperdir=@/nfs/a\134:b,workdir=/w,lowerdir=/nothing", "a:b"),
        (r"lowerdir=/nothing::@/nfs/data", "data"),
    ],
)
def test_names_of_layers(tmp_path: Path, options: str, folder: str) -> None:
    put(tmp_path / "nfs" / folder / "old")
    assert layered(tmp_path, options).of("/o/old").type == "nfs4"


@pytest.mark.parametrize(
    "options",
    [
        "lowerdir=relative:also/relative",
        "lowerdir=/var/lib/docker/overlay2/l/NOT:/SEEN/FROM/HERE,upperdir=/gone",
        "lowerdir=",
        "lowerdir",
        "lowerdir=\\",
        "",
    ],
)
def test_layers_that_cannot_be_seen_leave_the_overlay(tmp_path: Path, options: str) -> None:
    found = layered(tmp_path, options).of("/o/old")
    assert (found.type, found.network, found.mount_point) == ("overlay", False, "/o")


def test_a_layer_named_through_a_symlink(tmp_path: Path) -> None:
    put(tmp_path / "nfs/low/old")
    (tmp_path / "l").symlink_to(tmp_path / "nfs/low")
    assert layered(tmp_path, "lowerdir=@/l").of("/o/old").type == "nfs4"


def test_an_overlay_on_an_overlay(tmp_path: Path) -> None:
    put(tmp_path / "nfs/low/old")
    put(tmp_path / "inner/old")  # what the inner overlay shows
    mounts = table(
        line("/", "ext4", mount_id=1),
        line(str(tmp_path / "nfs"), "nfs4", mount_id=2, parent_id=1),
        line(
            str(tmp_path / "inner"),
            "overlay",
            options=f"lowerdir={tmp_path}/nfs/low",
            mount_id=3,
            parent_id=1,
        ),
        line("/o", "overlay", options=f"lowerdir={tmp_path}/inner", mount_id=4, parent_id=1),
    )
    assert mounts.of("/o/old").type == "nfs4"


def test_an_overlay_that_names_itself_ends(tmp_path: Path) -> None:
    put(tmp_path / "old")
    point = str(tmp_path)
    mounts = table(line(point, "overlay", options=f"lowerdir={point}"))
    assert mounts.of(f"{point}/old").type == "overlay"


# The step of WILLNEED


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A /sys with a disk 8:0, its partition 8:1, a mapped device and bdis of every kind."""
    root = tmp_path / "sys"

    def write(path: str, text: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    write("devices/sda/queue/max_sectors_kb", "1280\n")
    write("devices/sda/queue/read_ahead_kb", "128\n")
    write("devices/sda/sda1/partition", "1\n")
    write("devices/dm-0/queue/max_sectors_kb", "512\n")
    write("devices/dm-0/queue/read_ahead_kb", "8192\n")
    write("devices/broken/queue/max_sectors_kb", "many\n")
    (root / "dev/block").mkdir(parents=True)
    for number, device in {
        "8:0": "sda",
        "8:1": "sda/sda1",
        "253:0": "dm-0",
        "9:9": "broken",
    }.items():
        (root / "dev/block" / number).symlink_to(Path("../../devices") / device)
    for bdi, kib in {
        "8:0": 128,
        "0:51": 128,
        "0:52": 16384,
        "0:60": 64,
        "0:64": 128,
        "8:1-fuseblk": 256,
        "9p-1": 0,
        "9p-2": 124,
        "btrfs-3": 8192,
        "cifs-4": 8192,
        "cifs-5": 4096,
    }.items():
        write(f"class/bdi/{bdi}/read_ahead_kb", f"{kib}\n")
    return root


@pytest.mark.parametrize(
    ("type_", "device", "options", "kib"),
    [
        ("ext4", "8:0", "rw", 1280),
        ("ext4", "8:1", "rw", 1280),  # a partition uses its disk's queue
        ("xfs", "253:0", "rw", 8192),  # dm: the read-ahead is larger
        ("ext4", "9:9", "rw", 128),
        ("ext4", "7:7", "rw", 128),
        ("nfs4", "0:51", "rw,rsize=1048576", 1024),
        ("nfs4", "0:51", "rw,rsize=524288", 512),
        ("nfs", "0:51", "rw,rsize=4194304", 1024),
        ("nfs", "0:51", "rw,rsize=32768", 256),  # twice ra_pages is larger
        ("nfs", "0:52", "rw,rsize=262144", 16384),  # an administrator raised it
        ("nfs", "0:59", "rw,rsize=32768", 32),
        ("nfs", "0:59", "rw,rsize=1000", 4),
        ("nfs", "0:59", "rw,rsize=4097", 4),
        ("nfs", "0:59", "rw,rsize=-1", 128),
        ("nfs", "0:59", "rw", 128),
        ("btrfs", "0:40", "rw", 8192),
        ("cifs", "0:41", "rw,rsize=4194304", 4096),  # the smallest of the candidates
        ("smb3", "0:42", "rw,rsize=4194304", 1024),
        ("ceph", "0:43", "rw,rsize=65536", 128),
        ("9p", "0:44", "rw,cache=f,msize=131072", 248),
        ("fuse.juicefs", "0:60", "rw", 128),
        ("fuse.juicefs", "0:64", "rw", 256),
        ("fuse", "0:61", "rw", 128),
        ("fuseblk", "8:1", "rw", 512),
        ("virtiofs", "0:62", "rw", 128),
        ("overlay", "0:63", "rw", 128),
        ("we[i]rd*", "0:65", "rw", 128),
        ("unknown", "0:0", "", 128),
    ],
)
def test_step(sysfs: Path, type_: str, device: str, options: str, kib: int) -> None:
    fs = table(line("/m", type_, options=options, device=device)).of("/m/x")
    step = read_step_bytes(fs, str(sysfs))
    assert step == max(kib * KIB // mmap.PAGESIZE, 1) * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("type_", "device", "little"),
    [
        ("ext4", "8:1", True),
        ("xfs", "253:0", False),
        ("nfs4", "0:51", True),
        ("nfs4", "0:52", False),
        ("btrfs", "0:40", False),
        ("cifs", "0:41", False),
        ("ext4", "9:9", False),  # unknown
        ("unknown", "0:0", False),
    ],
)
def test_where_the_kernel_reads_ahead_little(
    sysfs: Path, type_: str, device: str, little: bool
) -> None:
    fs = table(line("/m", type_, device=device)).of("/m/x")
    assert reads_ahead_little(fs, str(sysfs)) is little


@pytest.mark.parametrize(("kib", "little"), [(4, True), (511, True), (512, False), (513, False)])
def test_a_little_is_less_than_half_a_mebibyte(sysfs: Path, kib: int, little: bool) -> None:
    (sysfs / "class/bdi/0:51/read_ahead_kb").write_text(f"{kib}\n")
    fs = table(line("/m", "nfs4", options="rw,rsize=4096", device="0:51")).of("/m/x")
    assert reads_ahead_little(fs, str(sysfs)) is little
    assert (
        read_step_bytes(fs, str(sysfs)) == (1 + little) * kib * KIB // mmap.PAGESIZE * mmap.PAGESIZE
    )


@pytest.mark.parametrize(
    ("type_", "options", "step"),
    [
        ("btrfs", "rw", 4 * MIB),
        ("ext4", "rw", 128 * KIB),
        ("cifs", "rw,rsize=4194304", MIB),
        ("9p", "rw,cache=f", mmap.PAGESIZE),
    ],
)
def test_step_without_sysfs(tmp_path: Path, type_: str, options: str, step: int) -> None:
    assert read_step_bytes(mounted(type_, options), str(tmp_path)) == step


@settings(deadline=None)
@given(st.integers(-10, 2**70), st.sampled_from(["nfs", "cifs", "ext4", "9p"]))
def test_step_is_whole_pages_and_at_least_one(rsize: int, type_: str) -> None:
    step = read_step_bytes(mounted(type_, f"rsize={rsize}"), "/nonexistent")
    assert step >= mmap.PAGESIZE
    assert step % mmap.PAGESIZE == 0
    assert step <= MIB


def resident_bytes(path: Path) -> int:
    text = subprocess.check_output(["fincore", "-n", "-b", "-o", "RES", path], text=True)
    return int(text)


@pytest.mark.skipif(not shutil.which("fincore"), reason="needs util-linux' fincore as the oracle")
def test_the_kernel_reads_a_whole_step(tmp_path: Path) -> None:
    [fs] = inspect([str(tmp_path)])
    if fs.in_memory or fs.type == "overlay":
        pytest.skip(f"needs a file system that evicts and whose limits are known, not {fs.type}")
    step = read_step_bytes(fs)
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * step))
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        before = resident_bytes(path)
        if before:
            pytest.skip(f"{before} bytes of the file cannot be evicted")
        if reads_ahead_little(fs):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(fd, 0, step, os.POSIX_FADV_WILLNEED)
        # The call starts the reads without waiting.
        deadline = time.monotonic() + 10
        while resident_bytes(path) < step and time.monotonic() < deadline:
            pass
        assert resident_bytes(path) == step
    finally:
        os.close(fd)


# Real mounts


@pytest.mark.skipif(not shutil.which("findmnt"), reason="needs util-linux' findmnt as the oracle")
@pytest.mark.parametrize(
    "path", ["/", "/proc/self", "/dev/shm", "/sys/kernel", "/dev/null", "/usr/bin", "/tmp"]
)
def test_agrees_with_findmnt(path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"no {path} on this machine")
    real = os.path.realpath(path)
    command = ["findmnt", "-n", "-r", "-o", "FSTYPE,TARGET,MAJ:MIN", "--target", real]
    # A mount over a mount gives two lines, the top one last.
    type_, point, device = subprocess.check_output(command, text=True).splitlines()[-1].split()
    if type_ == "overlay":
        pytest.skip("findmnt does not look below an overlay")
    [found] = inspect([real])
    assert (found.type, found.mount_point, found.device) == (type_, point, device)


NAMESPACE = "-m" if os.geteuid() == 0 else "-rm"
INSPECT = """
import json, os, sys
from prefetch_cli.linux.mounts import inspect
from prefetch_cli.linux.readahead import read_step_bytes
found = [
    {**fs._asdict(), "below": fs.below and fs.below._asdict(), "options": sorted(fs.options),
     "in_memory": fs.in_memory, "network": fs.network,
     "storage": fs.storage and [fs.storage.name, fs.storage.kind.value],
     "rotational": fs.storage and fs.storage.rotational, "step": read_step_bytes(fs)}
    for fs in inspect(sys.argv[1:])
]
# By their folders too, where each file is looked for twice.
real = [path for path in map(os.path.realpath, sys.argv[1:]) if os.path.exists(path)] * 2
assert inspect(real, None, [os.stat(path).st_dev for path in real]) == inspect(real)
print(json.dumps(found, default=str))
"""


def inspect_among_mounts(setup: str, cwd: Path, *paths: str) -> list[dict[str, Any]]:
    """Return what `inspect` finds after a shell script has mounted something.

    Both run in a new mount namespace, which takes the mounts with it when it ends.
    """
    if not shutil.which("unshare") or subprocess.call(
        ["unshare", NAMESPACE, "true"], stderr=subprocess.DEVNULL
    ):
        pytest.skip("needs unshare(1) and the right to make a mount namespace")
    script = f'set -e\n{textwrap.dedent(setup)}\nexec "$@"'
    command = ["unshare", NAMESPACE, "sh", "-c", script, "sh", sys.executable, "-c", INSPECT]
    environ = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [*command, *(str(cwd / path) for path in paths)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 32:  # mount(8): mount failure
        pytest.skip(f"this machine cannot mount that: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def types(found: list[dict[str, Any]]) -> list[str]:
    return [fs["type"] for fs in found]


def test_real_mounts(tmp_path: Path) -> None:
    [here] = inspect([str(tmp_path)])
    found = inspect_among_mounts(
        """
        mkdir -p 'with space' data/models database hidden/below bound
        touch file single
        mount -t tmpfs tmpfs 'with space'
        mount -t tmpfs outer data; mkdir data/models
        mount -t ramfs inner data/models
        mount -t tmpfs below hidden/below
        mount -t ramfs above hidden; mkdir hidden/below
        mount -t tmpfs first bound
        mount --bind . bound
        mount --bind /proc/version single
        """,
        tmp_path,
        *("with space/x", "data/x", "data/models/x", "database/x", "hidden/below/x"),
        *("bound/x", "file", "single"),
    )
    disk = here.type
    assert types(found) == ["tmpfs", "tmpfs", "ramfs", disk, "ramfs", disk, disk, "proc"]
    assert found[0]["mount_point"] == str(tmp_path / "with space")
    assert [fs["source"] for fs in found[1:3]] == ["outer", "inner"]
    assert found[4]["source"] == "above"
    assert found[5]["step"] == read_step_bytes(here)


def test_real_overlays(tmp_path: Path) -> None:
    [here] = inspect([str(tmp_path)])
    found = inspect_among_mounts(
        r"""
        mkdir mem mem2 'disk:low' merged nested part
        touch 'disk:low/low' 'disk:low/changed'
        mkdir 'disk:low/sub'; touch 'disk:low/sub/deep'
        mount -t tmpfs tmpfs mem; mkdir mem/up mem/work
        mount -t overlay overlay merged \
            -o "lowerdir=$PWD/disk\\:low,upperdir=$PWD/mem/up,workdir=$PWD/mem/work"
        touch merged/new; echo more > merged/changed
        mount --bind merged/sub part
        mount -t ramfs ramfs mem2
        mount -t overlay overlay nested -o "lowerdir=$PWD/mem2:$PWD/merged"
        cd disk:low; mkdir ../relative
        mount -t overlay overlay ../relative -o lowerdir=../mem2:.
        """,
        tmp_path,
        *("merged/low", "merged/sub/deep", "merged/new", "merged/changed", "part/deep"),
        *("nested/low", "nested/new", "relative/low"),
    )
    disk = here.type
    expected = [disk, disk, "tmpfs", "tmpfs", disk, disk, "tmpfs"]
    assert types(found)[:7] == expected
    assert [fs["in_memory"] for fs in found[:7]] == [type_ == "tmpfs" for type_ in expected]
    assert found[0]["step"] == read_step_bytes(here)
    # util-linux >= 2.39 passes absolute paths.
    assert found[7]["type"] in ("overlay", disk)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and mkfs.ext4"
)
def test_real_loop_device(tmp_path: Path) -> None:
    [found] = inspect_among_mounts(
        """
        truncate -s 16M image; mkdir disk
        mkfs.ext4 -q image
        mount -o loop image disk
        """,
        tmp_path,
        "disk/x",
    )
    assert found["type"] == "ext4"
    assert found["source"].startswith("/dev/loop")
    assert found["device"].startswith("7:")
    queue = Path(f"/sys/dev/block/{found['device']}/queue")
    request, window = (
        int((queue / name).read_text()) for name in ("max_sectors_kb", "read_ahead_kb")
    )
    assert found["step"] == max(request, window * 2 if window < 512 else window) * KIB


# A minimal automount(8): it mounts a tmpfs at each name that is looked up. The protocol is in
# Documentation/filesystems/autofs.rst; the packet is autofs_v5_packet.
AUTOMOUNT = """
import ctypes, fcntl, os, select, struct, subprocess, sys
point, command = sys.argv[1], sys.argv[2:]
READY = 0x9360
here, there = os.pipe()
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={there},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect".encode()
if libc.mount(b"auto", point.encode(), b"autofs", 0, options):
    sys.exit(32)
os.close(there)
root = os.open(point, os.O_RDONLY)
client = subprocess.Popen(command, start_new_session=True)
while os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    if not select.select([here], [], [], 0.05)[0]:
        continue
    packet = os.read(here, 304)
    token, = struct.unpack_from("I", packet, 8)
    length, = struct.unpack_from("I", packet, 40)
    name = os.path.join(point, packet[44:44 + length].decode())
    os.makedirs(name, exist_ok=True)
    subprocess.check_call(["mount", "-t", "tmpfs", "automounted", name])
    fcntl.ioctl(root, READY, token)
sys.exit(client.wait())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount autofs")
@pytest.mark.timeout(30)
def test_real_autofs_is_triggered(tmp_path: Path) -> None:
    [found] = inspect_among_mounts(
        f"""
        mkdir auto
        exec {sys.executable} -c '{AUTOMOUNT}' "$PWD/auto" "$@"
        """,
        tmp_path,
        "auto/models/x.safetensors",
    )
    assert (found["type"], found["source"]) == ("tmpfs", "automounted")
    assert found["mount_point"] == str(tmp_path / "auto/models")


def test_an_autofs_without_a_daemon_is_reported_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = table(line(str(tmp_path), "autofs"))
    monkeypatch.setattr(MountTable, "read", lambda: still)
    [found] = inspect([str(tmp_path / "gone/x")])
    assert (found.type, found.network) == ("autofs", False)


def test_what_a_look_up_waits_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = tmp_path / "low"
    low.mkdir()
    options = f"rw,lowerdir={low}"
    still = table(line("/over", "overlay", options=options), line(str(tmp_path / "auto"), "autofs"))
    monkeypatch.setattr(MountTable, "read", lambda: still)
    monitor = Monitor()
    awaited: list[tuple[str, str | None]] = []

    def spied(what: str) -> Any:
        call = getattr(os.path, what, None) or getattr(os, what)

        def ask(path: str, *rest: Any) -> Any:
            if not path.startswith(("/over", str(tmp_path))):
                return call(path, *rest)  # of /proc
            wait = monitor.snapshot().longest_wait
            awaited.append((what, None if wait is None else wait.path))
            return call(path, *rest)

        return ask

    monkeypatch.setattr(os.path, "lexists", spied("lexists"))
    monkeypatch.setattr(os, "open", spied("open"))
    inspect(["/over/x", str(tmp_path / "auto/y/z")], monitor)
    over, auto = "/over/x", str(tmp_path / "auto/y")
    folder_and_file = [("open", over), ("open", over)]
    asked = [*folder_and_file, ("lexists", over), ("open", f"{auto}/z"), ("open", f"{auto}/z")]
    assert awaited == [*asked, ("open", auto), *asked]
    assert monitor.snapshot().longest_wait is None


def test_files_of_a_folder_that_are_mounted_there_are_told_apart(tmp_path: Path) -> None:
    """Also one of the same device, which only its mount point gives away."""
    found = inspect_among_mounts(
        """
        mkdir mem folder
        mount -t tmpfs tmpfs mem
        touch mem/x folder/a folder/b folder/c folder/d
        mount --bind mem/x folder/b
        mount --bind folder/a folder/c
        """,
        tmp_path,
        *("folder/a", "folder/b", "folder/c", "folder/d"),
    )
    assert [one["mount_point"] for one in found] == [
        found[0]["mount_point"],
        f"{tmp_path}/folder/b",
        f"{tmp_path}/folder/c",
        found[0]["mount_point"],
    ]
    assert found[1]["type"] == "tmpfs"
