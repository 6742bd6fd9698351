"""The threads of a job, on real files and the real page cache."""

import contextlib
import errno
import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux import mapping
from prefetch_cli.linux import threads as linux_threads
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.extents import Extent, head, within
from prefetch_cli.reading.plan import Medium, Threads
from prefetch_cli.reading.prior import prior
from prefetch_cli.reading.worker import Tunables
from tests.helpers import oracle
from tests.helpers.oracle import about
from tests.helpers.reading import (
    FAR,
    MIB,
    NEAR,
    cold_files,
    pages,
    read,
    slow_down_sendfile,
    sparse_file,
    whole,
)

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


@pytest.mark.parametrize("medium", [NEAR, FAR, FAR._replace(fuse=True)])
@pytest.mark.parametrize("yielding", [False, True])
def test_auto_begins_with_the_likely_engine(tmp_path: Path, medium: Medium, yielding: bool) -> None:
    sizes = [5 * MIB + 1, 1, PAGE_BYTES, 3 * MIB - 1, 0, 2 * MIB]
    paths = cold_files(tmp_path, sizes)
    result = read(paths, medium=medium, threads=8, yielding=yielding)
    assert oracle.resident_bytes(paths) == about(pages(sizes))
    assert (result.bytes_read, result.complete, result.failed) == (sum(sizes), True, ())
    how = prior(
        Engine.AUTO,
        Threads(8, 8),
        medium,
        block_bytes=MIB,
        populates=mapping.populates(),
        yielding=yielding,
    )
    assert result.engine is how.engines[0]


def test_auto_reads_nothing_behind_the_cut(tmp_path: Path) -> None:
    sizes = [3 * MIB, 40 * MIB]
    paths = cold_files(tmp_path, sizes)
    limit = 13 * MIB + 5 * PAGE_BYTES
    cut = head(whole(sizes), limit, PAGE_BYTES)
    result = read(paths, extents=list(within(whole(sizes), cut)), cut=cut)
    assert result.bytes_read == limit
    assert oracle.resident_bytes(paths) == about(limit)


def test_a_file_that_fails_is_reported_once_and_the_rest_is_read(tmp_path: Path) -> None:
    sizes = [2 * MIB, 8 * MIB, 2 * MIB]
    paths = cold_files(tmp_path, sizes)
    os.unlink(paths[1])
    plan_paths = [paths[0], str(tmp_path / "gone"), paths[2]]
    extents = [Extent(number, 0, size) for number, size in enumerate(sizes)]
    result = read(plan_paths, extents=extents)
    assert result.failed == ((plan_paths[1], os.strerror(errno.ENOENT)),)
    assert (result.complete, result.bytes_read) == (False, 4 * MIB)
    assert oracle.resident_bytes([paths[0], paths[2]]) == about(4 * MIB)


def test_a_fifo_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    result = read([path], extents=[Extent(0, 0, MIB)])
    assert [failed for failed, _ in result.failed] == [path]
    assert "a FIFO" in result.failed[0][1]


@pytest.mark.parametrize("asked", [Engine.SPLICE, Engine.ADVISE, Engine.POPULATE, Engine.AUTO])
def test_where_splice_is_refused_read_takes_over(asked: Engine) -> None:
    # /proc files have no splice_read since Linux 5.10: the refusal is real.
    path = "/proc/kallsyms"
    if not os.path.exists(path):
        pytest.skip("this kernel shows no /proc/kallsyms")
    with (
        open(os.devnull, "wb") as sink,
        open(path, "rb") as file,
        pytest.raises(OSError, match="Invalid argument"),
    ):
        os.sendfile(sink.fileno(), file.fileno(), 0, 10)
    result = read([path], extents=[Extent(0, 0, 10_000)], engine=asked)
    assert (result.bytes_read, result.complete) == (10_000, True)
    assert result.engine is (Engine.ADVISE if asked is Engine.ADVISE else Engine.READ)


