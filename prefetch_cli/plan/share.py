"""The share of a rank: a pure function, so that all ranks compute the same split."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.base.words import Split
from prefetch_cli.plan.extents import Extent, blocks, whole

# Whole files keep each rank on few files, but if the largest share is this much above the mean,
# other ranks would idle.
_UNEVEN = 1.10


class Share(NamedTuple):
    """What one rank reads: extents in load order that neither touch nor overlap."""

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

    `sizes` are the files' bytes in load order, and `weights` tells which are weight files. The
    others (config, tokenizer) are dealt out separately, as `side[rank::world_size]`. Split by
    files, rank N gets `files[rank::world_size]`, as in vLLM. Split by bytes, each block in load
    order goes to the rank with the fewest bytes so far, on a tie to the lowest rank.
    """
    weight_files = [file for file, is_weight in enumerate(weights) if is_weight]
    side_files = [file for file, is_weight in enumerate(weights) if not is_weight]
    if split is Split.AUTO:
        split = Split.FILES if _even(sizes, weight_files, world_size) else Split.BYTES
    if split is Split.FILES or world_size == 1:
        mine: Iterable[Extent] = whole(sizes, weight_files[rank::world_size])
    else:
        # A rank never gets two adjacent blocks: it would have to be a full block behind every other
        # rank, and whoever goes first on ties never falls that far behind.
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
