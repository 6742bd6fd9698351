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
from prefetch_cli.linux import mounts
from prefetch_cli.linux.pagecache import PAGE_BYTES, Method, resident_bytes
from prefetch_cli.linux.readahead import read_step_bytes
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Medium, Plan, Target, Threads
from prefetch_cli.reading.trial import MOST_BYTES, Trial, Unmeasured, measure, pieces
from tests.helpers import oracle
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
SIZE = 128 * MIB
LONGEST_SECONDS = 1.5
MOST_FILES = 16


@given(
    st.lists(st.integers(0, 200 * MIB), max_size=20),
    st.integers(0, 2 * MOST_BYTES),
    st.sampled_from([4096, 128 * 1024, MIB, 8 * MIB, 64 * MIB]),
)
def test_pieces_are_cold_whole_and_apart(
    sizes: list[int], most_bytes: int, read_ahead_bytes: int
) -> None:
    extents = [Extent(file, 3 * PAGE_BYTES, size) for file, size in enumerate(sizes) if size]
    found = pieces(extents, most_bytes, read_ahead_bytes)
    assert sum(piece.length + 2 * read_ahead_bytes for piece in found) <= most_bytes
    assert len(found) <= MOST_FILES
    by_file = {extent.file: extent for extent in extents}
    for piece in found:
        extent = by_file[piece.file]
        assert extent.offset <= piece.offset < piece.end <= extent.end
        assert piece.offset % PAGE_BYTES == 0
    for before, after in itertools.pairwise(found):
        assert (before.file, before.end) <= (after.file, after.offset)


@pytest.mark.parametrize("read_ahead_bytes", [128 * 1024, MIB, 2 * MIB])
def test_pieces_come_from_all_over(read_ahead_bytes: int) -> None:
    extents = [Extent(file, 0, 256 * MIB) for file in range(4)]
    found = pieces(extents, MOST_BYTES, read_ahead_bytes)
    assert sum(piece.length for piece in found) > MOST_BYTES // 2
    assert {piece.file for piece in found} == {0, 1, 2, 3}
    assert max(piece.offset for piece in found) >= 128 * MIB or len(found) == 4


@pytest.mark.parametrize("read_ahead_bytes", [128 * 1024, 8 * MIB])
def test_config_files_before_the_weights_are_no_pieces(read_ahead_bytes: int) -> None:
    """One of 200 bytes as the only piece of a loader made a fast disk a slow one."""
    extents = [Extent(0, 0, 200), Extent(1, 0, PAGE_BYTES), Extent(2, 12288, 2000 * MIB)]
    found = pieces(extents, MOST_BYTES, read_ahead_bytes)
    assert {piece.file for piece in found} == {2}
    assert len({piece.length for piece in found}) == 1


def test_small_files_are_not_tried() -> None:
    extents = [Extent(file, 0, MIB) for file in range(100_000)]
    assert pieces(extents, MOST_BYTES, 128 * 1024) == []


def test_a_large_file_that_is_cold_in_many_places_is_no_small_one() -> None:
    extents = [Extent(0, 4 * MIB * number, 2 * MIB) for number in range(1000)]
    assert len(pieces(extents, MOST_BYTES, 128 * 1024)) == MOST_FILES


def tried(
    path: str,
    *,
    far: bool = False,
    most_bytes: int = MOST_BYTES,
    threads: int = 8,
    yielding: bool = False,
    stop: Stop | None = None,
) -> Trial | Unmeasured:
    plan = Plan(
        extents=(Extent(0, 0, SIZE),),
        cut=None,
        already_resident_bytes=0,
        threads=Threads.fixed(threads),
        block_size_bytes=16 * MIB,
        engine=Engine.AUTO,
        max_bytes_per_second=1,  # limits the run, not the measurement
        yielding=yielding,
    )
    (found,) = mounts.inspect([path])
    medium = Medium(
        far=far, step_bytes=read_step_bytes(found), reads_ahead_little=False, spins=False
    )
    began = time.monotonic()
    trial = measure(plan, [Target(path, medium)], stop or Stop(), Monitor(), most_bytes=most_bytes)
    assert time.monotonic() - began < LONGEST_SECONDS
    return trial


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


@pytest.mark.parametrize("threads", [1, 8])
def test_it_reads_no_more_than_it_may(file: Path, threads: int) -> None:
    found = tried(str(file), most_bytes=40 * MIB, threads=threads)
    assert isinstance(found, Trial)
    assert found.loader_rate > 0
    assert found.our_rate > 0
    assert 0 < found.sampled_bytes <= oracle.resident_bytes([str(file)]) <= 40 * MIB


def test_what_it_says_it_has_read_is_resident(file: Path) -> None:
    found = tried(str(file))
    assert isinstance(found, Trial)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for piece in found.pieces:
            resident = resident_bytes(descriptor, piece.offset, piece.length, Method.MINCORE)
            assert resident == piece.length
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("yielding", [False, True])
# At 200 ms an answer takes most of a round, so the rates are rough.
@pytest.mark.parametrize(("seconds", "times"), [("0.02", 2), ("0.2", 1)])
def test_where_a_request_takes_long_a_loader_alone_is_slower(
    file: Path, seconds: str, times: int, yielding: bool
) -> None:
    with behind_fuse(file, "--keep-cache", "--delay", seconds) as path:
        found = tried(path, far=True, yielding=yielding)
    assert isinstance(found, Trial)
    assert found.our_rate > times * found.loader_rate


def test_one_thread_gains_less(file: Path) -> None:
    with behind_fuse(file, "--keep-cache", "--delay", "0.02") as path:
        found = tried(path, far=True, threads=1)
    assert isinstance(found, Trial)


def test_it_ends_in_time_where_nothing_is_answered(file: Path) -> None:
    with behind_fuse(file, "--hang-from", "0") as path:
        assert tried(path, far=True) is Unmeasured.NO_ANSWER


def test_a_time_limit_ends_it(file: Path) -> None:
    with behind_fuse(file, "--keep-cache", "--delay", "0.02") as path:
        assert tried(path, far=True, stop=Stop(0.1)) is Unmeasured.STOPPED


def test_a_read_that_fails_is_no_signal(file: Path) -> None:
    with behind_fuse(file, "--fail-read", "0") as path:
        assert tried(path, far=True) is Unmeasured.REFUSED


def test_a_file_that_is_shorter_than_it_was_is_no_signal(file: Path) -> None:
    os.truncate(file, 0)
    assert tried(str(file)) is Unmeasured.REFUSED


def test_a_file_that_is_gone_is_not_tried(file: Path) -> None:
    file.unlink()
    assert tried(str(file)) is Unmeasured.REFUSED
