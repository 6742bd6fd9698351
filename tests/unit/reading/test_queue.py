"""Blocks in load order; each file opened once, and closed after its last block."""

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Medium, Target
from prefetch_cli.reading.queue import Queue, SharedFile
from tests.helpers.reading import FAR, MIB, NEAR, plan_of


def joined(units: Sequence[Extent]) -> list[Extent]:
    found: list[Extent] = []
    for unit in units:
        if found and (unit.file, unit.offset) == (found[-1].file, found[-1].end):
            found[-1] = found[-1]._replace(length=found[-1].length + unit.length)
        else:
            found.append(unit)
    return found


@pytest.mark.parametrize(("medium", "longest"), [(FAR, 1), (NEAR, 8)])
def test_blocks_are_handed_out_in_load_order(medium: Medium, longest: int) -> None:
    block = 64 * 1024
    extents = [Extent(0, 0, 10 * MIB), Extent(1, 5000, 3 * MIB), Extent(1, 9 * MIB, 1)]
    targets = [Target("/dev/null", medium)] * 2
    queue = Queue(plan_of([], extents=extents, block=block), targets, Monitor())
    units = []
    while taken := queue.take():
        units.append(taken[0])
    assert joined(units) == extents
    assert all(unit.end % block == 0 or unit.end in {MIB * 9 + 1, 5000 + 3 * MIB} for unit in units)
    sizes = [-(-unit.length // block) for unit in units]
    assert max(sizes) == longest
    # Towards the end single blocks, so that all threads end together.
    assert sizes[-1] == 1


@pytest.mark.parametrize("given", [{"rate": MIB}, {"yielding": True}])
def test_single_blocks_where_the_rate_or_others_count(given: dict[str, int]) -> None:
    plan = plan_of([], extents=[Extent(0, 0, 100 * MIB)], **given)  # type: ignore[arg-type]
    queue = Queue(plan, [Target("/dev/null", NEAR)], Monitor())
    while taken := queue.take():
        assert taken[0].length == MIB


def file_of(path: Path, cut_bytes: int | None = None) -> SharedFile:
    return SharedFile(Target(str(path), NEAR), cut_bytes)


def test_a_file_is_closed_after_its_last_block(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    targets = [Target(str(tmp_path / name), NEAR) for name in ("a", "b")]
    extents = [Extent(0, 0, 2 * MIB), Extent(1, 0, MIB)]
    monitor = Monitor()
    queue = Queue(plan_of([], extents=extents), targets, monitor)
    taken = [queue.take() for _ in range(3)]
    files = [one[1] for one in taken if one is not None]
    assert files[0] is files[1]
    descriptors = [file.descriptor() for file in files]
    assert descriptors[0] == descriptors[1]
    queue.give_back(files[0])
    os.fstat(descriptors[1])  # the other block is still being read
    queue.give_back(files[1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptors[1])
    queue.give_back(files[2])
    os.fstat(descriptors[2])  # nobody knows yet that this was its last
    assert queue.take() is None
    assert monitor.snapshot().done_files == 2


def test_a_file_that_was_given_up_is_skipped(tmp_path: Path) -> None:
    extents = [Extent(0, 0, 2 * MIB), Extent(1, 0, MIB)]
    targets = [Target("/dev/null", NEAR)] * 2
    queue = Queue(plan_of([], extents=extents), targets, Monitor())
    taken = queue.take()
    assert taken is not None
    taken[1].fail(OSError(errno.ESTALE, "Stale file handle"))
    queue.give_back(taken[1])
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


def test_threads_that_come_together_open_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    file = file_of(tmp_path / "file")
    together = threading.Barrier(8)
    opened: list[int] = []
    real = os.open

    def watched(path: str, flags: int) -> int:
        opened.append(flags)
        return real(path, flags)

    def ask() -> None:
        together.wait(30)
        file.descriptor()

    monkeypatch.setattr(os, "open", watched)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    assert len(opened) == 1
