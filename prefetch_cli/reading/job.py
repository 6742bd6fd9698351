"""Reads a plan into the page cache: threads that take blocks, and count what they read."""

import time
from collections import Counter
from collections.abc import Sequence

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import mapping
from prefetch_cli.linux.threads import KILLED, Thread, affordable, spawn_many
from prefetch_cli.reading.engines import (
    MOST_THREADS,
    REGISTRY,
    WINDOW_BYTES,
    Registry,
    Shared,
)
from prefetch_cli.reading.gate import Gate
from prefetch_cli.reading.pace import Limiter
from prefetch_cli.reading.plan import Medium, Plan, ReadResult, Target, Threads
from prefetch_cli.reading.prior import Prior, prior
from prefetch_cli.reading.queue import Queue
from prefetch_cli.reading.tune import Setting, Tuner
from prefetch_cli.reading.worker import TUNABLES, Tunables, Work, Worker

_LOOK_SECONDS = 0.05  # how often to look whether more threads pay, or the run is to stop


def read(
    plan: Plan,
    targets: Sequence[Target],
    monitor: Monitor,
    stop: Stop,
    *,
    tunables: Tunables = TUNABLES,
) -> ReadResult:
    """Return the result of reading the plan.

    Ends when all is read, or shortly after `stop`, even if a thread hangs in the storage. A file
    that fails is in the result; the others are still read.
    """
    began = time.monotonic()
    job = Job(plan, targets, monitor, stop, tunables=tunables)
    if plan.extents:
        job.run()
    return job.result(time.monotonic() - began)


class Job:
    """One run of a plan: what its threads share."""

    def __init__(
        self,
        plan: Plan,
        targets: Sequence[Target],
        monitor: Monitor,
        stop: Stop,
        *,
        tunables: Tunables = TUNABLES,
        limiter: Limiter | None = None,
        registry: Registry = REGISTRY,
    ) -> None:
        self._plan = plan
        self._stop = stop
        self._tunables = tunables
        self._limiter = limiter or Limiter(plan.max_bytes_per_second)
        most = affordable(min(plan.threads.most, MOST_THREADS, _most_useful(plan)))
        first = min(plan.threads.first, most)
        self._threads = Threads(first, most if tunables.tuned else first)
        self._gate = self._open_gate(targets)
        queue = Queue(plan, targets, monitor, lambda: self._gate.threads)
        self._work = Work(plan, monitor, stop, tunables, self._limiter, registry, self._gate, queue)
        self._unexpected: list[BaseException] = []

    def _open_gate(self, targets: Sequence[Target]) -> Gate:
        sizes: Counter[Medium] = Counter()
        for extent in self._plan.extents:
            sizes[targets[extent.file].medium] += extent.length
        return Gate({one: Tuner(self._prior(one), sizes[one], time.monotonic()) for one in sizes})

    def _prior(self, medium: Medium) -> Prior:
        found = prior(
            self._plan.engine,
            self._threads,
            medium,
            block_bytes=self._plan.block_size_bytes,
            populates=self._populates,
            yielding=self._plan.yielding,
        )
        tuned = self._tunables.tuned and not self._plan.digests  # what is hashed is read in one way
        return found if tuned else found._replace(engines=found.engines[:1])

    @property
    def _populates(self) -> bool:
        """Whether 4 MiB may be read at once, and the kernel does so for a fault."""
        most = self._limiter.step_bytes(self._tunables.most_step_bytes)
        return most >= mapping.HUGE_READ_BYTES and mapping.populates()

    def run(self) -> None:
        """Return when all threads have ended, or when the grace after a stop is over.

        Raises any exception of a thread except an OSError, which fails a file.
        """
        # Nothing may be advised ahead of a limited rate.
        shared = Shared(lambda: self._gate.threads, self._limiter.step_bytes(WINDOW_BYTES))
        threads: list[Thread] = []
        left_at = None
        while self._start(threads, shared) or any(thread.is_alive() for thread in threads):
            _wait_for(threads)
            self._gate.look()
            self._fail_what_the_killed_read(threads)
            if self._stop.requested:
                left_at = left_at or time.monotonic() + self._tunables.grace_seconds
                if time.monotonic() >= left_at:
                    return  # a thread hangs: its descriptors end with the process
        self._fail_what_the_killed_read(threads)
        shared.close()
        # Only where all were killed is there anything left.
        while not self._stop.requested and (taken := self._work.queue.take()):
            self._work.fail(taken.file.path, KILLED)
        if self._unexpected:
            raise self._unexpected[0]

    def _start(self, threads: list[Thread], shared: Shared) -> bool:
        """Start as many threads as may read by now, and return whether there were any to start."""
        missing = self._gate.threads - len(threads)
        if missing <= 0 or (self._stop.requested and threads):
            return False
        try:
            threads += spawn_many(lambda: self._read(shared), missing)
        except RuntimeError:
            if not threads:
                raise
        if self._gate.threads > len(threads):
            self._gate.limit(len(threads))
        return True

    def _fail_what_the_killed_read(self, threads: Sequence[Thread]) -> None:
        for thread in threads:
            if thread.killed and (path := self._work.reading.pop(thread.native_id, None)):
                self._work.fail(path, KILLED)
                # Whoever waits for it to make room waits no longer.
                self._gate.limit(len(threads))
                self._gate.open()

    def result(self, elapsed_seconds: float) -> ReadResult:
        """Return what has been read so far."""
        used = self._gate.used or Setting(self._plan.engine, self._plan.threads.first)
        bytes_read = self._gate.bytes_read
        return ReadResult(
            bytes_read=bytes_read,
            bytes_already_resident=self._plan.already_resident_bytes,
            elapsed_seconds=elapsed_seconds,
            engine=used.engine,
            threads=used.threads,
            complete=bytes_read == self._plan.size_bytes,
            failed=tuple(self._work.failed.items()),
            hashed=dict(self._work.hashed),
        )

    def _read(self, shared: Shared) -> None:
        try:
            Worker(self._work, shared).run()
        except BaseException as error:  # noqa: BLE001 - a defect: `run` raises it again
            self._unexpected.append(error)
            self._stop.request()


def _wait_for(threads: Sequence[Thread]) -> None:
    """Return when one of them ends, or soon."""
    for thread in threads:
        if thread.is_alive():
            thread.join(_LOOK_SECONDS)
            return


def _most_useful(plan: Plan) -> int:
    return sum(-(-extent.length // plan.block_size_bytes) + 1 for extent in plan.extents) or 1
