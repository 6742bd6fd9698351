"""Hits and misses told apart, by glances as they were measured."""

import pytest

from prefetch_cli.linux.glance import Glance
from prefetch_cli.residency.verdict import (
    FEWEST,
    MANY,
    Calibration,
    Verdict,
    Witness,
    calibrate,
    judge,
)


def took(
    microseconds: float, *, sleeps: int = 0, preempted: int = 0, blocks: int = 0, cpu: float = 2
) -> Glance:
    return Glance(int(microseconds * 1000), int(cpu * 1000), sleeps, preempted, blocks)


HIT = took(2)
HITS = [HIT] * 16
FAR = took(10_000, sleeps=1, cpu=30)  # FUSE, 10 ms
NEAR = took(300, sleeps=1, cpu=20)  # FUSE
NFS = took(10_000, sleeps=1, blocks=8)
DISK = took(120, blocks=8, cpu=60)  # a virtual disk that answers at once
SPIN = took(60, cpu=50)  # a medium that neither waits nor is counted


def calibration(misses: list[Glance]) -> Calibration:
    found = calibrate(HITS, misses)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("misses", "witness"),
    [
        ([NFS] * FEWEST, Witness.BLOCKS),
        ([DISK] * MANY, Witness.BLOCKS),
        ([NEAR] * MANY, Witness.WAITS),
        ([FAR] * FEWEST, Witness.BOTH),
        ([SPIN] * MANY, Witness.CLOCK),
        ([NEAR, SPIN] * (MANY // 2), Witness.CLOCK),
        ([NFS, FAR] * MANY, Witness.WAITS),
    ],
)
def test_the_surest_witness_decides(misses: list[Glance], witness: Witness) -> None:
    found = calibration(misses)
    assert found.witness is witness
    assert [judge(one, found) for one in (HIT, *misses)] == [
        Verdict.HIT,
        *[Verdict.MISS] * len(misses),
    ]


@pytest.mark.parametrize(
    ("hits", "misses"),
    [
        (HITS, []),
        (HITS, [FAR] * (FEWEST - 1)),
        ([], [FAR] * FEWEST),
        ([HIT] * (FEWEST - 1), [FAR] * FEWEST),
        ([HIT] * (FEWEST - 1), [NFS] * FEWEST),
        ([FAR] * 16, [FAR] * FEWEST),  # nothing stays, not even for a moment
        ([*[HIT] * 8, *[FAR] * 8], [FAR] * FEWEST),
        (HITS, [took(5)] * MANY),  # a hit could take as long
        (HITS, [took(5, sleeps=1)] * FEWEST),
    ],
)
def test_what_cannot_be_told_apart_is_unknown(hits: list[Glance], misses: list[Glance]) -> None:
    assert calibrate(hits, misses) is None


@pytest.mark.parametrize(
    ("misses", "glance", "verdict"),
    [
        # Whatever a busy machine does, what is counted is counted.
        ([NFS] * 4, took(50_000, sleeps=3, preempted=2), Verdict.HIT),
        ([NFS] * 4, took(1, blocks=1), Verdict.MISS),
        # A hit does not sleep, but where another process ran, that may be the one that answered.
        ([NEAR] * MANY, took(900, preempted=1), Verdict.UNSURE),
        ([NEAR] * MANY, took(20, preempted=1), Verdict.HIT),
        ([NEAR] * MANY, took(140), Verdict.HIT),
        ([NEAR] * MANY, took(160), Verdict.UNSURE),
        ([FAR] * 4, took(100), Verdict.HIT),
        ([FAR] * 4, took(900), Verdict.UNSURE),
        ([FAR] * 4, took(20_000, preempted=1), Verdict.UNSURE),
        ([FAR] * 4, took(20_000), Verdict.UNSURE),
        # It slept to wait for Python's lock, or for a server that answers soon.
        ([FAR] * 4, took(50, sleeps=1), Verdict.UNSURE),
        ([FAR] * 4, took(4_000, sleeps=1), Verdict.UNSURE),
        ([FAR] * 4, took(6_000, sleeps=2), Verdict.MISS),
        # By the clock alone.
        ([SPIN] * MANY, took(5), Verdict.HIT),
        ([SPIN] * MANY, took(500, preempted=1), Verdict.UNSURE),
        ([SPIN] * MANY, took(500, preempted=1, cpu=50), Verdict.MISS),
        ([SPIN] * MANY, took(500, sleeps=1), Verdict.MISS),
        # No hit was so slow, but no miss so quick: the first look at a page takes longer.
        ([SPIN] * MANY, took(25), Verdict.UNSURE),
        ([SPIN] * MANY, took(25, sleeps=1), Verdict.UNSURE),
        ([SPIN] * MANY, took(35), Verdict.MISS),
    ],
)
def test_a_disturbed_glance(misses: list[Glance], glance: Glance, verdict: Verdict) -> None:
    assert judge(glance, calibration(misses)) is verdict
