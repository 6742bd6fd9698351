"""Blocks in load order; a descriptor for each thread and file, closed when it reads another."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Medium, Target
from prefetch_cli.reading.queue import OwnDescriptor, Queue, SharedFile
from tests.helpers.counter import by_mincore
from tests.helpers.passthrough import mounted
from tests.helpers.reading import FAR, GIB, MIB, NEAR, plan_of


def joined(units: Sequence[Extent]) -> list[Extent]:
    found: list[Extent] = []
    for unit in units:
        if found and (unit.file, unit.offset) == (found[-1].file, found[-1].end):
            found[-1] = found[-1]._replace(length=found[-1].length + unit.length)
        else:
            found.append(unit)
    return found


# Of 13 MiB for four threads, a run is an eighth at most.
@pytest.mark.parametrize(("medium", "longest"), [(FAR, 1), (NEAR, 26)])
def test_blocks_are_handed_out_in_load_order(medium: Medium, longest: int) -> None:
    block = 64 * 1024
    extents = [Extent(0, 0, 10 * MIB), Extent(1, 5000, 3 * MIB), Extent(1, 9 * MIB, 1)]
    targets = [Target("/dev/null", medium)] * 2
    queue = Queue(plan_of([], extents=extents, block=block), targets, Monitor(), lambda: 4)
    units = []
    while taken := queue.take():
        units.append(taken[0])
    assert joined(units) == extents
    assert all(unit.end % block == 0 or unit.end in {MIB * 9 + 1, 5000 + 3 * MIB} for unit in units)
    sizes = [-(-unit.length // block) for unit in units]
    assert max(sizes) == longest
    # Towards the end single blocks, so that all threads end together.
    assert sizes[-1] == 1


@pytest.mark.parametrize("block", [256 * 1024, 16 * MIB, 100 * MIB])
def test_on_near_media_runs_are_long_while_much_is_left(block: int) -> None:
    plan = plan_of([], extents=[Extent(0, 0, 8 * GIB)], block=block)
    queue = Queue(plan, [Target("/dev/null", NEAR)], Monitor(), lambda: 4)
    left = 8 * GIB
    while taken := queue.take():
        length = taken[0].length
        if left >= 8 * (64 * MIB + block):
            assert 64 * MIB <= length < 128 * MIB + block
        left -= length
    assert length <= block
    assert left == 0


@pytest.mark.parametrize("given", [{"rate": MIB}, {"yielding": True}])
def test_single_blocks_where_the_rate_or_others_count(given: dict[str, int]) -> None:
    plan = plan_of([], extents=[Extent(0, 0, 100 * MIB)], **given)  # type: ignore[arg-type]
    queue = Queue(plan, [Target("/dev/null", NEAR)], Monitor(), lambda: 4)
    while taken := queue.take():
        assert taken[0].length == MIB


def file_of(path: Path, cut_bytes: int | None = None) -> SharedFile:
    return SharedFile(Target(str(path), NEAR), cut_bytes)


def test_a_file_is_done_after_its_last_block() -> None:
    targets = [Target("/dev/null", NEAR)] * 2
    extents = [Extent(0, 0, 2 * MIB), Extent(1, 0, MIB)]
    monitor = Monitor()
    queue = Queue(plan_of([], extents=extents), targets, monitor, lambda: 4)
    taken = [one for _ in range(3) if (one := queue.take()) is not None]
    assert taken[0].file is taken[1].file
    queue.give_back(taken[0])
    assert monitor.snapshot().done_files == 0  # the other block is still being read
    queue.give_back(taken[1])
    assert monitor.snapshot().done_files == 1
    queue.give_back(taken[2])
    assert monitor.snapshot().done_files == 1  # nobody knows yet that this was its last
    assert queue.take() is None
    assert monitor.snapshot().done_files == 2


def test_what_is_left_of_a_run_is_taken_next() -> None:
    targets = [Target("/dev/null", NEAR)] * 2
    extents = [Extent(0, 0, 2 * MIB), Extent(1, 0, MIB)]
    monitor = Monitor()
    queue = Queue(plan_of([], extents=extents), targets, monitor, lambda: 4)
    first, second, third = (queue.take() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    left = Extent(0, MIB // 4, MIB - MIB // 4)
    queue.give_back(first, left)
    queue.give_back(second)
    queue.give_back(third)
    assert monitor.snapshot().done_files == 0  # the first is not done, and of the other, who knows
    again = queue.take()
    assert again is not None
    assert (again.run, again.file, again.extent) == (left, first.file, first.extent)
    assert queue.take() is None
    assert monitor.snapshot().done_files == 1
    queue.give_back(again)
    assert monitor.snapshot().done_files == 2


def test_what_is_left_of_a_file_that_was_given_up_is_skipped() -> None:
    monitor = Monitor()
    extents = [Extent(0, 0, 2 * MIB)]
    queue = Queue(plan_of([], extents=extents), [Target("/dev/null", NEAR)], monitor, lambda: 4)
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    queue.give_back(first, Extent(0, 10, 20))
    second.file.fail(OSError(errno.ESTALE, "Stale file handle"))
    queue.give_back(second)
    assert queue.take() is None
    assert monitor.snapshot().done_files == 1


def test_a_file_that_was_given_up_is_skipped(tmp_path: Path) -> None:
    extents = [Extent(0, 0, 2 * MIB), Extent(1, 0, MIB)]
    targets = [Target("/dev/null", NEAR)] * 2
    queue = Queue(plan_of([], extents=extents), targets, Monitor(), lambda: 4)
    taken = queue.take()
    assert taken is not None
    taken.file.fail(OSError(errno.ESTALE, "Stale file handle"))
    queue.give_back(taken)
    taken = queue.take()
    assert taken is not None
    assert taken[0] == Extent(1, 0, MIB)


def test_a_few_bad_blocks_are_borne_and_other_errors_are_not(tmp_path: Path) -> None:
    bad, gone = file_of(tmp_path), file_of(tmp_path)
    for given_up in (False, False, True):
        bad.fail(OSError(errno.EIO, "Input/output error"))
        assert bad.given_up is given_up
    gone.fail(OSError(errno.ENOENT, "No such file or directory"))
    assert gone.given_up


def test_read_ahead_could_pass_the_cut_from_64_mib_before_it(tmp_path: Path) -> None:
    file = file_of(tmp_path, cut_bytes=100 * MIB)
    assert not file.near_cut(Extent(0, 20 * MIB, 16 * MIB))
    assert file.near_cut(Extent(0, 20 * MIB, 16 * MIB + 1))
    assert not file_of(tmp_path).near_cut(Extent(0, 0, 1 << 40))


def test_no_read_ahead_reaches_behind_a_part_where_a_limit_counts() -> None:
    """Without a limit, what it brings in more is no harm."""
    extents = [Extent(0, 0, MIB), Extent(1, 0, MIB)]
    for cut, parted, expected in (
        (Extent(1, 0, 900 * MIB), frozenset({0}), [True, False]),
        (Extent(1, 0, 900 * MIB), frozenset({1}), [False, True]),
        (None, frozenset({0, 1}), [False, False]),
    ):
        plan = plan_of([], extents=extents, cut=cut)._replace(parted=parted)
        queue = Queue(plan, [Target("/dev/null", NEAR)] * 2, Monitor(), lambda: 1)
        taken = [one for _ in range(2) if (one := queue.take()) is not None]
        assert [one.file.near_cut(one.run) for one in taken] == expected


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_each_thread_has_a_descriptor_until_it_reads_another_file(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
        files.append(file_of(tmp_path / name))
    one, other = OwnDescriptor(), OwnDescriptor()
    first, second = one.of(files[0]), other.of(files[0])
    assert one.of(files[0]) == first != second
    os.lseek(first, 1, os.SEEK_SET)
    assert os.lseek(second, 0, os.SEEK_CUR) == 0  # what is kept by open file is not shared
    one.close_unless(files[0])
    assert is_open(first)
    one.close_unless(files[1])
    assert not is_open(first)
    assert is_open(second)
    other.of(files[1])
    assert os.path.samestat(os.fstat(other.of(files[1])), os.stat(tmp_path / "b"))
    other.close()
    assert not is_open(second)
    other.close()


@pytest.fixture
def on_fuse(tmp_path: Path) -> Iterator[Path]:
    """A file of 64 KiB on a mount that drops cached pages at each open."""
    folder, point = tmp_path / "folder", tmp_path / "mount"
    folder.mkdir()
    point.mkdir()
    (folder / "file").write_bytes(os.urandom(64 * 1024))
    with ExitStack() as stack:
        try:
            stack.enter_context(mounted(str(folder), str(point)))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        yield point / "file"


def test_on_fuse_no_thread_drops_what_another_has_read(on_fuse: Path) -> None:
    target = Target(str(on_fuse), FAR._replace(fuse=True))
    file, one, other = SharedFile(target, None), OwnDescriptor(), OwnDescriptor()
    first = one.of(file)
    assert len(os.pread(first, 64 * 1024, 0)) == 64 * 1024
    assert by_mincore(first, 0, 64 * 1024) == 64 * 1024
    second = other.of(file)
    assert second != first
    assert by_mincore(first, 0, 64 * 1024) == 64 * 1024
    # Without that, there is nothing to see here: this mount drops its pages at an open.
    os.close(os.open(on_fuse, os.O_RDONLY))
    assert by_mincore(first, 0, 64 * 1024) == 0
    one.close()
    assert os.pread(second, 1, 0)
    other.close()


@pytest.mark.parametrize("fate", ["replaced", "removed"])
def test_all_threads_read_the_file_that_the_first_one_opened(tmp_path: Path, fate: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    file = file_of(path)
    one, other, third = OwnDescriptor(), OwnDescriptor(), OwnDescriptor()
    one.of(file)
    if fate == "replaced":
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    descriptor = other.of(file)
    assert os.pread(descriptor, 9, 0) == b"old"
    assert not os.get_inheritable(descriptor)
    one.close()
    assert os.pread(descriptor, 9, 0) == b"old"
    assert os.pread(third.of(file), 9, 0) == b"old"
    other.close()
    third.close()
    # Nobody reads it any more: what the path leads to now is as good as what was there.
    if fate == "replaced":
        assert os.pread(one.of(file), 9, 0) == b"new"
        one.close()
    else:
        with pytest.raises(FileNotFoundError):
            one.of(file)


def test_a_close_that_fails_says_nothing_of_what_was_read(tmp_path: Path) -> None:
    folder, point = tmp_path / "folder", tmp_path / "mount"
    folder.mkdir()
    point.mkdir()
    (folder / "file").write_bytes(b"x")
    try:
        with mounted(str(folder), str(point), "--fail-flush"):
            probe = os.open(point / "file", os.O_RDONLY)
            with pytest.raises(OSError, match="Input/output error"):
                os.close(probe)
            own = OwnDescriptor()
            descriptor = own.of(file_of(point / "file"))
            own.close()
            assert not is_open(descriptor)
    except PermissionError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")
