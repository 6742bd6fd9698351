"""The contenders, their runs from a proven cold cache, and the results.

Under emulation Python's start takes longer than many runs, and vLLM's loop runs in a server that
has already started: so both it and the command are forked from a process that has imported them.
vLLM's loop only reads, so only the command's reading time counts against it, by the command's own
clock; `whole_seconds` and the CPU time include its looks before and after.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from prefetch_cli.base.words import Engine
from tests.bench.throughput import in_turn
from tests.helpers.oracle import ALLOWED_WARM
from tests.vm.machine import Done, Machine, MachineError

MB = 1e6  # rates are decimal
ENGINES = tuple(engine.value for engine in Engine.fixed())
AUTO, VLLM, VMTOUCH = "auto", "vLLM's loop", "vmtouch -t"

Say = Callable[[str], None]
# Yields the directory of the cold checkpoint for the duration of a run.
Cold = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Contender:
    """One way to warm a directory's weight files."""

    name: str
    run: Callable[[Machine, str, Sequence[str]], Done]


class After(NamedTuple):
    """What a loader pays for the state in which a run leaves the cache."""

    populating_ms: float  # of MAP_POPULATE, for each GiB
    touching_ms: float  # of touching each page, for each GiB
    huge_share: float | None  # of the bytes, in folios of 2 MiB; None where that is not shown
    loading_seconds: float  # a lazy load by all ranks


# Measures what comes behind a run, of a directory.
MeasureAfter = Callable[[Machine, str, Sequence[str]], After | None]


@dataclass(frozen=True)
class Sample:
    """One run."""

    bytes: int
    seconds: float
    whole_seconds: float
    cpu_seconds: float  # of the process, in the machine
    engine: str  # the command's choice; empty for others
    after: After | None = None

    @property
    def rate(self) -> float:
        """The rate in MB/s."""
        return self.bytes / MB / self.seconds


@dataclass(frozen=True)
class Standing:
    """The runs of one contender: medians, with the slowest and the fastest."""

    name: str
    runs: int
    rate: float  # MB/s
    rate_min: float
    rate_max: float
    whole_seconds: float
    cpu_seconds_per_gb: float
    engine: str
    after: After | None = None  # medians; None where it was not measured
    # Warming and loading, by the clock of the warming alone: what a user waits for.
    sum_seconds: float | None = None
    sum_min: float | None = None
    sum_max: float | None = None


def command(name: str, *options: str) -> Contender:
    """Return the command with these options as a contender."""

    def run(machine: Machine, directory: str, _files: Sequence[str]) -> Done:
        words = ("--force", "--json", "--progress", "none", *options, directory)
        done = machine.tool(*words, seconds=900)
        if done.code != 0 or done.document["result"] is None:
            raise MachineError(f"{name} read nothing: {done}")
        return done

    return Contender(name, run)


def contenders(*options: str) -> list[Contender]:
    """Return the command with its own choice and with each engine, and vLLM's loop."""
    return [
        command(AUTO, *options),
        *(command(engine, "--engine", engine, *options) for engine in ENGINES),
        Contender(VLLM, _vllm),
    ]


def vmtouch() -> Contender:
    """Return vmtouch, which faults pages in one by one."""
    return Contender(
        VMTOUCH, lambda machine, _, files: machine.run("vmtouch", "-qt", *files, seconds=900)
    )


def _vllm(machine: Machine, _directory: str, files: Sequence[str]) -> Done:
    process = machine.start_process(*files, entry="vllm-loop")
    done = process.end(900)
    if done.code != 0:
        raise MachineError(f"vLLM's loop failed: {done}")
    return done


def contest(
    machine: Machine,
    entrants: Sequence[Contender],
    cold: Cold,
    *,
    rounds: int,
    say: Say,
    after: MeasureAfter = lambda *_: None,
) -> list[Standing]:
    """Return the contenders' standings after this many rounds, each in a different order.

    Raises MachineError if the checkpoint is not cold before a run, or if a run fails.
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in entrants}
    # One run that does not count warms the caches below the mount, on the server and on the host.
    with cold() as directory:
        _run(machine, entrants[-1], directory, weights(machine, directory))
    for number in range(1, rounds + 1):
        for one in in_turn(entrants, number, rounds):
            with cold() as directory:
                files = weights(machine, directory)
                sample = _run(machine, one, directory, files)
                sample = replace(sample, after=after(machine, directory, files))
            samples[one.name].append(sample)
            say(
                f"    {number}/{rounds} {one.name:12} {sample.rate:7.1f} MB/s {sample.engine:8}"
                f"{'' if sample.after is None else _shown(sample.after)}"
            )
    return [_standing(one.name, samples[one.name]) for one in entrants]


def weights(machine: Machine, directory: str) -> list[str]:
    """Return a directory's weight files, in the machine."""
    return machine.sh(f"ls -v {directory}/*.safetensors").splitlines()


