"""What the kernel dropped to free memory: the figure, its words, and what must not count as it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.amounts import format_size
from prefetch_cli.linux import cachestat
from tests.conftest import MIB
from tests.helpers import checkpoints, oracle
from tests.helpers.cgroups import real_cgroups
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Done, Running, run

LIMIT = 96 * MIB
ENTER = ("sh", "-ec", 'echo $$ > "$0/cgroup.procs"; exec "$@"')
GONE = "more were here and dropped again"

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> BuiltCheckpoint:
    """A checkpoint of twice the limit."""
    folder = tmp_path_factory.mktemp("large") / "model"
    built = checkpoints.write_sharded(str(folder), shard_bytes=[64 * MIB] * 3)
    with open(built.files[0], "rb") as file:
        if cachestat.ask(file.fileno(), 0, 1) is None:
            pytest.skip("this kernel has no cachestat (Linux 6.5)")
    return built


@pytest.fixture
def cgroup(large: BuiltCheckpoint) -> Iterator[Path]:
    """A cgroup with half the memory that the checkpoint takes, of which nothing is resident."""
    oracle.make_cold(large.files)
    with real_cgroups(LIMIT) as (made,):
        yield made


def inside(cgroup: Path, *arguments: str) -> Done:
    return run(*arguments, command=(*ENTER, str(cgroup), *COMMAND))


def read_inside(cgroup: Path, built: BuiltCheckpoint) -> int:
    """Return how much of the checkpoint is dropped again where another program reads it."""
    subprocess.run(
        [*ENTER, str(cgroup), "cat", *built.files], check=True, stdout=subprocess.DEVNULL
    )
    gone = size_bytes(built) - oracle.resident_bytes(built.files)
    assert gone > 0.4 * size_bytes(built)
    return gone


def size_bytes(built: BuiltCheckpoint) -> int:
    return sum(map(os.path.getsize, built.files))


def looked(built: BuiltCheckpoint) -> dict[str, Any]:
    found: dict[str, Any] = run("--check", "--json", built.directory).document["residency"]
    return found


def test_what_another_reader_lost_is_told_before_reading(
    large: BuiltCheckpoint, cgroup: Path
) -> None:
    gone = read_inside(cgroup, large)
    found = looked(large)
    assert found["method"] == "cachestat"
    assert found["evicted_bytes"] == oracle.about(gone)
    assert 0 <= found["recently_evicted_bytes"] <= found["evicted_bytes"]
    assert found["evicted_bytes"] + found["after_bytes"] == oracle.about(size_bytes(large))
    for action in ("--check", "--dry-run"):
        done = run(action, large.directory)
        lost = format_size(found["evicted_bytes"])
        assert done.lines["resident"].endswith(f", cachestat); {lost} {GONE}")
        assert "dropped" not in done.errors


def test_what_is_read_again_has_no_trace_of_it(large: BuiltCheckpoint, cgroup: Path) -> None:
    read_inside(cgroup, large)
    done = run("--force", large.directory)
    assert done.resident_percent >= 99
    assert done.errors.count("warning") == 0
    assert looked(large)["evicted_bytes"] <= 0.01 * size_bytes(large)
    assert GONE not in run("--check", large.directory).output


def test_what_is_dropped_on_demand_does_not_count(large: BuiltCheckpoint, cgroup: Path) -> None:
    for path in large.files:
        Path(path).read_bytes()
    oracle.make_cold(large.files)
    assert looked(large)["evicted_bytes"] == looked(large)["recently_evicted_bytes"] == 0
    # It even removes the traces of what was lost before.
    read_inside(cgroup, large)
    evicted = run("--evict", "--json", large.directory).document
    assert evicted["residency"]["evicted_bytes"] == 0
    assert GONE not in run("--check", large.directory).output


def test_a_share_counts_only_itself(large: BuiltCheckpoint, cgroup: Path) -> None:
    read_inside(cgroup, large)
    share = ("--split", "files", "--world-size", "3")
    found = [
        run("--check", "--json", *share, "--rank", rank, large.directory).document["residency"]
        for rank in "012"
    ]
    # The first shard is gone, the last one is what the cgroup could hold.
    assert found[0]["evicted_bytes"] > 0.9 * found[0]["total_bytes"]
    assert found[2]["evicted_bytes"] < 0.1 * found[2]["total_bytes"]
    whole = looked(large)["evicted_bytes"]
    assert sum(one["evicted_bytes"] for one in found) == oracle.about(whole)


def test_the_warning_says_how_much_was_lost_since_it_was_read(
    large: BuiltCheckpoint, cgroup: Path
) -> None:
    # At the second time, as much was lost before it as is afterwards.
    for _ in range(2):
        document = inside(cgroup, "--force", "--json", large.directory).document
        gone = size_bytes(large) - oracle.resident_bytes(large.files)
        assert document["residency"]["evicted_bytes"] == oracle.about(gone)
        (warning,) = (one for one in document["warnings"] if "stayed in the page cache" in one)
        lost = format_size(document["residency"]["evicted_bytes"])
        fact = f": {lost} were dropped again to free memory, likely because of the memory limit of"
        assert f"{fact} the cgroup {cgroup}; --partial keeps the head" in warning


OTHERS = (
    "likely a program dropped the rest (drop_caches, posix_fadvise), or the files were changed "
    "meanwhile"
)


def test_what_somebody_else_drops_meanwhile_is_not_called_reclaim(large: BuiltCheckpoint) -> None:
    oracle.make_cold(large.files)
    flags = ("--force", "--max-rate", "64M", "--json", large.directory)
    with Running.start(*flags) as running:
        running.await_line("60%")
        oracle.evict(large.files)
        document = running.end().document
    (warning,) = (one for one in document["warnings"] if "stayed in the page cache" in one)
    assert warning.endswith(OTHERS)


def test_what_was_lost_before_and_not_read_again_is_not_called_reclaim(
    large: BuiltCheckpoint, cgroup: Path
) -> None:
    read_inside(cgroup, large)
    flags = ("--force", "--partial", "--max-bytes", "32MiB", "--max-rate", "16M", "--json")
    with Running.start(*flags, large.directory) as running:
        running.await_line("60%")
        oracle.evict(large.weight_files[:1])  # the head
        document = running.end().document
    assert document["residency"]["evicted_bytes"] > 0.1 * size_bytes(large)
    (warning,) = (one for one in document["warnings"] if "stayed in the page cache" in one)
    assert warning.endswith(OTHERS)


def test_nobody_knows_on_tmpfs_and_on_an_overlay(small: Path, tmp_path: Path) -> None:
    """tmpfs moves its pages to swap, and cachestat looks at the wrong cache of an overlay."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    folders = {name: tmp_path / name for name in ("memory", "upper", "work", "merged")}
    for folder in folders.values():
        folder.mkdir()
    layers = f"lowerdir={small},upperdir={folders['upper']},workdir={folders['work']}"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folders["memory"]], check=True)
    try:
        subprocess.run(["cp", "-r", small, folders["memory"]], check=True)
        mount = ["mount", "-t", "overlay", "overlay", "-o", layers, folders["merged"]]
        subprocess.run(list(map(str, mount)), check=True)
        try:
            for path in (folders["memory"] / small.name, folders["merged"]):
                found = run("--check", "--json", str(path)).document["residency"]
                assert found["evicted_bytes"] is None
                assert found["recently_evicted_bytes"] is None
        finally:
            subprocess.run(["umount", folders["merged"]], check=True)
    finally:
        subprocess.run(["umount", folders["memory"]], check=True)
