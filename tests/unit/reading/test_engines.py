"""What every engine of the registry has to keep. One that is added is tested by being listed."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.extents import Extent, head, within
from prefetch_cli.reading.engines import REGISTRY, AbstractEngine, Engines, Shared
from prefetch_cli.reading.plan import Medium
from tests.faults import refuse
from tests.helpers import oracle
from tests.helpers.oracle import about
from tests.helpers.passthrough import mounted
from tests.helpers.reading import FAR, MIB, NEAR, cold_files, pages, read, whole

pytestmark = [
    pytest.mark.skipif(
        oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
    ),
    pytest.mark.parametrize("engine", REGISTRY, ids=lambda engine: engine.value),
]


@contextlib.contextmanager
def passed_through(folder: Path, *options: str) -> Iterator[Path]:
    """Yield a FUSE mount of a folder, with the faults that the options name."""
    point = folder.parent / "mount"
    point.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mounted(str(folder), str(point), "--keep-cache", *options))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        yield point


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that can be mounted elsewhere."""
    source = tmp_path / "source"
    source.mkdir()
    return source


@contextlib.contextmanager
def at_work(engine: Engine, path: str) -> Iterator[tuple[AbstractEngine, int]]:
    """Yield an engine by itself, and a file that it may read."""
    shared = Shared(lambda: 4, window_bytes=2 * MIB)
    descriptor = os.open(path, os.O_RDONLY)
    yield Engines(shared).by_name(engine, NEAR), descriptor
    os.close(descriptor)
    shared.close()


def test_it_is_named_and_the_list_is_complete(engine: Engine) -> None:
    assert REGISTRY[engine].name is engine
    assert set(REGISTRY) == set(Engine.fixed())
    assert REGISTRY[engine].instead in {None, *REGISTRY} - {engine}


def test_the_manual_describes_it(engine: Engine) -> None:
    page = Path(__file__).parents[3] / "man" / "prefetch-cli.1"
    assert f"\\fB{engine.value}\\fR" in page.read_text()


# A step


def test_steps_read_a_range_and_end_with_the_file(tmp_path: Path, engine: Engine) -> None:
    [path] = cold_files(tmp_path, [5 * MIB + 1])
    with at_work(engine, path) as (working, descriptor):
        offset, end = MIB, 5 * MIB + 1
        working.start(descriptor, offset, end)
        while offset < end:
            size = min(MIB, end - offset)
            got = working.step(descriptor, offset, size)
            assert 0 < got <= size
            offset += got
        assert not list(pagecache.missing(descriptor, MIB, 4 * MIB + 1))
        working.start(descriptor, end, end + MIB)
        assert working.step(descriptor, end, MIB) == 0
        assert working.used is engine


def test_a_step_says_what_failed(tmp_path: Path, engine: Engine) -> None:
    [path] = cold_files(tmp_path, [MIB])
    with at_work(engine, path) as (working, descriptor):
        closed = os.dup(descriptor)
        os.close(closed)
        working.start(closed, 0, MIB)
        with pytest.raises(OSError, match="Bad file descriptor") as failed:
            working.step(closed, 0, MIB)
        assert failed.value.errno == errno.EBADF


def test_steps_leave_nothing_mapped(tmp_path: Path, engine: Engine) -> None:
    [path] = cold_files(tmp_path, [3 * MIB])
    with at_work(engine, path) as (working, descriptor):
        working.start(descriptor, 0, 3 * MIB)
        working.step(descriptor, 0, MIB)
        assert path not in Path("/proc/self/maps").read_text()


def test_where_its_call_is_refused_read_takes_over(engine: Engine) -> None:
    """A profile's EPERM, an old kernel's ENOSYS, a file system's EINVAL."""
    kind = REGISTRY[engine]
    if engine in {Engine.READ, Engine.ADVISE}:  # nothing stands below; advice is only advice
        assert kind.instead is None
        return
    assert kind.refused_with >= {errno.EPERM, errno.ENOSYS, errno.EINVAL}
    last = kind
    while last.instead is not None:
        last = REGISTRY[last.instead]
    assert last.name is Engine.READ


# What it reads


