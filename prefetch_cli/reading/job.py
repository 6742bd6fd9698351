"""Reads a plan into the page cache: threads that take blocks, and count what they read."""

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux.threads import affordable, spawn_many
from prefetch_cli.plan.extents import Extent, blocks
from prefetch_cli.reading.engines import (
    MOST_THREADS,
    REGISTRY,
    WINDOW_BYTES,
    AbstractEngine,
    Engines,
    Registry,
    Shared,
)
from prefetch_cli.reading.pace import Limiter
from prefetch_cli.reading.plan import Medium, Plan, ReadResult, Target
from prefetch_cli.reading.queue import Queue, SharedFile
from prefetch_cli.reading.tune import (
    MOST_STEP_BYTES,
    Climb,
    EngineTuner,
    StepTuner,
    ThreadTuner,
    trial,
)

_LOOK_SECONDS = 0.1  # how often a thread that waits its turn looks at the clock and the stop


@dataclass(frozen=True)
class Tunables:
    """Times that were found by measuring."""

    grace_seconds: float = limits.READER_GRACE_SECONDS
    short_step_seconds: float = 0.05  # on far media, a shorter call lets the next read more
    long_step_seconds: float = 0.2  # and a longer one makes it read less
    most_step_bytes: int = MOST_STEP_BYTES


TUNABLES = Tunables()


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
        self.queue = Queue(plan, targets, monitor)
        self.lock = threading.Lock()  # of the counters and the engine tuners
        self.bytes_by_engine: Counter[Engine] = Counter()
        self.failed: dict[str, str] = {}
        self._threads = affordable(min(plan.threads, MOST_THREADS, _most_useful(plan)))
        self._unexpected: list[BaseException] = []
        media = {targets[extent.file].medium for extent in plan.extents}
        climb = _climb(plan, media)
        self.gate = _Gate(self._threads, climb)
        self.engine_tuners = {}
        for medium in media:
            how = trial(plan.engine, far=medium.far, block_bytes=plan.block_size_bytes)
            # A trial would fill the disk's queue, and others wait behind it, or the head turns.
            compare = how.pays(plan.size_bytes, self._threads) and climb is None
            self.engine_tuners[medium] = EngineTuner(how, threads=self._threads, compare=compare)

    def run(self) -> None:
        """Return when all threads have ended, or when the grace after a stop is over.

        Raises any exception of a thread except an OSError, which fails a file.
        """
        # Nothing may be advised ahead of a limited rate.
        shared = Shared(self._threads, self.limiter.step_bytes(WINDOW_BYTES))
        threads = spawn_many(lambda: self._work(shared), self._threads, "read")
        left_at = None
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                if self.stop.requested:
                    left_at = left_at or time.monotonic() + self.tunables.grace_seconds
                    if time.monotonic() >= left_at:
                        return  # a thread hangs: its descriptors end with the process
        self.queue.close()
        shared.close()
        if self._unexpected:
            raise self._unexpected[0]

    def result(self, elapsed_seconds: float) -> ReadResult:
        """Return what has been read so far."""
        counts = self.bytes_by_engine
        bytes_read = counts.total()
        return ReadResult(
            bytes_read=bytes_read,
            bytes_already_resident=self.plan.already_resident_bytes,
            elapsed_seconds=elapsed_seconds,
            engine=max(counts, key=counts.__getitem__, default=self.plan.engine),
            complete=bytes_read == self.plan.size_bytes,
            failed=tuple(self.failed.items()),
        )

    def _work(self, shared: Shared) -> None:
        try:
            _Worker(self, shared).run()
        except BaseException as error:  # noqa: BLE001 - a defect: `run` raises it again
            self._unexpected.append(error)
            self.stop.request()


def _climb(plan: Plan, media: Collection[Medium]) -> Climb | None:
    """Return why not all threads may read at once; far media want many requests in flight."""
    if any(medium.far for medium in media):
        return None
    if plan.yielding:
        return Climb.YIELDING
    return Climb.SPINNING if any(medium.spins for medium in media) else None


