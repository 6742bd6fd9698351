"""Real mount points: odd names, mounts over mounts, and a checkpoint spread over several."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import kernels, local_mounts
from tests.vm.local_mounts import mounted
from tests.vm.machine import BUILD_TAG, STRANGER, Machine
from tests.vm.rows import MODEL, Mounting

_9P = ("-t", "9p", "-o", "ro,trans=virtio,version=9p2000.L,cache=loose", BUILD_TAG)
_NAMES = {"space": "a model", "escapes": "tab\tline\nback\\slash#", "not-utf-8": "caf\udce9"}


@contextlib.contextmanager
def network(machine: Machine, source: BuiltCheckpoint, point: str) -> Iterator[str]:
    """Yield the checkpoint on a 9p that is mounted at `point`."""
    with mounted(machine, point, *_9P):
        yield os.path.join(point, os.path.relpath(source.directory, kernels.BUILD))


@contextlib.contextmanager
def farm(machine: Machine, *folders: str, side_files: str) -> Iterator[str]:
    """Yield a directory of symlinks: shard N into the Nth folder, JSON files into `side_files`."""
    place = "/run/farm"
    script = f"rm -rf {place}; mkdir {place}; ln -s {side_files}/*.json {place}"
    for number, folder in enumerate(folders, 1):
        script += f"; ln -s {folder}/model-{number:05d}-* {place}"
    try:
        machine.sh(script)
        yield place
    finally:
        machine.run("rm", "-rf", place)


def found(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the type and mount point of each listed file system."""
    return {(one["type"], one["mount_point"]) for one in document["filesystems"]}


def facts(machine: Machine, path: str, *options: str) -> dict[str, Any]:
    """Return a dry run's document for a path."""
    done = machine.tool("--json", "--dry-run", *options, path)
    assert done.code == 0, done
    return done.document


def resident_bytes(machine: Machine, *folders: str) -> int:
    """Return the resident bytes of the files by fincore, following symlinks."""
    words = "find -L " + " ".join(f"'{one}'" for one in folders) + " -type f -print0"
    return sum(map(int, machine.sh(f"{words} | xargs -0 fincore --bytes --raw -n -o RES").split()))


@pytest.mark.parametrize("name", _NAMES.values(), ids=_NAMES.keys())
def test_a_mount_point_of_any_name(machine: Machine, source: BuiltCheckpoint, name: str) -> None:
    # If the name were misread, the checkpoint would seem to lie on the surrounding tmpfs.
    point = f"/mnt/{name}"
    with network(machine, source, point) as path:
        document = facts(machine, path)
    shown = os.fsencode(point).decode(errors="backslashreplace")
    assert found(document) == {("9p", shown)}
    assert document["decision"]["reason"] == "network-fits"


def test_what_is_mounted_over_a_directory_hides_the_mounts_below_it(machine: Machine) -> None:
    with contextlib.ExitStack() as mounts:
        mounts.enter_context(mounted(machine, "/mnt/hiding", "-t", "tmpfs", "below"))
        mounts.enter_context(mounted(machine, "/mnt/hiding/xfs/model", "--bind", MODEL))
        disk = local_mounts.disk(machine, "xfs")
        mounts.enter_context(mounted(machine, "/mnt/hiding/xfs", disk))
        document = facts(machine, "/mnt/hiding/xfs/model")
        assert "/mnt/hiding/xfs/model" in machine.read("/proc/self/mountinfo").decode()
    assert found(document) == {("xfs", "/mnt/hiding/xfs")}
    assert document["decision"]["reason"] == "local-fits"


def test_the_later_of_two_mounts_at_one_place_counts(
    machine: Machine, source: BuiltCheckpoint
) -> None:
    with mounted(machine, "/mnt/twice", "--bind", MODEL):
        assert found(facts(machine, "/mnt/twice")) == {("ext4", "/mnt/twice")}
        with network(machine, source, "/mnt/twice") as path:
            assert found(facts(machine, path)) == {("9p", "/mnt/twice")}
        assert found(facts(machine, "/mnt/twice")) == {("ext4", "/mnt/twice")}


def test_a_sibling_with_a_longer_name_is_not_below_a_mount(
    machine: Machine, source: BuiltCheckpoint
) -> None:
    folder = "/srv/siblings"
    with contextlib.ExitStack() as mounts:
        mounts.callback(machine.run, "rm", "-rf", folder, check=False)
        machine.sh(f"mkdir {folder} {folder}/database; cp -al {MODEL} {folder}/database")
        path = mounts.enter_context(network(machine, source, f"{folder}/data"))
        assert found(facts(machine, f"{folder}/database/model")) == {("ext4", "/srv")}
        assert found(facts(machine, path)) == {("9p", f"{folder}/data")}


