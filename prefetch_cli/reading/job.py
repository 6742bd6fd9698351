"""Reads a plan into the page cache: threads that take blocks, and count what they read."""

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import mapping
from prefetch_cli.linux.threads import Thread, affordable, spawn_many
from prefetch_cli.plan.extents import Extent, blocks
from prefetch_cli.reading.engines import (
    MOST_THREADS,
    REGISTRY,
    WINDOW_BYTES,
    AbstractEngine,
    Engines,
    HashingEngine,
    Registry,
    Shared,
)
from prefetch_cli.reading.gate import Gate
from prefetch_cli.reading.pace import MOST_STEP_BYTES, Limiter, Steps
from prefetch_cli.reading.plan import Hashed, Medium, Plan, ReadResult, Target, Threads
from prefetch_cli.reading.prior import Prior, prior
from prefetch_cli.reading.queue import OwnDescriptor, Queue, SharedFile
from prefetch_cli.reading.tune import Portion, Setting, Tuner


@dataclass(frozen=True)
class Tunables:
    """Times that were found by measuring."""

    grace_seconds: float = limits.READER_GRACE_SECONDS
    short_step_seconds: float = 0.05  # on far media, a shorter call lets the next read more
    long_step_seconds: float = 0.2  # and a longer one makes it read less
    most_step_bytes: int = MOST_STEP_BYTES
    tuned: bool = True  # False: the likely engine reads, with the threads that are to begin


TUNABLES = Tunables()
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
        self.plan = plan
        self.monitor = monitor
        self.stop = stop
        self.tunables = tunables
        self.limiter = limiter or Limiter(plan.max_bytes_per_second)
        self.registry = registry
        most = affordable(min(plan.threads.most, MOST_THREADS, _most_useful(plan)))
        first = min(plan.threads.first, most)
        self._threads = Threads(first, most if tunables.tuned else first)
        self.gate = self._gate(targets)
        self.queue = Queue(plan, targets, monitor, lambda: self.gate.threads)
        self.lock = threading.Lock()  # of what is found
        self.failed: dict[str, str] = {}
        self.hashed: dict[int, Hashed] = {}
        self._unexpected: list[BaseException] = []

    def _gate(self, targets: Sequence[Target]) -> Gate:
        sizes: Counter[Medium] = Counter()
        for extent in self.plan.extents:
            sizes[targets[extent.file].medium] += extent.length
        return Gate({one: Tuner(self._prior(one), sizes[one], time.monotonic()) for one in sizes})

    def _prior(self, medium: Medium) -> Prior:
        found = prior(
            self.plan.engine,
            self._threads,
            medium,
            block_bytes=self.plan.block_size_bytes,
            populates=self._populates,
            yielding=self.plan.yielding,
        )
        tuned = self.tunables.tuned and not self.plan.digests  # what is hashed is read in one way
        return found if tuned else replace(found, engines=found.engines[:1])

    @property
    def _populates(self) -> bool:
        """Whether 4 MiB may be read at once, and the kernel does so for a fault."""
        most = self.limiter.step_bytes(self.tunables.most_step_bytes)
        return most >= mapping.HUGE_READ_BYTES and mapping.populates()

    def run(self) -> None:
        """Return when all threads have ended, or when the grace after a stop is over.

        Raises any exception of a thread except an OSError, which fails a file.
        """
        # Nothing may be advised ahead of a limited rate.
        shared = Shared(lambda: self.gate.threads, self.limiter.step_bytes(WINDOW_BYTES))
        threads: list[Thread] = []
        left_at = None
        while self._start(threads, shared) or any(thread.is_alive() for thread in threads):
            _wait_for(threads)
            self.gate.look()
            if self.stop.requested:
                left_at = left_at or time.monotonic() + self.tunables.grace_seconds
                if time.monotonic() >= left_at:
                    return  # a thread hangs: its descriptors end with the process
        shared.close()
        if self._unexpected:
            raise self._unexpected[0]

    def _start(self, threads: list[Thread], shared: Shared) -> bool:
        """Start as many threads as may read by now, and return whether there were any to start."""
        missing = self.gate.threads - len(threads)
        if missing <= 0 or (self.stop.requested and threads):
            return False
        try:
            threads += spawn_many(lambda: self._work(shared), missing)
        except RuntimeError:
            if not threads:
                raise
        if self.gate.threads > len(threads):
            self.gate.limit(len(threads))
        return True

    def result(self, elapsed_seconds: float) -> ReadResult:
        """Return what has been read so far."""
        used = self.gate.used or Setting(self.plan.engine, self.plan.threads.first)
        bytes_read = self.gate.bytes_read
        return ReadResult(
            bytes_read=bytes_read,
            bytes_already_resident=self.plan.already_resident_bytes,
            elapsed_seconds=elapsed_seconds,
            engine=used.engine,
            threads=used.threads,
            complete=bytes_read == self.plan.size_bytes,
            failed=tuple(self.failed.items()),
            hashed=dict(self.hashed),
        )

    def _work(self, shared: Shared) -> None:
        try:
            _Worker(self, shared).run()
        except BaseException as error:  # noqa: BLE001 - a defect: `run` raises it again
            self._unexpected.append(error)
            self.stop.request()


def _wait_for(threads: Sequence[Thread]) -> None:
    """Return when one of them ends, or soon."""
    for thread in threads:
        if thread.is_alive():
            thread.join(_LOOK_SECONDS)
            return


