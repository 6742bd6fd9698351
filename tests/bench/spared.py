"""What a run leaves for others: --background beside a reader, and how --max-rate keeps its rate.

The reader reads random single pages of a cold file, like a server that faults them in. The I/O
scheduler decides what --background gives it, so each scheduler that the disk offers is measured.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.bench.figures import Bound, Figure
from tests.bench.run import tool
from tests.bench.throughput import Say
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint, write_streamed

_MIB = 1 << 20
_ROUNDS = 5
_READER_BYTES = 1 << 30
_SECONDS = 1.5
_SCHEDULERS = ("none", "mq-deadline", "bfq")
_RATE = 64 * _MIB
_WINDOW_SECONDS = 5.0
_RATE_SECONDS = 12.0
_READER = """
import os, random, sys, time
descriptor = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
pages = os.fstat(descriptor).st_size // 4096
chance = random.Random(sys.argv[3])
until = time.perf_counter() + float(sys.argv[2])
count = 0
while time.perf_counter() < until:
    os.pread(descriptor, 1, chance.randrange(pages) * 4096)
    count += 1
print(count / float(sys.argv[2]))
"""


def spared_figures(directory: str, size_bytes: int, say: Say) -> Iterator[Figure]:
    """Yield how much of its rate a reader keeps, by scheduler, and how far --max-rate is missed."""
    say("spared: writing")
    checkpoint = write_streamed(os.path.join(directory, "spared"), shard_bytes=[size_bytes])
    reader = write_streamed(os.path.join(directory, "reader"), shard_bytes=[_READER_BYTES])
    for scheduler in _SCHEDULERS:
        with _scheduled(directory, scheduler) as scheduled:
            if scheduled:
                yield from _beside(checkpoint, reader, scheduler, say)
    yield from _rate(checkpoint, say)


def _beside(
    checkpoint: BuiltCheckpoint, reader: BuiltCheckpoint, scheduler: str, say: Say
) -> Iterator[Figure]:
    rates: dict[str, list[float]] = {"alone": [], "beside": [], "background": []}
    for number in range(_ROUNDS):
        for how, found in rates.items():
            found.append(_reads(checkpoint, reader, how, number))
            say(f"spared: {scheduler}, {how}: {found[-1]:.0f} reads/s")
    alone = statistics.median(rates["alone"])
    for how, flag in (("beside", "without"), ("background", "with")):
        rate = statistics.median(rates[how])
        yield Figure(
            f"a reader beside it keeps, {flag} --background, {scheduler}",
            100 * rate / alone,
            "%",
            Bound.AT_LEAST,
            1,  # reported only: nothing is promised
            f"{rate:.0f} of {alone:.0f} pages/s, medians of {_ROUNDS}",
        )


def _reads(checkpoint: BuiltCheckpoint, reader: BuiltCheckpoint, how: str, number: int) -> float:
    """Return the reader's rate in pages a second."""
    oracle.make_cold((*checkpoint.files, *reader.files))
    oracle.pretouch(sum(map(os.path.getsize, (*checkpoint.files, *reader.files))))
    words = ("--force", "--progress", "none", *(["--background"] if how == "background" else []))
    warmer = None
    if how != "alone":
        warmer = subprocess.Popen(
            tool(*words, checkpoint.directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _await_reading(warmer)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READER, reader.weight_files[0], str(_SECONDS), str(number)],
            capture_output=True,
            check=True,
            text=True,
        )
    finally:
        if warmer is not None:
            warmer.kill()
            warmer.wait()
    return float(done.stdout)


def _await_reading(process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if _read_bytes(process.pid) > 16 * _MIB:
            return
        time.sleep(0.005)


def _read_bytes(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/io", encoding="ascii") as file:
        found = re.search(r"^rchar: (\d+)", file.read(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _rate(checkpoint: BuiltCheckpoint, say: Say) -> Iterator[Figure]:
    """Yield by how much --max-rate is missed in the worst window."""
    say("spared: --max-rate")
    oracle.make_cold(checkpoint.files)
    rate = min(_RATE, int(checkpoint.weight_bytes / _RATE_SECONDS))
    words = ("--force", "--engine", "read", "--max-rate", str(rate), "--progress", "none")
    looks: list[tuple[float, int]] = []
    with subprocess.Popen(
        tool(*words, checkpoint.directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _await_reading(process)
        until = time.monotonic() + _RATE_SECONDS
        while time.monotonic() < until and process.poll() is None:
            looks.append((time.monotonic(), _read_bytes(process.pid)))
            time.sleep(0.05)
        process.kill()
    looks = [one for one in looks if one[1] > 0]
    worst = 0.0
    for began, before in looks:
        for ended, after in looks:
            if _WINDOW_SECONDS <= ended - began < _WINDOW_SECONDS + 0.1:
                found = (after - before) / (ended - began)
                worst = max(worst, 100 * abs(found - rate) / rate)
    detail = f"{rate / _MIB:.0f} MiB/s, every 5 s of {looks[-1][0] - looks[0][0]:.0f} s"
    yield Figure("--max-rate is missed by at most", worst, "%", Bound.AT_MOST, 5, detail)


@contextmanager
def _scheduled(directory: str, scheduler: str) -> Iterator[bool]:
    """Yield whether the folder's disk now uses this scheduler; restore the old one afterwards."""
    number = os.stat(directory).st_dev
    device = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.path.exists(f"{device}/partition"):
        device = os.path.dirname(device)
    place = f"{device}/queue/scheduler"
    try:
        with open(place, encoding="ascii") as file:
            before = re.search(r"\[(\S+)\]", file.read())
        if before is None:
            raise OSError(f"{place}: none is chosen")
        with open(place, "w", encoding="ascii") as file:
            file.write(scheduler)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with open(place, "w", encoding="ascii") as file:
            file.write(before[1])
