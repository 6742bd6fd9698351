"""The whole command on real checkpoints on this machine's disk, checked by fincore."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.oracle import about

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A cold checkpoint of four unequal shards, 21 MiB."""
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoints.write_sharded(str(folder), shard_bytes=[8 * MIB, 3 * MIB, 9 * MIB, MIB])
    oracle.make_cold(paths(folder))
    return folder


def paths(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir())]


def weights(folder: Path) -> list[str]:
    return [path for path in paths(folder) if path.endswith(".safetensors")]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "prefetch_cli", *map(str, arguments)]


def run(*arguments: str | Path, expected: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        command("--json", *arguments), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == expected, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == expected
    return document


def total(files: Sequence[str]) -> int:
    return sum(os.path.getsize(file) for file in files)


def pages(files: Sequence[str]) -> int:
    return sum(-(-os.path.getsize(file) // 4096) * 4096 for file in files)


def test_the_main_job_is_proven_warm_by_an_independent_tool(checkpoint: Path) -> None:
    found = run("--force", checkpoint)
    assert oracle.resident_bytes(paths(checkpoint)) == about(pages(paths(checkpoint)))
    size = total(paths(checkpoint))
    assert found["result"]["complete"] is True
    assert found["result"]["failed"] == []
    assert found["result"]["bytes_read"] + found["result"]["bytes_already_resident"] == size
    assert found["residency"]["total_bytes"] == size
    assert found["residency"]["after_bytes"] == about(size)
    assert found["decision"]["reason"] == "forced"
    assert found["warnings"] == []


def test_a_dry_run_reads_no_weight(checkpoint: Path) -> None:
    found = run("--dry-run", "--force", checkpoint)
    assert oracle.resident_bytes(weights(checkpoint)) == 0
    assert (found["decision"]["action"], found["result"]) == ("prefetch", None)
    assert found["share"]["bytes"] == total(paths(checkpoint))


def test_a_local_checkpoint_is_skipped(checkpoint: Path) -> None:
    found = run(checkpoint)
    assert oracle.resident_bytes(weights(checkpoint)) == 0
    assert (found["decision"]["action"], found["decision"]["reason"]) == ("skip", "local-fits")
    assert found["result"] is None


def test_what_is_resident_is_not_read_again(checkpoint: Path) -> None:
    first = weights(checkpoint)[0]
    Path(first).read_bytes()
    found = run("--force", "--weights-only", checkpoint)
    assert found["result"]["bytes_already_resident"] == about(total([first]))
    assert found["result"]["bytes_read"] == about(total(weights(checkpoint)) - total([first]))
    assert oracle.resident_bytes(weights(checkpoint)) == about(pages(weights(checkpoint)))


def test_a_second_run_has_nothing_to_do(checkpoint: Path) -> None:
    run("--force", checkpoint)
    found = run("--force", checkpoint)
    assert (found["decision"]["reason"], found["result"]) == ("already-resident", None)


def test_check_before_and_after_and_evict(checkpoint: Path) -> None:
    size = total(weights(checkpoint))
    assert run("--check", "--weights-only", checkpoint)["residency"]["after_bytes"] == 0
    run("--force", checkpoint)
    found = run("--check", "--weights-only", checkpoint)
    assert found["residency"]["after_bytes"] == about(size)
    assert (found["decision"], found["plan"], found["result"]) == (None, None, None)
    evicted = run("--evict", "--weights-only", checkpoint)
    assert evicted["result"]["bytes_evicted"] == about(size)
    assert evicted["residency"]["after_bytes"] == 0
    assert oracle.resident_bytes(weights(checkpoint)) == 0


@pytest.mark.parametrize("split", ["files", "bytes", "auto"])
def test_the_ranks_of_a_node_read_each_byte_once(checkpoint: Path, split: str) -> None:
    read = [
        run("--force", "--rank", str(rank), "--world-size", "4", "--split", split, checkpoint)
        for rank in range(4)
    ]
    assert sum(one["share"]["bytes"] for one in read) == total(paths(checkpoint))
    assert oracle.resident_bytes(paths(checkpoint)) == about(pages(paths(checkpoint)))
    # 9 MiB is far above the mean of 5.25 MiB: a split by files would be uneven.
    assert {one["share"]["split"] for one in read} == {"bytes" if split == "auto" else split}


@pytest.mark.parametrize("limit", [4096, 5 * MIB, 12 * MIB + 12345])
@pytest.mark.parametrize("flags", [("--force",), ("--force", "--partial")])
def test_max_bytes_keeps_the_head_and_is_never_passed(
    checkpoint: Path, limit: int, flags: tuple[str, ...]
) -> None:
    found = run(*flags, "--weights-only", "--max-bytes", str(limit), checkpoint)
    resident = oracle.resident_bytes(weights(checkpoint))
    assert 0.99 * limit - 4096 < resident <= limit
    assert limit - 4096 * len(weights(checkpoint)) <= found["result"]["bytes_read"] <= limit
    assert found["result"]["complete"] is True
    assert found["decision"]["action"] == "partial"
    assert found["memory"]["limited_by"] == "max-bytes"
    head = weights(checkpoint)[0]
    assert oracle.resident_bytes([head]) == about(min(resident, pages([head])))


def test_the_ranks_together_stay_within_max_bytes(checkpoint: Path) -> None:
    limit = 10 * MIB
    for rank in range(3):
        found = run(
            "--force", "--partial", "--weights-only", "--split", "bytes", "--block-size", "1M",
            "--max-bytes", str(limit), "--rank", str(rank), "--world-size", "3", checkpoint,
        )  # fmt: skip
        assert found["result"]["complete"] is True
    assert oracle.resident_bytes(weights(checkpoint)) == about(limit)


def test_the_time_limit_ends_it_with_exit_0(checkpoint: Path) -> None:
    found = run("--force", "--max-rate", "2M", "--time-limit", "1s", checkpoint)
    assert found["result"]["complete"] is False
    assert found["result"]["interrupted"] is False
    assert 0 < found["result"]["bytes_read"] < total(paths(checkpoint))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--min-resident", "50", "--check"), 4),
        (("--min-resident", "0", "--check"), 0),
        (("--min-resident", "50"), 4),  # skipped by decision, so not reached
        (("--min-resident", "99", "--force"), 0),
        (("--min-resident", "50", "--force", "--max-bytes", "1M"), 4),
    ],
)
def test_min_resident(checkpoint: Path, arguments: tuple[str, ...], expected: int) -> None:
    run(*arguments, checkpoint, expected=expected)


def test_several_checkpoints_are_read_in_their_order(checkpoint: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    checkpoints.write_sharded(str(draft), shard_bytes=[2 * MIB])
    oracle.make_cold(paths(draft))
    found = run("--force", "--max-bytes", "3M", draft, checkpoint)
    assert [source["argument"] for source in found["checkpoint"]["sources"]] == [
        str(draft),
        str(checkpoint),
    ]
    assert oracle.resident_bytes(weights(draft)) == about(pages(weights(draft)))
    assert 0 < oracle.resident_bytes(weights(checkpoint)) < MIB


def test_an_in_memory_file_system_is_skipped_under_force_too() -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("needs a writable /dev/shm")
    folder = shm / f"prefetch-cli-test-{os.getpid()}"
    folder.mkdir()
    try:
        checkpoints.write_sharded(str(folder), shard_bytes=[MIB])
        found = run("--force", folder)
        # An exact method finds it all resident, but the check for memory file systems comes first.
        assert found["decision"]["reason"] == "in-memory-filesystem"
        assert found["filesystems"][0]["type"] == "tmpfs"
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_shard_without_permission_fails_alone(checkpoint: Path) -> None:
    for folder in (checkpoint, *checkpoint.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    denied, *others = weights(checkpoint)
    for path in paths(checkpoint):
        os.chmod(path, 0o644)
    os.chmod(denied, 0o600)
    script = (
        "import os, sys\n"
        "import json.encoder, rich.console\n"
        "import prefetch_cli.cli.main, prefetch_cli.cli.meaning, prefetch_cli.process.supervisor\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv[0] = 'prefetch-cli'\n"
        "prefetch_cli.cli.main.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--force", "--json", "--weights-only", str(checkpoint)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["result"]["failed"] == [{"path": denied, "error": "Permission denied"}]
    assert found["result"]["complete"] is False
    assert done.stderr.count(denied) == 1
    assert oracle.resident_bytes(others) == about(pages(others))
    assert oracle.resident_bytes([denied]) == 0


def test_a_run_looks_for_garbage_although_its_start_does_not(checkpoint: Path) -> None:
    script = (
        "import gc, sys\n"
        "from prefetch_cli.__main__ import main\n"
        "from prefetch_cli.linux import exit\n"
        "def show(code):\n"
        "    print(code, gc.isenabled(), gc.get_freeze_count() > 0)\n"
        "    sys.exit()\n"
        "exit.leave = show\n"
        "main()\n"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        for arguments in (("--dry-run", str(checkpoint)), ("--version",))
    ]
    assert [one.stdout.split("\n")[-2] for one in done] == ["0 True True", "0 False False"]


def test_nothing_is_written_to_the_checkpoint(checkpoint: Path) -> None:
    def state() -> list[tuple[str, int, int, int]]:
        found = [(path, os.stat(path)) for path in [str(checkpoint), *paths(checkpoint)]]
        return [(path, one.st_mtime_ns, one.st_ctime_ns, one.st_size) for path, one in found]

    before = state()
    for action in ([], ["--force"], ["--check"], ["--evict"], ["--dry-run"]):
        run(*action, checkpoint)
    assert state() == before
