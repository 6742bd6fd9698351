"""End to end: tensor-parallel processes that load lazily over NFS, without and with the warmer."""

import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

from tests.helpers.command import ROOT
from tests.vm import nfs
from tests.vm.bench import contest
from tests.vm.bench.contest import Say
from tests.vm.bench.latency import cold_mount
from tests.vm.bench.place import Place
from tests.vm.machine import MIB, Machine, MachineError

RANKS = 4
RSIZE_BYTES = 1024 * 1024
GOALS = {10: 3.0, 50: 8.0}  # by the round trip in ms
SIZES = {10: 1024 * MIB, 50: 512 * MIB}
_GO = "/run/go"


@dataclass(frozen=True)
class Result:
    """Medians, in seconds, on one link."""

    round_trip_ms: int
    checkpoint_bytes: int
    runs: int
    cold_seconds: float  # the loaders alone
    warming_seconds: float  # the command before them
    reading_seconds: float  # the part of it spent reading
    warm_seconds: float  # the loaders after it

    @property
    def ratio(self) -> float:
        """How many times as long loading takes without the warmer."""
        return self.cold_seconds / (self.warming_seconds + self.warm_seconds)

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the goal."""
        return self.ratio >= GOALS[self.round_trip_ms]


def measure(place: Place, *, rounds: int, quick: bool, say: Say) -> list[Result]:
    """Return a result for each link; timing starts once the loaders have imported everything."""
    machine = place.machine
    results = []
    with nfs.serving(machine):
        for round_trip_ms in list(GOALS)[: 1 if quick else None]:
            size = 128 * MIB if quick else SIZES[round_trip_ms]
            path = place.checkpoint("tp", [size // 4] * 4)
            link = (machine, round_trip_ms / 1000, RSIZE_BYTES, path)
            cold, warming, reading, warm = [], [], [], []
            for number in range(1, rounds + 1):
                with cold_mount(*link) as directory:
                    cold.append(load(machine, directory))
                with cold_mount(*link) as directory:
                    done = contest.command("auto").run(machine, directory, ())
                    warming.append(done.seconds)
                    reading.append(done.document["result"]["elapsed_seconds"])
                    warm.append(load(machine, directory))
                say(
                    f"    {round_trip_ms} ms {number}/{rounds}: cold {cold[-1]:.1f} s, warmer "
                    f"{warming[-1]:.1f} s (reading {reading[-1]:.1f}), warm {warm[-1]:.1f} s"
                )
            results.append(
                Result(
                    round_trip_ms,
                    size,
                    rounds,
                    *map(statistics.median, (cold, warming, reading, warm)),
                )
            )
    return results


def load(machine: Machine, directory: str) -> float:
    """Return the seconds from the start signal until the last rank has loaded its slices."""
    machine.run("rm", "-f", _GO)
    ranks = [
        machine.start_process(
            sys.executable, "-m", "tests.vm.bench.loader", directory, str(rank), str(RANKS), _GO,
            folder=ROOT,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    for rank in ranks:
        rank.await_text("ready", seconds=300)
    began = float(machine.sh(f"touch {_GO}; cut -d ' ' -f 1 /proc/uptime"))
    ends = []
    for rank in ranks:
        done = rank.end(1200)
        if done.code != 0:
            raise MachineError(f"a loader failed: {done}")
        ends.append(float(done.out.split()[-1]))
    return max(ends) - began


def table(results: list[Result]) -> list[list[str]]:
    """Return the results as rows of cells, the first with the headings."""
    rows = [["round trip", "size", "loaders, cold", "warmer", "then warm", "in all", "goal"]]
    rows += [
        [
            f"{one.round_trip_ms} ms",
            f"{one.checkpoint_bytes // MIB} MiB",
            f"{one.cold_seconds:.1f} s",
            f"{one.warming_seconds:.1f} s (reading {one.reading_seconds:.1f})",
            f"{one.warm_seconds:.1f} s",
            f"{one.ratio:.1f} x",
            f"{GOALS[one.round_trip_ms]:g} x, {'met' if one.met else 'missed'}",
        ]
        for one in results
    ]
    return rows


def document(results: list[Result]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in results]
