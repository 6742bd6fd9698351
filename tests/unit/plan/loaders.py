"""Simulated loaders: for each moment of each process, the files that it has and how far it read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

PAGE = 4096
FILES = 8
FILE_PAGES = 4

State = Mapping[int, int]  # by file: the offset up to which it has been read, 0 where it is mapped


@dataclass(frozen=True)
class Process:
    """One process: it begins at a moment, goes through its states, and ends."""

    begins: int
    states: Sequence[State]

    def now(self, moment: int) -> State | None:
        """Return what it has at a moment, None where it does not run."""
        number = moment - self.begins
        return self.states[number] if 0 <= number < len(self.states) else None

    def before(self, moment: int) -> Sequence[State]:
        """Return what it has had before."""
        return self.states[: max(0, moment - self.begins)]

    def to_come(self, moment: int) -> set[int]:
        """Return the files that it has now or will have."""
        return {file for state in self.states[max(0, moment - self.begins) :] for file in state}


@dataclass(frozen=True)
class Story:
    """What happens."""

    processes: Sequence[Process]

    @property
    def moments(self) -> int:
        """How long it lasts."""
        return max(one.begins + len(one.states) for one in self.processes) + 1


def mapping(draw: st.DrawFn, files: Sequence[int], *, least: int = 1, most: int = 3) -> list[State]:
    """Return the states of one that maps each file for a while, at times with none between."""
    states: list[State] = []
    for file in files:
        states += [{file: 0}] * draw(st.integers(least, most))
        states += [{}] * draw(st.integers(0, 1))
    return states


def copying(draw: st.DrawFn, files: Sequence[int]) -> list[State]:
    """Return the states of one that copies each file with read()."""
    states: list[State] = []
    for file in files:
        steps = draw(st.integers(1, FILE_PAGES))
        states += [{file: FILE_PAGES * PAGE * step // steps} for step in range(steps + 1)]
    return states


@st.composite
def in_order(draw: st.DrawFn) -> Story:
    files = range(FILES)
    states = mapping(draw, files) if draw(st.booleans()) else copying(draw, files)
    return Story([Process(draw(st.integers(0, 5)), states)])


@st.composite
def opening_the_next_before_closing(draw: st.DrawFn) -> Story:
    states: list[State] = []
    for file in range(FILES):
        states += [{file: 0}] * draw(st.integers(1, 2))
        if file + 1 < FILES:
            states.append({file: 0, file + 1: 0})
    return Story([Process(0, states)])


@st.composite
def with_files_left_out(draw: st.DrawFn) -> Story:
    files = sorted(draw(st.sets(st.integers(0, FILES - 1), min_size=1)))
    return Story([Process(draw(st.integers(0, 3)), mapping(draw, files))])


@st.composite
def in_reverse(draw: st.DrawFn) -> Story:
    return Story([Process(draw(st.integers(0, 5)), mapping(draw, range(FILES)[::-1]))])


@st.composite
def crashing(draw: st.DrawFn) -> Story:
    """It crashes at any file and begins anew, in another process."""
    first = mapping(draw, range(draw(st.integers(1, FILES))))
    again = Process(len(first) + draw(st.integers(0, 4)), mapping(draw, range(FILES)))
    return Story([Process(0, first), again])


@st.composite
def two_models(draw: st.DrawFn) -> Story:
    """One after the other, by one process or by two."""
    half = FILES // 2
    first, second = mapping(draw, range(half)), mapping(draw, range(half, FILES))
    pause: list[State] = [{}] * draw(st.integers(0, 4))
    if draw(st.booleans()):
        return Story([Process(0, [*first, *pause, *second])])
    return Story([Process(0, first), Process(len(first) + len(pause), second)])


@st.composite
def drifting(draw: st.DrawFn) -> Story:
    """Ranks that begin together, one of which soon is 5 files ahead of another."""
    fast: list[State] = [{file: 0} for file in range(FILES)]
    slow = mapping(draw, range(FILES), least=5, most=7)
    others = [mapping(draw, range(FILES)) for _ in range(draw(st.integers(0, 2)))]
    return Story([Process(0, states) for states in [fast, slow, *others]])


@st.composite
def forked(draw: st.DrawFn) -> Story:
    """A server without a file of its own, whose workers load."""
    workers = [
        Process(draw(st.integers(1, 4)), copying(draw, range(FILES)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    end = max(one.begins + len(one.states) for one in workers)
    return Story([Process(0, [{}] * (end + 3)), *workers])


FOLLOWED = st.one_of(
    in_order(),
    opening_the_next_before_closing(),
    with_files_left_out(),
    crashing(),
    two_models(),
    drifting(),
    forked(),
)
ANY = st.one_of(FOLLOWED, in_reverse())
