"""Estimates how much is resident by reading single pages and looking at the clock.

Everyone who may read a file may do that, so it works where the kernel refuses all other methods. It
leaves the cache as it was: a page that had to be fetched is dropped again.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import mountstats
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.threads import affordable
from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency.confirm import Control, Counts, allow_for_disturbance, confirm
from prefetch_cli.residency.draw import Page, draw, pages_of
from prefetch_cli.residency.glances import Glances
from prefetch_cli.residency.interval import Interval, interval
from prefetch_cli.residency.pilot import Pilot, fly
from prefetch_cli.residency.relay import Relay
from prefetch_cli.residency.verdict import FEWEST, Verdict, Witness, judge

_MOST_PAGES = 1024
# If none of the first pages is resident, we stop there. The two looks at the result are wrong in
# 5 % of all samples together (Bonferroni).
_FIRST_PAGES = 512
_FIRST_ERROR = 0.012
_LAST_ERROR = 0.038
_MOST_UNSURE = 0.1  # of the pages: with more, the likely figure may be further off than 5 %
# For each look. Then those pages count that were looked at: their order is random.
_LONGEST_SECONDS = 1.5

_THREADS = 8
_SLOW_MISS_NS = 2_500_000  # one thread is enough where a miss is quicker, or rare
_PATIENCE = 1 / _THREADS  # of a miss: then the thread waits for the storage


class Timed(NamedTuple):
    """What a sample says of some files."""

    resident: Interval  # pages
    pages: int  # of the extents, without those of files that cannot be opened
    counts: Counts
    found: Mapping[Page, Verdict]
    errors: Mapping[int, OSError]  # of files that cannot be opened


def estimate(
    files: Sequence[File],
    extents: Sequence[Extent],
    *,
    monitor: Monitor,
    avoid: Collection[Page] = (),
) -> Timed | None:
    """Return how much of the extents is resident, None where the clock cannot tell.

    Looks at no page of `avoid`, those of an earlier sample, while there are others.
    """
    random = Random()  # noqa: S311 - nobody gains by guessing it
    drawn = draw(extents, _MOST_PAGES, PAGE_BYTES, avoid=avoid, random=random)
    with Glances(files, drawn, monitor) as glances:
        fetched = _Fetched({files[extent.file].device for extent in extents})
        pilot = fly(drawn, glances)
        if pilot is None and any(page.file not in glances.errors for page in drawn):
            return None
        found: dict[Page, Verdict] = {} if pilot is None else pilot.found
        counts = _count(found.values())
        if pilot is not None:
            counts = allow_for_disturbance(counts, pilot.control)
        error = _LAST_ERROR
        # A client that reads from a cache on disk fetches nothing for a page that misses.
        counted = pilot is not None and fetched.bytes() >= pilot.misses * PAGE_BYTES
        for pages in (drawn[:_FIRST_PAGES], drawn[_FIRST_PAGES:]):
            rest = [page for page in pages if page not in found]
            if pilot is not None and rest:
                seen, control = _look(rest, pilot, glances)
                found |= seen
                some = _count(seen.values())
                missed = (page for page, one in seen.items() if one is Verdict.MISS)
                missed_bytes, fetched_bytes = sum(map(glances.size_bytes, missed)), fetched.bytes()
                agreed = confirm(some, missed_bytes, fetched_bytes, PAGE_BYTES) if counted else None
                # What was counted needs no allowance for a clock that is wrong.
                counts = counts.plus(agreed or allow_for_disturbance(some, control))
            if counts.pages >= _FIRST_PAGES and counts.most_hits == 0:
                error = _FIRST_ERROR
                break
    if counts.unsure > _MOST_UNSURE * counts.pages:
        return None
    readable = [extent for extent in extents if extent.file not in glances.errors]
    of = sum(map(len, pages_of(readable, PAGE_BYTES)))
    return Timed(
        resident=interval(counts.hits, counts.most_hits, counts.pages, of, error),
        pages=of,
        counts=counts,
        found={page: one for page, one in found.items() if page.file not in glances.errors},
        errors=glances.errors,
    )


def _look(
    pages: Sequence[Page], pilot: Pilot, glances: Glances
) -> tuple[dict[Page, Verdict], Control]:
    """Return what was found of the pages until the deadline, each miss dropped again.

    And how often a page that was read again at once, a known hit, looked like a miss.
    """
    glances.may_wait = pilot.calibration.witness is not Witness.BLOCKS
    found: dict[Page, Verdict] = {}
    known: list[Verdict] = []
    calibration = pilot.calibration

    def look(page: Page) -> None:
        cost = glances.at(page)
        if cost is None:
            return
        found[page] = judge(cost, calibration)
        if calibration.witness is not Witness.BLOCKS:
            again = glances.at(page)
            if again is not None:
                known.append(judge(again, calibration))
        if found[page] is Verdict.MISS:
            glances.drop(page)

    relay = Relay(
        pages,
        look,
        patience_seconds=_PATIENCE * calibration.miss_ns / 1e9,
        deadline=time.monotonic() + _LONGEST_SECONDS,
    )
    misses = _count(pilot.found.values()).misses
    slow = calibration.miss_ns > _SLOW_MISS_NS and misses >= FEWEST
    # Whatever has begun is waited for: leaving out the slowest would favour hits.
    relay.run(affordable(_THREADS) if slow else 1)
    readable = {page: one for page, one in found.items() if page.file not in glances.errors}
    return readable, Control(len(known), known.count(Verdict.MISS))


def _count(verdicts: Iterable[Verdict]) -> Counts:
    found = Counter(verdicts)
    return Counts(found[Verdict.HIT], found[Verdict.MISS], found[Verdict.UNSURE])


class _Fetched:
    """What the NFS client fetches from the server."""

    def __init__(self, devices: Collection[int]) -> None:
        self._device = min(devices) if len(devices) == 1 else None
        self._total_bytes = self._count()

    def bytes(self) -> int:
        """Return how much was fetched since the last call; 0 where these are not on one mount."""
        before, self._total_bytes = self._total_bytes, self._count()
        return self._total_bytes - before

    def _count(self) -> int:
        found = None if self._device is None else mountstats.server_read_bytes(self._device)
        return found or 0
