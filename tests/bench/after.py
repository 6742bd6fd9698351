"""What a user waits for, warming and loading, and the state in which the page cache is left.

Who warms a file decides how it lies in the cache: in single pages, which a loader maps one by one,
or in large folios. So every way of warming is measured with what comes behind it: MAP_POPULATE of
all, a touch of each page, and a lazy load by four ranks, each its own slices.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.contenders import PREFETCH, VLLM, Contender, Role
from tests.bench.figures import Bound, Figure
from tests.bench.run import ROOT, run, run_cold
from tests.bench.throttle import ThrottleError, own_disk
from tests.bench.throughput import GB, Say, in_turn
from tests.helpers.checkpoints import BuiltCheckpoint, write_streamed

RANKS = 4
_GIB = 1 << 30
_KIB = 1024
_SHARDS = 4
_ROOM = 1.3  # for btrfs, beside the files
_MAPPER = os.path.join(ROOT, "tests", "bench", "mapper.py")


class _Kind(NamedTuple):
    """Where files lie."""

    filesystem: str
    window_kib: int  # of read-ahead
    overlaid: bool = False
    spins: bool = False  # or says so, like most disks of virtual machines

    def __str__(self) -> str:
        more = ", overlay" * self.overlaid + ", says that it spins" * self.spins
        return f"{self.filesystem}, read-ahead {self.window_kib} KiB{more}"


_PLACES = (
    _Kind("ext4", 128),
    _Kind("ext4", 8192),
    _Kind("xfs", 128),
    _Kind("btrfs", 128),
    _Kind("ext4", 128, overlaid=True),
    _Kind("ext4", 8192, spins=True),
)


@dataclass(frozen=True)
class Run:
    """One way of warming, and what came behind it."""

    contender: str
    warming_seconds: float
    cpu_seconds: float
    populating_seconds: float
    touching_seconds: float
    loading_seconds: float
    huge_share: float | None  # of the bytes, in folios of 2 MiB; None where that is not shown

    @property
    def seconds(self) -> float:
        """What a user waits for."""
        return self.warming_seconds + self.loading_seconds


def after_figures(
    directory: str, contenders: Sequence[Contender], size_bytes: int, say: Say, *, rounds: int
) -> Iterator[Figure]:
    """Yield the figures of each file system."""
    for kind in _PLACES:
        name = str(kind)
        try:
            with _place(directory, kind, size_bytes) as checkpoint:
                runs = list(_measure(name, checkpoint, contenders, say, rounds=rounds))
        except ThrottleError as cause:
            yield Figure(f"warming and loading, {name}", None, "x", Bound.AT_LEAST, 1, str(cause))
            continue
        yield from _figures(name, runs, size_bytes)


@contextmanager
def _place(directory: str, kind: _Kind, size_bytes: int) -> Iterator[BuiltCheckpoint]:
    shards = [size_bytes // _SHARDS] * _SHARDS
    with own_disk(
        directory,
        int(size_bytes * _ROOM),
        read_ahead_bytes=kind.window_kib * _KIB,
        kind=kind.filesystem,
        spins=kind.spins,
    ) as folder:
        lower = os.path.join(folder, "lower")
        os.mkdir(lower)
        checkpoint = write_streamed(os.path.join(lower, "model"), shard_bytes=shards)
        if not kind.overlaid:
            yield checkpoint
            return
        point, empty = os.path.join(directory, "overlay"), os.path.join(directory, "empty")
        os.mkdir(point)
        os.mkdir(empty)
        options = f"lowerdir={lower}:{empty}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, point], check=True)
        try:
            yield checkpoint.at(os.path.join(point, "model"))
        finally:
            subprocess.run(["umount", point], check=True)
            shutil.rmtree(point)
            shutil.rmtree(empty)


def _measure(
    name: str,
    checkpoint: BuiltCheckpoint,
    contenders: Sequence[Contender],
    say: Say,
    *,
    rounds: int,
) -> Iterator[Run]:
    for number in range(1, rounds + 1):
        for contender in in_turn(contenders, number, rounds):
            usage = run_cold(
                contender.command(checkpoint),
                checkpoint.files,
                input_text=contender.input_text(checkpoint),
                discard_output=contender.discards_output,
            )
            if usage.error is not None:
                say(f"after: {name}: {contender.name.strip()} failed: {usage.error}")
                continue
            warming = contender.timed(usage, checkpoint).wall_seconds
            if contender.role is Role.LIMIT:
                yield Run(contender.name, warming, usage.cpu_seconds, 0, 0, 0, None)
                continue
            mapped = json.loads(run((sys.executable, _MAPPER, *checkpoint.weight_files)).stdout)
            huge = mapped["huge_bytes"]
            found = Run(
                contender.name,
                warming,
                usage.cpu_seconds,
                mapped["populating_seconds"],
                mapped["touching_seconds"],
                load(checkpoint.directory),
                None if huge is None else huge / checkpoint.weight_bytes,
            )
            say(f"after: {name}: round {number}/{rounds}  {_line(found, checkpoint)}")
            yield found


def load(directory: str) -> float:
    """Return how long a lazy load by all ranks takes, from the moment when all have imported."""
    with tempfile.TemporaryDirectory(prefix="load-") as place:
        go = os.path.join(place, "go")
        command = [sys.executable, "-m", "tests.vm.bench.loader", directory]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(RANKS), go], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for rank in range(RANKS)
        ]
        for rank in ranks:
            assert rank.stdout is not None
            rank.stdout.readline()
        began = time.perf_counter()
        with open(go, "w", encoding="ascii"):
            pass
        for rank in ranks:
            rank.communicate(timeout=600)
        ended = time.perf_counter()
        if any(rank.returncode for rank in ranks):
            raise RuntimeError(f"a loader of {directory} failed")
        return ended - began


def _figures(name: str, runs: Sequence[Run], size_bytes: int) -> Iterator[Figure]:
    medians = {
        contender: _median([run for run in runs if run.contender == contender])
        for contender in dict.fromkeys(run.contender for run in runs)
    }
    ours, theirs = medians.get(PREFETCH), medians.get(VLLM)
    engines = [one for one in medians if one == PREFETCH or one.startswith(" ")]
    peers = [one for key, one in medians.items() if key not in engines and one.loading_seconds]
    limit = next((one for one in medians.values() if not one.loading_seconds), None)
    if ours is None or not peers:
        yield Figure(f"warming and loading, {name}", None, "x", Bound.AT_LEAST, 1, "needs a peer")
        return
    best = min(peers, key=lambda one: one.seconds)
    yield Figure(
        f"warming and loading, best peer's time to ours, {name}",
        best.seconds / ours.seconds,
        "x",
        Bound.AT_LEAST,
        1.0,
        "; ".join(_sum(one) for one in sorted(medians.values(), key=lambda one: one.seconds)),
    )
    if limit is not None:
        # Behind the engine whose pages load fastest.
        fastest = min(one.loading_seconds for one in medians.values() if one.loading_seconds)
        yield Figure(
            f"warming and loading to direct reads and the fastest load, {name}",
            ours.seconds / (limit.warming_seconds + fastest),
            "x",
            Bound.AT_MOST,
            1.1,
            f"{ours.seconds:.2f} against {limit.warming_seconds:.2f} + {fastest:.2f} s",
        )
    per_gib = 1000 * _GIB / size_bytes
    yield Figure(
        f"MAP_POPULATE behind it, {name}",
        ours.populating_seconds * per_gib,
        "ms/GiB",
        Bound.AT_MOST,
        1.0,
        "; ".join(
            f"{one.contender.strip()} {one.populating_seconds * per_gib:.1f}, "
            f"touching {one.touching_seconds * per_gib:.1f}{_huge(one)}"
            for one in medians.values()
            if one.loading_seconds
        ),
    )
    if theirs is not None:
        yield Figure(
            f"MAP_POPULATE to that behind vLLM's loop, {name}",
            ours.populating_seconds / theirs.populating_seconds,
            "x",
            Bound.AT_MOST,
            0.25,
        )
        yield Figure(
            f"CPU to vLLM's loop, {name}",
            ours.cpu_seconds / theirs.cpu_seconds,
            "x",
            Bound.AT_MOST,
            0.2,
            f"{ours.cpu_seconds:.2f} against {theirs.cpu_seconds:.2f} s",
        )


def _median(runs: Sequence[Run]) -> Run:
    def of(values: Sequence[float]) -> float:
        return statistics.median(values)

    huge = [run.huge_share for run in runs if run.huge_share is not None]
    return Run(
        runs[0].contender,
        of([run.warming_seconds for run in runs]),
        of([run.cpu_seconds for run in runs]),
        of([run.populating_seconds for run in runs]),
        of([run.touching_seconds for run in runs]),
        of([run.loading_seconds for run in runs]),
        of(huge) if huge else None,
    )


def _line(found: Run, checkpoint: BuiltCheckpoint) -> str:
    rate = checkpoint.weight_bytes / GB / found.warming_seconds
    return (
        f"{found.contender.strip():18} {found.warming_seconds:6.3f} s {rate:5.2f} GB/s  then "
        f"MAP_POPULATE {1000 * found.populating_seconds:6.1f} ms, touching "
        f"{1000 * found.touching_seconds:6.1f} ms, load {found.loading_seconds:5.2f} s"
        f"{_huge(found)}"
    )


def _sum(found: Run) -> str:
    return f"{found.contender.strip()} {found.warming_seconds:.2f} + {found.loading_seconds:.2f} s"


def _huge(found: Run) -> str:
    if found.huge_share is None:
        return ""
    return f", {100 * found.huge_share:.0f} % in folios of 2 MiB"
