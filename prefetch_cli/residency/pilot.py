"""What a hit and a miss cost here and now, by the first pages of a sample, one after the other."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.linux.glance import Glance
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.residency.confirm import Control
from prefetch_cli.residency.draw import Page
from prefetch_cli.residency.glances import Glances
from prefetch_cli.residency.verdict import (
    FEWEST,
    MANY,
    Calibration,
    Verdict,
    calibrate,
    is_slower,
    judge,
)

_MOST_PAGES = 64  # to find misses among; without one we make one
# Where a miss is as quick as this, many known ones cost little.
_QUICK_NS = 2_000_000
_AGAIN = 4  # times that a page is read again: known hits
_STRETCH_BYTES = 2 << 20  # the largest folio of most machines
_STRETCH_PAGES = _STRETCH_BYTES // PAGE_BYTES
_STRETCHES = 8
_STAY = 1 / 8  # of the known misses, at most: pages that cannot be dropped at once


class Pilot(NamedTuple):
    """The pages that were looked at, and what they say of the clock."""

    found: dict[Page, Verdict]
    calibration: Calibration
    misses: int  # that were known
    control: Control


def fly(drawn: Sequence[Page], glances: Glances) -> Pilot | None:
    """Return a pilot sample, None where hits and misses cannot be told apart, or not one by one.

    A known hit is a page that is read again at once. A known miss is a page that we brought in and
    dropped again. If all pages were there before, we drop one of these or the 2 MiB around it, and
    bring back what we dropped.
    """
    first: dict[Page, Glance] = {}
    hits: list[Glance] = []
    cold: list[Page] = []
    for page in drawn[:_MOST_PAGES]:
        again = [one for one in map(glances.at, [page] * (1 + _AGAIN)) if one is not None]
        if len(again) <= _AGAIN:
            continue
        first[page] = again.pop(0)
        hits += again
        if is_slower(first[page], min(again)):
            cold.append(page)
        if len(cold) == FEWEST:
            break
    if len(cold) == FEWEST and all(_brings_neighbour(page, min(hits), glances) for page in cold):
        return None
    misses = _misses(list(first), cold, hits, glances)
    calibration = calibrate(hits, misses)
    if calibration is None:
        return None
    found = {page: judge(one, calibration) for page, one in first.items()}
    disturbed = sum(judge(one, calibration) is Verdict.MISS for one in hits)
    for page in cold:
        if found[page] is Verdict.MISS:
            glances.drop(page)
    return Pilot(found, calibration, len(misses), Control(len(hits), disturbed))


def _brings_neighbour(page: Page, hit: Glance, glances: Glances) -> bool:
    """Return whether the page next to one that we brought in is there, too.

    Where file systems read in larger pieces than a page (squashfs), a sample warms what it has not
    looked at yet.
    """
    neighbour = page._replace(number=page.number ^ 1)
    if not glances.size_bytes(neighbour) or not _is_cold(neighbour, hit, glances):
        return True
    # A hit that was disturbed looks like this, too. Neither of the two was there, so try it again.
    glances.drop(neighbour)
    glances.drop(page)
    glances.at(page)
    if not _is_cold(neighbour, hit, glances):
        return True
    glances.drop(neighbour)
    return False


def _is_cold(page: Page, hit: Glance, glances: Glances) -> bool:
    found = glances.at(page)
    return found is not None and is_slower(found, hit)


def _misses(
    pages: Sequence[Page], cold: Sequence[Page], hits: Sequence[Glance], glances: Glances
) -> list[Glance]:
    """Return what known misses cost; none where they could not be had."""
    if not hits:
        return []
    hit = min(hits)
    # A page stays if somebody has mapped it, or if it is part of a larger folio.
    able = [page for page in cold if _drops(page, hit, glances)]
    if not able:
        able = [page for page in pages[:_STRETCHES] if _drops(page, hit, glances)][:1]
    if able and (found := _slower(_dropped(able, glances), hit)):
        return found
    # Only around pages that were there: nothing is brought in that was not.
    for page in [page for page in pages if page not in cold][:_STRETCHES]:
        glances.drop(page, _STRETCH_BYTES)
        try:
            found = _slower(_in_stretch(page, glances), hit)
        finally:
            glances.read(page, _STRETCH_BYTES)
        if found:
            return found
    return []


def _drops(page: Page, hit: Glance, glances: Glances) -> bool:
    """Return whether a page can be made cold by itself."""
    return bool(_slower(_dropped([page], glances), hit, most=1))


def _slower(misses: Iterator[Glance], hit: Glance, most: int = MANY) -> list[Glance]:
    """Return as many misses as are wanted; none if more than one in eight looks like a hit.

    A page may stay for a moment because another processor holds it (mm/swap.c).
    """
    found: list[Glance] = []
    stayed = 0
    for one in misses:
        if not is_slower(one, hit):
            stayed += 1
            if stayed > _STAY * most:
                return []
            continue
        found.append(one)
        far = len(found) >= FEWEST and min(each.wall_ns for each in found) >= _QUICK_NS
        if far or len(found) == most:
            break
    # Where the kernel counts what it reads for us, a page that it did not read had stayed.
    counted = [one for one in found if one.blocks]
    return counted if len(counted) >= FEWEST else found


def _dropped(pages: Sequence[Page], glances: Glances) -> Iterator[Glance]:
    """Yield what reading one of the pages costs, each time that it has been dropped."""
    for number in range(MANY):
        page = pages[number % len(pages)]
        glances.drop(page)
        if (found := glances.at(page)) is not None:
            yield found


def _in_stretch(page: Page, glances: Glances) -> Iterator[Glance]:
    """Yield what reading pages all over a stretch costs, beginning with one of them."""
    first = page.number // _STRETCH_PAGES * _STRETCH_PAGES
    for step in range(0, _STRETCH_PAGES, _STRETCH_PAGES // MANY):
        at = page._replace(number=first + (page.number + step) % _STRETCH_PAGES)
        found = glances.at(at) if glances.size_bytes(at) else None
        if found is not None:
            yield found
