"""Reads a plan into the page cache: threads, engines, and the measuring that chooses one."""

import errno
import itertools
import mmap
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Engine
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.threads import affordable, spawn_many
from prefetch_cli.plan.extents import Extent, blocks
from prefetch_cli.reading.plan import Medium, Plan, ReadResult, Target

_STEP_BYTES = 1024 * 1024  # read by one call: the grain of progress and of stopping
_MOST_STEP_BYTES = 4 * _STEP_BYTES  # where a call is fast, fewer of them cost less
# Far away a thread's next call reads twice as much, or half, where one was so short or so long.
_SHORT_SECONDS, _LONG_SECONDS = 0.05, 0.2
# Blocks that a thread takes at a time on a near medium while much is left: at each jump to
# another place the kernel's read-ahead starts anew with small requests, as splice needs them.
_NEAR_RUN = 8
_BUFFERS_BYTES = 16 * 1024 * 1024  # of all threads together
_MOST_THREADS = _BUFFERS_BYTES // pagecache.PAGE_BYTES
_WINDOW_BYTES = 16 * 1024 * 1024  # advised at a time, then drained
# Read-ahead started before the end of what may be read reaches no further than this behind it.
_LARGEST_READ_AHEAD_BYTES = 64 * 1024 * 1024
_STRIKES = 3  # errors of a file after which the rest of it is left alone

# Of a disk that gives way to others: each step takes twice the threads, for so many times the rate.
# Beside one other reader, two threads get 4/3 of what one gets out of a saturated disk.
_PACE_SECONDS = 0.25
_PACE_WORTH = 1.5
_PACE_AGAIN = 20  # steps after which a rate that is settled is put to the test again
_PACE_LOOK_SECONDS = 0.1  # of a thread that waits, at the clock and for a stop
_PACE_STALLED_SECONDS = 2.0  # without a byte: whoever holds the turn hangs

_TRIALS = 2  # comparisons that have to say the same
_TRIAL_PORTIONS = 2  # of each thread with each engine, of half a block
_TRIAL_WORTH = 16  # times what one engine reads in it: of less, it would be too large a part
# From here up the likely engine is kept on a near medium: trying the others costs the processor
# more than they could save.
_FAST_BYTES_PER_SECOND = 1_000_000_000
_TOO_SLOW = 0.5  # the ratio of rates below which an engine is left in the middle of a block
_TOO_SLOW_SECONDS = 0.2  # before that its rate is not known

# EPERM: by the seccomp profile of a container; a file that may not be read is not opened either.
_NO_SPLICE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def read(plan: Plan, targets: Sequence[Target], monitor: Monitor, stop: Stop) -> ReadResult:
    """Return what came of reading the plan.

    Ends when all is read, or shortly after `stop`, even where a thread hangs in the storage. A
    file that fails is in the result, the others are read all the same.
    """
    began = time.monotonic()
    job = _Job(plan, targets, monitor, stop)
    if plan.extents:
        job.run()
    bytes_read = job.bytes_by_engine.total()
    return ReadResult(
        bytes_read=bytes_read,
        bytes_already_resident=plan.already_resident_bytes,
        elapsed_seconds=time.monotonic() - began,
        engine=max(job.bytes_by_engine, key=job.bytes_by_engine.__getitem__, default=plan.engine),
        complete=bytes_read == plan.size_bytes,
        failed=tuple(job.failed.items()),
    )