@pytest.mark.parametrize("threads", [1, 5, 16])
def test_at_most_threads_and_two_descriptors_are_open(tmp_path: Path, threads: int) -> None:
    paths = cold_files(tmp_path, [20_000] * 300)
    own = len(os.listdir("/proc/self/fd"))
    counting = threading.Lock()  # listing the descriptors opens one

    class Counting(Monitor):
        most = 0

        @contextmanager
        def waiting(self, path: str, offset: int | None = None) -> Iterator[None]:
            with super().waiting(path, offset):
                yield
            with counting:
                self.most = max(self.most, len(os.listdir("/proc/self/fd")) - own)

    monitor = Counting()
    assert read(paths, threads=threads, block=PAGE_BYTES, monitor=monitor).complete
    assert 0 < monitor.most <= threads + 2
    assert len(os.listdir("/proc/self/fd")) == own


def test_a_plan_of_nothing_leaves_nothing_open(tmp_path: Path) -> None:
    own = os.listdir("/proc/self/fd")
    assert read(cold_files(tmp_path, [1]), extents=[]).complete
    assert os.listdir("/proc/self/fd") == own


def test_each_thread_opens_each_file_once_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = cold_files(tmp_path, [3 * MIB, 3 * MIB])
    opened: list[tuple[str, str]] = []
    real = os.open

    def watched(path: str, flags: int) -> int:
        opened.append((path, threading.current_thread().name))
        return real(path, flags)

    monkeypatch.setattr(os, "open", watched)
    assert read(paths, threads=8, block=64 * 1024).complete
    assert len(opened) == len(set(opened))
    assert {path for path, _ in opened} == {os.devnull, *paths}


