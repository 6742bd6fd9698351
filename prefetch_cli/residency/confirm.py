"""What a sample found, corrected by what else is known of these moments: pure functions."""

from math import ceil, sqrt
from typing import NamedTuple

_MANY = 256  # known hits; with fewer, what is allowed for would be much of the sample


class Counts(NamedTuple):
    """What the glances at some pages say, in pages."""

    hits: int = 0
    misses: int = 0
    unsure: int = 0
    doubted: int = 0  # of the misses: hits if others have read, which is not likely

    @property
    def pages(self) -> int:
        """How many were looked at."""
        return self.hits + self.misses + self.unsure

    @property
    def most_hits(self) -> int:
        """How many may be hits."""
        return self.hits + self.unsure + self.doubted

    @property
    def likely(self) -> float:
        """The likely part of hits, from 0 to 1."""
        return self.hits / max(1, self.hits + self.misses)

    def plus(self, other: "Counts") -> "Counts":
        """Return the counts of both."""
        return Counts(
            self.hits + other.hits,
            self.misses + other.misses,
            self.unsure + other.unsure,
            self.doubted + other.doubted,
        )


def confirm(
    counts: Counts, missed_bytes: int, fetched_bytes: int, page_bytes: int
) -> Counts | None:
    """Return the counts as they agree with what was fetched from the server.

    `missed_bytes` is the size of the pages that missed. `fetched_bytes` is what the client has
    fetched while the pages were looked at, for whomever. If that is more than all the pages, others
    have read as well, and it says nothing: None.
    """
    if fetched_bytes > counts.pages * page_bytes:
        return None
    more_pages = (fetched_bytes - missed_bytes) // page_bytes
    if more_pages < 0:
        # Each miss is fetched, so some of these are hits that were disturbed.
        disturbed = min(-more_pages, counts.misses)
        return Counts(counts.hits + disturbed + counts.unsure, counts.misses - disturbed)
    # Either these are misses, or somebody else has read a little.
    doubted = min(more_pages, counts.unsure)
    # The clock took misses for hits, or somebody else has read.
    unsure = min(more_pages - doubted, counts.hits)
    return Counts(
        counts.hits + counts.unsure - doubted - unsure, counts.misses + doubted, unsure, doubted
    )


class Control(NamedTuple):
    """Known hits that were looked at together with the sample, in pages."""

    pages: int
    disturbed: int  # of these: they looked like misses


def allow_for_disturbance(counts: Counts, control: Control) -> Counts:
    """Return the counts, with as many misses unsure as may be hits that looked like misses.

    A hit of the sample is disturbed as often as a known one. So where there are few hits, few of
    the misses can be such: none on a mount that keeps nothing.
    """
    quiet = max(1, control.pages - control.disturbed)
    ratio = counts.most_hits / quiet
    expected = ratio * control.disturbed
    # Both counts scatter: two standard deviations of what these formulas make of them. Of many
    # hits, one may be disturbed although no known one was.
    scatter = max(expected, ratio if control.pages >= _MANY else 0.0)
    margin = 2 * sqrt(scatter * (1 + ratio)) * control.pages / quiet
    unsure = min(counts.misses, ceil(expected + margin))
    return counts._replace(misses=counts.misses - unsure, unsure=counts.unsure + unsure)
