"""The first pages of a sample, on a simulated file system that reads pieces of several pages."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from prefetch_cli.linux.glance import Glance
from prefetch_cli.residency.draw import Page
from prefetch_cli.residency.glances import Glances
from prefetch_cli.residency.pilot import fly

_HIT = Glance(wall_ns=2_000, cpu_ns=1_000, sleeps=0, preempted=0, blocks=0)
_MISS = Glance(wall_ns=10_000_000, cpu_ns=20_000, sleeps=1, preempted=0, blocks=0)
DRAWN = [Page(0, number) for number in range(3, 3 + 97 * 40, 97)]


@dataclass
class Cache:
    """The pages of one long file that are resident."""

    piece_pages: int
    resident: set[int] = field(default_factory=set)
    disturbed: set[int] = field(default_factory=set)  # looks that find a hit as slow as a miss
    looks: int = 0

    def at(self, page: Page) -> Glance:
        """Read the page, and with it the rest of its piece."""
        self.looks += 1
        hit = page.number in self.resident
        first = page.number // self.piece_pages * self.piece_pages
        self.resident |= set(range(first, first + self.piece_pages))
        return _HIT if hit and self.looks not in self.disturbed else _MISS

    def drop(self, page: Page, length: int = 4096) -> None:
        """Drop the pages of the aligned stretch around it."""
        pages = length // 4096
        first = page.number // pages * pages
        self.resident -= set(range(first, first + pages))

    def size_bytes(self, _page: Page) -> int:
        """Every page is whole."""
        return 4096

    @property
    def glances(self) -> Glances:
        """The same for the pilot."""
        return cast("Glances", self)


def test_single_pages_can_be_told_apart() -> None:
    cache = Cache(piece_pages=1)
    pilot = fly(DRAWN, cache.glances)
    assert pilot is not None
    assert cache.resident == set()  # as it was before


@pytest.mark.parametrize("disturbed", [set(), *({look} for look in range(1, 60))])
def test_where_a_read_brings_in_more_nothing_is_known(disturbed: set[int]) -> None:
    """Nor if any one look is disturbed: else the sample would find what it has warmed itself."""
    assert fly(DRAWN, Cache(4, disturbed=disturbed).glances) is None
