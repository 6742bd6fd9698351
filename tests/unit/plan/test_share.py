"""The properties that the ranks of a node rely on, for any set of files."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.words import Split
from prefetch_cli.plan.extents import Extent, blocks, head, joined, within
from prefetch_cli.plan.share import Share, partition
from tests.helpers.reading import whole

PAGE = 4096
SIZES = st.lists(st.integers(0, 300_000), max_size=30)
WORLDS = st.integers(1, 9)
BLOCKS = st.integers(1, 20).map(lambda pages: pages * PAGE)


def shares(
    sizes: list[int], weights: list[bool], world: int, split: Split, block: int
) -> list[Share]:
    return [
        partition(
            whole(sizes), weights, rank=rank, world_size=world, split=split, block_size_bytes=block
        )
        for rank in range(world)
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[bool], int, Split, int]:
    sizes = draw(SIZES)
    weights = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    return sizes, weights, draw(WORLDS), draw(st.sampled_from(Split)), draw(BLOCKS)


@given(cases())
def test_shares_are_disjoint_and_complete(
    case: tuple[list[int], list[bool], int, Split, int],
) -> None:
    sizes = case[0]
    extents = sorted(extent for share in shares(*case) for extent in share.extents)
    for file, size in enumerate(sizes):
        mine = [extent for extent in extents if extent.file == file]
        ends = [0, *(extent.end for extent in mine)]
        assert [extent.offset for extent in mine] == ends[:-1]
        assert ends[-1] == size


@given(cases())
def test_a_share_keeps_the_load_order_and_no_extents_of_it_touch(
    case: tuple[list[int], list[bool], int, Split, int],
) -> None:
    for share in shares(*case):
        assert list(share.extents) == sorted(share.extents)
        for first, second in itertools.pairwise(share.extents):
            assert first.file != second.file or first.end < second.offset
        assert share.size_bytes == sum(extent.length for extent in share.extents)
        assert share.files == len({extent.file for extent in share.extents})
        assert all(extent.length > 0 for extent in share.extents)


@st.composite
def parts(draw: st.DrawFn) -> list[Extent]:
    """Parts of three files, each from a page on, with at least a page between them."""
    found = []
    for file in range(3):
        offset = 0
        lengths = st.tuples(st.integers(1, 9), st.integers(1, 40))
        for gap, pages in draw(st.lists(lengths, max_size=6)):
            offset += gap * PAGE
            found.append(Extent(file, offset, pages * PAGE))
            offset += pages * PAGE
    return found


@given(parts(), WORLDS, st.sampled_from(Split), BLOCKS)
def test_shares_of_parts_are_disjoint_and_complete_and_none_of_them_touch(
    extents: list[Extent], world: int, split: Split, block: int
) -> None:
    weights = [True, True, False]
    found = [
        partition(
            extents, weights, rank=rank, world_size=world, split=split, block_size_bytes=block
        )
        for rank in range(world)
    ]
    each = [extent for share in found for extent in share.extents]
    assert list(joined(each)) == extents
    assert sum(extent.length for extent in each) == sum(extent.length for extent in extents)
    assert all(list(joined(share.extents)) == list(share.extents) for share in found)
    if split is Split.BYTES:
        loads = [sum(one.length for one in share.extents if one.file < 2) for share in found]
        assert max(loads) - min(loads) <= block


@given(parts(), st.integers(0, 2_000_000))
def test_the_head_of_parts_is_what_fits(extents: list[Extent], limit: int) -> None:
    kept = list(within(extents, head(extents, limit, PAGE)))
    kept_bytes = sum(extent.length for extent in kept)
    assert kept_bytes == min(limit // PAGE * PAGE, sum(extent.length for extent in extents))
    assert [(one.file, one.offset) for one in kept] == [
        (one.file, one.offset) for one in extents[: len(kept)]
    ]


@pytest.mark.parametrize("split", Split)
def test_a_single_rank_takes_each_file_whole(split: Split) -> None:
    [share] = shares([3 * PAGE, 0, 5], [True, True, False], 1, split, PAGE)
    assert share.extents == (Extent(0, 0, 3 * PAGE), Extent(2, 0, 5))


@given(SIZES, WORLDS, BLOCKS)
def test_byte_shares_are_within_one_extent_of_each_other(
    sizes: list[int], world: int, block: int
) -> None:
    loads = [
        share.size_bytes for share in shares(sizes, [True] * len(sizes), world, Split.BYTES, block)
    ]
    assert max(loads) - min(loads) <= block


def test_each_of_many_ranks_gets_its_bytes() -> None:
    ranks = 400  # more than the small integers that CPython caches
    found = shares([ranks * PAGE], [True], ranks, Split.BYTES, PAGE)
    assert [share.size_bytes for share in found] == [PAGE] * ranks


@given(SIZES, WORLDS, BLOCKS)
def test_bytes_go_to_the_rank_with_the_fewest_the_lowest_on_ties(
    sizes: list[int], world: int, block: int
) -> None:
    loads = [0] * world
    for size in sizes:
        for offset in range(0, size, block):
            poorest = loads.index(min(loads))
            loads[poorest] += min(block, size - offset)
    found = shares(sizes, [True] * len(sizes), world, Split.BYTES, block)
    assert [share.size_bytes for share in found] == loads


@given(cases())
def test_side_files_are_dealt_out_apart(
    case: tuple[list[int], list[bool], int, Split, int],
) -> None:
    sizes, weights, world, _, _ = case
    side = [file for file, weight in enumerate(weights) if not weight]
    for share in shares(*case):
        mine = {extent.file for extent in share.extents if not weights[extent.file]}
        assert mine == {file for file in side[share.rank :: world] if sizes[file]}


def test_files_are_sliced_as_vllm_slices_them() -> None:
    sizes = [10, 20, 30, 40, 50]
    found = shares(sizes, [True] * 5, 2, Split.FILES, PAGE)
    assert [extent.file for extent in found[0].extents] == [0, 2, 4]
    assert [extent.file for extent in found[1].extents] == [1, 3]


@pytest.mark.parametrize(
    ("sizes", "world", "expected"),
    [
        ([100, 100, 100, 100], 2, Split.FILES),
        ([110, 100, 110, 100], 2, Split.FILES),  # 220, the mean is 210: within 10 %
        ([130, 100, 130, 100], 2, Split.BYTES),
        ([100], 2, Split.BYTES),  # one huge file would leave a rank idle
        ([100], 1, Split.FILES),
        ([], 4, Split.FILES),
        ([110, 90], 2, Split.FILES),  # exactly 10 % above the mean
        ([111, 89], 2, Split.BYTES),
    ],
)
def test_auto_takes_files_where_that_is_even(sizes: list[int], world: int, expected: Split) -> None:
    [first, *_] = shares(sizes, [True] * len(sizes), world, Split.AUTO, PAGE)
    assert first.split is expected


@given(SIZES, st.integers(0, 2_000_000))
def test_the_head_is_what_fits_and_no_page_more(sizes: list[int], limit: int) -> None:
    everything = whole(sizes)
    cut = head(everything, limit, PAGE)
    kept = list(within(everything, cut))
    pages = sum(-(-extent.length // PAGE) for extent in kept)
    assert pages * PAGE <= limit
    total = sum(-(-size // PAGE) * PAGE for size in sizes)
    if total <= limit:
        assert cut is None
        assert kept == everything
    else:
        assert cut is not None
        assert cut.offset == 0
        assert limit - pages * PAGE < PAGE
        assert kept[:-1] == everything[: len(kept[:-1])]
        assert [one.file for one in kept] == [one.file for one in everything[: len(kept)]]


def test_what_fits_exactly_is_not_cut() -> None:
    assert head(whole([PAGE, 2 * PAGE]), 3 * PAGE, PAGE) is None
    assert head(whole([PAGE, 2 * PAGE]), 3 * PAGE - 1, PAGE) == Extent(1, 0, PAGE)


def test_an_extent_is_kept_up_to_the_cut() -> None:
    cut, block = Extent(int("300"), 0, 9 * PAGE), Extent(int("300"), 4 * PAGE, 8 * PAGE)
    assert cut.file is not block.file  # equal, but not the same object
    assert list(within([block], cut)) == [Extent(300, 4 * PAGE, 5 * PAGE)]
    for offset in (9, 10):
        assert list(within([block._replace(offset=offset * PAGE)], cut)) == []


@given(st.integers(0, 10**6), st.integers(1, 10**6), BLOCKS)
def test_blocks_cover_an_extent_and_are_cut_at_multiples(
    offset: int, length: int, block: int
) -> None:
    found = list(blocks(Extent(3, offset, length), block))
    assert found[0].offset == offset
    assert found[-1].end == offset + length
    assert all(first.end == second.offset for first, second in itertools.pairwise(found))
    assert all(piece.end % block == 0 for piece in found[:-1])
    assert all(0 < piece.length <= block for piece in found)