def test_a_checkpoint_on_three_file_systems(machine: Machine, source: BuiltCheckpoint) -> None:
    sizes = [os.path.getsize(path) for path in source.weight_files]
    total = sum(map(os.path.getsize, source.files))
    with contextlib.ExitStack() as mounts:
        in_memory = mounts.enter_context(local_mounts.memory(machine, kind="tmpfs"))
        local = mounts.enter_context(local_mounts.on_disk(machine, kind="xfs"))
        far = mounts.enter_context(network(machine, source, "/mnt/far"))
        path = mounts.enter_context(farm(machine, in_memory, local, far, side_files=local))
        machine.drop_caches()

        document = facts(machine, path)
        assert document["decision"]["reason"] == "network-fits"
        assert document["checkpoint"]["total_bytes"] == total
        listed = {one["type"]: one for one in document["filesystems"]}
        assert {kind: one["network"] for kind, one in listed.items()} == {
            "tmpfs": False,
            "xfs": False,
            "9p": True,
        }
        assert listed["tmpfs"]["total_bytes"] == sizes[0]
        assert listed["9p"]["total_bytes"] == sizes[2]
        assert listed["xfs"]["total_bytes"] == total - sizes[0] - sizes[2]
        assert sum(one["files"] for one in listed.values()) == len(source.files)

        # Files that are in memory anyway need no room: the rest fits to the byte.
        on_storage = total - sizes[0]
        fits = facts(machine, path, "--max-bytes", str(on_storage))
        assert fits["decision"]["reason"] == "network-fits"
        too_small = facts(machine, path, "--max-bytes", str(on_storage - 1))
        assert too_small["decision"]["reason"] == "network-too-big"

        done = machine.tool("--json", path)
        result, residency = done.document["result"], done.document["residency"]
        assert done.code == 0
        assert result["complete"]
        assert (1 - ALLOWED_WARM) * on_storage <= result["bytes_read"] <= on_storage
        assert result["bytes_read"] + result["bytes_already_resident"] == total
        assert residency["after_bytes"] >= (1 - ALLOWED_WARM) * total
        assert abs(residency["after_bytes"] - resident_bytes(machine, path)) <= ALLOWED_WARM * total
        assert done.document["warnings"] == []


def test_a_checkpoint_in_memory_and_on_a_disk_is_local(
    machine: Machine, source: BuiltCheckpoint
) -> None:
    sizes = [os.path.getsize(path) for path in source.weight_files]
    total = sum(map(os.path.getsize, source.files))
    with contextlib.ExitStack() as mounts:
        in_memory = mounts.enter_context(local_mounts.memory(machine, kind="tmpfs"))
        local = mounts.enter_context(local_mounts.on_disk(machine, kind="xfs"))
        path = mounts.enter_context(
            farm(machine, in_memory, local, in_memory, side_files=in_memory)
        )
        machine.drop_caches()
        assert facts(machine, path)["decision"]["reason"] == "local-fits"
        done = machine.tool("--json", "--force", path)
        assert done.document["decision"]["reason"] == "forced"
        assert (1 - ALLOWED_WARM) * sizes[1] <= done.document["result"]["bytes_read"] <= sizes[1]
        assert done.document["residency"]["after_bytes"] >= (1 - ALLOWED_WARM) * total
        # A stranger may ask the XFS but not the tmpfs without waiting: both are timed.
        told = machine.tool("--json", "--check", path, user=STRANGER).document["residency"]
        if told["method"] == "unknown":  # the clock may tell nothing on a busy machine
            assert told["after_bytes"] is None
        else:
            assert told["method"] == "timed"
            assert (1 - ALLOWED_WARM) * total <= told["high_bytes"] <= total
            assert abs(told["after_bytes"] - total) <= 0.05 * total


def test_a_single_file_that_is_mounted_over(machine: Machine, source: BuiltCheckpoint) -> None:
    name = os.path.basename(source.weight_files[1])
    with contextlib.ExitStack() as mounts:
        far = mounts.enter_context(network(machine, source, "/mnt/far"))
        path = mounts.enter_context(local_mounts.bind(machine))
        assert facts(machine, path)["decision"]["reason"] == "local-fits"
        mounts.callback(local_mounts.unmount, machine, f"{path}/{name}")
        machine.run("mount", "--bind", f"{far}/{name}", f"{path}/{name}")
        document = facts(machine, path)
    assert found(document) == {("ext4", path), ("9p", f"{path}/{name}")}
    assert {one["type"]: one["files"] for one in document["filesystems"]}["9p"] == 1
    assert document["decision"]["reason"] == "network-fits"


@pytest.mark.parametrize(
    ("mounting", "kind"),
    [(local_mounts.autofs_direct, "xfs"), (local_mounts.autofs_indirect, "ext4")],
    ids=["direct", "indirect"],
)
def test_the_command_itself_triggers_an_automount(
    machine: Machine, mounting: Mounting, kind: str
) -> None:
    with mounting(machine) as path:
        before = machine.read("/proc/self/mountinfo").decode()
        document = facts(machine, path)
        after = machine.read("/proc/self/mountinfo").decode()
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    assert [one["type"] for one in document["filesystems"]] == [kind]
    assert document["decision"]["reason"] == "local-fits"


def test_a_symlink_triggers_an_automount(machine: Machine) -> None:
    with (
        local_mounts.autofs_direct(machine) as path,
        farm(machine, MODEL, MODEL, MODEL, side_files=MODEL) as links,
    ):
        machine.sh(f"cd {links}; ln -sf {path}/$(basename model-00002-*) .")
        document = facts(machine, links)
    assert {kind for kind, _ in found(document)} == {"ext4", "xfs"}


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_what_lies_in_memory_is_not_read_even_if_forced(machine: Machine, kind: str) -> None:
    with local_mounts.memory(machine, kind=kind) as path:
        done = machine.tool("--json", "--force", path)
    assert done.code == 0
    assert done.document["decision"]["action"] == "skip"
    assert done.document["decision"]["reason"] == "in-memory-filesystem"
    assert done.document["result"] is None