class _Handle:
    """One open file, shared by the threads that read from it."""

    def __init__(self, target: Target, *, cut: Extent | None) -> None:
        self.target = target
        self.cut = cut
        self.users = 0
        self.strikes = 0
        self.exhausted = False  # no thread will take another block of it
        self.given_up = False
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def descriptor(self) -> int:
        """Return the descriptor, opened by whoever asks first; raises OSError."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = open_to_read(self.target.path)
                if self.target.medium.reads_ahead_little:
                    pagecache.read_ahead_twice_as_far(self._descriptor)
            return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Queue:
    """Hands out blocks in load order, and closes each file behind its last block."""

    def __init__(self, plan: Plan, targets: Sequence[Target], monitor: Monitor) -> None:
        self._units = self._all_units(plan, targets)
        self._plan = plan
        self._targets = targets
        self._monitor = monitor
        self._lock = threading.Lock()
        self._current: tuple[int, _Handle] | None = None

    def take(self) -> tuple[Extent, _Handle] | None:
        """Return the next block or run of blocks, with its file, or None where all are taken."""
        with self._lock:
            for unit in self._units:
                handle = self._handle(unit.file)
                if not handle.given_up:
                    handle.users += 1
                    return unit, handle
            self._retire()
            return None

    def close(self) -> None:
        """Close what a stop has left open; no thread may be at work any more."""
        if self._current is not None:
            self._current[1].close()

    def give_back(self, handle: _Handle) -> None:
        """Take the file back that came with a block."""
        with self._lock:
            handle.users -= 1
            self._close_if_done(handle)

    @staticmethod
    def _all_units(plan: Plan, targets: Sequence[Target]) -> Iterator[Extent]:
        left = plan.size_bytes
        for extent in plan.extents:
            # A limited rate is spread evenly, and who reads behind finds the next blocks first.
            single = plan.max_bytes_per_second is not None or plan.yielding
            longest = 1 if single or targets[extent.file].medium.far else _NEAR_RUN
            offset = extent.offset
            while offset < extent.end:
                # Towards the end shorter ones, so that no thread is left with a long one.
                fair = left // (2 * plan.threads * plan.block_size_bytes)
                size = max(1, min(longest, fair)) * plan.block_size_bytes
                end = min(
                    extent.end, (offset // plan.block_size_bytes) * plan.block_size_bytes + size
                )
                yield Extent(extent.file, offset, end - offset)
                left -= end - offset
                offset = end

    def _handle(self, file: int) -> _Handle:
        if self._current is None or self._current[0] != file:
            self._retire()
            cut = self._plan.cut
            handle = _Handle(
                self._targets[file], cut=cut if cut is not None and cut.file == file else None
            )
            self._current = (file, handle)
        return self._current[1]

    def _retire(self) -> None:
        if self._current is not None:
            handle = self._current[1]
            self._current = None
            handle.exhausted = True
            self._close_if_done(handle)

    def _close_if_done(self, handle: _Handle) -> None:
        if handle.exhausted and handle.users == 0:
            handle.close()
            self._monitor.finish_file()


@dataclass(frozen=True)
class _Trial:
    """How the engines are compared on a kind of medium."""

    engines: tuple[Engine, ...]  # the likely one first
    portion_bytes: int  # that a thread reads with one of them at a time
    better: float  # the ratio of rates from which another than the likely one takes over

    def pays(self, size_bytes: int, threads: int) -> bool:
        """Whether comparing is a small part of reading this much."""
        return size_bytes >= _TRIAL_WORTH * _TRIAL_PORTIONS * threads * self.portion_bytes


def _trial(engine: Engine, *, far: bool, block_bytes: int) -> _Trial:
    """Return how to find the engine that was asked for."""
    # What is tried may be far slower, so little of it.
    portion_bytes = max(_STEP_BYTES, block_bytes // 2)
    if engine is not Engine.AUTO:
        return _Trial((engine,), portion_bytes, better=1.0)
    if far:
        # Where advice is in vain or a hindrance, `read` is what helps: `splice` asks for a pipe's
        # 64 KiB at a time then. Elsewhere a mistake costs more than it could win.
        return _Trial((Engine.ADVISE, Engine.READ), portion_bytes, better=1.3)
    return _Trial((Engine.SPLICE, Engine.ADVISE), portion_bytes, better=1.1)


class _Chooser:
    """Finds the engine that warms most bytes a second of a thread, by trying each.

    No single one wins everywhere. All threads try the same engine at a time: side by side the
    one that fills the device's queue first would look fast at the expense of the other. The
    first is the one that was measured to win on this kind of medium; another takes over at once
    where it is far faster, else where a second comparison says the same: one alone is of a few
    dozen milliseconds, in which the machine may have been busy.
    """

    def __init__(self, trial: _Trial, *, far: bool, threads: int, worth_a_trial: bool) -> None:
        self._lock = threading.Lock()
        self._likely = self._chosen = trial.engines[0]
        self._other = trial.engines[-1]
        self._comparisons = _TRIALS if worth_a_trial and self._other is not self._likely else 0
        self._portion_bytes = trial.portion_bytes
        self._better = trial.better
        self._settling = threads  # portions that are not measured, of the likely engine
        self._quota = _TRIAL_PORTIONS * threads
        self._threads = threads
        self._fast_is_enough = not far
        self._in_flight: Counter[Engine] = Counter()
        self._untried: list[Engine] = []  # what is tried next, the last one first
        self._compare()

    def pick(self, size_bytes: int) -> tuple[Engine, int, bool]:
        """Return the engine for the next bytes, how many, and whether to take its measure."""
        with self._lock:
            engine = self._untried[-1] if self._untried else self._chosen
            # Beside portions of another engine, the measure would be of both.
            measured = self._in_flight.total() == self._in_flight[engine]
            self._in_flight[engine] += 1
            if not self._untried:
                return engine, size_bytes, False
            if measured and self._settling > 0:
                # A connection opens its window, a disk's queue fills.
                self._settling -= 1
                measured = False
            elif measured:
                self._left -= 1
                if self._left <= 0:
                    self._next()
            return engine, min(size_bytes, self._portion_bytes), measured

    def outpaced(self, engine: Engine, size_bytes: int, seconds: float) -> bool:
        """Whether the likely engine was measured to be far faster than this one is right now."""
        if seconds < _TOO_SLOW_SECONDS or engine is self._likely:
            return False
        return size_bytes / seconds < _TOO_SLOW * self._rate(self._likely)

    def leave(self, engine: Engine) -> None:
        """Try no more of an engine that was outpaced."""
        with self._lock:
            if self._untried and self._untried[-1] is engine:
                self._next()

    def record(self, engine: Engine, size_bytes: int, seconds: float, *, measured: bool) -> None:
        """Take the measure of one portion, or of the part that was read before it was left."""
        with self._lock:
            self._in_flight[engine] -= 1
            if measured:
                self._bytes[engine] += size_bytes
                self._seconds[engine] += seconds
            if self._comparisons and not self._untried and not self._in_flight[self._other]:
                self._judge()

    def _compare(self) -> None:
        """Begin a comparison, if one is left to be made."""
        self._bytes: Counter[Engine] = Counter()
        self._seconds: dict[Engine, float] = dict.fromkeys(Engine, 0.0)
        self._left = self._quota
        if self._comparisons:
            self._untried = [self._other, self._likely]

    def _judge(self) -> None:
        """Choose, or compare once more where that is in doubt."""
        likely, other = self._rate(self._likely), self._rate(self._other)
        better = other > self._better * likely > 0
        self._comparisons = self._comparisons - 1 if better else 0
        if self._comparisons and _TOO_SLOW * other < likely:
            self._compare()
        elif better:
            self._comparisons = 0
            self._chosen = self._other

    def _next(self) -> None:
        self._untried.pop()
        self._left = self._quota
        rate = self._rate(self._likely) * self._threads
        if self._fast_is_enough and rate > _FAST_BYTES_PER_SECOND:
            self._untried.clear()
            self._comparisons = 0

    def _rate(self, engine: Engine) -> float:
        seconds = self._seconds[engine]
        return self._bytes[engine] / seconds if seconds > 0 else 0.0


class _Limiter:
    """Spreads bytes evenly over time."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def step_bytes(self, most_bytes: int) -> int:
        """Return how much should be read at once: at most a tenth of a second's worth."""
        if self._rate is None:
            return most_bytes
        pages = self._rate // 10 // pagecache.PAGE_BYTES
        return min(most_bytes, max(1, pages) * pagecache.PAGE_BYTES)

    def wait(self, size_bytes: int, stop: Stop) -> bool:
        """Return True when this many bytes may be read, or False when it is time to stop."""
        if self._rate is None:
            return True
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + size_bytes / self._rate
        stop.sleep(turn - now)
        return not stop.requested

    def give_back(self, size_bytes: int) -> None:
        """Let others read what `wait` has allowed, and was not read: a call may return less."""
        if self._rate is not None:
            with self._lock:
                self._next -= size_bytes / self._rate


