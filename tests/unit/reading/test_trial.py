"""The trial: which bytes it takes, that it ends in time, and that no fault is a signal."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Medium, Plan, Target
from prefetch_cli.reading.trial import MOST_BYTES, Trial, measure, pieces
from tests.helpers import oracle
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
SIZE = 64 * MIB
LONGEST_SECONDS = 1.5


@given(
    st.lists(st.integers(0, 200 * MIB), max_size=20),
    st.integers(0, 2 * MOST_BYTES),
)
def test_pieces_are_cold_whole_and_apart(sizes: list[int], most_bytes: int) -> None:
    extents = [Extent(file, 3 * PAGE_BYTES, size) for file, size in enumerate(sizes) if size]
    found = pieces(extents, most_bytes)
    assert sum(piece.length for piece in found) <= most_bytes
    by_file = {extent.file: extent for extent in extents}
    for piece in found:
        extent = by_file[piece.file]
        assert extent.offset <= piece.offset < piece.end <= extent.end
        assert piece.offset % PAGE_BYTES == 0
    for before, after in itertools.pairwise(found):
        assert (before.file, before.end) <= (after.file, after.offset)


def test_pieces_come_from_all_over() -> None:
    extents = [Extent(file, 0, 256 * MIB) for file in range(4)]
    found = pieces(extents, MOST_BYTES)
    assert sum(piece.length for piece in found) == MOST_BYTES
    assert {piece.file for piece in found} == {0, 1, 2, 3}
    assert max(piece.offset for piece in found) > 128 * MIB


def test_small_files_are_not_tried() -> None:
    assert pieces([Extent(file, 0, MIB) for file in range(10_000)], MOST_BYTES) == []


def tried(path: str, *, far: bool = False, most_bytes: int = MOST_BYTES) -> Trial | None:
    plan = Plan(
        extents=(Extent(0, 0, SIZE),),
        cut=None,
        already_resident_bytes=0,
        threads=8,
        block_size_bytes=16 * MIB,
        engine=Engine.AUTO,
        max_bytes_per_second=None,
        yielding=False,
    )
    medium = Medium(far=far, step_bytes=128 * 1024, reads_ahead_little=False, spins=False)
    began = time.monotonic()
    found = measure(plan, [Target(path, medium)], Stop(), Monitor(), most_bytes=most_bytes)
    assert time.monotonic() - began < LONGEST_SECONDS
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "w.bin"
    path.parent.mkdir()
    path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    oracle.make_cold([str(path)])
    return path


@contextmanager
def behind_fuse(file: Path, *options: str) -> Iterator[str]:
    mount = file.parent.parent / "mount"
    mount.mkdir()
    try:
        with mounted(str(file.parent), str(mount), *options) as root:
            yield f"{root}/{file.name}"
    except PermissionError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")


def test_it_reads_no_more_than_it_may(file: Path) -> None:
    found = tried(str(file), most_bytes=16 * MIB)
    assert found is not None
    assert found.loader_rate > 0
    assert found.our_rate > 0
    assert 0 < found.sampled_bytes <= 8 * MIB


def test_where_a_request_takes_long_a_loader_alone_is_slower(file: Path) -> None:
    with behind_fuse(file, "--keep-cache", "--delay", "0.02") as path:
        found = tried(path, far=True)
    assert found is not None
    assert found.our_rate > 2 * found.loader_rate


def test_it_ends_in_time_where_nothing_is_answered(file: Path) -> None:
    with behind_fuse(file, "--hang-from", "0") as path:
        assert tried(path, far=True) is None


def test_a_read_that_fails_is_no_signal(file: Path) -> None:
    with behind_fuse(file, "--fail-read", "0") as path:
        assert tried(path, far=True) is None


def test_a_file_that_is_shorter_than_it_was_is_no_signal(file: Path) -> None:
    os.truncate(file, 0)
    assert tried(str(file)) is None


def test_a_file_that_is_gone_is_not_tried(file: Path) -> None:
    file.unlink()
    assert tried(str(file)) is None
