"""What ranks the ways of warming in `make bench-vm`."""

import pytest

from tests.vm.bench import contest
from tests.vm.bench.contest import ENGINES, Standing
from tests.vm.bench.everywhere import Result


def standing(name: str, seconds: float | None, rate: float = 100) -> Standing:
    """Return one whose runs differ by a tenth of a second."""
    sums = (None, None) if seconds is None else (seconds - 0.1, seconds + 0.1)
    return Standing(name, 3, rate, rate, rate, 1.0, 1.0, "", None, seconds, *sums)


@pytest.mark.parametrize(
    ("ours", "other", "ready"),
    [(1.0, 2.0, True), (2.05, 2.0, True), (2.3, 2.0, False), (None, 2.0, True), (2.0, None, True)],
)
def test_warming_and_loading_decide(ours: float | None, other: float | None, ready: bool) -> None:
    assert contest.is_ready_with(standing("auto", ours), standing("x", other)) is ready


def test_the_soonest_engine_need_not_be_the_fastest() -> None:
    standings = [
        standing(name, 9 - number, rate=100 - number) for number, name in enumerate(ENGINES)
    ]
    assert contest.best_engine(standings).name == ENGINES[0]
    assert contest.best_engine_in_all(standings).name == ENGINES[-1]
    standings += [standing("auto", 9, rate=100), standing("vLLM's loop", 20, rate=1)]
    missed = Result("ext4", standings).missed
    assert missed == [f"auto and a load after {ENGINES[-1]} and a load"]
