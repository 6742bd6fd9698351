"""What is left of extents without others, by counting bytes one by one; what is joined."""

from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.plan.extents import Extent, joined, without


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
