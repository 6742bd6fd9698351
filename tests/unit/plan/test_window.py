"""The window over simulated loaders: never too far ahead, never a byte too early, never stuck."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.loaders import Loaders, Lost, Name, Patience
from prefetch_cli.plan.window import Position, Turn, Where, Window, total
from tests.unit.plan import loaders as stories
from tests.unit.plan.loaders import FILE_PAGES, FILES, PAGE, Process, Story

ORDER = tuple(Extent(file, 0, FILE_PAGES * PAGE) for file in range(FILES))
FILE = FILE_PAGES * PAGE
A, B = (100, 0), (200, 0)  # processes
# A moment of a story is a second.
PATIENCE = Patience(settle=3, hidden=100, unused=1000, spread=3)


def linear(at: Position) -> int:
    return at.file * FILE + at.offset


def truth(processes: Sequence[Process], moment: int) -> int | None:
    """Return where the slowest is of those that have begun to load; None where none does."""
    places: list[int] = []
    left: list[int] = []  # of those that will have no file any more
    for one in processes:
        state, before = one.now(moment), [files for files in one.before(moment) if files]
        if state:
            places.append(linear(Position(min(state), state[min(state)])))
        elif before:
            found = places if one.to_come(moment) else left
            found.append(linear(Position(max(before[-1]) + 1, 0)))
    return min(places) if places else max(left, default=None)


@dataclass
class Run:
    """A window that follows a story."""

    story: Story
    window: Window
    loaders: Loaders
    room: int
    most: int
    cached: set[tuple[int, int]] = field(default_factory=set)  # pages that it has read
    last: int = 0

    def step(self, moment: int) -> Turn | None:
        running = {
            (number, 0): state
            for number, one in enumerate(self.story.processes)
            if (state := one.now(moment)) is not None
        }
        self.loaders.record(running, moment)
        if self.loaders.lost is not None:
            return None
        where = self.loaders.where(moment)
        turn = self.window.turn(where, self.room, self.most)
        self.check(turn, moment)
        self.window.record_dropped(turn.drop)
        self.cached -= set(pages(turn.drop))
        self.window.record_read(turn.read, where.at)
        self.cached |= set(pages(turn.read))
        return turn

    def check(self, turn: Turn, moment: int) -> None:
        # Those that have begun: of one that has not, nobody knows that it will.
        begun = [
            one
            for one in self.story.processes
            if one.now(moment) is not None and any([*one.before(moment), one.now(moment)])
        ]
        for extent in turn.drop:
            for one in begun:
                assert extent.file not in one.to_come(moment)
        self.last = self.last if (now := truth(begun, moment)) is None else now
        for extent in turn.read:
            assert linear(Position(extent.file, extent.end)) <= self.last + self.window.size_bytes
        assert total(turn.read) <= self.most
        assert not self.cached & set(pages(turn.read))


def pages(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    return [
        (extent.file, page)
        for extent in extents
        for page in range(extent.offset // PAGE, -(-extent.end // PAGE))
    ]


def run_of(story: Story, size: int, room: int, most: int = 2 * FILE) -> Run:
    window = Window(ORDER, size, PAGE, ())
    return Run(story, window, Loaders(ORDER, size, 0, PATIENCE), room, most)


@settings(max_examples=400, deadline=None)
@given(
    stories.ANY,
    st.integers(1, FILES * FILE_PAGES),
    st.integers(0, FILES * FILE_PAGES),
    st.integers(1, 2 * FILE_PAGES),
)
def test_nothing_is_dropped_too_early_and_nothing_is_read_too_far_ahead(
    story: Story, size: int, room: int, most: int
) -> None:
    run = run_of(story, size * PAGE, room * PAGE, most * PAGE)
    for moment in range(story.moments):
        if run.step(moment) is None:
            assert run.loaders.lost in {Lost.ORDER, Lost.SPREAD}
            break
        assert run.window.furthest_bytes <= run.window.size_bytes
        assert len(run.cached) <= room


@settings(max_examples=200, deadline=None)
@given(stories.FOLLOWED, st.integers(2, FILES))
def test_a_loader_in_order_is_followed_to_its_end(story: Story, size: int) -> None:
    run = run_of(story, size * FILE, FILES * FILE)
    for moment in range(story.moments):
        assert run.step(moment) is not None, run.loaders.lost


@settings(max_examples=200, deadline=None)
@given(stories.in_reverse())
def test_a_loader_in_reverse_is_told_before_anything_is_dropped(story: Story) -> None:
    run = run_of(story, 2 * FILE, 3 * FILE)
    turns = [run.step(moment) for moment in range(story.moments)]
    assert run.loaders.lost is Lost.ORDER
    assert not any(turn.drop for turn in turns if turn is not None)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 4), st.integers(0, 3))
def test_each_file_is_warm_when_the_loader_comes_to_it(
    data: st.DataObject, size: int, begins: int
) -> None:
    """With memory for the window and one file more, of a checkpoint twice as large or larger."""
    states = data.draw(st.composite(lambda draw: stories.mapping(draw, range(FILES)))())
    run = run_of(Story([Process(begins, states)]), size * FILE, (size + 1) * FILE)
    came: set[int] = set()
    for moment in range(run.story.moments):
        for file in run.story.processes[0].now(moment) or {}:
            if file not in came and moment > 0:
                came.add(file)
                assert {(file, page) for page in range(FILE_PAGES)} <= run.cached
        assert run.step(moment) is not None
    assert run.window.dropped_bytes >= (FILES - size - 1) * FILE


# By hand


def at(file: int, offset: int = 0, *, passed: Sequence[int] = (), had: Sequence[int] = ()) -> Where:
    return Where(Position(file, offset), frozenset(had or passed), frozenset(passed), over=False)


def test_nothing_is_dropped_while_there_is_room() -> None:
    window = Window(ORDER, 2 * FILE, PAGE, ())
    window.record_read(ORDER[:2])
    turn = window.turn(at(2, passed=(0, 1)), 4 * FILE, 2 * FILE)
    assert turn == Turn((), ORDER[2:4])
    turn = window.turn(at(2, passed=(0, 1)), 3 * FILE, 2 * FILE)
    assert turn == Turn(ORDER[:1], ORDER[2:4])


def test_what_is_dropped_is_dropped_once() -> None:
    window = Window(ORDER, FILE, PAGE, ())
    window.record_read(ORDER[:2])
    where = at(2, passed=(0, 1))
    assert window.turn(where, FILE, FILE) == Turn(ORDER[:2], ORDER[2:3])
    window.record_dropped(ORDER[:2])
    assert window.turn(where, FILE, FILE) == Turn((), ORDER[2:3])
    assert window.dropped_bytes == 2 * FILE


def test_what_the_loader_has_read_itself_takes_room_too() -> None:
    window = Window(ORDER, FILE, PAGE, ())
    assert window.turn(at(2, passed=(0, 1)), 2 * FILE, FILE) == Turn(ORDER[:1], ORDER[2:3])
    # But not what it has left out.
    window = Window(ORDER, FILE, PAGE, ())
    assert window.turn(at(2, passed=(0, 1), had=(5,)), 2 * FILE, FILE).drop == ()


def test_where_memory_becomes_short_what_was_passed_goes_although_nothing_is_to_be_read() -> None:
    window = Window(ORDER, FILE, PAGE, ORDER[:3])
    assert window.turn(at(2, passed=(0, 1)), 3 * FILE, FILE) == Turn((), ())
    assert window.turn(at(2, passed=(0, 1)), 2 * FILE, FILE) == Turn(ORDER[:1], ())


def test_what_is_resident_is_not_read() -> None:
    window = Window(ORDER, 2 * FILE, PAGE, [Extent(0, PAGE, PAGE)])
    assert window.turn(at(0), 8 * FILE, FILE).read == (
        Extent(0, 0, PAGE),
        Extent(0, 2 * PAGE, 2 * PAGE),
        Extent(1, 0, PAGE),
    )


def test_a_window_that_is_no_whole_page_ends_at_one() -> None:
    window = Window(ORDER, PAGE + 1, PAGE, ())
    assert window.turn(at(0), FILE, FILE).read == (Extent(0, 0, PAGE),)
    assert window.turn(at(0, PAGE - 1), FILE, FILE).read == (Extent(0, 0, 2 * PAGE),)
    assert window.turn(at(0, 2), FILE, FILE).read == (Extent(0, 0, PAGE),)


def test_the_reader_knows_where_the_window_ends_in_a_file() -> None:
    window = Window(ORDER, FILE + PAGE, PAGE, ())
    assert window.turn(at(0), 8 * FILE, PAGE).cut == Extent(1, 0, PAGE)
    assert window.turn(at(0, FILE - PAGE), 8 * FILE, PAGE).cut is None
    assert window.turn(at(8), 8 * FILE, PAGE) == Turn((), ())


def test_parts_of_files_have_a_window_too() -> None:
    parts = (Extent(0, 0, PAGE), Extent(0, 3 * PAGE, PAGE), Extent(2, PAGE, 2 * PAGE))
    window = Window(parts, 2 * PAGE, PAGE, ())
    assert window.turn(at(0), FILE, FILE).read == parts[:2]
    assert window.turn(at(0, 2 * PAGE), FILE, FILE).read == (parts[1], Extent(2, PAGE, PAGE))
    window.record_read([*parts[1:2], Extent(2, PAGE, PAGE)], Position(0, 2 * PAGE))
    assert window.furthest_bytes == 2 * PAGE


def test_the_head_is_what_fits_beside_what_is_there() -> None:
    window = Window(ORDER, FILE, PAGE, [ORDER[0], ORDER[6]])
    assert window.rest_of_head((), 4 * FILE) == ORDER[1:3]
    assert window.rest_of_head((), 100 * FILE) == (*ORDER[1:6], ORDER[7])
    assert window.rest_of_head((), 0) == ()
    assert window.rest_of_head((2, 6), 4 * FILE) == ORDER[1:2]


# Whether a loader can be followed


def looked(*looks: dict[Name, dict[int, int]], size: int = 2 * FILE) -> Loaders:
    found = Loaders(ORDER, size, 0, PATIENCE)
    for moment, held in enumerate(looks):
        found.record(held, moment)
    return found


def test_one_that_has_begun_anew_may_come_to_all_again() -> None:
    found = looked({A: {0: 0}}, {A: {3: 0}})
    assert found.where(1).passed == {0, 1, 2}
    found.record({A: {0: 0}}, 2)
    assert found.where(2) == at(0, had=(0, 3))
    found.record({A: {1: 0}}, 3)
    assert found.where(3).passed == {0}


def test_one_that_goes_back_again_and_again_reads_in_another_order() -> None:
    looks = [{A: {file: 0}} for file in (0, 5, 2, 7, 1)]
    assert looked(*looks).lost is None
    assert looked(*looks, {A: {6: 0}}, {A: {3: 0}}).lost is Lost.ORDER


def test_threads_that_open_their_files_in_no_order_are_forgiven() -> None:
    assert looked({A: {3: 0}}, {A: {2: 0, 3: 0}}, {A: {2: 0, 4: 0}}).lost is None
    keeping = ({A: dict.fromkeys(range(file, FILES), 0)} for file in (7, 6, 5, 4))
    assert looked(*keeping).lost is Lost.ORDER


def test_one_that_is_between_two_files_still_counts() -> None:
    found = looked({A: {0: 0}, B: {0: 0}}, {A: {1: 0}, B: {5: 0}}, {A: {}, B: {5: 0}})
    assert found.where(2) == at(2, passed=(0,), had=(0, 1, 5))
    # It has loaded what it wanted.
    assert found.where(1 + PATIENCE.settle) == at(5, passed=range(5), had=(0, 1, 5))


def test_files_that_all_are_open_at_once_do_not_tell_where_the_loader_is() -> None:
    everything = {A: dict.fromkeys(range(FILES), 0)}
    assert looked(*[everything] * 3).lost is None
    assert looked(*[everything] * 4).lost is Lost.SPREAD
    assert looked(*[everything] * 3, {A: {1: 0}}, *[everything] * 2).lost is None
    assert looked(*[everything] * 6, size=FILES * FILE).lost is None


def test_nobody_to_be_seen() -> None:
    patience = Patience(settle=3, hidden=2, unused=5, spread=3)
    found = Loaders(ORDER, FILE, 0, patience)
    found.record({}, 1)
    assert found.lost is None
    found.record({A: {}}, 2)
    found.record({}, 3)
    assert found.lost is None
    found.record({}, 4)
    assert found.lost is Lost.HIDDEN


@pytest.mark.parametrize(("held", "lost"), [({}, Lost.UNUSED), ({1: 0}, None)])
def test_one_that_opens_nothing_for_long(held: dict[int, int], lost: Lost | None) -> None:
    found = Loaders(ORDER, FILE, 0, Patience(settle=3, hidden=2, unused=5, spread=3))
    for moment in range(6):
        found.record({A: held}, moment)
    assert found.lost is lost


def test_it_is_over_when_the_last_file_was_had_and_none_is() -> None:
    found = looked({A: {6: 0}}, {A: {7: 0}}, {A: {}})
    assert not found.where(2).over
    assert found.where(1 + PATIENCE.settle).over
    assert looked({A: {7: 0}}, {}).where(1).over
    assert not looked({A: {6: 0}}, {}).where(1).over
