"""An import over NFS behind a delay: cold, after `--package`, and warm.

The emulated processor takes many times as long as a real one for the import's own work. So waiting
is measured separately: the time that the import was off the processor.
"""

import glob
import os
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.environment import TORCH, make
from tests.helpers.command import ROOT
from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import nfs
from tests.vm.bench.contest import Say
from tests.vm.bench.place import Place
from tests.vm.machine import MIB, Machine, MachineError

ROUND_TRIP_MS = 10
GOAL = 5.0
_SITE = "/srv/site"
_PACKAGES = ("numpy", "numpy.libs", "numpy-*", "scipy", "scipy.libs", "scipy-*")
_PACKAGE, _IMPORT = "scipy", "import scipy.linalg"


@dataclass(frozen=True)
class Time:
    """What one import took."""

    seconds: float
    waiting_seconds: float  # the part that the process was off the processor


@dataclass(frozen=True)
class Result:
    """Medians, in seconds, of one import."""

    statement: str
    round_trip_ms: int
    runs: int
    cold: Time
    warming_seconds: float  # the command
    warming_bytes: int
    behind: Time  # the import after it
    warm: Time  # the import again: processor time alone

    @property
    def ratio(self) -> float:
        """How many times as long the import takes without warming."""
        return self.cold.seconds / self.behind.seconds

    @property
    def waiting_ratio(self) -> float:
        """How many times as long the import waits without warming."""
        return self.cold.waiting_seconds / max(self.behind.waiting_seconds, 0.01)

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the goal."""
        return self.ratio >= GOAL


def measure(place: Place, *, rounds: int, quick: bool, say: Say) -> list[Result]:
    """Return the import's times; each cold run is on a fresh mount."""
    machine = place.machine
    _lay_out(machine, say)
    cold: list[Time] = []
    behind: list[Time] = []
    warm: list[Time] = []
    warming: list[float] = []
    size_bytes = 0
    with nfs.serving(machine):
        for number in range(1, rounds + 1):
            with _mounted(machine) as site:
                cold.append(_imported(machine, site))
            with _mounted(machine) as site:
                seconds, size_bytes = _warmed(machine, site)
                warming.append(seconds)
                behind.append(_imported(machine, site))
                warm.append(_imported(machine, site))
            say(
                f"    {number}/{rounds}: cold {_shown(cold[-1])}, warming {warming[-1]:.1f} s, "
                f"behind it {_shown(behind[-1])}, again {_shown(warm[-1])}"
            )
    return [
        Result(
            statement=_IMPORT,
            round_trip_ms=ROUND_TRIP_MS,
            runs=rounds,
            cold=_median(cold),
            warming_seconds=statistics.median(warming),
            warming_bytes=size_bytes,
            behind=_median(behind),
            warm=_median(warm),
        )
    ]


def _median(times: Sequence[Time]) -> Time:
    return Time(
        statistics.median(one.seconds for one in times),
        statistics.median(one.waiting_seconds for one in times),
    )


def _shown(time: Time) -> str:
    return f"{time.seconds:.1f} s ({time.waiting_seconds:.1f} s of it waiting)"


def _lay_out(machine: Machine, say: Say) -> None:
    """Put the packages on the machine's NFS server."""
    server = make(os.path.join(ROOT, "build", "bench-server"), say, torch=TORCH)
    (site,) = glob.glob(os.path.join(server.directory, "lib", "python*", "site-packages"))
    found = [path for name in _PACKAGES for path in glob.glob(os.path.join(site, name))]
    # A package's tests are as large as the package itself, and nobody imports them.
    machine.sh(
        f"mkdir -p {_SITE}; cp -r {shlex.join(found)} {_SITE}; "
        f"find {_SITE} -name tests -prune -exec rm -r {{}} +; sync",
        seconds=600,
    )


@contextmanager
def _mounted(machine: Machine) -> Iterator[str]:
    machine.sh(f"find {_SITE} -type f -exec cat {{}} + > /dev/null", seconds=300)
    with nfs.mounted(machine, rsize_bytes=MIB) as mount_point:
        nfs.delay(machine, ROUND_TRIP_MS / 1000)
        try:
            yield mount_point + _SITE.removeprefix(nfs.EXPORT)
        finally:
            nfs.delay(machine, 0)


def _imported(machine: Machine, site: str) -> Time:
    """Return the import's time, without the interpreter's own start."""
    code = (
        "import time; began, busy = time.monotonic(), time.process_time(); "
        f"{_IMPORT}; print(time.monotonic() - began, time.process_time() - busy)"
    )
    done = machine.run(
        *(_interpreter(), "-B", "-c", code),
        env={"PYTHONPATH": site},
        seconds=900,
    )
    seconds, busy_seconds = map(float, done.out.split())
    return Time(seconds, max(0.0, seconds - busy_seconds))


def _warmed(machine: Machine, site: str) -> tuple[float, int]:
    """Return the command's seconds and the libraries' bytes; raises MachineError if not warm."""
    words = ("--json", "--progress", "none", "--package", _PACKAGE, "--python", _interpreter())
    done = machine.tool(*words, env={"PYTHONPATH": site}, seconds=600)
    part = done.document["libraries"]
    found = part["residency"]
    if done.code != 0 or found["after_bytes"] < (1 - ALLOWED_WARM) * found["total_bytes"]:
        raise MachineError(f"expected warm libraries: {done}")
    if not found["total_bytes"] > 16 * MIB:
        raise MachineError(f"expected the packages of {site}: {done}")
    return done.seconds, found["total_bytes"]


def _interpreter() -> str:
    """Return this project's interpreter: packages on PYTHONPATH come before its own."""
    return sys.executable


def table(results: list[Result]) -> list[list[str]]:
    """Return the results as rows of cells, the first with the headings."""
    rows = [["import", "cold", "warming", "behind it", "warm", "ratio", "goal", "waiting"]]
    rows += [
        [
            one.statement,
            _shown(one.cold),
            f"{one.warming_seconds:.1f} s, {one.warming_bytes / MIB:.0f} MiB",
            _shown(one.behind),
            _shown(one.warm),
            f"{one.ratio:.1f} x",
            f"{GOAL:g} x, {'met' if one.met else 'missed'}",
            f"{one.waiting_ratio:.1f} x",
        ]
        for one in results
    ]
    return rows


def document(results: list[Result]) -> list[dict[str, Any]]:
    """Return the results as values for JSON."""
    return [
        {**asdict(one), "ratio": one.ratio, "met": one.met, "waiting_ratio": one.waiting_ratio}
        for one in results
    ]
