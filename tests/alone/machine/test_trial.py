"""A local file system that is slow is found by a trial, and warmed; a fast one is skipped."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.command import run
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
SIZE = 1100 * MIB


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
def slow(large: Path) -> Iterator[str]:
    """The same behind a local FUSE file system on which a request takes 20 ms."""
    mount = large.parent / "mount"
    mount.mkdir()
    options = ("--keep-cache", "--delay", "0.02", "--subtype", "squashfuse")
    try:
        with mounted(str(large), str(mount), *options) as root:
            yield root
    except PermissionError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")


def test_a_slow_local_file_system_is_warmed(slow: str) -> None:
    done = run("--json", "--max-rate", "64M", "--time-limit", "2s", slow)
    document = done.document
    assert document["decision"]["reason"] == "local-slow"
    assert document["decision"]["action"] == "prefetch"
    forecast = document["forecast"]
    assert forecast["loader_seconds"] >= 2 * forecast["warm_seconds"]
    assert forecast["loader_seconds"] - forecast["warm_seconds"] >= 30
    assert 0 < forecast["sampled_bytes"] <= 64 * MIB
    assert document["result"]["bytes_read"] > 0


def test_a_dry_run_reads_nothing_unless_a_trial_is_asked_for(slow: str, large: Path) -> None:
    plain = run("--json", "--dry-run", slow).document
    assert (plain["decision"]["reason"], plain["forecast"]) == ("local-fits", None)
    tried = run("--dry-run", "--trial", slow)
    assert tried.lines["forecast"].startswith("about ")
    assert "a loader alone about" in tried.lines["forecast"]


@pytest.mark.parametrize("flags", [["--check"], ["--evict"]])
def test_other_actions_try_nothing(slow: str, flags: list[str]) -> None:
    assert run("--json", *flags, slow).document["forecast"] is None


def test_a_fast_one_is_skipped_in_time(large: Path) -> None:
    done = run("--json", str(large))
    document = done.document
    assert document["decision"]["reason"] == "local-fits"
    assert document["forecast"] is not None
    assert "measured: about" in document["decision"]["message"]
    assert os.path.getsize(large / "model.safetensors") > SIZE
