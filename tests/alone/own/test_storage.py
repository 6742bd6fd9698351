"""What real mounts lie on: loop devices, FUSE with real types and sources, other namespaces."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.linux import mounts, namespaces
from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.mounts import MountTable, inspect
from tests.alone.own.test_filesystem import INSPECT, NAMESPACE, inspect_among_mounts
from tests.helpers.checkpoints import write_sharded
from tests.helpers.command import COMMAND, environment, run
from tests.helpers.passthrough import answered, mounted

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
needs_ext4 = pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")


def here(path: Path) -> Any:
    [found] = inspect([str(path)])
    return found


# Loop devices and memory


@needs_root
@needs_ext4
def test_a_loop_device_lies_where_its_file_does(tmp_path: Path) -> None:
    memory, disk = inspect_among_mounts(
        """
        mkdir mem on-mem on-disk
        mount -t tmpfs tmpfs mem
        for image in mem/image image; do truncate -s 16M $image; mkfs.ext4 -q $image; done
        mount -o loop mem/image on-mem
        mount -o loop image on-disk
        touch on-mem/x on-disk/x
        """,
        tmp_path,
        *("on-mem/x", "on-disk/x"),
    )
    below = here(tmp_path)
    assert memory["type"] == disk["type"] == "ext4"
    assert (memory["network"], memory["in_memory"]) == (False, False)
    assert memory["storage"][1] == "memory"
    assert disk["network"] is below.network
    if below.storage is not None:
        assert disk["storage"][1] == below.storage.kind.value


@needs_root
@needs_ext4
def test_a_loop_device_on_a_network_file_system_is_network(tmp_path: Path) -> None:
    source, point = tmp_path / "source", tmp_path / "point"
    source.mkdir()
    point.mkdir()
    subprocess.run(["truncate", "-s", "16M", source / "image"], check=True)
    subprocess.run(["mkfs.ext4", "-q", source / "image"], check=True)
    try:
        with mounted(str(source), str(point), "--subtype", "juicefs", "--source", "JuiceFS:m"):
            [found] = inspect_among_mounts(
                "mkdir disk; mount -o ro,loop point/image disk", tmp_path, "disk"
            )
    except OSError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")
    assert (found["type"], found["network"]) == ("ext4", True)
    assert found["storage"][0].startswith("loop")
    assert found["storage"][1] == "network"


@needs_root
@needs_ext4
@pytest.mark.parametrize("rotational", [True, False])
def test_what_the_kernel_says_of_a_disk_that_spins(tmp_path: Path, rotational: bool) -> None:
    [found] = inspect_among_mounts(
        f"""
        mkdir disk
        truncate -s 16M image; mkfs.ext4 -q image
        mount -o loop image disk
        touch disk/x
        echo {int(rotational)} > /sys/dev/block/$(mountpoint -d disk)/queue/rotational
        """,
        tmp_path,
        "disk/x",
    )
    assert found["rotational"] is rotational


@needs_root
@needs_ext4
def test_zram_is_a_block_device_in_memory(tmp_path: Path) -> None:
    control = Path("/sys/class/zram-control/hot_add")
    if not control.exists():
        pytest.skip("needs the zram module")
    number = control.read_text().strip()
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text("16M")
        [found] = inspect_among_mounts(
            f"mkdir disk; mkfs.ext4 -q /dev/zram{number}; mount /dev/zram{number} disk",
            tmp_path,
            "disk",
        )
    finally:
        control.with_name("hot_remove").write_text(number)
    assert (found["storage"], found["network"]) == ([f"zram{number}", "memory"], False)
    assert found["in_memory"] is False  # what is read goes through the page cache


# FUSE, with the types and sources of real ones


Mount = Callable[..., dict[str, Any]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/x").write_bytes(b"weights")
    return folder


@pytest.fixture
def fuse(tmp_path: Path, source: Path) -> Mount:
    """Return what mounts the source with options, and returns what is found of a file on it."""
    point = tmp_path / "point"
    point.mkdir()

    def found(*options: str) -> dict[str, Any]:
        try:
            with mounted(str(source), str(point), *options):
                [one] = json.loads(answered(sys.executable, "-c", INSPECT, str(point / "deep/x")))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        return dict(one)

    return found


@needs_root
@pytest.mark.parametrize(
    ("subtype", "name"),
    [
        (None, "mfs#storage.example.net:9421"),  # RunPod
        (None, "hf-mount"),
        (None, "mountpoint-s3"),
        (None, "/dev/fuse"),
        ("ossfs", "ossfs"),
        ("GooseFS", "GooseFS"),
        ("juicefs", "JuiceFS:models"),
        ("never-heard-of", "x"),
    ],
)
def test_fuse_is_network(fuse: Mount, subtype: str | None, name: str) -> None:
    found = fuse(*(["--subtype", subtype] if subtype else []), "--source", name)
    assert found["type"] == ("fuse" if subtype is None else f"fuse.{subtype}")
    assert (found["source"], found["network"], found["below"]) == (name, True, None)


@needs_root
@pytest.mark.parametrize("subtype", ["ntfs-3g", "squashfuse", "mergerfs", "encfs", "lxcfs"])
def test_fuse_that_is_known_to_be_local(fuse: Mount, subtype: str) -> None:
    found = fuse("--subtype", subtype, "--source", subtype)
    assert (found["network"], found["below"]) == (False, None)


@needs_root
@pytest.mark.parametrize("options", [(), ("--subtype", "bindfs")])
def test_bindfs_is_as_far_as_the_folder_that_it_shows(
    fuse: Mount, source: Path, options: tuple[str, ...]
) -> None:
    found = fuse(*options, "--source", str(source))
    assert found["below"]["type"] == here(source).type
    assert found["network"] is here(source).network
    # The same source, without that file in it, proves nothing.
    elsewhere = source.parent / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep/x").write_bytes(b"another")
    found = fuse(*options, "--source", str(elsewhere))
    assert found["below"] is None
    assert found["network"] is (not options)


@needs_root
@pytest.mark.parametrize(
    ("subtype", "prefix", "mark"),
    [("gocryptfs", "", "gocryptfs.conf"), ("cryfs", "cryfs@", "cryfs.config")],
)
def test_an_encrypted_folder_is_as_far_as_what_it_lies_on(
    fuse: Mount, source: Path, subtype: str, prefix: str, mark: str
) -> None:
    options = ("--subtype", subtype, "--source", f"{prefix}{source}")
    assert fuse(*options)["below"] is None  # not the folder that it was, or of another namespace
    (source / mark).touch()
    assert fuse(*options)["below"]["type"] == here(source).type


@needs_root
def test_a_view_of_a_network_folder_is_network(tmp_path: Path, source: Path) -> None:
    far, point = tmp_path / "far", tmp_path / "point"
    far.mkdir()
    point.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mounted(str(source), str(far), "--subtype", "juicefs"))
            stack.enter_context(mounted(str(far), str(point), "--source", str(far)))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        [found] = json.loads(answered(sys.executable, "-c", INSPECT, str(point / "deep/x")))
    assert (found["type"], found["network"]) == ("fuse", True)
    assert found["below"]["type"] == "fuse.juicefs"


@needs_root
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("bindfs", ("{source}", "{point}")),
        ("mergerfs", ("{source}:{other}", "{point}")),
    ],
)
def test_the_real_programs(
    tmp_path: Path, source: Path, program: str, arguments: tuple[str, ...]
) -> None:
    if not shutil.which(program):
        pytest.skip(f"needs {program}")
    places = {"source": source, "other": tmp_path / "other", "point": tmp_path / "point"}
    for name in ("other", "point"):
        places[name].mkdir()
    command = [program, *(one.format(**places) for one in arguments)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"{program} cannot mount here: {done.stderr.strip()}")
    try:
        output = answered(sys.executable, "-c", INSPECT, str(places["point"] / "deep/x"))
    finally:
        subprocess.run(["umount", places["point"]], check=True)
    [found] = json.loads(output)
    assert found["below"]["type"] == here(source).type
    assert found["network"] is here(source).network


# Other mount namespaces


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[int]:
    """The pid of a process in a namespace of its own, with mounts on tmp_path/mnt and .../over.

    Its parent is in the same namespace, and has the lower number.
    """
    for name in ("mnt", "over", "low"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/x").touch()
    script = """
        set -e
        mount -t tmpfs elsewhere mnt
        mkdir mnt/deep; echo x > mnt/deep/x; touch mnt/deep/bound
        mount --bind low/x mnt/deep/bound
        mount -t overlay overlay over -o "lowerdir=$PWD/low:$PWD/mnt"
        cd mnt
        sleep 60 &
        trap "kill $!" EXIT
        echo $!
        read _
    """
    process = subprocess.Popen(
        ["unshare", NAMESPACE, "sh", "-c", script],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        child = process.stdout.readline().strip()
        if not child:
            pytest.skip("needs the right to make a mount namespace")
        yield int(child)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("way", ["root", "task", "cwd", "link", "link to the folder", "descriptor"])
def test_a_path_into_another_namespace(tmp_path: Path, stranger: int, way: str) -> None:
    real = f"/proc/{stranger}/root{tmp_path}/mnt/deep/x"
    os.symlink(real, tmp_path / "link")
    os.symlink(os.path.dirname(real), tmp_path / "folder")
    with open(real, encoding="ascii") as file:
        path = {
            "root": real,
            "task": f"/proc/{stranger}/task/{stranger}/root{tmp_path}/mnt/deep/x",
            "cwd": f"/proc/{stranger}/cwd/deep/x",
            "link": str(tmp_path / "link"),
            "link to the folder": str(tmp_path / "folder/x"),
            "descriptor": f"/proc/self/fd/{file.fileno()}",
        }[way]
        [found, beside] = inspect([path, str(tmp_path)])
    assert (found.type, found.source) == ("tmpfs", "elsewhere")
    assert found.in_memory
    assert found.mount_point.startswith("/proc/")
    assert found.mount_point.endswith(f"/root{tmp_path}/mnt")
    if way in {"root", "task", "cwd"}:
        assert found.mount_point == f"/proc/{stranger}/root{tmp_path}/mnt"
    assert beside.type != "tmpfs" or not beside.mount_point.startswith("/proc/")


def test_an_overlay_of_another_namespace_is_the_layer_that_can_be_seen(
    tmp_path: Path, stranger: int
) -> None:
    low, high = inspect([f"/proc/{stranger}/root{tmp_path}/over/{one}" for one in ("x", "deep/x")])
    assert low.type == here(tmp_path).type
    assert (high.type, high.mount_point) == ("overlay", f"/proc/{stranger}/root{tmp_path}/over")


def test_a_file_that_is_mounted_in_another_namespace(tmp_path: Path, stranger: int) -> None:
    folder = f"/proc/{stranger}/root{tmp_path}/mnt/deep"
    found = inspect([f"{folder}/x", f"{folder}/bound"])
    assert [one.type for one in found] == ["tmpfs", here(tmp_path).type]


def test_a_namespace_that_nobody_may_see_is_unknown(
    tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/proc/{stranger}/root{tmp_path}/mnt/deep/x"
    # No user who can open the file is refused the table, so the refusal is made up.
    monkeypatch.setattr(namespaces, "_processes", lambda _path: [])
    assert inspect([path]) == (UNKNOWN,)
    # Nor does a kernel that tells no number of the mount make the name a wrong one.
    monkeypatch.setattr(mounts, "placed", lambda _path: None)
    assert inspect([path]) == (UNKNOWN,)
    assert inspect([str(tmp_path)]) == (MountTable.read().of(str(tmp_path)),)


def test_the_command_names_the_file_system_of_the_other_namespace(
    tmp_path: Path, stranger: int
) -> None:
    root = Path(f"/proc/{stranger}/root{tmp_path}/mnt")
    write_sharded(str(root), shard_bytes=[1 << 20])
    found = run("--dry-run", "--json", str(root)).document
    assert [one["type"] for one in found["filesystems"]] == ["tmpfs"]
    assert found["filesystems"][0]["mount_point"] == str(root)
    assert found["decision"]["reason"] == "in-memory-filesystem"


@pytest.mark.parametrize("way", ["cwd", "cwd by its path", "..", "link", "link behind"])
def test_the_command_stays_in_the_other_namespace(tmp_path: Path, stranger: int, way: str) -> None:
    """By whatever name the folder is given, also where this namespace has one of that name."""
    point = Path(f"/proc/{stranger}/root{tmp_path}/mnt")
    built = write_sharded(str(point / "model"), shard_bytes=[1 << 20])
    (point / "deep/link").symlink_to("../model")
    (tmp_path / "link").symlink_to(point)
    folder, argument = {
        "cwd": (point / "model", "."),
        "cwd by its path": (point, "model"),
        "..": (tmp_path, f"{point}/deep/../model"),
        "link": (tmp_path, "link/model"),
        "link behind": (point / "deep", "../deep/link"),
    }[way]
    for pwd in (str(folder), None):
        done = subprocess.run(
            [*COMMAND, "--dry-run", "--json", argument],
            cwd=folder,
            env=environment(PWD=pwd),
            capture_output=True,
            check=True,
        )
        found = json.loads(done.stdout)
        assert found["checkpoint"]["total_bytes"] == sum(map(os.path.getsize, built.files))
        assert [one["type"] for one in found["filesystems"]] == ["tmpfs"]


def test_what_was_mounted_after_the_table_was_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [MountTable(()), MountTable.read()]
    monkeypatch.setattr(MountTable, "read", lambda: tables.pop(0))
    [found, again] = inspect([str(tmp_path), str(tmp_path)])
    assert found == again != UNKNOWN
    assert not tables


def test_files_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    """A file by its folder: links, mount points and other devices are asked one by one."""
    found = inspect_among_mounts(
        """
        mkdir mem there view
        mount --bind there view
        mount -t tmpfs mem mem
        touch plain bound same mem/x
        ln -s mem/x link
        mount --bind mem/x bound
        mount --bind plain same
        """,
        tmp_path,
        *("plain", "link", "bound", "same", "mem/.", "mem/..", "view/.."),
    )
    types = [one["type"] for one in found]
    disk = here(tmp_path).type
    assert types == [disk, "tmpfs", "tmpfs", disk, "tmpfs", disk, disk]
    points = [os.path.relpath(one["mount_point"], tmp_path) for one in found]
    assert points[1:5] == ["mem", "bound", "same", "mem"]
    assert points[0] == points[5] == points[6]
    assert points[0] not in {"same", "view"}
