"""Files and a rank to the share of that rank: a pure function, the same on every rank."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prefetch_cli.base.words import Split
from prefetch_cli.plan.extents import Extent, blocks, whole

# Dealing out whole files keeps each rank on few files; above this it leaves ranks idle.
_UNEVEN = 1.10


@dataclass(frozen=True)
class Share:
    """What one rank reads: extents in load order, none of which touch or overlap."""

    rank: int
    world_size: int
    split: Split  # FILES or BYTES
    extents: tuple[Extent, ...]
    files: int
    size_bytes: int


def partition(
    sizes: Sequence[int],
    weights: Sequence[bool],
    *,
    rank: int,
    world_size: int,
    split: Split,
    block_size_bytes: int,
) -> Share:
    """Return the share of `rank` among `world_size` processes of one node.

    `sizes` are the bytes of the files in load order, `weights` tells which of them are weight
    files; the others (config, tokenizer) are dealt out apart, `side[rank::world_size]`.
    Files go as `files[rank::world_size]`, as vLLM slices them; bytes go block by block, in
    load order, to the rank that has the fewest bytes so far, the lowest rank on ties.
    """
    weight_files = [file for file, is_weight in enumerate(weights) if is_weight]
    side_files = [file for file, is_weight in enumerate(weights) if not is_weight]
    if split is Split.AUTO:
        split = Split.FILES if _even(sizes, weight_files, world_size) else Split.BYTES
    if split is Split.FILES or world_size == 1:
        mine: Iterable[Extent] = whole(sizes, weight_files[rank::world_size])
    else:
        # No two of a rank touch: for two in a row it would have to be a whole block behind every
        # other, and the one that goes first on ties never falls that far.
        blocks = _blocks(sizes, weight_files, block_size_bytes)
        mine = (block for block, owner in _dealt(blocks, world_size) if owner == rank)
    side = whole(sizes, side_files[rank::world_size])
    extents = tuple(heapq.merge(side, mine))
    return Share(
        rank=rank,
        world_size=world_size,
        split=split,
        extents=extents,
        files=len({extent.file for extent in extents}),
        size_bytes=sum(extent.length for extent in extents),
    )


def _even(sizes: Sequence[int], files: Sequence[int], world_size: int) -> bool:
    shares = [sum(sizes[file] for file in files[rank::world_size]) for rank in range(world_size)]
    return max(shares) * world_size <= _UNEVEN * sum(shares)


def _blocks(sizes: Sequence[int], files: Iterable[int], block_bytes: int) -> Iterator[Extent]:
    for extent in whole(sizes, files):
        yield from blocks(extent, block_bytes)


def _dealt(blocks: Iterable[Extent], world_size: int) -> Iterator[tuple[Extent, int]]:
    loads = [(0, rank) for rank in range(world_size)]  # a heap: fewest bytes, then lowest rank
    for block in blocks:
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + block.length, rank))
        yield block, rank