@pytest.mark.parametrize("medium", [NEAR, FAR])
@pytest.mark.parametrize("yielding", [False, True])
def test_every_byte_gets_into_the_cache(
    tmp_path: Path, engine: Engine, medium: Medium, yielding: bool
) -> None:
    sizes = [5 * MIB + 1, 1, PAGE_BYTES, 3 * MIB - 1, 0, 2 * MIB]
    paths = cold_files(tmp_path, sizes)
    result = read(paths, engine=engine, medium=medium, yielding=yielding)
    assert oracle.resident_bytes(paths) == about(pages(sizes))
    assert (result.bytes_read, result.complete, result.failed) == (sum(sizes), True, ())
    # No file system far away has been seen to gain by `populate`.
    instead = engine is Engine.POPULATE and medium.far
    assert result.engine is (Engine.ADVISE if instead else engine)


def test_only_the_extents_are_read(tmp_path: Path, engine: Engine) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    extents = [Extent(0, MIB, MIB), Extent(0, 5 * MIB, PAGE_BYTES)]
    result = read(paths, extents=extents, engine=engine, cut=Extent(0, 0, 8 * MIB))
    assert result.bytes_read == MIB + PAGE_BYTES
    descriptor = os.open(paths[0], os.O_RDONLY)
    assert list(pagecache.missing(descriptor, 0, 8 * MIB)) == [
        (0, MIB),
        (2 * MIB, 3 * MIB),
        (5 * MIB + PAGE_BYTES, 3 * MIB - PAGE_BYTES),
    ]
    os.close(descriptor)


@pytest.mark.parametrize("extent", [Extent(0, 9 * MIB, 2 * MIB), Extent(0, 10 * MIB, 64 * 1024)])
def test_nothing_before_an_extent_is_read_nor_huge_pages_behind_it(
    tmp_path: Path, engine: Engine, extent: Extent
) -> None:
    """Nothing but read-ahead, which differs from disk to disk: that of `splice` is the measure."""
    (path,) = cold_files(tmp_path, [64 * MIB])

    def resident_after(engine: Engine) -> tuple[int, int]:
        oracle.make_cold([path])
        assert read([path], extents=[extent], engine=engine, threads=1).bytes_read == extent.length
        descriptor = os.open(path, os.O_RDONLY)
        found: list[list[tuple[int, int]]] = []
        while len(found) < 2 or found[-1] != found[-2]:  # read-ahead is still on its way
            time.sleep(0.05)
            found.append(list(pagecache.missing(descriptor, 0, 64 * MIB)))
        os.close(descriptor)
        return found[-1][0][1], 64 * MIB - sum(size for _, size in found[-1])

    before, resident = resident_after(engine)
    assert before == extent.offset
    assert resident <= max(resident_after(Engine.SPLICE)[1] for _ in range(3))


@pytest.mark.parametrize("medium", [NEAR, FAR])
def test_nothing_behind_the_cut_is_read(tmp_path: Path, engine: Engine, medium: Medium) -> None:
    sizes = [3 * MIB, 40 * MIB]
    paths = cold_files(tmp_path, sizes)
    limit = 13 * MIB + 5 * PAGE_BYTES
    cut = head(whole(sizes), limit, PAGE_BYTES)
    extents = list(within(whole(sizes), cut))
    result = read(paths, extents=extents, cut=cut, engine=engine, medium=medium)
    assert result.bytes_read == limit
    assert oracle.resident_bytes(paths) == about(limit)


def test_each_byte_counts_against_the_rate_once(tmp_path: Path, engine: Engine) -> None:
    class Noting:
        """Stands for the limiter: lets everything pass, and counts."""

        granted = 0

        def step_bytes(self, most_bytes: int) -> int:
            return most_bytes

        def wait(self, size_bytes: int, stop: Stop) -> bool:
            self.granted += size_bytes
            return True

        def give_back(self, size_bytes: int) -> None:
            assert size_bytes >= 0
            self.granted -= size_bytes

    for medium in (NEAR, FAR):
        paths = cold_files(tmp_path, [9 * MIB + 1])
        limiter = Noting()
        parts: dict[str, Any] = {"limiter": limiter}
        done = read(paths, medium=medium, engine=engine, block=16 * MIB, threads=1, parts=parts)
        assert limiter.granted == done.bytes_read == 9 * MIB + 1


# Faults


