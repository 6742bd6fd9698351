"""What a run begins with on each kind of medium, and how much better another way has to be."""

from typing import NamedTuple

from prefetch_cli.base.words import Engine
from prefetch_cli.reading.plan import Medium, Threads

STEP_BYTES = 1024 * 1024  # read by one call: the grain of progress and of stopping

# By how much each doubling of the threads must raise the rate to stand.
_PAYS = 1.15
# Beside one other reader, two threads get 4/3 of one thread's share of a saturated disk.
_PAYS_BESIDE_OTHERS = 1.5


class Prior(NamedTuple):
    """What is tried on one kind of medium, and what that has to gain."""

    engines: tuple[Engine, ...]  # the likely one first
    threads: Threads
    better: float  # another engine must read this many times as fast to replace the likely one
    pays: float  # twice as many threads must read this many times as fast
    fast_is_enough: bool  # try no other engine where the likely one is fast
    portion_bytes: int = STEP_BYTES  # read by one thread at a time while engines are compared


# Which engine measured best, and which may beat it. Far away, if advice is ignored or harmful,
# `read` is what helps: `splice` then asks for a pipe's 64 KiB at a time. A wrong choice there costs
# more than a right one gains, so it takes a wider margin.
_FAR = Prior((Engine.ADVISE, Engine.READ), Threads(1, 1), 1.3, _PAYS, fast_is_enough=False)
_NEAR = Prior((Engine.SPLICE, Engine.ADVISE), Threads(1, 1), 1.1, _PAYS, fast_is_enough=True)
# Whoever loads maps huge pages in a tenth of the time.
_NEAR_HUGE = _NEAR._replace(engines=(Engine.POPULATE, Engine.ADVISE))


def prior(
    engine: Engine,
    threads: Threads,
    medium: Medium,
    *,
    block_bytes: int,
    populates: bool,
    yielding: bool,
) -> Prior:
    """Return what to try of what was asked for: only AUTO leaves a choice of engines.

    `populates`: the kernel can read huge pages, and so much may be read at once. `yielding`: others
    use the disk too.
    """
    shares = not medium.far and (yielding or medium.spins)
    # A single thread is faster by `splice`, which reads on while it takes what has come.
    near = _NEAR_HUGE if populates and medium.huge_folios and not shares else _NEAR
    found = _FAR if medium.far else near
    if engine is Engine.POPULATE and (medium.far or not populates):
        found = found._replace(engines=found.engines[:1])
    elif engine is not Engine.AUTO:
        found = found._replace(engines=(engine,))
    if shares:
        # Their request waits behind all of ours, and each turn of a head costs as much as reading
        # a megabyte; a single thread that reads a file end to end also gets the largest folios. A
        # virtual disk only says that it spins, and is faster with more: that is found in a second.
        # Another engine is not tried, since all threads would fill the disk's queue for that.
        threads = Threads(1, threads.most)
        found = found._replace(engines=found.engines[:1])
    return found._replace(
        threads=threads,
        pays=_PAYS_BESIDE_OTHERS if yielding and not medium.far else found.pays,
        # The other engine may be far slower, so a thread reads half a block with it.
        portion_bytes=max(STEP_BYTES, block_bytes // 2),
    )
