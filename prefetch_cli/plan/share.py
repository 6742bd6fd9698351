"""The share of a rank: a pure function, so that all ranks compute the same split."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.base.words import Split
from prefetch_cli.plan.extents import Extent, blocks, joined

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
    extents: Sequence[Extent],
    weights: Sequence[bool],
    *,
    rank: int,
    world_size: int,
    split: Split,
    block_size_bytes: int,
) -> Share:
    """Return the share of `rank` among `world_size` processes of one node.

    `extents` are what is to be read, in load order, and `weights` tells of each file whether it is
    one of weights. The others (config, tokenizer) are dealt out separately, as
    `side[rank::world_size]`. Split by files, rank N gets `files[rank::world_size]`, as in vLLM.
    Split by bytes, each block in load order goes to the rank with the fewest bytes so far, on a tie
    to the lowest rank.
    """
    weight_files = [file for file, is_weight in enumerate(weights) if is_weight]
    side_files = [file for file, is_weight in enumerate(weights) if not is_weight]
    if split is Split.AUTO:
        split = Split.FILES if _even(extents, weight_files, world_size) else Split.BYTES
    mine: Iterable[Extent]
    if split is Split.FILES or world_size == 1:
        mine = _of(extents, weight_files[rank::world_size])
    else:
        of_weights = _of(extents, weight_files)
        each = (block for extent in of_weights for block in blocks(extent, block_size_bytes))
        # The first block of an extent may be a short one, and leave its rank the poorest.
        mine = joined(block for block, owner in _dealt(each, world_size) if owner == rank)
    side = _of(extents, side_files[rank::world_size])
    extents = tuple(heapq.merge(side, mine))
    return Share(
        rank=rank,
        world_size=world_size,
        split=split,
        extents=extents,
        files=len({extent.file for extent in extents}),
        size_bytes=sum(extent.length for extent in extents),
    )


def _of(extents: Iterable[Extent], files: Iterable[int]) -> Iterator[Extent]:
    wanted = set(files)
    return (extent for extent in extents if extent.file in wanted)


def _even(extents: Iterable[Extent], files: Sequence[int], world_size: int) -> bool:
    sizes = Counter[int]()
    for extent in extents:
        sizes[extent.file] += extent.length
    shares = [sum(sizes[file] for file in files[rank::world_size]) for rank in range(world_size)]
    return max(shares) * world_size <= _UNEVEN * sum(shares)


def _dealt(blocks: Iterable[Extent], world_size: int) -> Iterator[tuple[Extent, int]]:
    loads = [(0, rank) for rank in range(world_size)]  # a heap: fewest bytes, then lowest rank
    for block in blocks:
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + block.length, rank))
        yield block, rank
