"""How fast a loader alone would be here, and how fast we would: measured on a few cold bytes.

Half of the bytes are faulted in as a loader that maps the files does: in order, by one thread. The
others are read as a run would read them. Both stay in the page cache, so nothing is wasted.
"""

import enum
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.mapping import fault_in, mapped
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.threads import spawn
from prefetch_cli.plan.extents import Extent, joined
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Plan, Target
from prefetch_cli.reading.worker import Tunables

MOST_BYTES = 64 * 1024 * 1024  # read-ahead behind each piece included

_MOST_PIECES = 16  # and so the most files that are opened
_SMALL_FILE_BYTES = 4 * 1024 * 1024  # opening such a file takes longer than reading it
_LEAST_PIECE_BYTES = 1024 * 1024
_FAULT_BYTES = 64 * 1024  # at a time: between these, the clock is looked at
# Likewise of ours: a step that has not returned counts as nothing. `populate` reads 4 MiB at once,
# for which pieces are too short, so another engine reads where that was asked for.
_STEP_BYTES = 128 * 1024
_LEAST_BLOCK_BYTES = 512 * 1024
_LOADER_SECONDS = 0.35
_OUR_SECONDS = 0.25  # twice
# Ranks of a node all do this at about the same time. A loader that is measured while others read
# with all threads looks far too slow, so all measure loaders at the same time by the clock, and
# then all measure what we do.
_SHARED_SECONDS = 0.25
_SHARED_PERIOD = 0.75


class Unmeasured(enum.Enum):
    """Why there are no rates, in words."""

    TOO_LITTLE = "too little is cold, or the files are too small"
    NO_ANSWER = "the storage did not answer within a second"
    REFUSED = "a file could not be read, or the system refused to map it"
    STOPPED = "the run was stopped"


class Trial(NamedTuple):
    """Two rates in bytes per second, and what is resident now because of them."""

    loader_rate: float
    our_rate: float
    pieces: tuple[Extent, ...]  # apart, in load order

    @property
    def sampled_bytes(self) -> int:
        """How much was read for it."""
        return sum(piece.length for piece in self.pieces)


