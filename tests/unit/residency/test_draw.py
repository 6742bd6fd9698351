"""Which pages a sample draws: each once, from everywhere, in random order."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency.draw import Page, draw, pages_of

PAGE = 4096
EXTENTS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 200_000)), min_size=1, max_size=5
).map(lambda found: [Extent(file, skip * PAGE, size) for file, (skip, size) in enumerate(found)])


@given(EXTENTS, st.integers(1, 64), st.integers())
def test_pages_of_the_extents_each_once(extents: list[Extent], most: int, seed: int) -> None:
    drawn = draw(extents, most, PAGE, random=Random(seed))
    ranges = dict(zip((extent.file for extent in extents), pages_of(extents, PAGE), strict=True))
    assert len(drawn) == len(set(drawn)) == min(most, sum(map(len, ranges.values())))
    assert all(page.number in ranges[page.file] for page in drawn)


def test_each_file_is_seen_by_its_size() -> None:
    extents = [Extent(0, 0, 600 * PAGE), Extent(1, 0, 300 * PAGE), Extent(2, 0, 99 * PAGE + 1)]
    drawn = draw(extents, 100, PAGE, random=Random(1))
    assert Counter(page.file for page in drawn) == {0: 60, 1: 30, 2: 10}
    # The order says nothing: what was looked at until some moment is a sample, too.
    assert len({page.file for page in drawn[:20]}) == 3


def test_every_page_has_its_chance_and_the_last_is_one() -> None:
    extents = [Extent(0, 0, 10 * PAGE + 1)]
    chance = Random(2)
    seen = Counter(draw(extents, 1, PAGE, random=chance)[0].number for _ in range(5000))
    assert set(seen) == set(range(11))
    assert min(seen.values()) > 0.7 * 5000 / 11


def test_a_page_on_which_two_extents_meet_counts_once() -> None:
    extents = [Extent(0, 0, 100), Extent(0, 100, PAGE), Extent(0, 2 * PAGE, 1)]
    assert list(map(list, pages_of(extents, PAGE))) == [[0], [1], [2]]
    assert len(draw(extents, 10, PAGE, random=Random(3))) == 3


def test_pages_of_an_earlier_sample_are_left_out_while_there_are_others() -> None:
    extents = [Extent(0, 0, 1000 * PAGE)]
    chance = Random(4)
    first = set(draw(extents, 100, PAGE, random=chance))
    assert first.isdisjoint(draw(extents, 100, PAGE, avoid=first, random=chance))
    everything = {Page(0, number) for number in range(1000)}
    assert len(set(draw(extents, 100, PAGE, avoid=everything, random=chance))) == 100


def test_of_nothing_nothing_is_drawn() -> None:
    assert draw([], 10, PAGE, random=Random(5)) == []
