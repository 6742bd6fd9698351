"""What is left of extents without others, by counting bytes one by one; what is joined."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.checkpoint.files import File, Range
from prefetch_cli.plan.extents import Extent, in_pages, joined, without

PAGE = 4096


@st.composite
def apart(draw: st.DrawFn) -> list[Extent]:
    """Extents of two files that do not overlap, in order."""
    found = []
    for file in (0, 1):
        offset = 0
        for gap, length in draw(
            st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=8)
        ):
            found.append(Extent(file, offset + gap, length))
            offset += gap + length
    return found


def each_byte(extents: list[Extent]) -> list[tuple[int, int]]:
    return [(one.file, offset) for one in extents for offset in range(one.offset, one.end)]


@given(extents=apart(), pieces=apart(), data=st.data())
def test_what_is_left_is_what_no_piece_has(
    extents: list[Extent], pieces: list[Extent], data: st.DataObject
) -> None:
    taken = set(each_byte(pieces))
    left = list(without(extents, data.draw(st.permutations(pieces))))
    assert each_byte(left) == [byte for byte in each_byte(extents) if byte not in taken]
    assert all(one.length > 0 for one in left)


def test_extents_that_touch_are_joined() -> None:
    far, near = Extent(1, 0, 5), Extent(0, 20, 5)
    assert list(joined([far, Extent(0, 5, 5), near, Extent(0, 0, 5), Extent(0, 10, 2)])) == [
        Extent(0, 0, 12),
        near,
        far,
    ]
    assert list(joined([])) == []


@given(
    lengths=st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), max_size=9),
    gap=st.integers(0, 3).map(lambda pages: pages * PAGE),
    behind=st.integers(0, 9_000),
)
def test_parts_are_read_in_whole_pages_with_small_gaps(
    lengths: list[tuple[int, int]], gap: int, behind: int
) -> None:
    parts, offset = [], 0
    for space, length in lengths:
        parts.append(Range(offset + space, length))
        offset += space + length
    file = File("a", "a", offset + behind, weight=True, device=1, inode=2, parts=tuple(parts))
    found = in_pages(file, PAGE, gap).ranges
    pages = {page for part in parts for page in range(part.offset // PAGE, -(-sum(part) // PAGE))}
    read = [page for part in found for page in range(part.offset // PAGE, -(-sum(part) // PAGE))]
    assert pages <= set(read)
    assert read == sorted(set(read))
    assert all(part.offset % PAGE == 0 for part in found)
    assert all(sum(part) % PAGE == 0 or sum(part) == file.size_bytes for part in found)
    for first, second in itertools.pairwise(found):
        # Beside a single page, a gap is left as it is.
        assert second.offset - sum(first) > gap or min(first.length, second.length) <= PAGE
        assert second.offset > sum(first)
    missing = sorted(set(read) - pages)
    for page in missing:  # each lies in a gap that is small enough
        before = max(one for one in pages if one < page)
        after = min(one for one in pages if one > page)
        assert (after - before - 1) * PAGE <= gap


def test_a_whole_file_has_no_parts() -> None:
    file = File("a", "a", 10_000, weight=True, device=1, inode=2)
    assert in_pages(file, PAGE, 0) is file
    assert file.ranges == (Range(0, 10_000),)
    assert File("a", "a", 0, weight=True, device=1, inode=2).ranges == ()


@given(extents=apart(), others=apart(), gap=st.integers(0, 3))
def test_what_is_joined_has_all_bytes_and_only_small_gaps_more(
    extents: list[Extent], others: list[Extent], gap: int
) -> None:
    found = list(joined([*others, *extents], gap))
    asked = {*each_byte(extents), *each_byte(others)}
    got = each_byte(found)
    assert asked <= set(got)
    assert len(got) == len(set(got))
    assert got == sorted(got)
    for first, second in itertools.pairwise(found):
        assert first.file != second.file or second.offset - first.end > gap
    for one in found:
        present = [offset for offset in range(one.offset, one.end) if (one.file, offset) in asked]
        assert (present[0], present[-1]) == (one.offset, one.end - 1)
        assert all(b - a - 1 <= gap for a, b in itertools.pairwise(present))
