"""A checkpoint that does not fit, loaded lazily over NFS: alone, with its head, behind a window.

What the client reads is what its own count of the mount says, and its cache is proven empty before
each run. The cgroup holds the loaders, the warmer, and the page cache of what they read.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.throughput import in_turn
from tests.helpers.command import ROOT
from tests.helpers.oracle import ALLOWED_WARM
from tests.uml import link
from tests.uml.machine import UserMode
from tests.uml.rows import GIB, MIB, Row
from tests.vm import nfs
from tests.vm.bench.contest import Say, resident_share, weights
from tests.vm.machine import Machine, MachineError

SHARDS = 16
SIZE_GIB = 8
QUICK_BYTES = GIB
LIMIT_SHARE = 3 / 8  # of the checkpoint: 3 GiB of 8
# Where the loader waits for the network, and where reading ahead has nothing to gain.
ROUND_TRIPS_MS = (10, 0)
ALONE, HEAD, WINDOW = "alone", "--partial", "--window auto"
FLAGS = {HEAD: ("--partial",), WINDOW: ("--window", "auto")}
FAR_GOALS = {ALONE: 3.0, HEAD: 2.0}  # times as fast as these
WIRE_GOAL, SLOWER_GOAL = 1.05, 1.05
_GROUP = "/sys/fs/cgroup/loaders"
_SECONDS = 1800


@dataclass(frozen=True)
class Run:
    """One load by all ranks."""

    round_trip_ms: int
    way: str
    seconds: float  # of the whole command
    rank_seconds: tuple[float, ...]  # of each rank, by its own clock
    cpu_seconds: float  # the host's, of the whole machine: client, link and server
    wire_bytes: int
    peak_bytes: int  # the most that the cgroup held
    killed: int  # processes, for lack of memory
    said: tuple[str, ...]  # the command's lines about its window


@dataclass(frozen=True)
class Result:
    """All runs over one checkpoint."""

    size_bytes: int
    limit_bytes: int
    rounds: int
    runs: list[Run]

    def of(self, round_trip_ms: int, way: str) -> list[Run]:
        """Return the runs of one way over one link."""
        return [one for one in self.runs if (one.round_trip_ms, one.way) == (round_trip_ms, way)]

    def seconds(self, round_trip_ms: int, way: str) -> float:
        """Return the median time of the whole command."""
        return statistics.median(one.seconds for one in self.of(round_trip_ms, way))

    def rank_seconds(self, round_trip_ms: int, way: str) -> list[float]:
        """Return the median time of each rank."""
        runs = (one.rank_seconds for one in self.of(round_trip_ms, way))
        return [statistics.median(seconds) for seconds in zip(*runs, strict=True)]

    def slower(self, round_trip_ms: int, way: str) -> float:
        """How many times as long the rank takes that suffers most."""
        behind = self.rank_seconds(round_trip_ms, way)
        alone = self.rank_seconds(round_trip_ms, ALONE)
        return max(one / other for one, other in zip(behind, alone, strict=True))


def limit_bytes(size_bytes: int) -> int:
    """Return the memory of the cgroup."""
    return int(size_bytes * LIMIT_SHARE)


def memory_bytes(size_bytes: int) -> int:
    """Return the machine's memory: its server's files fill less than the 80 % that they may."""
    return size_bytes + limit_bytes(size_bytes) + 2 * GIB


def measure(machine: UserMode, *, size_bytes: int, rounds: int, say: Say) -> Result:
    """Return the runs of all ways in turn, over each link."""
    path = f"/srv/window-{size_bytes // MIB}"
    words = f"write_streamed({path!r}, shard_bytes=[{size_bytes // SHARDS}] * {SHARDS})"
    script = f"from tests.helpers.checkpoints import write_streamed; {words}"
    machine.run(sys.executable, "-c", script, folder=ROOT, seconds=600)
    runs = []
    for round_trip_ms in ROUND_TRIPS_MS:
        with link.mounted(machine, Row(round_trip_ms)) as point:
            directory = point + path.removeprefix("/srv")
            for number in range(1, rounds + 1):
                for way in in_turn((ALONE, *FLAGS), number, rounds):
                    limit = limit_bytes(size_bytes)
                    runs.append(_load(machine, point, directory, round_trip_ms, way, limit))
                    say(f"    {number}/{rounds} {_said(runs[-1])}")
    return Result(size_bytes, limit_bytes(size_bytes), rounds, runs)


def _load(
    machine: UserMode, point: str, directory: str, round_trip_ms: int, way: str, limit: int
) -> Run:
    files = weights(machine, directory)
    machine.drop_caches()
    if (share := resident_share(machine, files)) > ALLOWED_WARM:
        raise MachineError(f"expected cold files, found {100 * share:.1f} % resident")
    machine.sh(f"mkdir {_GROUP}; echo {limit} > {_GROUP}/memory.max")
    command = [sys.executable, "-m", "tests.uml.ranks", directory]
    if way in FLAGS:
        command = [sys.executable, "-m", "prefetch_cli", *FLAGS[way], directory, "--", *command]
    before, cpu_before = nfs.wire_bytes(machine, point), machine.cpu_seconds()
    try:
        done = machine.run(*command, cgroup=_GROUP, folder=ROOT, seconds=_SECONDS)
        wire_bytes = nfs.wire_bytes(machine, point) - before
        cpu_seconds = machine.cpu_seconds() - cpu_before
        peak = int(machine.read(f"{_GROUP}/memory.peak"))
        events = dict(
            line.split() for line in machine.sh(f"cat {_GROUP}/memory.events").splitlines()
        )
    finally:
        _remove(machine)
    ranks = sorted(map(json.loads, done.out.splitlines()), key=lambda one: int(one["rank"]))
    whole = sum(machine.size_bytes(files))
    if sum(one["loaded_bytes"] for one in ranks) < 0.99 * whole:
        raise MachineError(f"expected {whole:,} bytes loaded by all ranks, found {done}")
    return Run(
        round_trip_ms,
        way,
        done.seconds,
        tuple(one["seconds"] for one in ranks),
        cpu_seconds,
        wire_bytes,
        peak,
        int(events["oom_kill"]),
        tuple(line for line in done.err.splitlines() if "window" in line),
    )


def _remove(machine: Machine) -> None:
    """Remove the cgroup once the warmer has left it, a moment after COMMAND."""
    for _ in range(50):
        if machine.run("rmdir", _GROUP, check=False).code == 0:
            return
        time.sleep(0.1)
    raise MachineError(f"{_GROUP} still has processes")


def _said(one: Run) -> str:
    ranks = ", ".join(f"{seconds:.1f}" for seconds in one.rank_seconds)
    return (
        f"{one.round_trip_ms} ms, {one.way}: {one.seconds:.1f} s (ranks {ranks}), "
        f"{one.wire_bytes / MIB:.0f} MiB on the wire, at most {one.peak_bytes / MIB:.0f} MiB"
    )


def table(result: Result) -> list[list[str]]:
    """Return the result as rows of cells, the first with the headings."""
    cells = [
        ["round trip", "", "in all", "alone is", "a rank takes", "CPU", "on the wire", "memory"]
    ]
    for round_trip_ms in ROUND_TRIPS_MS:
        name = f"{round_trip_ms} ms"
        for way in (ALONE, *FLAGS):
            runs = result.of(round_trip_ms, way)
            seconds = [one.seconds for one in runs]
            alone = result.seconds(round_trip_ms, ALONE)
            wire = max(one.wire_bytes for one in runs) / result.size_bytes
            cells.append(
                [
                    name,
                    way,
                    f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
                    f"{alone / statistics.median(seconds):.2f} x",
                    f"{result.slower(round_trip_ms, way):.2f} x",
                    f"{statistics.median(one.cpu_seconds for one in runs):.1f} s",
                    f"{wire:.3f} x",
                    f"{max(one.peak_bytes for one in runs) / MIB:.0f} MiB",
                ]
            )
            name = ""
    return cells


def misses(result: Result) -> list[str]:
    """Return the goals that were missed, in words."""
    far, near = ROUND_TRIPS_MS
    window = result.seconds(far, WINDOW)
    found = [
        f"{far} ms: {result.seconds(far, way) / window:.2f} x as fast as {way}, expected {goal:g} x"
        for way, goal in FAR_GOALS.items()
        if result.seconds(far, way) < goal * window
    ]
    if (slower := result.slower(near, WINDOW)) > SLOWER_GOAL:
        found.append(f"{near} ms: a rank takes {slower:.2f} x as long as alone")
    return found + _excesses(result, [one for one in result.runs if one.way == WINDOW])


def _excesses(result: Result, runs: Sequence[Run]) -> list[str]:
    found = []
    for one in runs:
        wire = one.wire_bytes / result.size_bytes
        if wire > WIRE_GOAL:
            found.append(f"{one.round_trip_ms} ms: {wire:.3f} x the checkpoint on the wire")
        if one.peak_bytes > result.limit_bytes or one.killed:
            found.append(f"{one.round_trip_ms} ms: {one.peak_bytes:,} bytes, {one.killed} killed")
    return found
