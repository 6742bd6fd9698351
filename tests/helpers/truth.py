"""Timed samples beside the truth: files of which a known part is resident, and who looks at them.

python -m tests.helpers.truth USER FILE...     one estimate for each line on standard input
"""

import ctypes
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from tests.helpers import oracle
from tests.helpers.command import ROOT

MIB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
SIZES = (24 * MIB, 9 * MIB + 1234, 20 * MIB, 3 * MIB - 17)
PERCENTS = (0, 10, 50, 90, 99, 100)
PATTERNS = ("head", "tail", "blocks", "file")
FURTHEST_POINTS = 5.0
_BLOCK_PAGES = 16
_PR_SET_DUMPABLE = 4


@dataclass(frozen=True)
class Run:
    """One estimate, in percent of the files."""

    truth: float
    low: float | None  # None: unknown
    high: float | None
    estimate: float | None
    pages: int
    unsure: int  # of these
    seconds: float

    @property
    def known(self) -> bool:
        """Whether there is an estimate."""
        return self.low is not None

    @property
    def holds(self) -> bool:
        """Whether the truth lies in the interval."""
        if self.low is None or self.high is None:
            return False
        return self.low <= self.truth <= self.high

    @property
    def points_off(self) -> float:
        """How far the estimate is from the truth."""
        return 0.0 if self.estimate is None else abs(self.estimate - self.truth)


def write(folder: str) -> list[str]:
    """Write the files and return their names."""
    for number, size in enumerate(SIZES):
        with open(os.path.join(folder, f"{number}.bin"), "wb") as file:
            file.write(os.urandom(size))
    return [f"{number}.bin" for number in range(len(SIZES))]


def make_resident(paths: Sequence[str], percent: int, pattern: str) -> None:
    """Make the files cold, then bring in so many percent of their pages by a pattern."""
    oracle.make_cold(paths)
    pages = [
        (path, number) for path in paths for number in range(-(-os.path.getsize(path) // PAGE))
    ]
    wanted = len(pages) * percent // 100
    if pattern == "tail":
        pages.reverse()
    elif pattern == "blocks":
        # Every k-th block first.
        pages.sort(key=lambda page: (page[1] // _BLOCK_PAGES * 7 % 10, page))
    elif pattern == "file":
        # Of one file nothing, as long as the others suffice.
        pages.sort(key=lambda page: page[0] == paths[1])
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for first, count in _runs(sorted(number for at, number in pages[:wanted] if at == path)):
            os.pread(descriptor, count * PAGE, first * PAGE)
        os.close(descriptor)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = count = 0
    for number in numbers:
        if count and number == first + count and count < 256:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count


@contextmanager
def looker(paths: Sequence[str], user: int) -> Iterator["Looker"]:
    """Yield a process of this user that estimates; 0 is root."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.truth", str(user), *paths],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Looker(process.stdin, process.stdout, paths)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


class Looker:
    """The other process."""

    def __init__(self, ask: IO[str], answer: IO[str], paths: Sequence[str]) -> None:
        self._ask = ask
        self._answer = answer
        self._paths = paths

    def run(self) -> Run:
        """Return an estimate beside fincore's figure, which is taken before and after."""
        before = oracle.resident_bytes(self._paths)
        self._ask.write("\n")
        self._ask.flush()
        found: dict[str, Any] = json.loads(self._answer.readline())
        after = oracle.resident_bytes(self._paths)
        total = sum(-(-os.path.getsize(path) // PAGE) * PAGE for path in self._paths)
        # The kernel takes pages as it likes: the truth of a sample is somewhere between.
        truth = 100 * (before + after) / 2 / total
        return Run(truth=truth, **found)


def main(user: int, paths: Sequence[str]) -> None:
    """Estimate once for each line, by the clock even where a surer method is allowed."""
    # Only here, since the parent is the oracle, which shares no code with the tool.
    import time  # noqa: PLC0415

    from prefetch_cli.base.progress import Monitor  # noqa: PLC0415
    from prefetch_cli.checkpoint.examine import examine  # noqa: PLC0415
    from prefetch_cli.checkpoint.files import File  # noqa: PLC0415
    from prefetch_cli.plan.extents import needed  # noqa: PLC0415
    from prefetch_cli.residency import timed  # noqa: PLC0415

    # Others may not be able to start this Python, so it starts as root.
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        # Like a process that this user has started: it may read what is its own in /proc.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
    files = [file for path in paths if isinstance(file := examine(path, weight=True), File)]
    assert len(files) == len(paths)
    extents = list(needed(files))
    for _ in sys.stdin:
        began = time.monotonic()
        found = timed.estimate(files, extents, monitor=Monitor())
        seconds = time.monotonic() - began
        line: dict[str, Any] = {"low": None, "high": None, "estimate": None}
        line |= {"pages": 0, "unsure": 0}
        if found is not None:
            line = {
                "low": 100 * found.resident.low / found.pages,
                "high": 100 * found.resident.high / found.pages,
                "estimate": 100 * found.counts.likely,
                "pages": found.counts.pages,
                "unsure": found.counts.unsure + found.counts.doubted,
            }
        print(json.dumps({**line, "seconds": seconds}), flush=True)


def states(runs: int, percent: int) -> list[str]:
    """Return a pattern for each of so many runs; all of them say the same of 0 and 100 %."""
    patterns = [PATTERNS[number % len(PATTERNS)] for number in range(runs)]
    random.shuffle(patterns)
    return patterns if 0 < percent < 100 else ["head"] * runs


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