def test_threads_that_are_held_back_keep_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One begins; it is the only one with a file while the others wait."""
    stop = Stop()
    own = len(os.listdir("/proc/self/fd"))
    most: list[int] = []

    def sendfile(_out: int, _in: int, offset: int, size: int) -> int:
        most.append(len(os.listdir("/proc/self/fd")) - own)
        if len(most) == 3:
            stop.request()
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 10 * MIB)
    read([path], stop=stop, threads=8, block=MIB, engine=Engine.SPLICE, yielding=True)
    assert most[0] == 2  # the file and the sink


@pytest.mark.parametrize("threads", [1, 3, 64, 100])
def test_the_buffers_of_all_threads_together_take_at_most_16_mib(
    tmp_path: Path, threads: int
) -> None:
    paths = cold_files(tmp_path, [4 * MIB])
    made: list[int] = []
    real = mmap.mmap

    def watched(descriptor: int, size: int) -> mmap.mmap:
        made.append(size)
        return real(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmap.mmap", watched)
        result = read(paths, threads=threads, block=PAGE_BYTES, engine=Engine.READ)
    assert result.complete
    assert made
    assert sum(made) <= 16 * MIB
    assert len(made) <= threads


def test_one_file_keeps_all_threads_busy(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    everyone = threading.Barrier(4, timeout=30)
    met: set[str] = set()

    class Meeting(Monitor):
        def advance(self, size_bytes: int) -> None:
            super().advance(size_bytes)
            if threading.current_thread().name not in met:
                met.add(threading.current_thread().name)
                everyone.wait()  # broken, and so the run, where fewer threads read

    result = read(paths, threads=4, block=64 * 1024, monitor=Meeting())
    assert (result.complete, len(met)) == (True, 4)


@pytest.mark.parametrize(
    ("rate", "used"), [(40 * MIB, Engine.POPULATE), (40 * MIB - 1, Engine.SPLICE)]
)
def test_a_fault_reads_no_more_than_a_limited_rate_allows(
    tmp_path: Path, rate: int, used: Engine
) -> None:
    if not mapping.populates():
        pytest.skip("needs a kernel that reads huge pages for a fault")
    paths = cold_files(tmp_path, [2 * MIB])
    assert read(paths, engine=Engine.POPULATE, rate=rate).engine is used


def test_an_error_in_one_block_leaves_the_others_of_the_file(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    real = os.sendfile

    def broken(sink: int, descriptor: int, offset: int, size: int) -> int:
        # Stands for a bad sector, which this machine's disk does not have.
        if offset <= 3 * MIB < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(sink, descriptor, offset, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sendfile", broken)
        result = read(paths, engine=Engine.SPLICE, threads=2)
    assert result.failed == ((paths[0], "Input/output error"),)
    assert result.bytes_read == 7 * MIB


def test_a_stop_ends_it_with_what_was_read(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    stop = Stop()

    class Stopping(Monitor):
        def advance(self, size_bytes: int) -> None:
            super().advance(size_bytes)
            stop.request()

    own = len(os.listdir("/proc/self/fd"))
    result = read(paths, threads=1, stop=stop, monitor=Stopping())
    assert (result.bytes_read, result.complete, result.failed) == (MIB, False, ())
    # Behind a stop no thread takes another block, which is what closes a file otherwise.
    assert len(os.listdir("/proc/self/fd")) == own


def test_a_thread_that_hangs_does_not_hold_the_others_nor_the_end(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [MIB, MIB, MIB])
    stop = Stop()
    hang = threading.Event()

    class Watched(Monitor):
        @contextmanager
        def waiting(self, path: str, offset: int | None = None) -> Iterator[None]:
            with super().waiting(path, offset):
                # Stands for a mount that never answers an open; that of FUSE does.
                if path == paths[0]:
                    hang.wait()
                yield

        def finish_file(self) -> None:
            super().finish_file()
            if self.snapshot().done_files == 2:
                stop.request()

    monitor = Watched()
    result = read(paths, stop=stop, monitor=monitor)
    assert (result.bytes_read, result.complete) == (2 * MIB, False)
    wait = monitor.snapshot().longest_wait
    assert wait is not None
    assert wait.path == paths[0]
    hang.set()


def test_progress_is_driven_by_bytes(tmp_path: Path) -> None:
    sizes = [3 * MIB, 10, 2 * MIB]
    paths = cold_files(tmp_path, sizes)
    monitor = Monitor()
    read(paths, monitor=monitor)
    snapshot = monitor.snapshot()
    assert (snapshot.done_bytes, snapshot.total_bytes) == (sum(sizes), sum(sizes))
    assert (snapshot.done_files, snapshot.total_files) == (3, 3)
    assert snapshot.longest_wait is None
    assert snapshot.idle_seconds == 0


def test_an_empty_plan_reads_nothing() -> None:
    result = read([], extents=[])
    assert (result.bytes_read, result.complete, result.failed) == (0, True, ())


def test_a_trial_on_a_real_disk_reads_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [50 * MIB, 50 * MIB]
    paths = cold_files(tmp_path, sizes)
    by_read = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        by_read.append(offset)
        return real(descriptor, buffers, offset)

    real = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    slow_down_sendfile(monkeypatch, 0.01)
    result = read(paths, medium=FAR, threads=2, block=256 * 1024)
    assert (result.bytes_read, result.complete) == (sum(sizes), True)
    assert by_read  # it was compared
    assert oracle.resident_bytes(paths) == about(sum(sizes))


def test_far_away_the_time_of_a_call_sizes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        sizes.append(size // MIB)
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 32 * MIB)

    def sizes_where(*, short: float, medium: Medium = FAR) -> list[int]:
        sizes.clear()
        # On the busiest machine all calls are short, on the fastest one all are long.
        times = Tunables(short_step_seconds=short, long_step_seconds=short)
        options: dict[str, Any] = {"engine": Engine.SPLICE, "threads": 1, "block": 16 * MIB}
        read([path], medium=medium, tunables=times, **options)
        return sizes

    # The second block begins with the size that the first one came to.
    assert sizes_where(short=math.inf) == [1, 2, 4, 4, 4, 1, 4, 4, 4, 4]
    assert sizes_where(short=0.0) == [1] * 32
    assert sizes_where(short=0.0, medium=NEAR) == [4] * 8


def test_a_thread_that_hangs_holds_nobody_up_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    read_bytes = 0

    def sendfile(_out: int, _in: int, offset: int, size: int) -> int:
        nonlocal read_bytes
        if offset == 0:
            assert free.wait(60)
        read_bytes += size
        if read_bytes == 9 * MIB:
            free.set()  # all the others have been read
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 10 * MIB)
    options: dict[str, Any] = {"engine": Engine.SPLICE, "yielding": True}
    assert read([path], threads=2, block=MIB, **options).complete
    assert free.is_set()


@pytest.mark.parametrize(
    ("medium", "yielding", "alone"),
    [
        (NEAR, True, True),
        (NEAR._replace(spins=True), False, True),
        (NEAR._replace(spins=True), True, True),
        (NEAR, False, False),
        (FAR._replace(spins=True), False, False),
    ],
)
def test_one_thread_begins_where_more_may_do_harm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    medium: Medium,
    yielding: bool,
    alone: bool,
) -> None:
    together = threading.Barrier(2)
    stop = Stop()

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.1 if alone else 60)
            assert not alone
        stop.request()
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 10 * MIB)
    options: dict[str, Any] = {"engine": Engine.SPLICE, "yielding": yielding}
    done = read([path], medium=medium, stop=stop, threads=2, block=MIB, **options)
    assert (done.bytes_read == MIB) is alone


def test_a_stop_ends_the_threads_that_wait_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        stop.request()
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 10 * MIB)
    options: dict[str, Any] = {"engine": Engine.SPLICE, "yielding": True}
    done = read([path], stop=stop, threads=8, block=MIB, **options)
    assert done.bytes_read == MIB
    assert not [one for one in threading.enumerate() if one.name.startswith("read-")]


def test_threads_that_stand_back_leave_the_rest_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two on a disk that is no faster with them: the second leaves in the middle of its block."""
    lock = threading.Lock()
    read_by: dict[int, list[tuple[int, int]]] = {}

    def sendfile(_out: int, _in: int, offset: int, size: int) -> int:
        with lock:  # one at a time, which each takes as long as it must
            time.sleep(0.01)
            read_by.setdefault(threading.get_ident(), []).append((offset, size))
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 1024 * MIB)
    options: dict[str, Any] = {"engine": Engine.SPLICE, "yielding": True}
    result = read([path], threads=Threads(2, 2), block=256 * MIB, **options)
    assert result.complete
    assert result.threads == 1
    assert len(read_by) == 2
    second = sorted(read_by.values(), key=len)[0]
    assert sum(size for _, size in second) < 256 * MIB
    ranges = sorted(one for calls in read_by.values() for one in calls)
    assert sum(size for _, size in ranges) == 1024 * MIB
    assert all(a + size == b for (a, size), (b, _) in pairwise(ranges))


def test_more_threads_start_where_they_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        time.sleep(0.02)  # each as long as if it were alone
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 4096 * MIB)
    result = read([path], medium=FAR, threads=Threads(2, 16), block=4 * MIB, engine=Engine.SPLICE)
    assert result.complete
    assert result.threads == 16


def test_as_many_read_as_the_system_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a limit on processes is reached."""
    real = linux_threads.spawn

    def spawn(target: Callable[[], None]) -> linux_threads.Thread:
        if len(started) >= 3:
            raise RuntimeError("can't start new thread")
        started.append(target)
        return real(target)

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        time.sleep(0.02)
        return size

    started: list[Callable[[], None]] = []
    monkeypatch.setattr(linux_threads, "spawn", spawn)
    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 512 * MIB)
    result = read([path], medium=FAR, threads=Threads(2, 16), block=4 * MIB, engine=Engine.SPLICE)
    assert result.complete
    assert len(started) == 3
