"""The figures and their targets, and the runs for those beyond throughput."""

import enum
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.contenders import PREFETCH, VLLM
from tests.bench.run import Usage, run, run_cold, tool
from tests.bench.throughput import GB, LayoutResult, Say
from tests.faults import inject
from tests.helpers import oracle
from tests.helpers.checkpoints import Fill, write_streamed

MIB = 1 << 20
_CPU_LAYOUT = "4-files"
_MEMORY_ENGINES = ("splice", "advise")
_MEMORY_THREADS = 64
MEMORY_BYTES = 2 << 30  # two default extents per thread
_REPEATS = 5
_START_REPEATS = 20
_SHARDS = 200
_SHARD_BYTES = 4_500_000_000  # a usual shard size of large models
_MANY_FILES = 10_000
_TINY_SHARD_BYTES = 2048
_FIRST_SECONDS = 0.15
_LINEAR = 2.2  # most allowed for twice as many files; quadratic would be 4


class Bound(enum.Enum):
    """Which side of its target a figure must be on."""

    AT_MOST = "<="
    AT_LEAST = ">="


@dataclass(frozen=True)
class Figure:
    """One figure against its target; `value` is None if it was not measured."""

    name: str
    value: float | None
    unit: str
    bound: Bound
    target: float
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if nothing was measured."""
        if self.value is None:
            return None
        if self.bound is Bound.AT_MOST:
            return self.value <= self.target
        return self.value >= self.target

    @property
    def verdict(self) -> str:
        """Met or missed, and by what percentage of the target."""
        if self.value is None:
            return "not measured"
        percent = 100 * abs(self.value - self.target) / self.target
        side = "below" if self.value < self.target else "above"
        return f"{'met' if self.met else 'missed'}, {percent:.0f} % {side}"


def throughput_figures(results: Sequence[LayoutResult]) -> Iterator[Figure]:
    """Yield the tool against the best peer on each layout, and its CPU time against vLLM's loop."""
    for result in results:
        ours, peer, vllm = result.find(PREFETCH), result.best_peer(), result.find(VLLM)
        ratio, detail = None, "needs the tool and a peer"
        if ours and peer:
            ratio = ours.gb_per_second / peer.gb_per_second
            overlap = (
                ours.gb_per_second_max >= peer.gb_per_second_min
                and peer.gb_per_second_max >= ours.gb_per_second_min
            )
            detail = (
                f"{ours.gb_per_second:.2f} against {peer.gb_per_second:.2f} GB/s "
                f"({peer.contender}), ranges {'overlap' if overlap else 'apart'}"
            )
        name = f"throughput to best peer, {result.layout}"
        yield Figure(name, ratio, "x", Bound.AT_LEAST, 1.0, detail)
        if result.layout == _CPU_LAYOUT:
            ratio, detail = None, "needs the tool and vLLM's loop"
            if ours and vllm:
                ratio = ours.cpu_seconds_per_gb / vllm.cpu_seconds_per_gb
                detail = f"{ours.cpu_seconds_per_gb:.3f} against {vllm.cpu_seconds_per_gb:.3f} s/GB"
            name = f"CPU to vLLM's loop, {result.layout}"
            yield Figure(name, ratio, "x", Bound.AT_MOST, 0.35, detail)


