"""Whether a page was in the cache, by what reading it cost: pure functions.

There are three witnesses: what the kernel counts as read for the thread, whether the thread had to
wait, and how long it took. Where misses are counted, that alone decides: block devices, NFS. A page
in the cache is copied without a wait, however long a busy machine takes for it.
"""

import enum
from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from prefetch_cli.linux.glance import Glance

FEWEST = 4  # known hits, and known misses
# If so many known misses all waited, less than a tenth of all others do not (at 95 %).
MANY = 32
_DISTURBED = 0.25  # of the known hits, at most: by Python's lock, or another process
_APART = 3.0  # how much longer the quickest miss takes than a hit
_FAR_APART = 10.0  # what two reads of the same page seldom are
# Of the quickest known miss. That one came from the server's own memory: others take longer.
_LIKE_A_MISS = 0.5


class Verdict(enum.Enum):
    """What a glance says of a page."""

    HIT = "hit"
    MISS = "miss"
    UNSURE = "unsure"


class Witness(enum.Enum):
    """What tells a hit from a miss."""

    BLOCKS = "blocks"  # each miss is counted, and no hit
    WAITS = "waits"  # each miss waits
    BOTH = "both"  # each of few misses waits: the clock must agree
    CLOCK = "clock"  # some misses do not wait


class Calibration(NamedTuple):
    """What a hit and a miss cost here and now."""

    witness: Witness
    border_ns: float  # between hits and misses
    miss_ns: int  # of the quickest known miss


def calibrate(hits: Sequence[Glance], misses: Sequence[Glance]) -> Calibration | None:
    """Return what known hits and known misses cost, None where they cannot be told apart."""
    if len(hits) < FEWEST or len(misses) < FEWEST:
        return None
    witness = _witness(hits, misses)
    quiet = [one for one in hits if not waited(one)]
    if witness is not Witness.BLOCKS and len(quiet) < (1 - _DISTURBED) * len(hits):
        return None
    hit_ns = sorted(one.wall_ns for one in hits)[len(hits) // 2]
    miss_ns = min(one.wall_ns for one in misses)
    if witness in {Witness.BOTH, Witness.CLOCK} and miss_ns < _APART * hit_ns:
        return None
    return Calibration(witness, sqrt(hit_ns * miss_ns), miss_ns)


def _witness(hits: Sequence[Glance], misses: Sequence[Glance]) -> Witness:
    if all(one.blocks for one in misses) and not any(one.blocks for one in hits):
        return Witness.BLOCKS
    if not all(map(waited, misses)):
        return Witness.CLOCK
    return Witness.WAITS if len(misses) >= MANY else Witness.BOTH


def judge(glance: Glance, by: Calibration) -> Verdict:
    """Return whether the page was in the cache."""
    if glance.blocks:
        return Verdict.MISS
    if by.witness is Witness.BLOCKS:
        return Verdict.HIT
    if by.witness is Witness.CLOCK:
        if glance.wall_ns < by.border_ns:
            return Verdict.HIT
        # Another process ran meanwhile, perhaps the daemon that answered this read.
        idle = glance.preempted and not glance.sleeps and glance.cpu_ns < by.border_ns
        # No known miss was as quick; the first look at a page takes longer than the next ones.
        sooner = glance.wall_ns < _LIKE_A_MISS * by.miss_ns
        return Verdict.UNSURE if idle or sooner else Verdict.MISS
    if glance.sleeps:
        # A hit sleeps where it waits for Python's lock, and some misses are soon answered.
        return Verdict.MISS if glance.wall_ns >= _LIKE_A_MISS * by.miss_ns else Verdict.UNSURE
    # An answer that comes at once leaves no time to sleep (virtiofs), nor does a daemon that takes
    # the reader's processor to answer (FUSE).
    quick = by.witness is Witness.BOTH or glance.preempted
    most_ns = by.border_ns if quick else _LIKE_A_MISS * by.miss_ns
    return Verdict.HIT if glance.wall_ns < most_ns else Verdict.UNSURE


def waited(glance: Glance) -> bool:
    """Return whether the thread waited, or something was read for it, which may come at once."""
    return glance.sleeps > 0 or glance.blocks > 0


def is_slower(glance: Glance, hit: Glance) -> bool:
    """Return whether a page took so much longer than a hit that it may be a miss."""
    if waited(glance) or glance.wall_ns <= _FAR_APART * hit.wall_ns:
        return waited(glance)
    # A hit that was taken off the processor needs no more of it than others.
    return not glance.preempted or glance.cpu_ns > _APART * hit.cpu_ns
