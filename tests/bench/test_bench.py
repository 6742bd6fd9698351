"""The bench's arithmetic: what counts, in which order, against which target."""

import pytest

from tests.bench.contenders import PREFETCH, VLLM, Contender, Role, contenders
from tests.bench.figures import Bound, Figure, throughput_figures
from tests.bench.throughput import LayoutResult, Sample, in_turn, summarise

EVERYONE = contenders()
NAMES = [contender.name for contender in EVERYONE]


def _sample(name: str, wall_seconds: float, *, error: str | None = None) -> Sample:
    role = next(one.role for one in EVERYONE if one.name == name)
    return Sample(
        contender=name,
        role=role,
        round=1,
        wall_seconds=wall_seconds,
        cpu_seconds=wall_seconds / 10,
        peak_rss_bytes=1,
        resident_share=1.0,
        reading_seconds=None,
        note="",
        error=error,
    )


def _result(*samples: Sample) -> LayoutResult:
    size_bytes = 1_000_000_000
    summaries = tuple(summarise(samples, EVERYONE, size_bytes))
    return LayoutResult("4-files", 4, size_bytes, samples, summaries)


def test_every_contender_of_the_comparison_is_there_once() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert [one.name for one in EVERYONE if one.role is Role.PEER] == [
        VLLM,
        "vmtouch -t",
        "cat",
        "xargs -P8 cat",
    ]


@pytest.mark.parametrize("rounds", [1, 5, 20])
@pytest.mark.parametrize("entrants", [EVERYONE, EVERYONE[1:]], ids=["all", "all but one"])
def test_each_round_holds_everyone_and_begins_with_another(
    entrants: list[Contender], rounds: int
) -> None:
    """Be their number odd or even, which a new engine changes."""
    orders = [in_turn(entrants, number, rounds) for number in range(1, rounds + 1)]
    for order in orders:
        assert sorted(one.name for one in order) == sorted(one.name for one in entrants)
    first = {order[0].name for order in orders}
    assert len(first) >= min(rounds, len(entrants)) // 2 + 1


def test_a_failed_run_does_not_count() -> None:
    result = _result(
        _sample("cat", 1.0), _sample("cat", 3.0), _sample("cat", 0.1, error="exit 1: no such file")
    )
    summary = result.find("cat")
    assert summary is not None
    assert (summary.runs, summary.wall_seconds) == (2, 2.0)
    assert (summary.gb_per_second_min, summary.gb_per_second_max) == pytest.approx((1 / 3, 1.0))


def test_the_best_peer_is_a_peer_and_the_ratios_follow() -> None:
    result = _result(
        _sample(PREFETCH, 0.5), _sample(VLLM, 1.0), _sample("cat", 2.0), _sample("fio, direct", 0.1)
    )
    best = result.best_peer()
    assert best is not None
    assert best.contender == VLLM
    throughput, cpu = throughput_figures([result])
    assert throughput.value == pytest.approx(2.0)
    assert cpu.value == pytest.approx(0.5)
    assert [throughput.met, cpu.met] == [True, False]


def test_without_the_tool_the_figures_say_so() -> None:
    throughput, cpu = throughput_figures([_result(_sample("cat", 1.0))])
    assert [throughput.verdict, cpu.verdict] == ["not measured"] * 2


@pytest.mark.parametrize(
    ("value", "bound", "verdict"),
    [
        (0.9, Bound.AT_MOST, "met, 10 % below"),
        (1.25, Bound.AT_MOST, "missed, 25 % above"),
        (1.0, Bound.AT_MOST, "met, 0 % above"),
        (0.9, Bound.AT_LEAST, "missed, 10 % below"),
        (1.1, Bound.AT_LEAST, "met, 10 % above"),
        (None, Bound.AT_LEAST, "not measured"),
    ],
)
def test_a_verdict_says_by_how_much(value: float | None, bound: Bound, verdict: str) -> None:
    assert Figure("x", value, "s", bound, 1.0).verdict == verdict
