"""The truth table of the timed sample: real mounts, users and patterns, beside fincore's figure.

    python -m tests.tools.truth [RUNS] [MOUNT...]     200 runs a row without it; needs root
    python -m tests.tools.truth [RUNS] --here FOLDER  on what is mounted there; the files stay

One row for each mount, user and resident share; the patterns take turns. A row passes if at least
95 % of its intervals hold the truth, and no estimate is wrong by more than 5 points.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from tests.helpers import truth
from tests.helpers.passthrough import mounted
from tests.helpers.truth import FURTHEST_POINTS, PERCENTS, Run

STRANGER = 65534
RUNS = 200
_HELD = 0.95


@contextlib.contextmanager
def fuse(source: str, point: str, options: Sequence[str]) -> Iterator[str]:
    """Yield the files on FUSE, with whose cached pages the next open does as the options say."""
    with mounted(source, point, "--allow-other", *options):
        yield point


@contextlib.contextmanager
def overlay(source: str, point: str) -> Iterator[str]:
    """Yield the files in a read-only overlay."""
    options = f"lowerdir={source}:{os.path.dirname(source)}/empty"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


MOUNTS: dict[str, Callable[[str, str], AbstractContextManager[str]]] = {
    "fuse": partial(fuse, options=("--keep-cache",)),
    "fuse-10ms": partial(fuse, options=("--keep-cache", "--delay", "0.01")),
    "overlay": overlay,
    "fuse-drops-at-open": partial(fuse, options=()),
    "fuse-direct-io": partial(fuse, options=("--direct-io",)),
}
KEEP_NOTHING = {"fuse-drops-at-open", "fuse-direct-io"}


def mount_rows(name: str, folder: str, runs: int) -> Iterator[tuple[str, int, list[Run]]]:
    """Yield the rows of one of MOUNTS."""
    source, point = f"{folder}/source", f"{folder}/mount"
    for one in (source, point, f"{folder}/empty"):
        os.makedirs(one, exist_ok=True)
    names = truth.write(source)
    with MOUNTS[name](source, point):
        yield from rows([os.path.join(point, one) for one in names], runs)


def rows(paths: Sequence[str], runs: int) -> Iterator[tuple[str, int, list[Run]]]:
    """Yield who looked, the percent resident, and the runs."""
    for user in (0, STRANGER):
        with truth.looker(paths, user) as looker:
            for percent in PERCENTS:
                found = []
                for pattern in truth.states(runs, percent):
                    truth.make_resident(paths, percent, pattern)
                    found.append(looker.run())
                yield "root" if user == 0 else "stranger", percent, found


def line(found: list[Run], *, keeps: bool) -> tuple[str, bool]:
    """Return a row's figures, and whether it passes."""
    known = [run for run in found if run.known]
    held = sum(run.holds for run in known)
    furthest = max((run.points_off for run in known), default=0.0)
    seconds = sorted(run.seconds for run in found)
    widths = sorted((run.high or 0) - (run.low or 0) for run in known)
    passes = held >= _HELD * len(known) and furthest <= FURTHEST_POINTS
    if not keeps:
        passes = all((run.high or 0) <= 1 for run in known)
    middle = widths[len(widths) // 2] if widths else 0.0
    unsure = max((100 * run.unsure / run.pages for run in known), default=0.0)
    return (
        f"{len(found) - len(known):3} unknown  {held:3} of {len(known):3} hold  "
        f"{furthest:5.2f} points off at most  {middle:4.1f} wide  "
        f"{unsure:4.1f} % unsure at most  "
        f"{seconds[len(seconds) // 2]:.2f} s, {seconds[-1]:.2f} s at most  "
        f"{'passes' if passes else 'FAILS'}",
        passes,
    )


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a row fails."""
    runs = int(arguments.pop(0)) if arguments and arguments[0].isdecimal() else RUNS
    if arguments[:1] == ["--here"]:
        (folder,) = arguments[1:]
        paths = [os.path.join(folder, name) for name in truth.write(folder)]
        return 0 if show(folder, rows(paths, runs)) else 1
    passed = True
    for name in arguments or MOUNTS:
        with tempfile.TemporaryDirectory(prefix="truth-") as folder:
            os.chmod(folder, 0o755)
            passed &= show(name, mount_rows(name, folder, runs), keeps=name not in KEEP_NOTHING)
    return 0 if passed else 1


def show(name: str, table: Iterator[tuple[str, int, list[Run]]], *, keeps: bool = True) -> bool:
    """Print the rows as they come; return whether all pass."""
    passed = True
    for user, percent, found in table:
        text, passes = line(found, keeps=keeps)
        passed &= passes
        print(f"{name:18}  {user:8}  {percent:3} %  {text}", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
