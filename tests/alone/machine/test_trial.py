"""A local file system that is slow is found by a trial, and warmed; a fast one is skipped."""

import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.command import COMMAND, Running, environment, run
from tests.helpers.passthrough import mounted, reads

MIB = 1024 * 1024
SIZE = 1100 * MIB
MOST_BYTES = 64 * MIB
HEAD_BYTES = 2 * MIB  # of a file: its header, and what is read ahead of that
LOCAL = ("--keep-cache", "--subtype", "squashfuse")
SLOW = (*LOCAL, "--delay", "0.02")

Mounted = Callable[..., str]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint above 1 GiB: a sparse file, which reads as zeros."""
    folder = tmp_path / "source"
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + SIZE)
    oracle.make_cold([str(path)])
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "reads"


@pytest.fixture
def on_fuse(large: Path, log: Path) -> Iterator[Mounted]:
    """Mount the checkpoint with these options, and return where."""
    point = large.parent / "mount"
    point.mkdir()
    with ExitStack() as stack:

        def mount(*options: str) -> str:
            try:
                return stack.enter_context(
                    mounted(str(large), str(point), "--log", str(log), *options)
                )
            except PermissionError as error:
                pytest.skip(f"needs the right to mount FUSE: {error}")

        yield mount


def weights_read(log: Path) -> int:
    """Return how many bytes of weights the kernel has asked the mount for."""
    return sum(one.size_bytes for one in reads(str(log)) if one.offset >= HEAD_BYTES)


def test_a_slow_local_file_system_is_warmed(on_fuse: Mounted) -> None:
    slow = on_fuse(*SLOW)
    done = run("--json", "--max-rate", "64M", "--time-limit", "3s", slow)
    document = done.document
    assert document["decision"]["reason"] == "local-slow"
    assert document["decision"]["action"] == "prefetch"
    forecast = document["forecast"]
    assert forecast["loader_seconds"] >= 2 * forecast["warm_seconds"]
    assert forecast["loader_seconds"] - forecast["warm_seconds"] >= 30
    assert 0 < forecast["sampled_bytes"] <= MOST_BYTES
    assert document["result"]["bytes_read"] > 0
    assert document["result"]["complete"] is False


def test_the_slowest_is_found_slow_too(on_fuse: Mounted, log: Path) -> None:
    done = run("--json", "--time-limit", "3s", on_fuse(*LOCAL, "--delay", "0.2"))
    assert done.document["decision"]["reason"] == "local-slow"


@pytest.mark.parametrize("flags", [["--threads", "4"], ["--engine", "read"]])
def test_flags_of_reading_do_not_hide_it(on_fuse: Mounted, flags: list[str]) -> None:
    done = run("--json", "--time-limit", "2s", *flags, on_fuse(*SLOW))
    assert done.document["decision"]["reason"] == "local-slow"


def test_in_the_background_it_is_measured_too(on_fuse: Mounted) -> None:
    done = run("--json", "--dry-run", "--trial", "--background", on_fuse(*SLOW))
    assert done.document["forecast"]["sampled_bytes"] > 0


@pytest.mark.parametrize("flags", [["--threads", "1", "--engine", "splice"], ["--max-rate", "6M"]])
def test_where_we_are_no_faster_a_loader_is_left_alone(on_fuse: Mounted, flags: list[str]) -> None:
    document = run("--json", *flags, on_fuse(*SLOW)).document
    assert document["decision"]["reason"] == "local-fits"
    if document["forecast"] is not None:
        forecast = document["forecast"]
        assert forecast["loader_seconds"] < 2 * forecast["warm_seconds"]


def test_what_the_trial_reads_is_read_and_counted_once(on_fuse: Mounted, log: Path) -> None:
    slow = on_fuse(*SLOW, "--max-background", "56")
    text = run("--max-bytes", "2G", slow)
    assert text.lines["decision"].startswith("prefetch: local file system, but slow, measured: ")
    assert " to warm; it took " in text.lines["forecast"]
    assert weights_read(log) <= SIZE + 2 * MIB
    oracle.evict([f"{slow}/model.safetensors"])
    document = run("--json", slow).document
    result, sampled = document["result"], document["forecast"]["sampled_bytes"]
    total = document["checkpoint"]["total_bytes"]
    assert result["complete"] is True
    assert result["bytes_read"] + result["bytes_already_resident"] == total
    assert 0 < sampled <= result["bytes_already_resident"] <= sampled + HEAD_BYTES
    assert document["residency"]["before_bytes"] <= HEAD_BYTES


def test_a_dry_run_reads_nothing_unless_a_trial_is_asked_for(on_fuse: Mounted, log: Path) -> None:
    slow = on_fuse(*SLOW)
    plain = run("--json", "--dry-run", slow).document
    assert (plain["decision"]["reason"], plain["forecast"]) == ("local-fits", None)
    assert weights_read(log) == 0
    tried = run("--dry-run", "--trial", slow)
    assert tried.lines["forecast"].startswith("about ")
    assert "a loader alone about" in tried.lines["forecast"]
    assert 0 < weights_read(log) <= MOST_BYTES
    # What it has read is warm now, and no part of the plan.
    assert "prefetch: " in tried.lines["decision"]
    before = weights_read(log)
    run("--dry-run", slow)
    assert weights_read(log) == before


def test_network_rows_get_a_forecast_when_asked(on_fuse: Mounted) -> None:
    far = on_fuse("--keep-cache", "--delay", "0.02")
    document = run("--json", "--dry-run", "--trial", far).document
    assert document["decision"]["reason"] == "network-fits"
    assert document["forecast"]["loader_seconds"] > document["forecast"]["warm_seconds"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--check"],
        ["--evict"],
        ["--force", "--max-rate", "1M", "--time-limit", "1s"],
        ["--max-bytes", "1G"],  # does not fit
        ["--ram-threshold", "1"],
        ["--rank", "0", "--world-size", "2", "--split", "files"],
    ],
)
def test_where_it_decides_nothing_nothing_is_tried(
    on_fuse: Mounted, log: Path, flags: list[str]
) -> None:
    slow = on_fuse(*LOCAL)
    if "--rank" in flags:
        flags = ["--rank", "1", *flags[2:]]  # has nothing to read
    document = run("--json", *flags, slow).document
    assert document["forecast"] is None
    if "--force" not in flags:
        assert weights_read(log) == 0


def test_a_trial_that_is_asked_for_keeps_within_max_bytes(on_fuse: Mounted, log: Path) -> None:
    done = run("--json", "--dry-run", "--trial", "--max-bytes", "10M", on_fuse(*LOCAL))
    assert done.document["decision"]["reason"] == "local-too-big"
    assert done.document["forecast"]["sampled_bytes"] > 0
    assert weights_read(log) <= 10 * MIB


def test_a_trial_of_what_is_warm_is_none(large: Path) -> None:
    run("--force", str(large))
    done = run("--json", "--dry-run", "--trial", str(large))
    assert done.document["decision"]["reason"] == "already-resident"
    assert done.document["forecast"] is None
    assert done.document["warnings"] == []


def test_storage_that_does_not_answer_is_not_waited_for(on_fuse: Mounted) -> None:
    done = run("--json", on_fuse(*LOCAL, "--hang-from", str(HEAD_BYTES)))
    document = done.document
    assert (done.code, document["decision"]["reason"]) == (0, "local-fits")
    assert document["forecast"] is None
    assert "did not answer" in done.errors


def test_a_signal_ends_a_trial_that_hangs(on_fuse: Mounted, log: Path) -> None:
    hanging = on_fuse(*LOCAL, "--hang-from", str(HEAD_BYTES))
    with Running.start(hanging) as running:
        deadline = time.monotonic() + 30
        while weights_read(log) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        began = time.monotonic()
        running.send(signal.SIGTERM)
        done = running.end()
    assert time.monotonic() - began < 1.0
    assert done.code == 143
    assert "local-fits" not in done.output


def test_the_ranks_of_a_node_agree(on_fuse: Mounted) -> None:
    """Each measures its own share while the others measure theirs."""
    slow = on_fuse(*SLOW, "--rate", str(60 * MIB))
    command = (*COMMAND, "--json", "--dry-run", "--trial", "--split", "bytes")
    ranks = [
        subprocess.Popen(
            [*command, "--world-size", "4", "--rank", str(rank), slow],
            env=environment(),
            stdout=subprocess.PIPE,
        )
        for rank in range(4)
    ]
    forecasts = [json.loads(rank.communicate()[0])["forecast"] for rank in ranks]
    assert all(0 < one["sampled_bytes"] <= MOST_BYTES for one in forecasts)
    # By page faults one rank reads 6 MiB/s and more; all of them together share 60 MiB/s. A rank
    # that was measured while others read with all threads would seem a hundred times slower.
    assert all(one["loader_seconds"] < 5000 for one in forecasts)
    assert all(0 < one["warm_seconds"] < 5000 for one in forecasts)


def test_a_fast_one_is_skipped(large: Path) -> None:
    done = run("--json", str(large))
    document = done.document
    assert document["decision"]["reason"] == "local-fits"
    assert document["forecast"] is not None
    assert "measured: " in document["decision"]["message"]
    assert os.path.getsize(large / "model.safetensors") > SIZE
    assert oracle.resident_bytes([str(large / "model.safetensors")]) <= MOST_BYTES + HEAD_BYTES
