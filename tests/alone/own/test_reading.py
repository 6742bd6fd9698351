"""The reader on a disk of its own, or by the clock."""

import os
import threading
import time
from pathlib import Path

import pytest

from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.reading.plan import Medium
from tests.bench.throttle import ThrottleError, own_disk
from tests.helpers import oracle
from tests.helpers.oracle import about
from tests.helpers.reading import FAR, MIB, NEAR, cold_files, read, slow_down_sendfile, sparse_file

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


def test_where_the_kernel_reads_ahead_little_requests_are_twice_as_large(tmp_path: Path) -> None:
    def request_kib(*, little: bool) -> float:
        oracle.make_cold(paths)
        medium = Medium(far=False, step_bytes=128 * 1024, reads_ahead_little=little, spins=False)
        before = list(map(int, (disk / "stat").read_text().split()))
        read(paths, medium=medium, engine=Engine.SPLICE, threads=1, block=16 * MIB)
        after = map(int, (disk / "stat").read_text().split())
        # Reads and sectors of 512 bytes: Documentation/block/stat.rst in the kernel.
        reads, _, sectors, *_ = (now - then for then, now in zip(before, after, strict=True))
        return sectors / 2 / reads

    try:
        with own_disk(str(tmp_path), 40 * MIB, read_ahead_bytes=128 * 1024) as folder:
            paths = cold_files(Path(folder), [32 * MIB])
            device = os.stat(folder).st_dev
            disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
            assert request_kib(little=False) == pytest.approx(128, rel=0.1)
            assert request_kib(little=True) == pytest.approx(256, rel=0.1)
    except ThrottleError as reason:
        pytest.skip(str(reason))


def test_the_time_limit_ends_it(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    began = time.monotonic()
    result = read(paths, stop=Stop(time_limit_seconds=0.3), rate=MIB)
    assert 0.2 < time.monotonic() - began < 5
    assert not result.complete
    assert 0 < result.bytes_read < 2 * MIB


def test_the_rate_is_kept(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [4 * MIB])
    result = read(paths, rate=4 * MIB, threads=8)
    assert result.complete
    # It can be slower on a busy machine, never faster; one step is free at the start.
    assert result.bytes_per_second <= 1.15 * 4 * MIB


def test_an_engine_that_turns_out_slow_is_left_in_the_middle_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each read of 1 MiB took longer than all of the trial by advice."""
    sizes = [100 * MIB, 100 * MIB]
    paths = cold_files(tmp_path, sizes)
    by_read = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        by_read.append(offset)
        time.sleep(0.4)
        return real(descriptor, buffers, offset)

    real = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    slow_down_sendfile(monkeypatch, 0.06)
    result = read(paths, medium=FAR, threads=2, block=4 * MIB)
    assert (result.bytes_read, result.complete) == (sum(sizes), True)
    assert result.engine is Engine.ADVISE
    assert 1 <= len(by_read) <= 4  # of the 8 that two portions of each thread take
    assert oracle.resident_bytes(paths) == about(sum(sizes))


class Disk:
    """Stands for a disk in the place of sendfile(2), as no real one is slow in a known way.

    A call takes as long as it is told, alone on the disk or beside others, and reads nothing.
    """

    def __init__(self, seconds: float, *, saturated_by_one: bool) -> None:
        self.most = 0
        self._seconds = seconds
        self._turn = threading.Lock() if saturated_by_one else None
        self._lock = threading.Lock()
        self._now = 0
        self.calls = [0] * 65  # by how many were under way

    def sendfile(self, _out: int, _in: int, _offset: int, size: int) -> int:
        with self._lock:
            self._now += 1
            self.calls[self._now] += 1
            self.most = max(self.most, self._now)
        try:
            if self._turn is None:
                time.sleep(self._seconds)
            else:
                with self._turn:
                    time.sleep(self._seconds)
        finally:
            with self._lock:
                self._now -= 1
        return size


def test_a_saturated_disk_is_read_by_few_threads_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(0.01, saturated_by_one=True)
    monkeypatch.setattr(os, "sendfile", disk.sendfile)
    path = sparse_file(tmp_path, 400 * MIB)
    assert read([path], threads=32, block=4 * MIB, engine=Engine.SPLICE, yielding=True).complete
    # Two are tried once in a while; a window may be off on a busy machine, most are not.
    assert sum(disk.calls[1:3]) > 0.8 * sum(disk.calls)


def test_a_disk_that_needs_them_is_read_by_all_threads_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sparse_file(tmp_path, 1000 * MIB)
    most = 0
    for _ in range(5):  # a window in which the machine is busy may end the search at fewer
        disk = Disk(0.02, saturated_by_one=False)
        monkeypatch.setattr(os, "sendfile", disk.sendfile)
        assert read([path], threads=8, block=4 * MIB, engine=Engine.SPLICE, yielding=True).complete
        most = max(most, disk.most)
        if most == 8:
            break
    assert most == 8


@pytest.mark.parametrize(("medium", "yielding"), [(NEAR, False), (FAR, True)])
def test_all_threads_begin_at_once_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: Medium, yielding: bool
) -> None:
    disk = Disk(0.01, saturated_by_one=True)
    monkeypatch.setattr(os, "sendfile", disk.sendfile)
    path = sparse_file(tmp_path, 40 * MIB)
    assert read(
        [path], medium=medium, threads=8, block=MIB, engine=Engine.SPLICE, yielding=yielding
    ).complete
    assert disk.most == 8
