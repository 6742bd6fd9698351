"""The interval: exact for small numbers, and right in as many samples as it promises."""

from math import comb
from random import Random

import pytest

from prefetch_cli.residency.interval import Interval, interval


def at_least(hits: int, pages: int, resident: int, of: int) -> float:
    """Return the chance of so many hits, by counting."""
    ways = sum(
        comb(resident, one) * comb(of - resident, pages - one) for one in range(hits, pages + 1)
    )
    return ways / comb(of, pages)


@pytest.mark.parametrize(("of", "pages"), [(30, 7), (30, 30), (50, 20), (9, 1), (200, 60)])
def test_the_bounds_are_the_last_that_the_sample_does_not_refute(of: int, pages: int) -> None:
    for hits in range(pages + 1):
        low, high = interval(hits, hits, pages, of, 0.05)
        possible = [
            resident
            for resident in range(of + 1)
            if at_least(hits, pages, resident, of) > 0.025
            and at_least(pages - hits, pages, of - resident, of) > 0.025
        ]
        assert (low, high) == (min(possible), max(possible))


@pytest.mark.parametrize("hits", [0, 3, 100])
def test_a_sample_of_all_pages_leaves_no_doubt(hits: int) -> None:
    assert interval(hits, hits, 100, 100, 0.05) == Interval(hits, hits)


def test_what_is_unsure_widens_it_on_both_sides() -> None:
    low, high = interval(40, 60, 100, 10**6, 0.05)
    assert low == interval(40, 40, 100, 10**6, 0.05).low
    assert high == interval(60, 60, 100, 10**6, 0.05).high


@pytest.mark.parametrize("of", [2000, 10**6, 10**9, 10**11])
def test_large_shares(of: int) -> None:
    """The known bounds of Clopper and Pearson: 0.0249 ** (1 / 1024) of all, or a little less."""
    low, high = interval(1024, 1024, 1024, of, 0.05)
    assert high == of
    assert 0.9963 <= low / of <= (0.9965 if of > 10**4 else 0.999)
    low, high = interval(512, 512, 1024, of, 0.05)
    assert low + high == of
    assert 0.468 <= low / of <= 0.48


def test_nothing_was_looked_at() -> None:
    assert interval(0, 0, 0, 10, 0.05) == Interval(0, 10)
    assert interval(0, 0, 0, 0, 0.05) == Interval(0, 0)


@pytest.mark.parametrize("resident", [0, 3, 100, 500, 997, 1000])
def test_it_holds_the_truth_in_95_percent_of_all_samples(resident: int) -> None:
    chance = Random(resident)
    pages = [number < resident for number in range(1000)]
    held = 0
    for _ in range(500):
        hits = sum(chance.sample(pages, 128))
        low, high = interval(hits, hits, 128, 1000, 0.05)
        held += low <= resident <= high
    assert held >= 0.95 * 500 - 15  # three standard deviations
