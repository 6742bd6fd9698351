"""What a timed sample makes of its pages, on real files whose verdicts are made up."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.glance import Glance, glance
from prefetch_cli.plan.extents import needed
from prefetch_cli.residency import glances, timed
from prefetch_cli.residency.verdict import Verdict
from tests.helpers import truth
from tests.helpers.reading import MIB, cold_files

# Of 20 verdicts each.
CERTAIN = [Verdict.HIT, Verdict.MISS] * 10
SOME_UNSURE = [Verdict.UNSURE, *CERTAIN[1:]]
MANY_UNSURE = [*[Verdict.UNSURE] * 3, *CERTAIN[3:]]


@pytest.mark.parametrize(
    ("verdicts", "known"), [(CERTAIN, True), (SOME_UNSURE, True), (MANY_UNSURE, False)]
)
def test_with_a_tenth_in_doubt_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdicts: list[Verdict], known: bool
) -> None:
    paths = cold_files(tmp_path, [6 * MIB, 3 * MIB])
    files = [file for path in paths if isinstance(file := examine(path, weight=True), File)]
    turns = itertools.cycle(verdicts)
    monkeypatch.setattr(timed, "judge", lambda *_: next(turns))
    extents = list(needed(files))
    found = timed.estimate(files, extents, monitor=Monitor())
    assert (found is not None) is known
    if found is not None:
        assert found.counts.pages == 1024
        assert 0.45 <= found.counts.likely <= 0.55
        low, high = found.resident
        assert low < found.pages / 2 < high


@dataclass
class DisturbedNow:
    """A clock that takes each k-th glance for a miss, though nothing was fetched."""

    every: int
    looks: int = 0

    def glance(self, descriptor: int, offset: int) -> Glance:
        """Read the byte; a page that is resident takes 2 us, and now and then as long as a miss."""
        missed = glance(descriptor, offset).blocks > 0
        self.looks += 1
        slow = missed or self.looks % self.every == 0
        return Glance(100_000 if slow else 2_000, 2_000, 0, 0, 0)


def test_the_first_pages_too_may_be_hits_that_were_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is resident: an interval below 100 % would claim what is not so."""
    paths = cold_files(tmp_path, [6 * MIB, 3 * MIB])
    for path in paths:
        Path(path).read_bytes()
    files = [file for path in paths if isinstance(file := examine(path, weight=True), File)]
    # No multiple of five: a page of the first ones is looked at five times.
    monkeypatch.setattr(glances, "glance", DisturbedNow(37).glance)
    extents = list(needed(files))
    found = timed.estimate(files, extents, monitor=Monitor())
    assert found is not None
    assert found.counts.misses == 0
    assert found.resident.high == found.pages


def read_from_storage() -> int:
    """Return the bytes that storage has read for this process so far."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


@pytest.mark.parametrize("percent", truth.PERCENTS)
def test_it_reads_little(tmp_path: Path, percent: int) -> None:
    paths = [str(tmp_path / name) for name in truth.write(str(tmp_path))]
    truth.make_resident(paths, percent, "blocks")
    files = [file for path in paths if isinstance(file := examine(path, weight=True), File)]
    extents = list(needed(files))
    before = read_from_storage()
    timed.estimate(files, extents, monitor=Monitor())
    assert read_from_storage() - before <= 4 * MIB
