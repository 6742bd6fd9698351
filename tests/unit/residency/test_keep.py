"""What is read again and what is given up, from what the looks find."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency.keep import Keeper, Loading, Loss, losses
from prefetch_cli.residency.samples import Sampled
from prefetch_cli.residency.survey import Survey

MIB = 1024 * 1024
PAGE = 4096
BLOCK = MIB // PAGE  # pages
HELD = (Extent(0, 0, 3 * MIB + 5), Extent(2, MIB // 2, 2 * MIB))


def gone(*extents: Extent) -> list[Loss]:
    return [Loss(extent, extent.length) for extent in extents]


def test_what_is_lost_is_read_again_and_given_up_at_the_third_time() -> None:
    keeper = Keeper(HELD)
    for _ in range(2):
        turn = keeper.record(gone(*HELD))
        assert (turn.again, turn.given_up) == (HELD, ())
        assert keeper.record([]).again == ()  # a look that finds all of it changes nothing
    turn = keeper.record(gone(*HELD))
    assert (turn.again, turn.given_up) == ((), HELD)
    assert keeper.held == ()


def test_the_rest_is_still_held() -> None:
    keeper = Keeper(HELD)
    bad = Extent(0, MIB, MIB)
    assert [keeper.record(gone(bad)).again for _ in range(2)] == [(bad,), (bad,)]
    other = Extent(2, MIB // 2, MIB)
    turn = keeper.record(gone(bad, other))
    assert (turn.again, turn.given_up) == ((other,), (bad,))
    assert keeper.held == (Extent(0, 0, MIB), Extent(0, 2 * MIB, MIB + 5), HELD[1])


def test_other_bytes_of_a_block_each_time_are_not_the_same_bytes() -> None:
    keeper = Keeper((Extent(0, 0, MIB),))
    for number in range(2 * MIB // PAGE):
        page = Extent(0, number * PAGE % MIB, PAGE)
        assert keeper.record(gone(page)).again == (page,)
    assert keeper.record(gone(Extent(0, 0, PAGE))).given_up == (Extent(0, 0, MIB),)


def test_a_block_of_which_little_is_held_is_given_up_as_soon() -> None:
    held = (Extent(0, PAGE, PAGE), Extent(0, 5 * PAGE, 2 * PAGE))
    keeper = Keeper(held)
    for _ in range(2):
        assert keeper.record(gone(*held)).again == held
    assert keeper.record(gone(held[0])).given_up == held


def test_files_that_are_gone_are_held_no_more() -> None:
    keeper = Keeper(HELD)
    keeper.forget([0])
    assert keeper.held == HELD[1:]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5 * MIB // PAGE), st.integers(1, 3 * MIB // PAGE)), max_size=20
    )
)
def test_each_look_is_answered_whole(lost: list[tuple[int, int]]) -> None:
    """What is lost is read again, or given up where it was lost three times; never both."""
    file = 8 * MIB
    keeper = Keeper((Extent(0, 0, file),))
    times = [0] * (file // PAGE)
    for start, pages in lost:
        extent = Extent(0, start * PAGE, min(pages * PAGE, file - start * PAGE))
        held = {page for one in keeper.held for page in pages_of(one)}
        asked = pages_of(extent) & held
        turn = keeper.record(gone(*(Extent(0, page * PAGE, PAGE) for page in sorted(asked))))
        again = {page for one in turn.again for page in pages_of(one)}
        given_up = {page for one in turn.given_up for page in pages_of(one)}
        assert not again & given_up
        assert asked <= again | given_up
        assert {page for one in keeper.held for page in pages_of(one)} == held - given_up
        for page in asked:
            times[page] += 1
        # More than twice the block was lost: some page of it for the third time.
        for page in given_up:
            block = page // BLOCK * BLOCK
            assert max(times[block : block + BLOCK]) >= 3
        # And no block stays of which all was lost three times.
        for page in {page for one in keeper.held for page in pages_of(one)}:
            block = page // BLOCK * BLOCK
            assert min(times[block : block + BLOCK]) < 3


def pages_of(extent: Extent) -> set[int]:
    return set(range(extent.offset // PAGE, extent.end // PAGE))


# What a look finds

FOUND = Survey(
    resident_bytes=3 * MIB,
    total_bytes=5 * MIB,
    method=Method.CACHESTAT,
    missing=(Extent(0, 0, PAGE), Extent(2, MIB, 2 * MIB - PAGE)),
    resident_by_file={0: 3 * MIB + 5 - PAGE, 2: PAGE},
    failed=(),
)


@pytest.mark.parametrize("method", [Method.CACHESTAT, Method.MINCORE])
def test_an_exact_method_says_which_pages_are_lost(method: Method) -> None:
    assert losses(FOUND._replace(method=method), HELD) == gone(*FOUND.missing)


def test_of_an_estimate_the_whole_file_is_read_again() -> None:
    found = FOUND._replace(
        method=Method.NOWAIT, missing=HELD, resident_by_file={0: 3 * MIB + 5, 2: MIB}
    )
    assert losses(found, HELD) == [Loss(HELD[1], MIB)]


def test_what_lies_within_the_noise_of_a_sample_is_no_loss() -> None:
    found = FOUND._replace(
        method=Method.NOWAIT,
        missing=HELD,
        resident_by_file={0: int(0.96 * HELD[0].length), 2: int(0.94 * HELD[1].length)},
    )
    lost = losses(found, HELD)
    assert lost is not None
    assert [one.extent for one in lost] == [HELD[1]]


def test_an_estimate_that_may_be_all_has_lost_nothing() -> None:
    size = FOUND.total_bytes
    sizes: dict[int, int | None] = {0: MIB, 2: MIB}
    found = FOUND._replace(method=Method.TIMED, missing=HELD, resident_by_file=sizes)
    assert losses(found._replace(sampled=Sampled(0, MIB, size, 64)), HELD) == []
    assert losses(found._replace(sampled=Sampled(0, MIB, size - 1, 64)), HELD)


def test_beside_estimates_an_exact_figure_stays_exact() -> None:
    missing = (Extent(0, 0, PAGE * 64), HELD[1])
    sizes: dict[int, int | None] = {0: HELD[0].length - PAGE * 64, 2: HELD[1].length}
    found = FOUND._replace(method=Method.NOWAIT, missing=missing, resident_by_file=sizes)
    assert losses(found, HELD) == [Loss(missing[0], PAGE * 64)]


def test_where_no_method_tells_nobody_knows() -> None:
    found = FOUND._replace(method=Method.UNKNOWN, resident_bytes=None, resident_by_file={})
    assert losses(found, HELD) is None


# When a loader has loaded


def test_loading_is_over_when_all_were_used_and_none_is_for_a_while() -> None:
    loading = Loading([0, 1, 2], settle_seconds=30)
    loading.record([0], 100)
    loading.record([1, 0], 101)
    assert not loading.is_over(1000)
    assert loading.unused == {2}
    loading.record([2], 200)
    assert not loading.is_over(229)
    loading.record([], 229)
    assert loading.is_over(230)


def test_a_file_that_is_used_again_begins_the_wait_anew() -> None:
    loading = Loading([0], settle_seconds=30)
    loading.record([0], 100)
    loading.record([0], 129)
    assert not loading.is_over(158)
    assert loading.is_over(159)


def test_loading_that_has_not_begun_is_not_over() -> None:
    assert not Loading([0], settle_seconds=0).is_over(1e9)
