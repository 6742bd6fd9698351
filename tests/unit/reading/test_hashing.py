"""Files that are hashed while they are read, on real files and the real page cache."""

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.checkpoint.digests import Algorithm, Digest
from prefetch_cli.linux import pagecache
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading import job
from prefetch_cli.reading.engines import WINDOW_BYTES, Engines, Shared
from prefetch_cli.reading.plan import Medium, ReadResult, Target
from tests.helpers import oracle
from tests.helpers.reading import FAR, MIB, NEAR, cold_files, pages, plan_of

SIZES = (5 * MIB + 1, 1, 4096, 3 * MIB - 1, 2 * MIB)
# What a file should be does not matter here: only what it is hashed with.
ANY = Digest(Algorithm.SHA256, "0" * 64, "nobody")


def hashed(
    paths: list[str],
    digests: Mapping[int, Digest],
    *,
    medium: Medium = NEAR,
    rate: int | None = None,
    stop: Stop | None = None,
    extents: list[Extent] | None = None,
) -> ReadResult:
    plan = plan_of(paths, rate=rate, extents=extents)._replace(digests=digests)
    targets = [Target(path, medium) for path in paths]
    return job.read(plan, targets, Monitor(), stop or Stop())


@pytest.mark.parametrize("medium", [NEAR, FAR, NEAR._replace(spins=True)])
def test_what_is_hashed_is_what_the_files_hold(tmp_path: Path, medium: Medium) -> None:
    paths = cold_files(tmp_path, SIZES)
    result = hashed(paths, dict.fromkeys(range(len(paths)), ANY), medium=medium)
    assert (result.bytes_read, result.complete, result.failed) == (sum(SIZES), True, ())
    assert result.engine is Engine.READ
    assert {number: (one.hexdigits, one.size_bytes) for number, one in result.hashed.items()} == {
        number: (hashlib.sha256(Path(path).read_bytes()).hexdigest(), SIZES[number])
        for number, path in enumerate(paths)
    }
    assert oracle.resident_bytes(paths) == oracle.about(pages(SIZES))


def test_more_threads_hash_on_a_disk_that_only_says_that_it_spins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing takes a processor; a step of 20 ms stands for it, as no real one is so even."""
    paths = cold_files(tmp_path, [24 * MIB] * 8)
    lock, busy, most = threading.Lock(), 0, 0

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        try:
            return real(descriptor, buffers, offset)
        finally:
            with lock:
                busy -= 1

    real = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    for _ in range(5):  # a window in which the machine is busy may end the search at one
        digests = dict.fromkeys(range(len(paths)), ANY)
        assert hashed(paths, digests, medium=NEAR._replace(spins=True)).complete
        if most > 1:
            break
    assert most > 1


def test_threads_that_join_meanwhile_change_no_digest(tmp_path: Path) -> None:
    (path,) = cold_files(tmp_path, [6 * MIB])
    # Each look finds another number: buffers of 1 MiB and of 256 KiB.
    shared = Shared(itertools.cycle((16, 64)).__next__, WINDOW_BYTES)
    engine = Engines(shared).hashing(NEAR, ANY, 6 * MIB)
    try:
        with open(path, "rb", buffering=0) as file:
            engine.start(file.fileno(), 0, 6 * MIB)
            offset = 0
            while offset < 6 * MIB:
                offset += engine.step(file.fileno(), offset, MIB)
    finally:
        shared.close()
    assert engine.result is not None
    assert engine.result.hexdigits == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_file_without_a_digest_is_read_as_ever(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, SIZES)
    extents = [Extent(0, 0, SIZES[0]), Extent(3, MIB, MIB)]
    result = hashed(paths, {0: ANY}, extents=extents)
    assert result.hashed.keys() == {0}
    assert (result.bytes_read, result.complete) == (SIZES[0] + MIB, True)


def test_the_size_afterwards_is_noted(tmp_path: Path) -> None:
    (path,) = cold_files(tmp_path, [2 * MIB])
    result = hashed([path], {0: ANY}, extents=[Extent(0, 0, MIB)])
    first = hashlib.sha256(Path(path).read_bytes()[:MIB]).hexdigest()
    assert (result.hashed[0].hexdigits, result.hashed[0].size_bytes) == (first, 2 * MIB)


def test_a_file_cut_short_has_no_digest(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [2 * MIB, MIB])
    extents = [Extent(0, 0, 3 * MIB), Extent(1, 0, MIB)]
    result = hashed(paths, {0: ANY, 1: ANY}, extents=extents)
    assert [path for path, _ in result.failed] == [paths[0]]
    assert result.hashed.keys() == {1}


def test_a_stop_leaves_no_digest_of_a_part(tmp_path: Path) -> None:
    paths = cold_files(tmp_path, [8 * MIB])
    result = hashed(paths, {0: ANY}, rate=4 * MIB, stop=Stop(0.5))
    assert 0 < result.bytes_read < 8 * MIB
    assert result.hashed == {}


@pytest.mark.parametrize(("rate", "ahead"), [(None, True), (80 * MIB, False)])
def test_far_storage_is_asked_ahead_unless_the_rate_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int | None, ahead: bool
) -> None:
    (path,) = cold_files(tmp_path, [40 * MIB])
    asked: list[tuple[int, int]] = []

    def note(descriptor: int, offset: int, length: int, step_bytes: int) -> None:
        asked.append((offset, length))

    monkeypatch.setattr(pagecache, "advise", note)
    result = hashed([path], {0: ANY}, medium=FAR, rate=rate)
    assert result.hashed[0].hexdigits == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if not ahead:
        assert asked == []
        return
    assert asked[0] == (0, 16 * MIB)
    ends = [0, *(offset + length for offset, length in asked)]
    assert [offset for offset, _ in asked] == ends[:-1]  # without gaps, each byte once
    assert ends[-1] == 40 * MIB