def resident_share(machine: Machine, files: Sequence[str]) -> float:
    """Return the resident share of the files, 0 to 1, by fincore."""
    return sum(machine.resident_bytes(files)) / sum(machine.size_bytes(files))


def _run(machine: Machine, one: Contender, directory: str, files: Sequence[str]) -> Sample:
    share = resident_share(machine, files)
    if share > ALLOWED_WARM:
        raise MachineError(f"expected cold files, found {100 * share:.1f} % resident")
    done = one.run(machine, directory, files)
    size = sum(machine.size_bytes(files))
    engine, seconds = "", done.seconds
    if done.out.startswith("{"):
        # Resident pages, one of each header, are not read again; --time-limit leaves out more.
        result = done.document["result"]
        size, seconds, engine = result["bytes_read"], result["elapsed_seconds"], result["engine"]
    return Sample(size, seconds, done.seconds, done.cpu_seconds, engine)


def _standing(name: str, samples: Sequence[Sample]) -> Standing:
    rates = [sample.rate for sample in samples]
    behind = [sample.after for sample in samples if sample.after is not None]
    sums = [one.seconds + one.after.loading_seconds for one in samples if one.after is not None]
    return Standing(
        name=name,
        runs=len(samples),
        rate=statistics.median(rates),
        rate_min=min(rates),
        rate_max=max(rates),
        whole_seconds=statistics.median(sample.whole_seconds for sample in samples),
        cpu_seconds_per_gb=statistics.median(
            1000 * MB * sample.cpu_seconds / sample.bytes for sample in samples
        ),
        engine="/".join(sorted({sample.engine for sample in samples} - {""})),
        after=_medians(behind) if behind else None,
        sum_seconds=statistics.median(sums) if sums else None,
        sum_min=min(sums, default=None),
        sum_max=max(sums, default=None),
    )


def _medians(behind: Sequence[After]) -> After:
    shares = [one.huge_share for one in behind if one.huge_share is not None]
    return After(
        populating_ms=statistics.median(one.populating_ms for one in behind),
        touching_ms=statistics.median(one.touching_ms for one in behind),
        huge_share=statistics.median(shares) if shares else None,
        loading_seconds=statistics.median(one.loading_seconds for one in behind),
    )


def _shown(after: After) -> str:
    return (
        f" then MAP_POPULATE {after.populating_ms:.1f}, touching {after.touching_ms:.1f} ms/GiB, "
        f"load {after.loading_seconds:.1f} s"
    )


def find(standings: Sequence[Standing], name: str) -> Standing:
    """Return the standing of this contender."""
    return next(one for one in standings if one.name == name)


def best_engine(standings: Sequence[Standing]) -> Standing:
    """Return the standing of the fixed engine with the highest median."""
    return max((find(standings, name) for name in ENGINES), key=lambda one: one.rate)


def best_engine_in_all(standings: Sequence[Standing]) -> Standing:
    """Return the standing of the fixed engine with the shortest warming and loading."""
    engines = [find(standings, name) for name in ENGINES]
    return min(engines, key=lambda one: inf if one.sum_seconds is None else one.sum_seconds)


def is_ready_with(one: Standing, other: Standing) -> bool:
    """Whether one has warmed and loaded within the other's range of runs, or before it."""
    if one.sum_seconds is None or one.sum_min is None:
        return True
    if other.sum_seconds is None or other.sum_max is None:
        return True
    return one.sum_seconds <= other.sum_max or one.sum_min <= other.sum_seconds


def keeps_up(one: Standing, other: Standing) -> bool:
    """Whether one is within the other's range of runs, or above it."""
    return one.rate >= other.rate_min or one.rate_max >= other.rate