def pieces(extents: Sequence[Extent], most_bytes: int, read_ahead_bytes: int) -> list[Extent]:
    """Return pieces of cold extents, evenly spread over all their bytes, each from a page on.

    The kernel may read ahead up to two windows behind each piece: these count against
    `most_bytes`, and a piece is long beside them. None is taken of extents below 1 MiB, such as
    config files, whose reading says nothing; and there are none at all where the files are so small
    that opening them would take most of the time.
    """
    extents = [extent for extent in extents if extent.length >= _LEAST_PIECE_BYTES]
    total = sum(extent.length for extent in extents)
    if total < _SMALL_FILE_BYTES * len({extent.file for extent in extents}):
        return []
    most_bytes = min(most_bytes, total // 2)
    count = max(2, min(_MOST_PIECES, most_bytes // (6 * read_ahead_bytes) // 2 * 2))
    longest = (most_bytes // count - 2 * read_ahead_bytes) // PAGE_BYTES * PAGE_BYTES
    if longest < _LEAST_PIECE_BYTES:
        return []
    found: list[Extent] = []
    step = total / count
    passed, number = 0, 0
    for extent in extents:
        while number < count and passed + extent.length > number * step:
            offset = extent.offset + max(0, int(number * step) - passed)
            # At the end of a file, a whole piece lies before it.
            offset = max(extent.offset, min(offset, extent.end - longest))
            offset = offset // PAGE_BYTES * PAGE_BYTES
            found.append(Extent(extent.file, offset, min(longest, extent.end - offset)))
            number += 1
        passed += extent.length
    return found


def measure(
    plan: Plan,
    targets: Sequence[Target],
    stop: Stop,
    monitor: Monitor,
    *,
    most_bytes: int = MOST_BYTES,
    beside_others: bool = False,
) -> Trial | Unmeasured:
    """Return the two rates on this storage, or why they cannot be measured.

    Takes about a second at most, even where the storage does not answer: then threads are left
    behind. `beside_others`: other ranks may do the same at this moment. The rate that the plan is
    limited to limits neither way: it is for the caller to ask for few bytes then.
    """
    window = max((targets[extent.file].medium.step_bytes for extent in plan.extents), default=1)
    chosen = pieces(plan.extents, most_bytes, window)
    theirs, ours = chosen[::2], chosen[1::2]
    if not ours:
        return Unmeasured.TOO_LITTLE
    seconds = _SHARED_SECONDS if beside_others else _LOADER_SECONDS
    if beside_others:
        stop.sleep(_SHARED_PERIOD - time.time() % _SHARED_PERIOD)
    began = time.monotonic()
    loader = _Loader(theirs, targets, stop.within(seconds), monitor, window)
    loader_rate = loader.rate(seconds)
    if stop.requested:
        return Unmeasured.STOPPED
    if isinstance(loader_rate, Unmeasured):
        return loader_rate
    if beside_others:
        stop.sleep(began + seconds - time.monotonic())
    rates: list[float] = []
    read = loader.read
    for extents, block_bytes in _rounds(ours, plan, window, once=beside_others):
        runner = _Runner(plan._replace(extents=extents, block_size_bytes=block_bytes), targets)
        rate = runner.rate(stop.within(_OUR_SECONDS))
        if stop.requested:
            return Unmeasured.STOPPED
        if rate is Unmeasured.REFUSED:
            return rate
        if isinstance(rate, float):
            rates.append(rate)
        read += runner.read
    return Trial(loader_rate, max(rates), tuple(joined(read))) if rates else Unmeasured.NO_ANSWER


def _rounds(
    ours: Sequence[Extent], plan: Plan, read_ahead_bytes: int, *, once: bool
) -> Iterator[tuple[tuple[Extent, ...], int]]:
    """Yield what to read in each round, and in which blocks.

    The better of two counts: a machine that has something else to do only makes a round slower. In
    the first no thread asks for so much at once that it waits for all of the time; in the second it
    asks for all that is its share, as a run does, since far storage answers as fast as it is asked.
    """
    halves = (ours,) if once or len(ours) < 2 else (ours[::2], ours[1::2])
    for number, half in enumerate(halves):
        fair = (
            sum(extent.length for extent in half) // plan.threads.first // PAGE_BYTES * PAGE_BYTES
        )
        small = fair if number else min(2 * read_ahead_bytes, fair)
        yield tuple(half), min(plan.block_size_bytes, max(_LEAST_BLOCK_BYTES, small))


class _Loader:
    """Faults pieces in, in order, by one thread."""

    def __init__(
        self,
        extents: Iterable[Extent],
        targets: Sequence[Target],
        stop: Stop,
        monitor: Monitor,
        read_ahead_bytes: int,
    ) -> None:
        self._extents = extents
        self._targets = targets
        self._stop = stop
        self._monitor = monitor
        # The kernel reads a window around the first page of a piece (do_sync_mmap_readahead()).
        # A loader needs both halves, except at the start of a file.
        self._head_bytes = read_ahead_bytes // 2
        self._ended = threading.Event()
        self._bytes = 0
        self._heads = 0
        self._refused = False
        self.read: list[Extent] = []

    def rate(self, seconds: float) -> float | Unmeasured:
        """Return the rate in bytes per second over so long, or why it is not known."""
        began = time.monotonic()
        try:
            thread = spawn(self._run)
        except RuntimeError:
            return Unmeasured.REFUSED
        ended = self._ended.wait(seconds + limits.READER_GRACE_SECONDS)
        took = time.monotonic() - began
        if self._refused or (not ended and thread.killed):
            return Unmeasured.REFUSED
        if self._bytes == 0:
            return Unmeasured.NO_ANSWER
        before = min(self._heads * self._head_bytes, self._bytes // 4)
        return (self._bytes + before) / took

    def _run(self) -> None:
        try:
            for extent in self._extents:
                if self._stop.requested:
                    return
                self._fault_in(extent)
        except OSError:  # an old kernel, or a file whose reading will fail too
            self._refused = True
        finally:
            self._ended.set()

    def _fault_in(self, extent: Extent) -> None:
        path = self._targets[extent.file].path
        done = 0
        with self._monitor.waiting(path, extent.offset):
            descriptor = open_to_read(path)
            try:
                with mapped(descriptor, extent.offset, extent.length) as address:
                    while done < extent.length and not self._stop.requested:
                        size = min(_FAULT_BYTES, extent.length - done)
                        fault_in(address + done, size)
                        done += size
                        self._bytes += size
            finally:
                close(descriptor)
        if done:
            self._heads += 1
            self.read.append(extent._replace(length=done))


class _Runner:
    """Reads pieces as a run would."""

    def __init__(self, plan: Plan, targets: Sequence[Target]) -> None:
        self._plan = plan._replace(cut=None, max_bytes_per_second=None, yielding=False)
        self._targets = [one._replace(medium=one.medium._replace(spins=False)) for one in targets]
        # A monitor of its own: nothing of this counts as progress.
        self._arrivals = _Arrivals()

    def rate(self, stop: Stop) -> float | Unmeasured:
        """Return the rate in bytes per second, or why it is not known."""
        # There is no time to find out which engine and how many threads pay.
        tunables = Tunables(most_step_bytes=_STEP_BYTES, tuned=False)
        try:
            result = job.read(self._plan, self._targets, self._arrivals, stop, tunables=tunables)
        except (OSError, RuntimeError):  # out of descriptors, or of threads
            return Unmeasured.REFUSED
        if result.failed:
            return Unmeasured.REFUSED
        if result.bytes_read == 0:
            return Unmeasured.NO_ANSWER
        return result.bytes_read / (time.monotonic() - self._arrivals.asked_since)

    @property
    def read(self) -> list[Extent]:
        """What has arrived."""
        files = {self._targets[extent.file].path: extent.file for extent in self._plan.extents}
        return [Extent(files[path], *place) for path, *place in list(self._arrivals.ranges)]


class _Arrivals(Monitor):
    """A monitor that remembers what was read, in ranges of paths, and since when."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()
        self.asked_since = math.inf  # threads take a while to start, and files to open
        self.ranges: list[tuple[str, int, int]] = []

    def waiting(self, path: str, offset: int | None = None) -> AbstractContextManager[None]:
        """Remember what this thread asks for; nobody looks at this monitor meanwhile."""
        self._thread.place = path, offset
        if offset is not None:
            self.asked_since = min(self.asked_since, time.monotonic())
        return nullcontext()

    def advance(self, size_bytes: int) -> None:
        """Remember that it has come."""
        path, offset = self._thread.place
        self.ranges.append((path, offset, size_bytes))
