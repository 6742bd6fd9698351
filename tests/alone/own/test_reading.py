"""The reader on real files and the real page cache."""

import errno
import math
import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux import files, pagecache
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.extents import Extent, head, whole, within
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Medium, Plan, ReadResult, Target
from tests.bench.throttle import ThrottleError, own_disk
from tests.helpers import oracle
from tests.helpers.oracle import about

NEAR = Medium(far=False, step_bytes=128 * 1024, reads_ahead_little=False)
FAR = Medium(far=True, step_bytes=128 * 1024, reads_ahead_little=False)
MIB = 1024 * 1024
GIB = 1024 * MIB
ENGINES = list(Engine)

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


def cold_files(folder: Path, sizes: Sequence[int]) -> list[str]:
    paths = []
    block = os.urandom(MIB)
    for number, size in enumerate(sizes):
        path = folder / f"file-{number:05}"
        path.write_bytes((block * (size // MIB + 1))[:size])
        paths.append(str(path))
    oracle.make_cold(paths)
    return paths


def plan_of(
    paths: Sequence[str],
    *,
    extents: Sequence[Extent] | None = None,
    cut: Extent | None = None,
    threads: int = 4,
    block: int = MIB,
    engine: Engine = Engine.AUTO,
    rate: int | None = None,
    yielding: bool = False,
) -> Plan:
    if extents is None:
        sizes = [os.path.getsize(path) for path in paths]
        extents = list(whole(sizes, range(len(sizes))))
    return Plan(tuple(extents), cut, 0, threads, block, engine, rate, yielding)


def read(
    paths: Sequence[str],
    *,
    medium: Medium = NEAR,
    stop: Stop | None = None,
    monitor: Monitor | None = None,
    **given: Any,
) -> ReadResult:
    targets = [Target(path, medium) for path in paths]
    return job.read(plan_of(paths, **given), targets, monitor or Monitor(), stop or Stop())


def pages(sizes: Sequence[int]) -> int:
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("medium", [NEAR, FAR])
def test_every_byte_gets_into_the_cache(tmp_path: Path, engine: Engine, medium: Medium) -> None:
    sizes = [5 * MIB + 1, 1, PAGE_BYTES, 3 * MIB - 1, 0, 2 * MIB]
    paths = cold_files(tmp_path, sizes)
    result = read(paths, engine=engine, medium=medium)
    assert oracle.resident_bytes(paths) == about(pages(sizes))
    assert (result.bytes_read, result.complete, result.failed) == (sum(sizes), True, ())
    likely = Engine.ADVISE if medium is FAR else Engine.SPLICE
    assert result.engine is (likely if engine is Engine.AUTO else engine)


def test_where_the_kernel_reads_ahead_little_requests_are_twice_as_large(tmp_path: Path) -> None:
    def request_kib(*, little: bool) -> float:
        oracle.make_cold(paths)
        medium = Medium(far=False, step_bytes=128 * 1024, reads_ahead_little=little)
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


@pytest.mark.parametrize("engine", [Engine.ADVISE, Engine.READ])
def test_only_the_extents_are_read(tmp_path: Path, engine: Engine) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    descriptor = os.open(paths[0], os.O_RDONLY)
    extents = [Extent(0, MIB, MIB), Extent(0, 5 * MIB, PAGE_BYTES)]
    result = read(paths, extents=extents, engine=engine, cut=Extent(0, 0, 8 * MIB))
    assert result.bytes_read == MIB + PAGE_BYTES
    assert list(pagecache.missing(descriptor, 0, 8 * MIB)) == [
        (0, MIB),
        (2 * MIB, 3 * MIB),
        (5 * MIB + PAGE_BYTES, 3 * MIB - PAGE_BYTES),
    ]
    os.close(descriptor)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_behind_the_cut_is_read(tmp_path: Path, engine: Engine) -> None:
    sizes = [3 * MIB, 40 * MIB]
    paths = cold_files(tmp_path, sizes)
    limit = 13 * MIB + 5 * PAGE_BYTES
    cut = head(sizes, limit, PAGE_BYTES)
    extents = list(within(whole(sizes, range(2)), cut))
    result = read(paths, extents=extents, cut=cut, engine=engine)
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


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_was_cut_short_is_reported(tmp_path: Path, engine: Engine) -> None:
    [path] = cold_files(tmp_path, [2 * MIB])
    result = read([path], extents=[Extent(0, 0, 5 * MIB)], engine=engine)
    assert [failed for failed, _ in result.failed] == [path]
    assert f"{2 * MIB:,}" in result.failed[0][1]
    assert (result.complete, result.bytes_read) == (False, 2 * MIB)


def test_a_fifo_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    result = read([path], extents=[Extent(0, 0, MIB)])
    assert [failed for failed, _ in result.failed] == [path]
    assert "a FIFO" in result.failed[0][1]


@pytest.mark.parametrize("asked", [Engine.SPLICE, Engine.ADVISE, Engine.AUTO])
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
    most = 0
    real = files.open_to_read

    counting = threading.Lock()  # to list the descriptors takes one

    def watched(path: str) -> int:
        nonlocal most
        descriptor = real(path)
        with counting:
            most = max(most, len(os.listdir("/proc/self/fd")) - own)
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefetch_cli.reading.job.open_to_read", watched)
        result = read(paths, threads=threads, block=PAGE_BYTES)
    assert result.complete
    assert 0 < most <= threads + 2
    assert len(os.listdir("/proc/self/fd")) == own


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("medium", [NEAR, FAR])
def test_a_limited_rate_counts_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, medium: Medium
) -> None:
    waited: list[int] = []
    returned: list[int] = []

    def wait(_: object, size: int, _stop: Stop) -> bool:
        waited.append(size)
        return True

    monkeypatch.setattr("prefetch_cli.reading.job._Limiter.wait", wait)
    monkeypatch.setattr(
        "prefetch_cli.reading.job._Limiter.give_back", lambda _, size: returned.append(size)
    )
    paths = cold_files(tmp_path, [9 * MIB + 1])
    done = read(paths, medium=medium, engine=engine, block=16 * MIB, rate=1 << 30)
    assert sum(waited) - sum(returned) == done.bytes_read == 9 * MIB + 1
    assert min(returned) >= 0


def test_a_plan_of_nothing_leaves_nothing_open(tmp_path: Path) -> None:
    own = os.listdir("/proc/self/fd")
    assert read(cold_files(tmp_path, [1]), extents=[]).complete
    assert os.listdir("/proc/self/fd") == own


def test_each_file_is_opened_once(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [3 * MIB, 3 * MIB])
    opened: list[str] = []
    real = files.open_to_read

    def watched(path: str) -> int:
        opened.append(path)
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefetch_cli.reading.job.open_to_read", watched)
        read(paths, threads=8, block=64 * 1024)
    assert sorted(opened) == paths


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
    queue = job._Queue(plan_of([], extents=extents, block=block), targets, Monitor())
    units = []
    while taken := queue.take():
        units.append(taken[0])
    assert joined(units) == extents
    assert all(unit.end % block == 0 or unit.end in {MIB * 9 + 1, 5000 + 3 * MIB} for unit in units)
    sizes = [-(-unit.length // block) for unit in units]
    assert max(sizes) == longest
    # Towards the end single blocks, so that all threads end together.
    assert sizes[-1] == 1


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
    real = files.open_to_read

    def hangs(path: str) -> int:
        # Stands for a mount that never answers, which this machine cannot have.
        if path == paths[0]:
            hang.wait()
        return real(path)

    class Watched(Monitor):
        def finish_file(self) -> None:
            super().finish_file()
            if self.snapshot().done_files == 2:
                stop.request()

    monitor = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefetch_cli.reading.job.open_to_read", hangs)
        result = read(paths, stop=stop, monitor=monitor)
        assert (result.bytes_read, result.complete) == (2 * MIB, False)
        wait = monitor.snapshot().longest_wait
        assert wait is not None
        assert wait.path == paths[0]
        hang.set()


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


def chooser(*, far: bool, threads: int = 2) -> job._Chooser:
    trial = job._trial(Engine.AUTO, far=far, block_bytes=MIB)
    return job._Chooser(trial, far=far, threads=threads, worth_a_trial=True)


def drive(chosen: job._Chooser, rates: dict[Engine, float], blocks: int = 60) -> list[Engine]:
    """Read that many blocks, two at a time, at these rates; return the engines in order."""
    engines = []
    for _ in range(blocks // 2):
        picked = [chosen.pick(MIB), chosen.pick(MIB)]
        for engine, size, measured in picked:
            assert size == MIB
            engines.append(engine)
            seconds = MIB / rates[engine]
            if chosen.outpaced(engine, MIB // 4, seconds / 4):
                chosen.leave(engine)
                chosen.record(engine, MIB // 4, seconds / 4, measured=measured)
            else:
                chosen.record(engine, MIB, seconds, measured=measured)
    return engines


def test_auto_keeps_the_likely_engine_unless_another_is_clearly_better() -> None:
    rates = {Engine.ADVISE: 100e6, Engine.READ: 120e6}
    assert drive(chooser(far=True), rates)[-1] is Engine.ADVISE
    assert set(drive(chooser(far=True), rates)) == {Engine.ADVISE, Engine.READ}
    near = {Engine.SPLICE: 100e6, Engine.ADVISE: 105e6}
    assert drive(chooser(far=False), near)[-1] is Engine.SPLICE
    near[Engine.ADVISE] = 115e6
    assert drive(chooser(far=False), near)[-1] is Engine.ADVISE


def test_auto_takes_the_engine_that_is_measured_to_be_better() -> None:
    assert drive(chooser(far=True), {Engine.ADVISE: 20e6, Engine.READ: 100e6})[-1] is Engine.READ
    near = {Engine.SPLICE: 20e6, Engine.ADVISE: 100e6}
    assert drive(chooser(far=False), near)[-1] is Engine.ADVISE


def test_one_comparison_alone_changes_nothing_unless_it_is_clear() -> None:
    """As where something else had the processor while the likely engine was measured."""
    rates = {Engine.ADVISE: 100e6, Engine.READ: 100e6}
    misled, again, clear = (chooser(far=True) for _ in range(3))
    # Two threads settle with one portion each, then read two each by one engine and by the other.
    for chosen, read_rate in ((misled, 150e6), (again, 150e6), (clear, 250e6)):
        engines = drive(chosen, rates | {Engine.READ: read_rate}, blocks=10)
        assert engines == [Engine.ADVISE] * 6 + [Engine.READ] * 4
    engines = drive(misled, rates)
    assert (engines[0], engines[-1]) == (Engine.ADVISE, Engine.ADVISE)
    assert Engine.READ in engines
    engines = drive(again, rates | {Engine.READ: 150e6})
    assert (engines[0], engines[-1]) == (Engine.ADVISE, Engine.READ)
    assert set(drive(clear, rates | {Engine.READ: 250e6})) == {Engine.READ}


def test_a_way_that_turns_out_slow_is_left_at_once() -> None:
    engines = drive(chooser(far=True), {Engine.ADVISE: 2e6, Engine.READ: 0.1e6})
    assert engines.count(Engine.READ) <= 2
    assert engines[-1] is Engine.ADVISE


def test_a_start_that_is_slow_by_itself_is_not_held_against_an_engine() -> None:
    """The first portions open a connection's window, whichever engine reads them."""
    chosen = chooser(far=True)
    for _ in range(2):
        engine, size, measured = chosen.pick(MIB)
        assert (engine, measured) == (Engine.ADVISE, False)
        chosen.record(engine, size, 10.0, measured=measured)
    assert drive(chosen, {Engine.ADVISE: 100e6, Engine.READ: 100e6})[-1] is Engine.ADVISE


@pytest.mark.parametrize("far", [False, True])
def test_a_comparison_costs_some_halves_of_blocks(far: bool) -> None:
    block, threads = 16 * MIB, 8
    trial = job._trial(Engine.AUTO, far=far, block_bytes=block)
    chosen = job._Chooser(trial, far=far, threads=threads, worth_a_trial=True)
    picked = []
    while (pick := chosen.pick(block))[1] < block:
        picked.append(pick[0])
        chosen.record(*pick[:2], 1.0, measured=pick[2])
    likely, other = trial.engines
    assert picked == [likely] * 3 * threads + [other] * 2 * threads
    assert pick == (likely, block, False)
    assert not trial.pays(2 * GIB - 1, threads)
    assert trial.pays(2 * GIB, threads)


def test_what_is_far_faster_is_measured_although_the_other_still_runs() -> None:
    """As where advice is in vain: dozens of portions are read while one more of it ends."""
    chosen = chooser(far=True)
    while (pick := chosen.pick(MIB))[0] is Engine.ADVISE:
        slow = pick
        chosen.record(*pick[:2], 1.0, measured=pick[2])
    chosen.record(*pick[:2], 0.1, measured=pick[2])
    chosen._in_flight[Engine.ADVISE] += 1  # one that another thread began before
    for _ in range(50):
        engine, size, measured = chosen.pick(MIB)
        assert (engine, measured) == (Engine.READ, False)
        chosen.record(engine, size, 0.1, measured=measured)
    chosen.record(*slow[:2], 1.0, measured=True)
    assert drive(chosen, {Engine.ADVISE: MIB, Engine.READ: 10 * MIB})[-1] is Engine.READ


def test_nothing_is_tried_where_the_likely_engine_is_fast_on_a_near_medium() -> None:
    fast = {Engine.SPLICE: 2e9, Engine.ADVISE: 9e9}
    assert set(drive(chooser(far=False), fast)) == {Engine.SPLICE}
    slow = {Engine.SPLICE: 20e6, Engine.ADVISE: 200e6}
    assert drive(chooser(far=False), slow)[-1] is Engine.ADVISE


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
    result = read(paths, medium=FAR, threads=2, block=256 * 1024)
    assert (result.bytes_read, result.complete) == (sum(sizes), True)
    assert by_read  # it was compared
    assert oracle.resident_bytes(paths) == about(sum(sizes))


def test_a_way_that_turns_out_slow_is_left_in_the_middle_of_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each read of 1 MiB took longer than all of the trial by advice."""
    sizes = [70 * MIB, 70 * MIB]
    paths = cold_files(tmp_path, sizes)
    by_read = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        by_read.append(offset)
        time.sleep(0.4)
        return real(descriptor, buffers, offset)

    real = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
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


def sparse_file(folder: Path, size: int) -> str:
    path = folder / "sparse"
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def test_far_away_short_calls_read_more_and_long_ones_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    turns = 9

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        sizes.append(size // MIB)
        if len(sizes) == turns:
            monkeypatch.setattr(job, "_SHORT_SECONDS", 0.0)
            monkeypatch.setattr(job, "_LONG_SECONDS", 0.0)
        return size

    # On the busiest machine all calls are short, and from the ninth on all are long.
    monkeypatch.setattr(job, "_SHORT_SECONDS", math.inf)
    monkeypatch.setattr(os, "sendfile", sendfile)
    path = sparse_file(tmp_path, 32 * MIB)
    read([path], medium=FAR, engine=Engine.SPLICE, threads=1, block=16 * MIB)
    # The second block begins with the size that the first one came to.
    assert sizes == [1, 2, 4, 4, 4, 1, 4, 4, 4, 2, 1, 1]


def test_a_saturated_disk_is_read_by_few_threads_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(0.01, saturated_by_one=True)
    monkeypatch.setattr(os, "sendfile", disk.sendfile)
    path = sparse_file(tmp_path, 400 * MIB)
    assert read([path], threads=32, block=4 * MIB, yielding=True).complete
    # Two are tried once in a while; a window may be off on a busy machine, most are not.
    assert sum(disk.calls[1:3]) > 0.8 * sum(disk.calls)


def test_a_disk_that_needs_them_is_read_by_all_threads_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(0.02, saturated_by_one=False)
    monkeypatch.setattr(os, "sendfile", disk.sendfile)
    path = sparse_file(tmp_path, 1000 * MIB)
    assert read([path], threads=8, block=4 * MIB, yielding=True).complete
    assert disk.most == 8


@pytest.mark.parametrize(("medium", "yielding"), [(NEAR, False), (FAR, True)])
def test_all_threads_begin_at_once_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: Medium, yielding: bool
) -> None:
    disk = Disk(0.01, saturated_by_one=True)
    monkeypatch.setattr(os, "sendfile", disk.sendfile)
    path = sparse_file(tmp_path, 40 * MIB)
    assert read([path], medium=medium, threads=8, block=MIB, yielding=yielding).complete
    assert disk.most == 8


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
    assert read([path], threads=2, block=MIB, yielding=True).complete
    assert free.is_set()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_byte_gets_into_the_cache_beside_others(tmp_path: Path, engine: Engine) -> None:
    sizes = [5 * MIB + 1, 1, 3 * MIB - 1, 0]
    paths = cold_files(tmp_path, sizes)
    done = read(paths, engine=engine, threads=8, yielding=True)
    assert done.complete
    assert done.bytes_read == sum(sizes)
    assert oracle.resident_bytes(paths) == about(pages(sizes))


def test_a_stop_ends_the_threads_that_wait_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def sendfile(_out: int, _in: int, _offset: int, size: int) -> int:
        stop.request()
        return size

    monkeypatch.setattr(os, "sendfile", sendfile)
    done = read([sparse_file(tmp_path, 10 * MIB)], stop=stop, threads=8, block=MIB, yielding=True)
    assert done.bytes_read == MIB
    assert not [one for one in threading.enumerate() if one.name.startswith("read-")]
