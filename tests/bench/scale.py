"""What many files, bytes, threads and ranks cost in time and memory, and whether it is linear."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence

from tests.bench.figures import Bound, Figure
from tests.bench.run import Usage, run, run_cold, tool
from tests.bench.throughput import Say
from tests.helpers.checkpoints import Fill, write_streamed

_MIB = 1 << 20
_TIB = 1 << 40
_FILES = 100_000
_PER_FOLDER = 100
_FOLDERS_PER_FOLDER = 10
_SPARSE_SHARDS = 200
_SPARSE_BYTES = 10 * _TIB
_THREADS = 1024
_THREADS_BYTES = 1024 * _MIB
_RANKS = 4096
_REPEATS = 3
# Most allowed for twice as many; quadratic would be 4. A part of the memory does not grow.
_LINEAR = 2.2
_PARTITION = """
import sys, time
from prefetch_cli.base.words import Split
from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.share import partition
ranks = int(sys.argv[1])
files = [Extent(number, 0, 4 << 30) for number in range(200)]
began = time.perf_counter()
for rank in (0, ranks // 2, ranks - 1):
    partition(files, [True] * len(files), rank=rank, world_size=ranks, split=Split(sys.argv[2]),
              block_size_bytes=16 << 20)
print((time.perf_counter() - began) / 3)
"""


def scale_figures(directory: str, say: Say) -> Iterator[Figure]:
    """Yield the figures for files, bytes, threads and ranks."""
    yield from _files(directory, say)
    yield from _bytes(directory, say)
    yield from _threads(directory, say)
    yield from _ranks(say)


def _files(directory: str, say: Say) -> Iterator[Figure]:
    found: dict[int, list[Usage]] = {}
    for count in (_FILES // 2, _FILES):
        say(f"scale: {count:,} files in nested folders")
        place = os.path.join(directory, "many")
        try:
            _write_nested(place, count)
            found[count] = [_dry_run(place) for _ in range(_REPEATS)]
        finally:
            shutil.rmtree(place, ignore_errors=True)
    half, full = found.values()
    name = f"--dry-run, {_FILES:,} files in nested folders"
    yield _figure(name, _median(full), "s", full, target=6)
    yield _figure(f"{name}, memory", _peak(full), "MiB", full, target=300)
    for what, measure in (("time", _median), ("memory", _peak)):
        ratio = measure(full) / measure(half)
        yield _figure(f"the same to half as many, {what}", ratio, "x", full, target=_LINEAR)


def _dry_run(place: str) -> Usage:
    """Return what a run over warm files cost: a virtual machine's host may take pages back."""
    for folder, _, names in os.walk(place):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                file.read()
    return run(tool("--dry-run", place))


def _write_nested(place: str, count: int) -> None:
    """Write a checkpoint whose index names files in nested folders."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    weight_map = {}
    for number in range(count):
        folder = number // _PER_FOLDER
        parts = (f"{folder // _FOLDERS_PER_FOLDER:04}", f"{folder % _FOLDERS_PER_FOLDER}")
        name = "/".join((*parts, f"shard-{number:06}.safetensors"))
        weight_map[f"model.layers.{number}.weight"] = name
        if number % _PER_FOLDER == 0:
            os.makedirs(os.path.join(place, *parts), exist_ok=True)
        with open(os.path.join(place, name), "wb") as file:
            file.write(content)
    with open(os.path.join(place, "model.safetensors.index.json"), "w", encoding="ascii") as file:
        json.dump({"metadata": {"total_size": 8 * count}, "weight_map": weight_map}, file)


def _bytes(directory: str, say: Say) -> Iterator[Figure]:
    say("scale: 10 TiB of holes")
    place = os.path.join(directory, "large")
    try:
        checkpoint = write_streamed(
            place,
            shard_bytes=[_SPARSE_BYTES // _SPARSE_SHARDS] * _SPARSE_SHARDS,
            fill=Fill.HOLE,
            durable=False,
        )
        for words in (("--dry-run",), ("--check",), ("--dry-run", "--rank", "3"), ("--evict",)):
            more = ("--world-size", "8", "--split", "bytes") if "--rank" in words else ()
            usages = [run(tool(*words, *more, checkpoint.directory)) for _ in range(_REPEATS)]
            name = f"{' '.join((*words, *more))}, 10 TiB in {_SPARSE_SHARDS} files"
            yield _figure(name, _median(usages), "s", usages, target=5)
            yield _figure(f"{name}, memory", _peak(usages), "MiB", usages, target=300)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _threads(directory: str, say: Say) -> Iterator[Figure]:
    say(f"scale: {_THREADS:,} threads")
    place = os.path.join(directory, "threads")
    try:
        checkpoint = write_streamed(place, shard_bytes=[_THREADS_BYTES // 4] * 4)
        command = ("--force", "--json", "--progress", "none", "--block-size", "1M")
        few, many = (
            [
                run_cold(
                    tool(*command, "--threads", str(threads), checkpoint.directory),
                    checkpoint.files,
                )
                for _ in range(_REPEATS)
            ]
            for threads in (8, _THREADS)
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    ratio = _median(many) / _median(few)
    yield _figure(f"{_THREADS:,} threads to 8, 1 GiB, time", ratio, "x", many, target=2)
    yield _figure(f"{_THREADS:,} threads, memory", _peak(many), "MiB", many, target=100)


def _ranks(say: Say) -> Iterator[Figure]:
    say(f"scale: {_RANKS:,} ranks")
    for split in ("files", "bytes"):
        half, full = (
            [run((sys.executable, "-c", _PARTITION, str(ranks), split)) for _ in range(_REPEATS)]
            for ranks in (_RANKS // 2, _RANKS)
        )
        name = f"a share of {_RANKS:,} ranks, --split {split}, 800 GiB"
        seconds = [
            statistics.median(float(usage.stdout) for usage in each if not usage.error)
            for each in (half, full)
        ]
        yield _figure(name, seconds[1], "s", full, target=1)
        yield _figure("the same to half as many", seconds[1] / seconds[0], "x", full, target=2.2)


def _figure(
    name: str, value: float, unit: str, usages: Sequence[Usage], *, target: float
) -> Figure:
    error = next((usage.error for usage in usages if usage.error), None)
    if error is not None:
        return Figure(name, None, unit, Bound.AT_MOST, target, error)
    walls = [usage.wall_seconds for usage in usages]
    detail = f"{len(walls)} runs, {min(walls):.2f} to {max(walls):.2f} s"
    return Figure(name, value, unit, Bound.AT_MOST, target, detail)


def _median(usages: Sequence[Usage]) -> float:
    return statistics.median(usage.wall_seconds for usage in usages)


def _peak(usages: Sequence[Usage]) -> float:
    return max(usage.peak_rss_bytes for usage in usages) / _MIB
