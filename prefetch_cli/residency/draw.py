"""Which pages a sample looks at: a pure function of chance."""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from prefetch_cli.plan.extents import Extent

_TRIES = 16  # to find a page that no earlier sample has looked at


class Page(NamedTuple):
    """One page of a file."""

    file: int  # its place in the load order
    number: int  # its place in the file


def pages_of(extents: Sequence[Extent], page_bytes: int) -> list[range]:
    """Return the numbers of the pages that each extent touches, each page once."""
    found: list[range] = []
    for at, extent in enumerate(extents):
        first, behind = extent.offset // page_bytes, -(-extent.end // page_bytes)
        # Two extents of a file may meet in the middle of a page.
        if at and extents[at - 1].file == extent.file:
            first = max(first, found[-1].stop)
        found.append(range(first, max(first, behind)))
    return found


def draw(
    extents: Sequence[Extent],
    most: int,
    page_bytes: int,
    *,
    avoid: Collection[Page] = (),
    random: Random,
) -> list[Page]:
    """Return at most `most` pages of the extents, each once, in random order.

    One comes from each of as many equal stretches, so that all files are seen in proportion to
    their size. No page of `avoid` is taken while its stretch has others.
    """
    ranges = pages_of(extents, page_bytes)
    behind = list(accumulate(map(len, ranges)))
    total = behind[-1] if behind else 0
    strata = min(most, total)

    def page(at: int) -> Page:
        extent = bisect_right(behind, at)
        return Page(extents[extent].file, ranges[extent][at - behind[extent]])

    def one_of(stratum: int) -> Page:
        first, stop = stratum * total // strata, (stratum + 1) * total // strata
        tries = (page(random.randrange(first, stop)) for _ in range(_TRIES))
        return next((one for one in tries if one not in avoid), page(first))

    drawn = [one_of(stratum) for stratum in range(strata)]
    random.shuffle(drawn)
    return drawn
