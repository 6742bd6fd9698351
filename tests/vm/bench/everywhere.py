"""`auto` beside each fixed engine and vLLM's loop, on every mount of the matrix.

The machine is slow, so sizes are scaled down by four. `auto` compares the engines on a few blocks:
to it, 640 MiB in blocks of 4 MiB are what 2.5 GiB are in blocks of 16 MiB, a little more than the
smallest checkpoint for which it compares.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pytest

from tests.vm.bench import contest, loading
from tests.vm.bench.contest import AUTO, VLLM, After, Say, Standing
from tests.vm.bench.place import Place
from tests.vm.machine import MIB, Machine
from tests.vm.rows import Keeps, Skip
from tests.vm.test_matrix import ROWS

_BLOCK = "4MiB"


@dataclass(frozen=True)
class Result:
    """One row of the matrix: its standings, or the reason why it is unavailable here."""

    row: str
    standings: list[Standing]
    unavailable: str = ""

    @property
    def missed(self) -> list[str]:
        """The missed goals, in words."""
        auto, vllm = contest.find(self.standings, AUTO), contest.find(self.standings, VLLM)
        best = contest.best_engine(self.standings)
        soonest = contest.best_engine_in_all(self.standings)
        return [
            *(f"auto below {one.name}" for one in (best, vllm) if not contest.keeps_up(auto, one)),
            *(
                f"auto and a load after {one.name} and a load"
                for one in (soonest, vllm)
                if not contest.is_ready_with(auto, one)
            ),
        ]


def measure(
    place: Place, *, rounds: int, quick: bool, say: Say, mounts: Sequence[str] = ()
) -> list[Result]:
    """Return a row for each mount on which something is read, or only for `mounts`."""
    results = []
    for row in ROWS[: 3 if quick else None]:
        if mounts and row.name not in mounts:
            continue
        if row.keeps is Keeps.MEMORY or row.skip is Skip.NO_CACHE:
            continue
        if reason := row.unavailable(place.machine):
            results.append(Result(row.name, [], reason))
            continue
        say(f"  {row.name}")
        try:
            with row.mounting(place.machine) as path:
                standings = contest.contest(
                    place.machine,
                    contest.contenders("--block-size", _BLOCK),
                    partial(dropped, place.machine, path),
                    rounds=rounds,
                    say=say,
                    after=state,
                )
        except pytest.skip.Exception as reason:
            results.append(Result(row.name, [], str(reason)))
            continue
        results.append(Result(row.name, standings))
    return results


def state(machine: Machine, directory: str, files: Sequence[str]) -> After | None:
    """Return what a loader pays for the cache as it is now, None where nothing maps the files."""
    done = machine.start_process(*files, entry="mapper").end(900)
    if done.code != 0:
        return None
    found, size = done.document, sum(machine.size_bytes(files))
    huge = found["huge_bytes"]
    return After(
        populating_ms=1000 * found["populating_seconds"] * 1024 * MIB / size,
        touching_ms=1000 * found["touching_seconds"] * 1024 * MIB / size,
        huge_share=None if huge is None else huge / size,
        loading_seconds=loading.load(machine, directory),
    )


def state_table(results: list[Result]) -> list[list[str]]:
    """Return what came behind each way of warming, as rows of cells, the first with headings."""
    names = (AUTO, *contest.ENGINES, VLLM)
    rows = [["MAP_POPULATE, touching (ms/GiB), warming + load (s)", *names]]
    for one in results:
        cells = []
        for name in names if one.standings else ():
            found = contest.find(one.standings, name)
            if found.after is not None and found.sum_seconds is not None:
                cells.append(
                    f"{found.after.populating_ms:.1f}, {found.after.touching_ms:.1f}, "
                    f"{found.sum_seconds:.1f}"
                )
        if cells:
            rows.append([one.row, *cells])
    return rows


@contextmanager
def dropped(machine: Machine, path: str) -> Iterator[str]:
    """Yield the checkpoint, dropped from the machine's page cache."""
    machine.drop_caches()
    yield path


def table(results: list[Result]) -> list[list[str]]:
    """Return the results as rows of cells, the first with the headings."""
    names = (AUTO, *contest.ENGINES, VLLM)
    rows = [["", *names, "chosen", "verdict"]]
    for one in results:
        if one.unavailable:
            rows.append([one.row, *("" for _ in names), "", one.unavailable])
            continue
        found = [contest.find(one.standings, name) for name in names]
        cells = [f"{each.rate:.0f} ({each.rate_min:.0f}-{each.rate_max:.0f})" for each in found]
        rows.append([one.row, *cells, found[0].engine, "; ".join(one.missed) or "met"])
    return rows


def document(results: list[Result]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [{**asdict(one), "missed": one.missed if one.standings else []} for one in results]
