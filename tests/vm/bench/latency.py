"""The engines on NFSv4.2 behind a delay, beside vLLM's loop and vmtouch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tests.vm import nfs
from tests.vm.bench import contest
from tests.vm.bench.contest import AUTO, VLLM, Say, Standing
from tests.vm.bench.place import BALLAST, Place
from tests.vm.machine import MIB, Machine

ROUND_TRIPS_MS = (10, 50)
RSIZES = (1024 * 1024, 512 * 1024, 128 * 1024)
LAYOUTS = {"4 files": 4, "1 file": 1}
VMTOUCH_BYTES = 64 * MIB
# Ratios to vLLM's loop, by layout and round trip in ms.
GOALS = {("4 files", 10): 1.0, ("4 files", 50): 1.0, ("1 file", 10): 1.6, ("1 file", 50): 2.5}
CPU_GOAL, VMTOUCH_GOAL = 0.7, 5.0


@dataclass(frozen=True)
class Result:
    """One row: a link, a request size and a layout."""

    round_trip_ms: int
    rsize_bytes: int
    layout: str
    standings: list[Standing]
    vmtouch: Standing

    @property
    def ratio(self) -> float:
        """The rate relative to vLLM's loop."""
        return self._find(AUTO).rate / self._find(VLLM).rate

    @property
    def cpu_ratio(self) -> float:
        """The CPU seconds relative to vLLM's loop."""
        return self._find(AUTO).cpu_seconds_per_gb / self._find(VLLM).cpu_seconds_per_gb

    @property
    def vmtouch_ratio(self) -> float:
        """The rate relative to vmtouch."""
        return self._find(AUTO).rate / self.vmtouch.rate

    @property
    def missed(self) -> list[str]:
        """The missed goals, in words."""
        found = []
        goal = GOALS[self.layout, self.round_trip_ms]
        auto, vllm = self._find(AUTO), self._find(VLLM)
        # A goal of 1, "never below", compares the ranges; a goal above 1 compares the medians.
        if self.ratio < goal and not (goal == 1 and contest.keeps_up(auto, vllm)):
            found.append(f"{self.ratio:.2f} x vLLM, goal {goal}")
        if self.cpu_ratio > CPU_GOAL:
            found.append(f"CPU {self.cpu_ratio:.2f} x vLLM, goal {CPU_GOAL}")
        if self.layout == "4 files" and self.vmtouch_ratio < VMTOUCH_GOAL:
            found.append(f"{self.vmtouch_ratio:.1f} x vmtouch, goal {VMTOUCH_GOAL}")
        best = contest.best_engine(self.standings)
        if not contest.keeps_up(auto, best):
            found.append(f"auto below {best.name}")
        return found

    def _find(self, name: str) -> Standing:
        return contest.find(self.standings, name)


def measure(place: Place, *, rounds: int, quick: bool, say: Say) -> list[Result]:
    """Return a row for each link, request size and layout."""
    machine = place.machine
    results = []
    with nfs.serving(machine):
        for round_trip_ms in ROUND_TRIPS_MS[: 1 if quick else None]:
            size = (64 if quick else 512 if round_trip_ms <= 10 else 256) * MIB
            for layout, count in LAYOUTS.items():
                large = place.checkpoint(f"{layout[0]}x", [size // count] * count)
                small = place.checkpoint(f"{layout[0]}s", [VMTOUCH_BYTES // count] * count)
                for rsize_bytes in RSIZES[: 1 if quick else None]:
                    say(f"  {round_trip_ms} ms, rsize {rsize_bytes // 1024} KiB, {layout}")
                    link = (machine, round_trip_ms / 1000, rsize_bytes)
                    standings = contest.contest(
                        machine,
                        contest.contenders(),
                        partial(cold_mount, *link, large),
                        rounds=rounds,
                        say=say,
                    )
                    (touched,) = contest.contest(
                        machine,
                        [contest.vmtouch()],
                        partial(cold_mount, *link, small),
                        rounds=rounds,
                        say=say,
                    )
                    results.append(Result(round_trip_ms, rsize_bytes, layout, standings, touched))
    return results


@contextmanager
def cold_mount(
    machine: Machine, round_trip_seconds: float, rsize_bytes: int, path: str
) -> Iterator[str]:
    """Yield the checkpoint on a fresh mount, so that the client's cache is empty.

    The server's cache and the connection are warm: this measures the link, neither the disk nor
    TCP's slow start.
    """
    machine.sh(f"cat {path}/* {BALLAST}/* > /dev/null")
    with nfs.mounted(machine, rsize_bytes=rsize_bytes) as mount_point:
        nfs.delay(machine, round_trip_seconds)
        try:
            machine.tool("--force", "--quiet", mount_point + BALLAST.removeprefix("/srv"))
            yield mount_point + path.removeprefix("/srv")
        finally:
            nfs.delay(machine, 0)


def table(results: list[Result]) -> list[list[str]]:
    """Return the results as rows of cells, the first with the headings."""
    rows = [["round trip", "rsize", "", "auto", "vLLM", "x vLLM", "CPU x", "x vmtouch", "verdict"]]
    for one in results:
        auto, vllm = (contest.find(one.standings, name) for name in (AUTO, VLLM))
        rows.append(
            [
                f"{one.round_trip_ms} ms",
                f"{one.rsize_bytes // 1024} KiB",
                one.layout,
                f"{auto.rate:.0f} ({auto.engine})",
                f"{vllm.rate:.0f}",
                f"{one.ratio:.2f}",
                f"{one.cpu_ratio:.2f}",
                f"{one.vmtouch_ratio:.1f}",
                "; ".join(one.missed) or "met",
            ]
        )
    return rows


def document(results: list[Result]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [{**asdict(one), "missed": one.missed} for one in results]
