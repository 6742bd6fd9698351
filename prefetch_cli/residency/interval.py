"""How many pages are resident, from how many of a random sample are: pure functions."""

from math import exp, lgamma
from typing import NamedTuple

_NEGLIGIBLE = 1e-12


class Interval(NamedTuple):
    """The fewest and the most of something, both included."""

    low: int
    high: int


def interval(fewest_hits: int, most_hits: int, pages: int, of: int, error: float) -> Interval:
    """Return between how many and how many of `of` pages are resident.

    `pages` of them were drawn at random, each once. `fewest_hits` of these are resident for
    certain, `most_hits` may be. The interval is wrong in at most `error` of all samples, one half
    of it on each side: Clopper and Pearson's (1934), by the hypergeometric distribution, which
    knows how many pages there are. A sample of all pages leaves no doubt.
    """
    return Interval(
        _fewest(fewest_hits, pages, of, error / 2),
        of - _fewest(pages - most_hits, pages, of, error / 2),
    )


def _fewest(hits: int, pages: int, of: int, error: float) -> int:
    """Return the fewest resident pages with which so many hits have a chance above `error`."""
    low, high = hits, of - (pages - hits)  # what the sample itself leaves possible
    while low < high:
        middle = (low + high) // 2
        if _at_least(hits, pages, middle, of) > error:
            high = middle
        else:
            low = middle + 1
    return low


def _at_least(hits: int, pages: int, resident: int, of: int) -> float:
    """Return the chance of `hits` or more in the sample, if so many pages are resident."""
    mode = (pages + 1) * (resident + 1) // (of + 2)
    if hits > mode:
        return _tail(hits, 1, pages, resident, of)
    return 1.0 - _tail(hits - 1, -1, pages, resident, of)


def _tail(found: int, step: int, pages: int, resident: int, of: int) -> float:
    """Return the chance of `found` hits and all beyond, away from the most likely number."""
    cold = of - resident
    first, last = max(0, pages - cold), min(pages, resident)
    chance = 0.0
    if first <= found <= last:
        term = exp(
            _log_choose(resident, found) + _log_choose(cold, pages - found) - _log_choose(of, pages)
        )
        while term > _NEGLIGIBLE * chance:
            chance += term
            # The ratio of two neighbours; it is 0 at the ends.
            if step > 0:
                term *= (resident - found) * (pages - found)
                term /= (found + 1) * max(1, cold - pages + found + 1)
            else:
                term *= found * (cold - pages + found)
                term /= (resident - found + 1) * (pages - found + 1)
            found += step
    return chance


def _log_choose(of: int, some: int) -> float:
    """Return the logarithm of the number of ways to choose some of them."""
    return lgamma(of + 1) - lgamma(some + 1) - lgamma(of - some + 1)
