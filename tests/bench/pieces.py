"""Cold ranges -> pieces of equal size, dealt out to combinations of flags: pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from prefetch_cli.base.amounts import format_size, parse_size
from prefetch_cli.base.words import Engine
from prefetch_cli.cli.main import command
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import AUTO_THREADS

MIB = 1 << 20
GIB = 1 << 30
_SHORTEST_RUN_BYTES = 16 * MIB  # a piece of many short runs would measure the runs
_GROWTH = 4  # times as large as it must be, where enough is cold; beyond that only time is spent
_GRAIN_BYTES = 16 * MIB


@dataclass(frozen=True)
class Combination:
    """Values for the flags under test."""

    engine: Engine
    threads: int
    block_bytes: int

    @property
    def words(self) -> str:
        """The values, for people."""
        size = format_size(self.block_bytes)
        return f"{self.engine.value}, {self.threads} x {size}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that set it, without those that equal the defaults."""
        found: list[str] = []
        if self.engine is not DEFAULT.engine:
            found += ["--engine", self.engine.value]
        if self.threads != DEFAULT.threads:
            found += ["--threads", str(self.threads)]
        if self.block_bytes != DEFAULT.block_bytes:
            found += ["--block-size", format_size(self.block_bytes).replace(" ", "")]
        return tuple(found)


def _default() -> Combination:
    values: dict[str, Any] = {str(param.name): param.default for param in command.params}
    return Combination(
        Engine(values["engine"]), AUTO_THREADS.first, parse_size(values["block_size"])
    )


DEFAULT = _default()  # what the tool does without flags


@dataclass(frozen=True)
class Grid:
    """Values to combine, and the least that each combination reads at a time."""

    engines: tuple[Engine, ...]
    threads: tuple[int, ...]
    block_bytes: tuple[int, ...]
    piece_bytes: int

    def combinations(self) -> list[Combination]:
        """Return the defaults, then each combination that has work for all its threads."""
        return [DEFAULT, *(one for one in self._all() if self._busy(one))]

    def left_out(self) -> list[Combination]:
        """Return the combinations in which some thread would get no block of a piece."""
        return [one for one in self._all() if not self._busy(one)]

    def _all(self) -> Iterator[Combination]:
        for values in product(self.engines, self.threads, self.block_bytes):
            yield Combination(*values)

    def _busy(self, one: Combination) -> bool:
        return one.threads * one.block_bytes <= self.piece_bytes


ENGINES = Engine.fixed()
THREADS = (1, 8, 32)
BLOCKS = (1 * MIB, 16 * MIB, 64 * MIB)
# From everything worth trying down to just the engines.
GRIDS = (
    Grid(ENGINES, THREADS, BLOCKS, 2 * GIB),
    Grid(ENGINES, THREADS, BLOCKS, 512 * MIB),
    Grid(ENGINES, THREADS, BLOCKS, 128 * MIB),
    Grid(ENGINES, (1, 8), (1 * MIB, 16 * MIB), 128 * MIB),
    Grid(ENGINES, (8,), (16 * MIB,), 128 * MIB),
)


@dataclass(frozen=True)
class Piece:
    """A cold part of the checkpoint that one combination reads, once."""

    extents: tuple[Extent, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of its extents."""
        return sum(extent.length for extent in self.extents)


@dataclass(frozen=True)
class Deal:
    """What is measured: for each round, each combination with a piece of its own."""

    grid: Grid
    combinations: tuple[Combination, ...]
    rounds: int
    piece_bytes: int
    pieces: tuple[Piece, ...]  # in load order

    @property
    def size_bytes(self) -> int:
        """What is read in all."""
        return self.piece_bytes * len(self.pieces)

    def piece(self, number: int, place: int) -> Piece:
        """Return the piece for the combination at this place of round `number`, from 1.

        Each round goes through the whole checkpoint, so that no round stands for a part of it.
        """
        return self.pieces[place * self.rounds + number - 1]


def deal(
    cold: Sequence[Extent],
    grids: Sequence[Grid],
    *,
    rounds: int,
    most_bytes: int,
    gap_bytes: int,
) -> Deal | None:
    """Return the largest of `grids` that the cold extents allow, None where none does.

    All pieces together have at most `most_bytes`. They lie `gap_bytes` apart, so that read-ahead
    past the end of one does not warm the next.
    """
    for grid in grids:
        combinations = tuple(grid.combinations())
        count = len(combinations) * rounds
        best: list[Piece] = []
        size_bytes = grid.piece_bytes
        while size_bytes <= grid.piece_bytes * _GROWTH and size_bytes * count <= most_bytes:
            pieces = cut(cold, size_bytes, gap_bytes)
            if len(pieces) < count:
                break
            best = [pieces[place * len(pieces) // count] for place in range(count)]
            size_bytes += max(_GRAIN_BYTES, size_bytes // 8) // _GRAIN_BYTES * _GRAIN_BYTES
        if best:
            return Deal(grid, combinations, rounds, best[0].size_bytes, tuple(best))
    return None


def needed_bytes(grids: Sequence[Grid], *, rounds: int, gap_bytes: int) -> int:
    """Return how much must be cold for the smallest of the grids."""
    return min(len(grid.combinations()) * rounds * (grid.piece_bytes + gap_bytes) for grid in grids)


def cut(cold: Sequence[Extent], size_bytes: int, gap_bytes: int) -> list[Piece]:
    """Return disjoint pieces of exactly this size, in load order, with a gap behind each.

    A piece that reaches the end of a run or file continues in the next one.
    """
    pieces = []
    shortest = min(_SHORTEST_RUN_BYTES, size_bytes)
    parts: list[Extent] = []
    left, skip, file = size_bytes, 0, -1
    for run in cold:
        if run.length < shortest:
            continue
        if run.file != file:
            file, skip = run.file, 0  # nothing is read ahead into another file
        offset = run.offset
        while offset < run.end:
            if skip:
                skipped = min(skip, run.end - offset)
                skip -= skipped
                offset += skipped
                continue
            length = min(left, run.end - offset)
            parts.append(Extent(run.file, offset, length))
            offset += length
            left -= length
            if left == 0:
                pieces.append(Piece(tuple(parts)))
                parts, left, skip = [], size_bytes, gap_bytes
    return pieces
