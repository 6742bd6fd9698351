"""One of the threads that read a plan: takes blocks, reads them, and counts what it has read."""

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.plan.extents import Extent, blocks
from prefetch_cli.reading.engines import AbstractEngine, Engines, HashingEngine, Registry, Shared
from prefetch_cli.reading.gate import Gate
from prefetch_cli.reading.pace import MOST_STEP_BYTES, Limiter, Steps
from prefetch_cli.reading.plan import Hashed, Plan
from prefetch_cli.reading.queue import OwnDescriptor, Queue, SharedFile
from prefetch_cli.reading.tune import Portion


class Tunables(NamedTuple):
    """Times that were found by measuring."""

    grace_seconds: float = limits.READER_GRACE_SECONDS
    short_step_seconds: float = 0.05  # on far media, a shorter call lets the next read more
    long_step_seconds: float = 0.2  # and a longer one makes it read less
    most_step_bytes: int = MOST_STEP_BYTES
    tuned: bool = True  # False: the likely engine reads, with the threads that are to begin


TUNABLES = Tunables()


@dataclass
class Work:
    """What the threads of a job share."""

    plan: Plan
    monitor: Monitor
    stop: Stop
    tunables: Tunables
    limiter: Limiter
    registry: Registry
    gate: Gate
    queue: Queue
    lock: threading.Lock = field(default_factory=threading.Lock)  # of what is found
    failed: dict[str, str] = field(default_factory=dict)
    hashed: dict[int, Hashed] = field(default_factory=dict)
    reading: dict[int, str] = field(default_factory=dict)  # the path, by the thread's native id

    def fail(self, path: str, error: str) -> None:
        """Note why a file failed; of several errors, the first."""
        with self.lock:
            self.failed.setdefault(path, error)


class Worker:
    """One thread of a job."""

    def __init__(self, work: Work, shared: Shared) -> None:
        self._work = work
        self._monitor = work.monitor
        self._stop = work.stop
        self._limiter = work.limiter
        self._own = OwnDescriptor()
        self._number = work.gate.number()
        self._extent: Extent | None = None  # of the plan, that is being read
        self._engines = Engines(shared, work.registry)
        self._far_steps = Steps(work.tunables.short_step_seconds, work.tunables.long_step_seconds)

    def run(self) -> None:
        """Read blocks until none is left or it is time to stop."""
        work, me = self._work, threading.get_native_id()
        try:
            while self._turn() and (taken := work.queue.take()):
                self._extent = taken.extent
                work.reading[me] = taken.file.path
                left = None
                try:
                    self._own.close_unless(taken.file)
                    left = self._read_run(taken.run, taken.file)
                finally:
                    work.queue.give_back(taken, left)
        finally:
            self._own.close()
        work.reading.pop(me, None)
        work.gate.open()

    def _turn(self) -> bool:
        """Return True when it is this thread's turn, or False when it is time to stop."""
        if not self._work.gate.admits(self._number):
            self._own.close()  # whoever waits keeps no file open
        return self._work.gate.admit(self._number, self._stop)

    def _read_run(self, run: Extent, file: SharedFile) -> Extent | None:
        """Return what is left of the run for others, if this thread is no longer to read."""
        hashing = None
        if file.digest is not None:
            hashing = self._engines.hashing(file.medium, file.digest, run.length)
        for block in blocks(run, self._work.plan.block_size_bytes):
            if file.given_up or self._stop.requested:
                return None
            offset = block.end
            try:
                offset = self._read_block(block, file, hashing)
            except OSError as error:
                file.fail(error)
                self._work.fail(file.path, error.strerror or str(error))
            if offset < run.end and hashing is None and not self._work.gate.admits(self._number):
                return Extent(run.file, offset, run.end - offset)
        if hashing is not None and hashing.result is not None:
            with self._work.lock:
                self._work.hashed[run.file] = hashing.result
        return None

    def _read_block(self, block: Extent, file: SharedFile, hashing: HashingEngine | None) -> int:
        """Return the offset read up to, by one engine or, where that is slow, by several."""
        with self._monitor.waiting(file.path):
            descriptor = self._own.of(file)
        if hashing is None and file.near_cut(block):
            engine = self._engines.exact(file.medium)
            return self._read_range(engine, descriptor, file, block.offset, block.end)
        offset, gate = block.offset, self._work.gate
        while offset < block.end and not self._stop.requested:
            if hashing is None and not gate.admits(self._number):
                break
            offset = self._read_portion(descriptor, file, offset, block.end, hashing)
        return offset

    def _read_portion(
        self, descriptor: int, file: SharedFile, start: int, end: int, hashing: HashingEngine | None
    ) -> int:
        """Return the offset up to which the engine that was picked, or who hashes, has read."""
        gate, tuner = self._work.gate, self._work.gate.tuner(file.medium)
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
        gate, steps, far = self._work.gate, self._far_steps, file.medium.far
        most_step, tuner = self._work.tunables.most_step_bytes, gate.tuner(file.medium)
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
