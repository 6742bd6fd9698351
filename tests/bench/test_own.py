"""Choosing flags on the user's own storage: what is dealt out, read and advised."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.words import Engine
from prefetch_cli.plan.extents import Extent
from tests.bench.advice import Row, Sample, advise, rows
from tests.bench.pieces import (
    BLOCKS,
    DEFAULT,
    ENGINES,
    GIB,
    GRIDS,
    MIB,
    THREADS,
    Combination,
    Grid,
    cut,
    deal,
    needed_bytes,
)
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import ROOT, Done, environment, unprivileged

FAST = Combination(Engine.ADVISE, 32, 1 * MIB)
NEAR = Combination(Engine.SPLICE, DEFAULT.threads, DEFAULT.block_bytes)
GAP_BYTES = 16 * MIB
# Two combinations with three 1 MiB pieces each, too far apart for read-ahead to connect.
QUICK = ("--piece", "1MiB", "--engine", "splice", "--threads", "1", "--block-size", "1MiB")


def _bench(*arguments: str, command: Sequence[str] = ()) -> Done:
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.bench.own", *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, built: BuiltCheckpoint) -> BuiltCheckpoint:
    """A checkpoint with room for six separate pieces, on the same disk as `built`."""
    folder = tmp_path_factory.mktemp("own") / "model"
    return checkpoints.write_streamed(str(folder), shard_bytes=[72 * MIB] * 3)


def test_a_cold_checkpoint_is_measured_and_stays_as_it_was(
    model: BuiltCheckpoint, tmp_path: Path
) -> None:
    oracle.make_cold(model.files)
    before = {path: os.stat(path).st_mtime_ns for path in model.files}
    place = tmp_path / "own.json"
    done = _bench(model.directory, *QUICK, "--json", str(place))
    assert done.code == 0, done
    document = _read(place)
    assert set(document) == {
        "machine",
        "checkpoint",
        "deal",
        "rows",
        "samples",
        "flags",
        "message",
    }
    assert document["checkpoint"]["path"] == model.directory
    assert document["checkpoint"]["weight_bytes"] == model.weight_bytes
    assert document["checkpoint"]["cold_bytes"] == oracle.about(model.weight_bytes)
    assert document["deal"] == {
        "combinations": 2,
        "rounds": 3,
        "piece_bytes": 1 * MIB,
        "total_bytes": 6 * MIB,
    }
    assert [row["runs"] for row in document["rows"]] == [3, 3], document["samples"]
    for row in document["rows"]:
        assert 0 < row["gb_per_second_min"] <= row["gb_per_second"] <= row["gb_per_second_max"]
        assert row["cpu_seconds_per_gb"] > 0
        assert row["mapping_ms_per_gib"] > 0
        assert row["resident_share"] >= 1 - oracle.ALLOWED_WARM
    combinations = [row["combination"]["flags"] for row in document["rows"]]
    wanted = ["--engine", "splice", "--threads", "1", "--block-size", "1MiB"]
    assert sorted(combinations) == [[], wanted]
    assert document["flags"] in ([], wanted)
    assert document["message"] in " ".join(done.output.split())
    assert "the defaults" in done.output
    # Only what it read is warm, and at most some read-ahead.
    read = oracle.resident_bytes(model.weight_files)
    assert 5.9 * MIB <= read < model.weight_bytes
    assert {path: os.stat(path).st_mtime_ns for path in model.files} == before


def test_what_is_warm_is_not_measured_and_not_evicted(
    model: BuiltCheckpoint, tmp_path: Path
) -> None:
    for path in model.files:
        Path(path).read_bytes()
    place = tmp_path / "own.json"
    done = _bench(model.directory, *QUICK, "--json", str(place))
    assert done.code == 1
    assert done.errors.count("\n") == 1, done.errors
    assert done.errors.startswith("bench: too little is cold to tell: ")
    assert "prefetch-cli --evict" in done.errors
    document = _read(place)
    assert document["message"] in done.errors
    assert (document["deal"], document["rows"], document["flags"]) == (None, [], None)
    assert oracle.resident_bytes(model.weight_files) == oracle.about(model.weight_bytes)


def test_a_small_checkpoint_is_too_little_for_what_is_tried_by_itself(
    small: Path, tmp_path: Path
) -> None:
    done = _bench(str(small), "--json", str(tmp_path / "own.json"))
    assert done.code == 1
    assert "GiB needed" in done.errors


@pytest.mark.parametrize("name", ["no/such", "/no/such"])
def test_what_is_not_there_is_one_line_and_exit_3(name: str) -> None:
    done = _bench(name)
    assert done.code == 3
    assert done.errors.startswith(f"bench: {name}: expected ")
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value"), [("--rounds", "2"), ("--threads", "0"), ("--size", "x"), ("--engine", "x")]
)
def test_a_value_that_cannot_be_is_a_usage_error(
    model: BuiltCheckpoint, flag: str, value: str
) -> None:
    done = _bench(model.directory, flag, value)
    assert done.code == 2
    assert flag in done.errors


def test_what_nobody_may_know_is_said_so(model: BuiltCheckpoint, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give the files to somebody else")
    theirs = tmp_path / "theirs"
    checkpoints.write_sharded(str(theirs), shard_bytes=[1 * MIB, 1 * MIB])
    for path in (theirs, *theirs.iterdir()):
        os.chown(path, 12345, 12345)
        os.chmod(path, 0o755)
    done = _bench(
        str(theirs),
        "--json",
        str(tmp_path / "own.json"),
        command=(*unprivileged()[:1], "--bounding-set=-all", "--inh-caps=-all"),
    )
    assert done.code == 1, done
    assert done.errors.startswith("bench: expected to know what is cold, found that "), done
    assert done.errors.count("\n") == 1
    assert _read(tmp_path / "own.json")["checkpoint"]["cold_bytes"] is None


def test_the_largest_grid_that_the_cold_part_allows_is_chosen() -> None:
    sizes = {
        400: (37, 2 * GIB),
        70: (33, 512 * MIB),
        12: (25, 128 * MIB),
        8: (17, 128 * MIB),
        3: (5, 128 * MIB),
    }
    for gigabytes, (combinations, least_bytes) in sizes.items():
        shards = [Extent(number, 0, gigabytes * GIB // 4) for number in range(4)]
        found = deal(shards, GRIDS, rounds=3, most_bytes=400 * GIB, gap_bytes=GAP_BYTES)
        assert found is not None
        assert len(found.combinations) == combinations, gigabytes
        assert least_bytes <= found.piece_bytes <= 4 * least_bytes
        assert found.combinations[0] == DEFAULT
    small = [Extent(0, 0, GIB)]
    assert deal(small, GRIDS, rounds=3, most_bytes=GIB, gap_bytes=GAP_BYTES) is None
    assert needed_bytes(GRIDS, rounds=3, gap_bytes=GAP_BYTES) == 15 * (128 + 16) * MIB


def test_no_more_is_read_than_may_be() -> None:
    shards = [Extent(0, 0, 400 * GIB)]
    found = deal(shards, GRIDS, rounds=3, most_bytes=10 * GIB, gap_bytes=GAP_BYTES)
    assert found is not None
    assert found.size_bytes <= 10 * GIB
    assert len(found.combinations) == 25


def test_every_combination_has_work_for_each_thread() -> None:
    for grid in GRIDS:
        assert len(grid.combinations()) == len(set(grid.combinations()))
        for one in grid.combinations()[1:]:
            assert one.threads * one.block_bytes <= grid.piece_bytes
    assert not GRIDS[0].left_out()
    assert len(GRIDS[0].combinations()) == 1 + len(ENGINES) * len(THREADS) * len(BLOCKS)


def test_each_round_deals_out_pieces_from_everywhere() -> None:
    shards = [Extent(number, 0, 4 * GIB) for number in range(4)]
    found = deal(shards, GRIDS[3:], rounds=3, most_bytes=16 * GIB, gap_bytes=GAP_BYTES)
    assert found is not None
    seen = []
    for number in range(1, found.rounds + 1):
        pieces = [found.piece(number, place) for place in range(len(found.combinations))]
        assert {extent.file for piece in pieces for extent in piece.extents} == {0, 1, 2, 3}
        seen += pieces
    assert len(set(seen)) == len(found.pieces) == 3 * 17


_RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200), st.integers(0, 20)), max_size=30)


@given(_RUNS, st.integers(1, 100), st.integers(0, 30))
def test_pieces_are_equal_disjoint_apart_and_cold(
    drawn: list[tuple[int, int, int]], size: int, gap: int
) -> None:
    runs, offset, file = [], 0, 0
    for step, length, hole in drawn:
        if step:
            file, offset = file + 1, 0
        runs.append(Extent(file, offset, length))
        offset += length + hole + 1
    found = cut(runs, size, gap)
    end, last = 0, -1
    for piece in found:
        assert piece.size_bytes == size
        for place, extent in enumerate(piece.extents):
            assert any(
                run.file == extent.file and run.offset <= extent.offset and extent.end <= run.end
                for run in runs
            )
            if extent.file == last:
                assert extent.offset >= end + (0 if place else min(gap, extent.offset - end))
            end, last = extent.end, extent.file
    usable = sum(run.length for run in runs if run.length >= min(16 * MIB, size))
    assert len(found) * size <= usable
    if gap == 0:
        assert len(found) == usable // size


def test_a_gap_lies_between_two_pieces_of_a_file() -> None:
    found = cut([Extent(0, 0, 100), Extent(0, 101, 99), Extent(1, 0, 50)], 40, 10)
    assert [piece.extents for piece in found] == [
        (Extent(0, 0, 40),),
        (Extent(0, 50, 40),),
        (Extent(0, 101, 40),),
        (Extent(0, 151, 40),),
        (Extent(1, 0, 40),),
    ]


def _row(combination: Combination, low: float, middle: float, high: float, cpu: float = 1) -> Row:
    return Row(combination, 3, middle, low, high, 2.0, cpu, 1.0, ("splice",))


@pytest.mark.parametrize(
    ("found", "flags"),
    [
        ([_row(DEFAULT, 2, 3, 4), _row(FAST, 1, 2, 3)], ()),
        ([_row(FAST, 3.9, 5, 6), _row(DEFAULT, 2, 3, 4)], ()),
        ([_row(FAST, 4.1, 5, 6), _row(DEFAULT, 2, 3, 4)], FAST.flags),
        # Among those as fast as the fastest, the fewest flags win, then the least CPU time.
        (
            [_row(FAST, 4.1, 5, 6), _row(NEAR, 4, 4.9, 5), _row(DEFAULT, 2, 3, 4)],
            ("--engine", "splice"),
        ),
    ],
)
def test_the_defaults_stand_unless_something_is_faster_beyond_the_noise(
    found: list[Row], flags: tuple[str, ...]
) -> None:
    advice = advise(found)
    assert advice is not None
    assert advice.flags == flags
    assert ("the defaults are as good" in advice.message) == (not flags)
    if flags:
        assert f"use {' '.join(flags)}: " in advice.message


def test_without_the_defaults_or_anything_beside_them_nothing_is_advised() -> None:
    assert advise([]) is None
    assert advise([_row(DEFAULT, 1, 1, 1)]) is None
    assert advise([_row(FAST, 1, 1, 1), _row(NEAR, 1, 1, 1)]) is None


def test_a_piece_that_was_no_longer_cold_does_not_count() -> None:
    def sample(seconds: float, error: str | None = None) -> Sample:
        return Sample(FAST, 1, 1_000_000_000, seconds, None, seconds / 2, 1.0, "advise", error)

    [row] = rows([sample(2.0), sample(0.01, "no longer cold"), sample(4.0), sample(2.5)])
    assert row.runs == 3
    assert row.gb_per_second == pytest.approx(0.4)
    assert (row.gb_per_second_min, row.gb_per_second_max) == (0.25, 0.5)
    assert row.cpu_seconds_per_gb == pytest.approx(1.25)


def test_what_is_mapped_slowly_is_slow() -> None:
    def sample(combination: Combination, mapping_seconds: float) -> Sample:
        return Sample(combination, 1, GIB, 1.0, mapping_seconds, 0.1, 1.0, "splice")

    quick, slow = rows([sample(FAST, 1.0), sample(NEAR, 0.25)])
    assert (quick.combination, slow.combination) == (NEAR, FAST)
    assert (quick.mapping_ms_per_gib, slow.mapping_ms_per_gib) == (250, 1000)
    assert slow.gb_per_second == pytest.approx(GIB / 1e9 / 2)


def test_flags_are_those_that_differ_from_the_defaults() -> None:
    assert DEFAULT.flags == ()
    assert FAST.flags == ("--engine", "advise", "--threads", "32", "--block-size", "1MiB")
    grid = Grid((Engine.READ,), (1,), (1 * MIB,), 1 * MIB)
    assert grid.combinations() == [DEFAULT, Combination(Engine.READ, 1, 1 * MIB)]