def _most_useful(plan: Plan) -> int:
    return sum(-(-extent.length // plan.block_size_bytes) + 1 for extent in plan.extents) or 1


class _Gate:
    """Holds back the threads that the tuner does not admit."""

    def __init__(self, threads: int, climb: Climb | None) -> None:
        self._tuner = ThreadTuner(threads, climb, now=time.monotonic())
        self._changed = threading.Condition()
        self._entered = 0

    def number(self) -> int:
        """Return the number of the thread that asks, from 0."""
        with self._changed:
            self._entered += 1
            return self._entered - 1

    def admit(self, number: int, stop: Stop) -> bool:
        """Return True when it is this thread's turn, or False when it is time to stop."""
        with self._changed:
            while number >= self._tuner.admitted and not stop.requested:
                self._changed.wait(_LOOK_SECONDS)
                self._tuner.look(time.monotonic())
        return not stop.requested

    def record(self, size_bytes: int, now: float) -> None:
        """Count what was read."""
        if self._tuner.fixed:
            return
        with self._changed:
            before = self._tuner.admitted
            self._tuner.record(size_bytes, now)
            if self._tuner.admitted > before:
                self._changed.notify_all()

    def open(self) -> None:
        """Let all threads see that nothing is left."""
        with self._changed:
            self._tuner.end(time.monotonic())
            self._changed.notify_all()


class _Worker:
    """One thread of a job."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self._job = job
        self._monitor = job.monitor
        self._stop = job.stop
        self._limiter = job.limiter
        self._engines = Engines(shared, job.registry)
        self._far_steps = StepTuner(job.tunables.short_step_seconds, job.tunables.long_step_seconds)

    def run(self) -> None:
        """Read blocks until none is left or it is time to stop."""
        job = self._job
        number = job.gate.number()
        while job.gate.admit(number, self._stop) and (taken := job.queue.take()):
            run, file = taken
            try:
                self._read_run(run, file)
            finally:
                job.queue.give_back(file)
        job.gate.open()

    def _read_run(self, run: Extent, file: SharedFile) -> None:
        for block in blocks(run, self._job.plan.block_size_bytes):
            if file.given_up or self._stop.requested:
                return
            try:
                self._read_block(block, file)
            except OSError as error:
                file.fail(error)
                with self._job.lock:
                    self._job.failed.setdefault(file.path, error.strerror or str(error))

    def _read_block(self, block: Extent, file: SharedFile) -> None:
        """Read one block, by one engine or, where that turns out slow, by several."""
        with self._monitor.waiting(file.path):
            descriptor = file.descriptor()
        if file.near_cut(block):
            engine = self._engines.exact(file.medium)
            self._read_range(engine, descriptor, file, block.offset, block.end)
            return
        tuner = self._job.engine_tuners[file.medium]
        offset = block.offset
        while offset < block.end and not self._stop.requested:
            offset = self._read_portion(tuner, descriptor, file, offset, block.end)

    def _read_portion(
        self, tuner: EngineTuner, descriptor: int, file: SharedFile, start: int, end: int
    ) -> int:
        """Return the offset up to which the engine that the tuner picked has read."""
        with self._job.lock:
            portion = tuner.pick(end - start)
        engine = self._engines.by_name(portion.engine, file.medium)
        end, offset, began = start + portion.size_bytes, start, time.monotonic()

        def too_slow(offset: int, now: float) -> bool:
            return tuner.abandon(portion.engine, offset - start, now - began)

        try:
            offset = self._read_range(engine, descriptor, file, start, end, too_slow)
        finally:
            with self._job.lock:
                tuner.record(portion, offset - start, time.monotonic() - began)
        return offset

    def _read_range(
        self,
        engine: AbstractEngine,
        descriptor: int,
        file: SharedFile,
        offset: int,
        end: int,
        too_slow: Callable[[int, float], bool] | None = None,
    ) -> int:
        """Return the offset read up to: less than `end` at a stop, or where it is too slow."""
        far, steps, ended = file.medium.far, self._far_steps, time.monotonic()
        most_step = self._job.tunables.most_step_bytes
        engine.start(descriptor, offset, end)
        while offset < end and not self._stop.requested:
            most = min(steps.size_bytes if far else MOST_STEP_BYTES, most_step)
            size = min(self._limiter.step_bytes(most), end - offset, engine.most_bytes or most)
            if not self._limiter.wait(size, self._stop):
                break
            got = self._step(engine, descriptor, file, offset, size)
            offset += got
            now = time.monotonic()
            steps.record(now - ended)
            ended = now
            self._job.gate.record(got, now)
            with self._job.lock:
                self._job.bytes_by_engine[engine.used] += got
                if too_slow is not None and too_slow(offset, now):
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