def test_eio_in_the_middle_costs_no_more_than_its_request(folder: Path, engine: Engine) -> None:
    names = [Path(path).name for path in cold_files(folder, [2 * MIB, 12 * MIB, MIB])]
    with passed_through(folder, "--fail-read", str(8 * MIB)) as mount:
        paths = [str(mount / name) for name in names]
        result = read(paths, engine=engine, threads=2)
        assert result.failed == ((paths[1], "Input/output error"),)
        assert 0 < 15 * MIB - result.bytes_read <= 2 * MIB
        assert not result.complete


def test_a_file_that_was_cut_short_is_reported(tmp_path: Path, engine: Engine) -> None:
    path, other = cold_files(tmp_path, [2 * MIB, MIB])
    extents = [Extent(0, 0, 5 * MIB), Extent(1, 0, MIB)]
    result = read([path, other], extents=extents, engine=engine)
    assert [failed for failed, _ in result.failed] == [path]
    assert f"{2 * MIB:,}" in result.failed[0][1]
    assert (result.complete, result.bytes_read) == (False, 3 * MIB)


def test_a_hang_holds_neither_the_others_nor_the_end(folder: Path, engine: Engine) -> None:
    names = [Path(path).name for path in cold_files(folder, [MIB])]
    others = cold_files(folder.parent, [MIB, 3 * MIB])
    with passed_through(folder, "--hang-from", "0") as mount:
        hangs = str(mount / names[0])
        # Only the end of the mount ends a process that waits in it, so nobody waits for it before.
        command = [sys.executable, "-m", "tests.helpers.reading", engine.value, hangs, *others]
        reading = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert reading.stdout is not None
        found = json.loads(reading.stdout.readline())
    reading.communicate()
    assert found["bytes_read"] == 4 * MIB
    assert (found["complete"], found["failed"], found["waits_for"]) == (False, [], hangs)


def test_a_stop_ends_it_at_the_next_step(tmp_path: Path, engine: Engine) -> None:
    paths = cold_files(tmp_path, [64 * MIB])
    stop = Stop()

    class Stopping(Monitor):
        def advance(self, size_bytes: int) -> None:
            super().advance(size_bytes)
            stop.request()

    own = len(os.listdir("/proc/self/fd"))
    result = read(paths, engine=engine, threads=1, block=16 * MIB, stop=stop, monitor=Stopping())
    assert 0 < result.bytes_read <= 4 * MIB
    assert (result.complete, result.failed) == (False, ())
    assert len(os.listdir("/proc/self/fd")) == own


def test_short_returns_are_read_on_from(tmp_path: Path, engine: Engine) -> None:
    real = REGISTRY[engine]

    def step(self: AbstractEngine, descriptor: int, offset: int, size: int) -> int:
        return real.step(self, descriptor, offset, min(size, 100_001))

    short = type("Short", (real,), {"step": step})
    sizes = [3 * MIB, MIB + 1]
    paths = cold_files(tmp_path, sizes)
    result = read(paths, engine=engine, parts={"registry": {**REGISTRY, engine: short}})
    assert (result.bytes_read, result.complete, result.engine) == (sum(sizes), True, engine)
    assert oracle.resident_bytes(paths) == about(pages(sizes))


@pytest.mark.skipif(refuse.CALLS is None, reason="refuse.py knows no numbers of this machine")
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS", "EINVAL"])
@pytest.mark.parametrize("calls", ["fadvise64", "madvise", "sendfile", "all"])
def test_it_reads_without_permission_for_its_call(
    tmp_path: Path, engine: Engine, calls: str, error: str
) -> None:
    paths = cold_files(tmp_path, [3 * MIB])
    # Python's preadv is preadv2(2): the one call that all fall back to.
    refused = (refuse.CALLS or {}).keys() - {"preadv2"} if calls == "all" else {calls}
    rules = [f"{call}={error}" for call in refused]
    command = ["-m", "tests.faults.refuse", *rules, "--", sys.executable, "-m"]
    command += ["tests.helpers.reading", engine.value, *paths]
    done = subprocess.run([sys.executable, *command], capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert (found["bytes_read"], found["complete"], found["failed"]) == (3 * MIB, True, [])
    assert oracle.resident_bytes(paths) == about(3 * MIB)