def _most_useful(plan: Plan) -> int:
    return sum(-(-extent.length // plan.block_size_bytes) + 1 for extent in plan.extents) or 1


class _Worker:
    """One thread of a job."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self._job = job
        self._monitor = job.monitor
        self._stop = job.stop
        self._limiter = job.limiter
        self._own = OwnDescriptor()
        self._number = job.gate.number()
        self._extent: Extent | None = None  # of the plan, that is being read
        self._engines = Engines(shared, job.registry)
        self._far_steps = Steps(job.tunables.short_step_seconds, job.tunables.long_step_seconds)

    def run(self) -> None:
        """Read blocks until none is left or it is time to stop."""
        job = self._job
        try:
            while self._turn() and (taken := job.queue.take()):
                self._extent = taken.extent
                left = None
                try:
                    self._own.close_unless(taken.file)
                    left = self._read_run(taken.run, taken.file)
                finally:
                    job.queue.give_back(taken, left)
        finally:
            self._own.close()
        job.gate.open()

    def _turn(self) -> bool:
        """Return True when it is this thread's turn, or False when it is time to stop."""
        if not self._job.gate.admits(self._number):
            self._own.close()  # whoever waits keeps no file open
        return self._job.gate.admit(self._number, self._stop)

    def _read_run(self, run: Extent, file: SharedFile) -> Extent | None:
        """Return what is left of the run for others, if this thread is no longer to read."""
        hashing = None
        if file.digest is not None:
            hashing = self._engines.hashing(file.medium, file.digest, run.length)
        for block in blocks(run, self._job.plan.block_size_bytes):
            if file.given_up or self._stop.requested:
                return None
            offset = block.end
            try:
                offset = self._read_block(block, file, hashing)
            except OSError as error:
                file.fail(error)
                with self._job.lock:
                    self._job.failed.setdefault(file.path, error.strerror or str(error))
            if offset < run.end and hashing is None and not self._job.gate.admits(self._number):
                return Extent(run.file, offset, run.end - offset)
        if hashing is not None and hashing.result is not None:
            with self._job.lock:
                self._job.hashed[run.file] = hashing.result
        return None

    def _read_block(self, block: Extent, file: SharedFile, hashing: HashingEngine | None) -> int:
        """Return the offset read up to, by one engine or, where that is slow, by several."""
        with self._monitor.waiting(file.path):
            descriptor = self._own.of(file)
        if hashing is None and file.near_cut(block):
            engine = self._engines.exact(file.medium)
            return self._read_range(engine, descriptor, file, block.offset, block.end)
        offset, gate = block.offset, self._job.gate
        while offset < block.end and not self._stop.requested:
            if hashing is None and not gate.admits(self._number):
                break
            offset = self._read_portion(descriptor, file, offset, block.end, hashing)
        return offset

    def _read_portion(
        self, descriptor: int, file: SharedFile, start: int, end: int, hashing: HashingEngine | None
    ) -> int:
        """Return the offset up to which the engine that was picked, or who hashes, has read."""
        gate, tuner = self._job.gate, self._job.gate.tuner(file.medium)
        picked = gate.pick(self._number, tuner, end - start)
        # Who hashes has no other way to read, but more threads may pay there, too.
        engine = hashing or self._engines.by_name(picked.engine, file.medium)
        portion, end = (picked, start + picked.size_bytes) if hashing is None else (None, end)
        try:
            return self._read_range(engine, descriptor, file, start, end, portion)
        finally:
            gate.end(self._number, tuner)

    def _read_range(
        self,
        engine: AbstractEngine,
        descriptor: int,
        file: SharedFile,
        start: int,
        end: int,
        portion: Portion | None = None,
    ) -> int:
        """Return the offset read up to: less than `end` where this is to be left."""
        gate, steps, far = self._job.gate, self._far_steps, file.medium.far
        most_step, tuner = self._job.tunables.most_step_bytes, gate.tuner(file.medium)
        engine.start(descriptor, start, end, self._extent)
        offset, began = start, time.monotonic()
        ended = began
        while offset < end and not self._stop.requested:
            most = min(steps.size_bytes if far else MOST_STEP_BYTES, most_step)
            size = min(self._limiter.step_bytes(most), end - offset, engine.most_bytes or most)
            if not self._limiter.wait(size, self._stop):
                break
            got = self._step(engine, descriptor, file, offset, size)
            offset += got
            now = time.monotonic()
            took, ended = now - ended, now
            steps.record(took)
            gate.record(self._number, tuner, engine.used, got, took, now)
            if portion is not None and (
                not gate.admits(self._number)
                or gate.abandon(tuner, portion, offset - start, now - began, now)
            ):
                break
        return offset

    def _step(
        self, engine: AbstractEngine, descriptor: int, file: SharedFile, offset: int, size: int
    ) -> int:
        with self._monitor.waiting(file.path, offset):
            got = engine.step(descriptor, offset, size)
        self._limiter.give_back(size - got)
        if got == 0:
            raise _cut_short(descriptor, offset)
        self._monitor.advance(got)
        return got


def _cut_short(descriptor: int, offset: int) -> OSError:
    size = os.fstat(descriptor).st_size
    return OSError(
        errno.ENODATA,
        f"it was cut short while it was read: expected bytes at {offset:,}, "
        f"found its end at {size:,}",
    )
