"""How fast a loader alone would be here, and how fast we would: measured on a few cold bytes.

Half of the bytes are faulted in as a loader that maps the files does: in order, by one thread. The
others are read as a run would read them. Both stay in the page cache, so nothing is wasted.
"""

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.mapping import fault_in, mapped
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.threads import spawn
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Plan, Target

MOST_BYTES = 64 * 1024 * 1024

_PIECE_BYTES = 4 * 1024 * 1024
_FAULT_BYTES = 64 * 1024  # at a time: between these, the clock is looked at
_SECONDS = 0.4  # for each of the two ways


@dataclass(frozen=True)
class Trial:
    """Two rates in bytes per second, and what was faulted in for the first."""

    loader_rate: float
    our_rate: float
    pieces: tuple[Extent, ...]

    @property
    def sampled_bytes(self) -> int:
        """How much was read for it."""
        return sum(piece.length for piece in self.pieces)


def pieces(extents: Sequence[Extent], most_bytes: int) -> list[Extent]:
    """Return pieces of cold extents, evenly spread over all their bytes, each from a page on.

    There are none where the files are so small that opening them would take most of the time.
    """
    total = sum(extent.length for extent in extents)
    count = min(most_bytes, total // 2) // _PIECE_BYTES
    if count < 2 or total // max(1, len(extents)) < _PIECE_BYTES:
        return []
    found: list[Extent] = []
    step = total / count
    passed, number = 0, 0
    for extent in extents:
        while number < count and passed + extent.length > number * step:
            offset = extent.offset + max(0, int(number * step) - passed)
            offset = offset // PAGE_BYTES * PAGE_BYTES
            length = min(_PIECE_BYTES, extent.end - offset)
            if not found or found[-1].file != extent.file or found[-1].end <= offset:
                found.append(Extent(extent.file, offset, length))
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
) -> Trial | None:
    """Return the two rates on this storage, None where they cannot be measured.

    Takes about a second at most, even where the storage does not answer: then a thread is left
    behind.
    """
    chosen = pieces(plan.extents, most_bytes)
    theirs, ours = chosen[::2], chosen[1::2]
    if not ours:
        return None
    loader = _Loader(theirs, targets, stop, monitor)
    loader_rate = loader.rate()
    if loader_rate is None or stop.requested:
        return None
    our_rate = _our_rate(replace(plan, extents=tuple(ours)), targets, stop)
    if our_rate is None:
        return None
    # What was begun of ours counts as cold still: reading it again costs next to nothing.
    return Trial(loader_rate, our_rate, tuple(loader.read))


class _Loader:
    """Faults pieces in, in order, by one thread."""

    def __init__(
        self, extents: Iterable[Extent], targets: Sequence[Target], stop: Stop, monitor: Monitor
    ) -> None:
        self._extents = extents
        self._targets = targets
        self._stop = stop
        self._monitor = monitor
        self._ended = threading.Event()
        self._until = time.monotonic() + _SECONDS
        self._bytes = 0
        self._refused = False
        self.read: list[Extent] = []

    def rate(self) -> float | None:
        """Return the rate in bytes per second, None where the system refuses to measure it.

        Where nothing comes in time, the rate is what it is at most.
        """
        began = time.monotonic()
        try:
            spawn(self._run, "trial")
        except RuntimeError:
            return None
        self._ended.wait(_SECONDS + limits.READER_GRACE_SECONDS)
        seconds = time.monotonic() - began
        return None if self._refused else max(self._bytes, _FAULT_BYTES) / seconds

    def _run(self) -> None:
        try:
            for extent in self._extents:
                if self._is_over():
                    return
                self._fault_in(extent)
        except OSError:  # an old kernel, or a file whose reading will fail too
            self._refused = True
        finally:
            self._ended.set()

    def _is_over(self) -> bool:
        return time.monotonic() >= self._until or self._stop.requested

    def _fault_in(self, extent: Extent) -> None:
        path = self._targets[extent.file].path
        done = 0
        with self._monitor.waiting(path, extent.offset):
            descriptor = open_to_read(path)
            try:
                with mapped(descriptor, extent.offset, extent.length) as address:
                    while done < extent.length and not self._is_over():
                        size = min(_FAULT_BYTES, extent.length - done)
                        fault_in(address + done, size)
                        done += size
                        self._bytes += size
            finally:
                os.close(descriptor)
        if done:
            self.read.append(extent._replace(length=done))


def _our_rate(plan: Plan, targets: Sequence[Target], stop: Stop) -> float | None:
    """Return the rate at which a run would read the plan; raises nothing of the storage's."""
    # There is no time to find out how many threads pay on a disk that says that it spins.
    targets = [replace(one, medium=replace(one.medium, spins=False)) for one in targets]
    # A monitor of its own: nothing of this counts as progress.
    result = job.read(plan, targets, Monitor(), Stop(_SECONDS))
    if result.failed or result.bytes_read == 0 or stop.requested:
        return None
    return result.bytes_per_second