def memory_figures(directory: str, size_bytes: int, say: Say) -> Iterator[Figure]:
    """Yield the whole process's peak memory in cold runs with 64 threads, for two engines."""
    say("memory: writing the checkpoint")
    checkpoint = write_streamed(
        os.path.join(directory, "memory"), shard_bytes=[min(size_bytes, MEMORY_BYTES) // 4] * 4
    )
    for engine in _MEMORY_ENGINES:
        say(f"memory: {_MEMORY_THREADS} threads, {engine}")
        command = tool(
            "--force",
            "--json",
            "--progress",
            "none",
            *("--threads", str(_MEMORY_THREADS), "--engine", engine),
            checkpoint.directory,
        )
        usages = [run_cold(command, checkpoint.files) for _ in range(3)]
        name = f"peak memory, {_MEMORY_THREADS} threads, {engine}"
        peak = max(usage.peak_rss_bytes for usage in usages) / MIB
        yield _figure(name, peak, "MiB", usages, target=45, detail="the highest of 3 runs")


def resident_figures(directory: str, size_bytes: int, say: Say) -> Iterator[Figure]:
    """Yield the total time of a second run over a checkpoint that is already resident."""
    say(f"resident: writing {size_bytes / GB:.2f} GB")
    checkpoint = write_streamed(
        os.path.join(directory, "resident"), shard_bytes=[size_bytes // 4] * 4
    )
    name = f"second run, {checkpoint.weight_bytes / GB:.1f} GB resident"
    run(("cat", *checkpoint.files), discard_output=True)
    share = oracle.resident_bytes(checkpoint.weight_files) / checkpoint.weight_bytes
    if share < 1 - oracle.ALLOWED_WARM:
        detail = f"only {100 * share:.1f} % stayed resident: too little memory"
        yield Figure(name, None, "s", Bound.AT_MOST, 0.3, detail)
        return
    say("resident: second runs")
    command = tool("--force", "--json", "--progress", "none", checkpoint.directory)
    usages = [run(command) for _ in range(_REPEATS)]
    reasons = {_reason(usage) for usage in usages if usage.error is None}
    detail = f"{_spread(usages)}; {', '.join(sorted(reasons))}"
    yield _figure(name, _median(usages), "s", usages, target=0.3, detail=detail)


def start_figures(directory: str, say: Say) -> Iterator[Figure]:
    """Yield how long a start takes: of `--help`, and to the first byte of cold weights."""
    say("start: --help and python -c pass")
    helps, bares = [], []
    for _ in range(_START_REPEATS):
        bares.append(run((sys.executable, "-c", "pass")))
        helps.append(run(tool("--help"), discard_output=True))
    ratio = _median(helps) / _median(bares)
    detail = f"{1000 * _median(helps):.0f} ms against {1000 * _median(bares):.0f} ms"
    yield _figure("--help to python -c pass", ratio, "x", helps, target=12, detail=detail)
    yield _first_byte(directory, say)


def _first_byte(directory: str, say: Say) -> Figure:
    """Return how long it takes from exec to the first call that reads weights."""
    name = f"first weight byte of {_SHARDS} cold shards"
    if (missing := inject.why_not()) is not None:
        return Figure(name, None, "s", Bound.AT_MOST, _FIRST_SECONDS, missing)
    say(name)
    place = os.path.join(directory, "first")
    checkpoint = write_streamed(place, shard_bytes=[4 * MIB] * _SHARDS)
    command = list(tool("--force", "--engine", "splice", checkpoint.directory))
    found = []
    for _ in range(_REPEATS):
        oracle.make_cold(checkpoint.files)
        seconds = inject.seconds_to_first(command, "sendfile", directory)
        if seconds is not None:
            found.append(seconds)
    if len(found) < _REPEATS:
        return Figure(name, None, "s", Bound.AT_MOST, _FIRST_SECONDS, "a run read nothing")
    detail = f"median of {len(found)}, {min(found):.3f} to {max(found):.3f} s"
    return Figure(name, statistics.median(found), "s", Bound.AT_MOST, _FIRST_SECONDS, detail)


def dry_run_figures(directory: str, say: Say) -> Iterator[Figure]:
    """Yield the time of `--dry-run` over many files, and how it grows with their number."""
    tiny, half_files = [_TINY_SHARD_BYTES], _MANY_FILES // 2
    for name, shard_bytes, fill in (
        (f"--dry-run, {_SHARDS} shards", tiny * _SHARDS, Fill.RANDOM),
        (
            f"--dry-run, {_SHARDS} shards of {_SHARD_BYTES / GB:.1f} GB (holes)",
            [_SHARD_BYTES] * _SHARDS,
            Fill.HOLE,
        ),
    ):
        yield _dry_run(name, directory, shard_bytes, say, fill=fill, target=0.3)
    half, full = (
        _dry_run(
            f"--dry-run, {count:,} files", directory, tiny * count, say, fill=Fill.RANDOM, target=2
        )
        for count in (half_files, _MANY_FILES)
    )
    yield from (half, full)
    yield Figure(
        f"--dry-run, {_MANY_FILES:,} to {half_files:,} files",
        full.value / half.value if full.value and half.value else None,
        "x",
        Bound.AT_MOST,
        _LINEAR,
        "at most 2 where linear, 4 where quadratic",
    )


def _dry_run(
    name: str, directory: str, shard_bytes: Sequence[int], say: Say, *, fill: Fill, target: float
) -> Figure:
    say(name)
    place = os.path.join(directory, "dry-run")
    try:
        checkpoint = write_streamed(place, shard_bytes=shard_bytes, fill=fill, durable=False)
        usages = [run(tool("--dry-run", checkpoint.directory)) for _ in range(_REPEATS)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _figure(name, _median(usages), "s", usages, target=target, detail=_spread(usages))


def _figure(
    name: str, value: float, unit: str, usages: Sequence[Usage], *, target: float, detail: str
) -> Figure:
    """Return a figure that must stay below its target; unmeasured if a run failed."""
    error = next((usage.error for usage in usages if usage.error), None)
    if error is not None:
        return Figure(name, None, unit, Bound.AT_MOST, target, error)
    return Figure(name, value, unit, Bound.AT_MOST, target, detail)


def _median(usages: Sequence[Usage]) -> float:
    return statistics.median(usage.wall_seconds for usage in usages)


def _spread(usages: Sequence[Usage]) -> str:
    walls = [usage.wall_seconds for usage in usages]
    return f"median of {len(walls)}, {min(walls):.2f} to {max(walls):.2f} s"


def _reason(usage: Usage) -> str:
    return str(json.loads(usage.stdout)["decision"]["reason"])
