"""Threads x block size x engine, on NFS at 1, 10 and 50 ms and on the local disk."""

import itertools
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tests.bench.run import ROOT, run_cold, tool
from tests.bench.throughput import in_turn
from tests.helpers import checkpoints
from tests.vm import nfs
from tests.vm.bench import contest
from tests.vm.bench.contest import ENGINES, MB, Say
from tests.vm.bench.latency import cold_mount
from tests.vm.bench.place import Place
from tests.vm.machine import MIB, Machine

THREADS = (1, 8, 32)
BLOCKS = ("1MiB", "16MiB", "64MiB")
ROUND_TRIPS_MS = (1, 10, 50)
RSIZE_BYTES = 1024 * 1024
_FILE_BYTES = 256 * MIB
_HERE_BYTES = 2048 * MIB
_LIMIT = "3s"  # slow combinations are slow from the first second


@dataclass(frozen=True)
class Cell:
    """One combination on one storage: the median rate in MB/s, its range, and the CPU time."""

    storage: str
    threads: int
    block: str
    engine: str
    rate: float
    rate_min: float
    rate_max: float
    cpu_seconds_per_gb: float


def options(threads: int, block: str, engine: str) -> tuple[str, ...]:
    """Return the flags of a combination."""
    return ("--threads", str(threads), "--block-size", block, "--engine", engine)


def combinations() -> list[tuple[int, str, str]]:
    """Return every combination of threads, block size and engine."""
    return list(itertools.product(THREADS, BLOCKS, ENGINES))


def measure(place: Place, *, rounds: int, quick: bool, say: Say) -> list[Cell]:
    """Return a cell for each combination at each round trip, one file over NFSv4.2."""
    machine = place.machine
    path = place.checkpoint("choice", [128 * MIB if quick else _FILE_BYTES])
    cells = []
    with nfs.serving(machine):
        for round_trip_ms in ROUND_TRIPS_MS[: 1 if quick else None]:
            say(f"  {round_trip_ms} ms")
            chosen = combinations()[: 4 if quick else None]
            entrants = [
                contest.command("/".join(map(str, each)), "--time-limit", _LIMIT, *options(*each))
                for each in chosen
            ]
            with cold_mount(machine, round_trip_ms / 1000, RSIZE_BYTES, path) as directory:
                standings = contest.contest(
                    machine, entrants, partial(_dropped, machine, directory), rounds=rounds, say=say
                )
            for each, one in zip(chosen, standings, strict=True):
                figures = (one.rate, one.rate_min, one.rate_max, one.cpu_seconds_per_gb)
                cells.append(Cell(f"NFS, {round_trip_ms} ms", *each, *figures))
    return cells


@contextmanager
def _dropped(machine: Machine, directory: str) -> Iterator[str]:
    # Drop the files and keep the mount: so many mounts would take longer than the reading.
    machine.sh(f"for file in {directory}/*; do dd if=$file iflag=nocache count=0 2>&1; done")
    yield directory


def measure_here(*, rounds: int, quick: bool, say: Say) -> list[Cell]:
    """Return a cell for each combination on this host's disk, outside any machine."""
    os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
    folder = tempfile.mkdtemp(prefix="here-", dir=os.path.join(ROOT, "build"))
    try:
        model = checkpoints.write_streamed(
            f"{folder}/model", shard_bytes=[256 * MIB if quick else _HERE_BYTES]
        )
        chosen = combinations()[: 4 if quick else None]
        samples: dict[tuple[int, str, str], list[tuple[float, float]]] = {}
        for number in range(1, rounds + 1):
            for each in in_turn(chosen, number, rounds):
                words = ("--force", "--json", "--progress", "none", *options(*each))
                usage = run_cold(tool(*words, model.directory), model.files)
                result = json.loads(usage.stdout)["result"]
                rate = result["bytes_read"] / MB / result["elapsed_seconds"]
                cpu = usage.cpu_seconds / result["bytes_read"] * 1000 * MB
                samples.setdefault(each, []).append((rate, cpu))
                say(f"    {number}/{rounds} {each} {rate:.0f} MB/s")
    finally:
        shutil.rmtree(folder)
    return [
        Cell(
            "local disk",
            *each,
            statistics.median(rate for rate, _ in samples[each]),
            min(rate for rate, _ in samples[each]),
            max(rate for rate, _ in samples[each]),
            statistics.median(cpu for _, cpu in samples[each]),
        )
        for each in chosen
    ]


def table(cells: list[Cell]) -> list[list[str]]:
    """Return the cells as a table: a row for each storage, engine and block size."""
    rows = [["storage", "engine", "block", *(f"{threads} threads" for threads in THREADS)]]
    found: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for one in cells:
        found.setdefault((one.storage, one.engine, one.block), {})[one.threads] = one
    for heads, by_threads in found.items():
        rates = [f"{by_threads[each].rate:.0f}" if each in by_threads else "" for each in THREADS]
        rows.append([*heads, *rates])
    return rows


def document(cells: list[Cell]) -> list[dict[str, Any]]:
    """Return the cells as values for JSON."""
    return [asdict(one) for one in cells]
