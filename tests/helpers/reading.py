"""Cold files and plans for tests of the reader; as a program, one read in a process of its own.

    python -m tests.helpers.reading ENGINE PATH...

It reads whole files and prints a JSON record of the result. Of several files, the first
hangs: the run stops when it is waited for and all others have been read.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.job import Job
from prefetch_cli.reading.plan import Medium, Plan, ReadResult, Target, Threads
from prefetch_cli.reading.worker import TUNABLES, Tunables
from tests.helpers import oracle

MIB = 1024 * 1024
GIB = 1024 * MIB
NEAR = Medium(far=False, step_bytes=128 * 1024, reads_ahead_little=False, spins=False)
FAR = Medium(far=True, step_bytes=128 * 1024, reads_ahead_little=False, spins=False)


def cold_files(folder: Path, sizes: Sequence[int]) -> list[str]:
    """Return new files of these sizes, none of them in the page cache."""
    paths = []
    block = os.urandom(MIB)
    for number, size in enumerate(sizes):
        path = folder / f"file-{number:05}"
        path.write_bytes((block * (size // MIB + 1))[:size])
        paths.append(str(path))
    oracle.make_cold(paths)
    return paths


def sparse_file(folder: Path, size: int) -> str:
    """Return a new file that is one hole."""
    path = folder / "sparse"
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def slow_down_sendfile(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each call wait: here nothing is slow enough for a trial of engines to pay."""
    real = os.sendfile

    def slow(sink: int, descriptor: int, offset: int, size: int) -> int:
        time.sleep(seconds)
        return real(sink, descriptor, offset, size)

    patch.setattr(os, "sendfile", slow)


def whole(sizes: Sequence[int]) -> list[Extent]:
    """Return all of the files of these sizes, as far as they are not empty."""
    return [Extent(file, 0, size) for file, size in enumerate(sizes) if size]


def plan_of(
    paths: Sequence[str],
    *,
    extents: Sequence[Extent] | None = None,
    cut: Extent | None = None,
    threads: int | Threads = 4,
    block: int = MIB,
    engine: Engine = Engine.AUTO,
    rate: int | None = None,
    yielding: bool = False,
) -> Plan:
    """Return a plan for whole files, or for these extents of them."""
    if extents is None:
        sizes = [os.path.getsize(path) for path in paths]
        extents = whole(sizes)
    if isinstance(threads, int):
        threads = Threads.fixed(threads)
    return Plan(tuple(extents), cut, 0, threads, block, engine, rate, yielding)


def read(
    paths: Sequence[str],
    *,
    medium: Medium = NEAR,
    stop: Stop | None = None,
    monitor: Monitor | None = None,
    tunables: Tunables = TUNABLES,
    parts: dict[str, Any] | None = None,
    **given: Any,
) -> ReadResult:
    """Return the result of reading a plan; `parts` replace those that the job would make."""
    plan = plan_of(paths, **given)
    monitor = monitor or Monitor()
    targets = [Target(path, medium) for path in paths]
    job = Job(plan, targets, monitor, stop or Stop(), tunables=tunables, **(parts or {}))
    monitor.announce({"files": (plan.size_bytes, plan.files)})
    began = time.monotonic()
    with monitor.reading_part("files"):
        if plan.extents:
            job.run()
    return job.result(time.monotonic() - began)


def pages(sizes: Sequence[int]) -> int:
    """Return how many bytes files of these sizes take in the page cache."""
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes)


def main(engine: str, *paths: str) -> None:
    """Read the files, and print the result."""
    monitor, stop = Monitor(), Stop()
    if len(paths) > 1:

        def watch() -> None:
            while True:
                now = monitor.snapshot()
                waits = now.longest_wait is not None and now.longest_wait.offset is not None
                if waits and now.done_files == len(paths) - 1:
                    stop.request()
                time.sleep(0.01)

        threading.Thread(target=watch, daemon=True).start()
    result = read(paths, engine=Engine(engine), stop=stop, monitor=monitor)
    wait = monitor.snapshot().longest_wait
    record = {
        "bytes_read": result.bytes_read,
        "complete": result.complete,
        "failed": result.failed,
        "waits_for": None if wait is None else wait.path,
    }
    print(json.dumps(record), flush=True)
    os._exit(0)  # a thread may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