class _Pace:
    """Lets as many threads read as the rate needs, where others want the disk, too.

    A request of theirs waits behind all that is queued, and a disk that one thread keeps busy is
    no faster with eight. So one begins, and twice as many follow as long as that pays. One that
    reads a file from end to end also gets the largest folios, which a loader maps fastest.
    """

    def __init__(self, threads: int, *, yielding: bool) -> None:
        self._threads = threads
        self._admitted = 1 if yielding else threads
        self._changed = threading.Condition()
        self._since = time.monotonic()
        self._bytes = 0
        self._rate_of_half = 0.0  # with half of the threads that are admitted now
        self._settled = 0  # steps since the last ones turned out not to pay; 0 while climbing

    def admit(self, number: int, stop: Stop) -> bool:
        """Return True when it is this thread's turn, or False when it is time to stop."""
        with self._changed:
            while number >= self._admitted and not stop.requested:
                self._changed.wait(_PACE_LOOK_SECONDS)
                if time.monotonic() - self._since > _PACE_STALLED_SECONDS:
                    self._admit(2 * self._admitted)
        return not stop.requested

    def record(self, size_bytes: int) -> None:
        """Count what was read, and look at the rate once in a while."""
        if self._admitted == self._threads and not self._rate_of_half:
            return  # all from the start
        with self._changed:
            self._bytes += size_bytes
            now = time.monotonic()
            if now - self._since >= _PACE_SECONDS:
                self._step(self._bytes / (now - self._since))

    def end(self) -> None:
        """Let all see that nothing is left."""
        with self._changed:
            self._admit(self._threads)

    def _step(self, rate: float) -> None:
        if self._settled:
            self._settled += 1
            if self._settled > _PACE_AGAIN:
                self._settled = 0
                self._rate_of_half = 0.0
                self._admit(self._admitted // 2)
        elif rate < _PACE_WORTH * self._rate_of_half:
            self._settled = 1
            self._admit(self._admitted // 2)
        elif self._admitted == self._threads:
            self._settled = 1
        else:
            self._rate_of_half = rate
            self._admit(2 * self._admitted)
        self._bytes, self._since = 0, time.monotonic()

    def _admit(self, threads: int) -> None:
        self._admitted = max(1, min(threads, self._threads))
        self._since = time.monotonic()
        self._changed.notify_all()


class _Job:
    """One run of a plan: what its threads share."""

    def __init__(self, plan: Plan, targets: Sequence[Target], monitor: Monitor, stop: Stop) -> None:
        self.bytes_by_engine: Counter[Engine] = Counter()
        self.failed: dict[str, str] = {}
        self._sink = -1  # opened by `run`, which closes it
        self._threads = affordable(min(plan.threads, _MOST_THREADS, self._most_useful(plan)))
        self._queue = _Queue(plan, targets, monitor)
        self._monitor = monitor
        self._stop = stop
        self._limiter = _Limiter(plan.max_bytes_per_second)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._numbers = itertools.count()  # of the threads
        self._block_bytes = plan.block_size_bytes
        self._no_splice: set[Medium] = set()
        self._unexpected: list[BaseException] = []
        media = {targets[extent.file].medium for extent in plan.extents}
        yielding = plan.yielding and not any(medium.far for medium in media)
        self._pace = _Pace(self._threads, yielding=yielding)
        self._choosers = {}
        for medium in media:
            trial = _trial(plan.engine, far=medium.far, block_bytes=plan.block_size_bytes)
            self._choosers[medium] = _Chooser(
                trial,
                far=medium.far,
                threads=self._threads,
                # The advice of a trial would fill the queue of the disk, and others wait behind it.
                worth_a_trial=trial.pays(plan.size_bytes, self._threads) and not yielding,
            )
        # Ahead of a limited rate nothing may be advised.
        self._window_bytes = self._limiter.step_bytes(_WINDOW_BYTES)
        pages = _BUFFERS_BYTES // self._threads // pagecache.PAGE_BYTES
        self._buffer_bytes = min(_STEP_BYTES, pages * pagecache.PAGE_BYTES)

    def run(self) -> None:
        """Return when all threads have ended, or the grace after a stop is over."""
        self._sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        threads = spawn_many(self._work, self._threads, "read")
        left_at = None
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                if self._stop.requested:
                    left_at = left_at or time.monotonic() + limits.READER_GRACE_SECONDS
                    if time.monotonic() >= left_at:
                        return  # a thread hangs: its descriptors end with the process
        self._queue.close()
        os.close(self._sink)
        if self._unexpected:
            raise self._unexpected[0]

    @staticmethod
    def _most_useful(plan: Plan) -> int:
        return sum(-(-extent.length // plan.block_size_bytes) + 1 for extent in plan.extents) or 1

    def _work(self) -> None:
        number = next(self._numbers)
        try:
            while self._pace.admit(number, self._stop) and (taken := self._queue.take()):
                unit, handle = taken
                try:
                    self._warm_unit(unit, handle)
                finally:
                    self._queue.give_back(handle)
            self._pace.end()
        except BaseException as error:  # noqa: BLE001 - a defect: raised again by `run`
            self._unexpected.append(error)
            self._stop.request()

    def _warm_unit(self, unit: Extent, handle: _Handle) -> None:
        for block in blocks(unit, self._block_bytes):
            if handle.given_up or self._stop.requested:
                return
            try:
                self._warm(block, handle)
            except OSError as error:
                self._fail(handle, error)

    def _warm(self, block: Extent, handle: _Handle) -> None:
        """Read one block, by one engine or, where that turns out slow, by several."""
        chooser = self._choosers[handle.target.medium]
        with self._monitor.waiting(handle.target.path):
            descriptor = handle.descriptor()
        cut = handle.cut
        near_cut = cut is not None and block.end + _LARGEST_READ_AHEAD_BYTES > cut.length
        if near_cut:
            # Nothing behind the cut may be read, so the kernel must not read ahead of it.
            pagecache.read_only_what_is_asked(descriptor)
        offset = block.offset
        while offset < block.end and not self._stop.requested:
            if near_cut:
                offset = self._read_by(Engine.ADVISE, descriptor, handle, offset, block.end, None)
                continue
            engine, size, measured = chooser.pick(block.end - offset)
            start, began = offset, time.monotonic()
            try:
                offset = self._read_by(engine, descriptor, handle, start, start + size, chooser)
            finally:
                # A failure is no measure of an engine.
                seconds = time.monotonic() - began
                chooser.record(engine, offset - start, seconds, measured=measured)

    def _read_by(
        self,
        engine: Engine,
        descriptor: int,
        handle: _Handle,
        start: int,
        end: int,
        chooser: _Chooser | None,
    ) -> int:
        """Return the offset up to which `engine` read: less than `end` where it is outpaced."""
        began = time.monotonic()
        offset = advised = start
        ended = began
        while offset < end and not self._stop.requested:
            most = self._far_step_bytes() if handle.target.medium.far else _MOST_STEP_BYTES
            size = min(self._limiter.step_bytes(most), end - offset)
            if engine is Engine.READ or handle.target.medium in self._no_splice:
                size = min(size, self._buffer_bytes)  # no more is read by one call
            if not self._limiter.wait(size, self._stop):
                break
            with self._monitor.waiting(handle.target.path, offset):
                if engine is Engine.ADVISE and offset >= advised:
                    window = min(self._window_bytes, end - offset)
                    pagecache.advise(descriptor, offset, window, handle.target.medium.step_bytes)
                    advised = offset + window
                used, got = self._drain(engine, descriptor, handle, offset, size)
            self._limiter.give_back(size - got)
            if got == 0:
                raise _cut_short(descriptor, offset)
            offset += got
            self._monitor.advance(got)
            self._pace.record(got)
            with self._lock:
                self.bytes_by_engine[used] += got
            now = time.monotonic()
            self._fit_far_step(now - ended)
            ended = now
            if chooser is not None and chooser.outpaced(engine, offset - start, now - began):
                chooser.leave(engine)
                break
        return offset

    def _drain(
        self, engine: Engine, descriptor: int, handle: _Handle, offset: int, size: int
    ) -> tuple[Engine, int]:
        """Return the engine that came to be used, and the bytes it read; 0 at the file's end."""
        medium = handle.target.medium
        if engine is not Engine.READ and medium not in self._no_splice:
            try:
                return engine, os.sendfile(self._sink, descriptor, offset, size)
            except OSError as error:
                if error.errno not in _NO_SPLICE:
                    raise
                self._no_splice.add(medium)  # a file system without splice_read
        if engine is Engine.SPLICE:
            engine = Engine.READ
        view = memoryview(self._buffer())[:size]
        return engine, os.preadv(descriptor, [view], offset)

    def _far_step_bytes(self) -> int:
        """Return how much this thread reads by its next call, far away."""
        size: int = getattr(self._local, "far_step_bytes", _STEP_BYTES)
        return size

    def _fit_far_step(self, seconds: float) -> None:
        size = self._far_step_bytes()
        if seconds < _SHORT_SECONDS:
            self._local.far_step_bytes = min(2 * size, _MOST_STEP_BYTES)
        elif seconds > _LONG_SECONDS:
            self._local.far_step_bytes = max(size // 2, _STEP_BYTES)

    def _buffer(self) -> mmap.mmap:
        """Return the buffer of this thread, made when it is first needed."""
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = mmap.mmap(-1, self._buffer_bytes)
        return buffer

    def _fail(self, handle: _Handle, error: OSError) -> None:
        """Note the first error of a file; after a few, or one that stays, give the file up."""
        handle.strikes += 1
        if error.errno != errno.EIO or handle.strikes >= _STRIKES:
            handle.given_up = True
        with self._lock:
            self.failed.setdefault(handle.target.path, error.strerror or str(error))


def _cut_short(descriptor: int, offset: int) -> OSError:
    size = os.fstat(descriptor).st_size
    return OSError(
        errno.ENODATA,
        f"it was cut short while it was read: expected bytes at {offset:,}, "
        f"found its end at {size:,}",
    )
