"""The metrics, from crafted outcomes, read by Prometheus' own parser."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.words import Action, Engine, Split
from prefetch_cli.checkpoint.files import Skipped
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.memory import Memory
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.budget import Budget
from prefetch_cli.plan.decision import Decision, Reason, Verdict
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Plan, ReadResult, Threads
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.metrics import HELP, metrics
from prefetch_cli.run.outcome import Event, Interrupted, Outcome, Refused, folded
from prefetch_cli.run.parts import CHECKPOINT, LIBRARIES, Kind
from prefetch_cli.run.states import (
    Decided,
    Evicted,
    Looked,
    Proven,
    Read,
    Slid,
    Slide,
    SlideEnded,
    Wanted,
    Warned,
)

Labels = frozenset[tuple[str, str]]


def parsed(outcome: Outcome, asked: Sequence[str] = ()) -> dict[str, dict[Labels, float]]:
    """Return the samples by name and labels, without the labels that all have."""
    text = metrics(outcome, asked, ended_seconds=1.8e9, took_seconds=2.5)
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        assert (family.type, bool(family.documentation)) == ("gauge", True)
        assert family.name not in found
        for sample in family.samples:
            assert sample.timestamp is None
            labels = {key: text for key, text in sample.labels.items() if key not in COMMON}
            assert sample.labels.keys() >= COMMON
            name = sample.name.removeprefix("prefetch_cli_")
            assert frozenset(labels.items()) not in found.setdefault(name, {})
            found[name][frozenset(labels.items())] = sample.value
    return found


COMMON = {"checkpoint", "rank"}
RUN: Labels = frozenset()
PART: Labels = frozenset({("part", "checkpoint")})


def wanted(kind: Kind = CHECKPOINT, failed: tuple[Skipped, ...] = ()) -> Wanted:
    return Wanted(
        kind,
        Checkpoint((), failed=failed, warnings=(), names=("/m",), sources=()),
        (UNKNOWN,),
        Memory(1000, 1000, None, "host"),
        Budget(900, 1000, 90.0, "host", None),
        Share(3, 4, Split.FILES, (), 1, 1000),
        launcher=None,
        threads=Threads.fixed(1),
    )


def looked(resident_bytes: int | None) -> Looked:
    return Looked(CHECKPOINT, survey(resident_bytes))


def survey(resident_bytes: int | None) -> Survey:
    return Survey(resident_bytes, 1000, Method.CACHESTAT, (), {}, ())


def decided(action: Verdict, reason: Reason) -> Decided:
    plan = Plan(
        extents=(),
        cut=None,
        already_resident_bytes=0,
        threads=Threads.fixed(1),
        block_size_bytes=4096,
        engine=Engine.AUTO,
        max_bytes_per_second=None,
        yielding=False,
    )
    return Decided(CHECKPOINT, Decision(action, reason, "", warning=False, limit_bytes=None), plan)


def read(*, complete: bool = True) -> Read:
    return Read(CHECKPOINT, ReadResult(700, 300, 1.5, Engine.READ, 1, complete=complete, failed=()))


READ = (
    wanted(),
    looked(300),
    decided(Verdict.PREFETCH, Reason.FORCED),
    read(),
    Proven(CHECKPOINT, survey(990), "less stayed"),
)


def test_a_run_that_has_read() -> None:
    found = parsed(folded(Outcome(Action.PREFETCH), READ))
    others = {"evicted_bytes", "window_read_bytes", "window_dropped_bytes"}
    assert found.keys() == HELP.keys() - others
    for name, value in {
        "exit_code": 0,
        "complete": 1,
        "duration_seconds": 2.5,
        "timestamp_seconds": 1.8e9,
        "warnings": 1,
    }.items():
        assert found[name] == {RUN: value}, name
    for name, value in {
        "failed_files": 0,
        "total_bytes": 1000,
        "resident_before_bytes": 300,
        "resident_bytes": 990,
        "resident_low_bytes": 990,
        "resident_high_bytes": 990,
        "read_bytes": 700,
        "read_seconds": 1.5,
    }.items():
        assert found[name] == {PART: value}, name
    reason = PART | {("action", "prefetch"), ("reason", "forced")}
    assert found["decision_info"] == {reason: 1}


def test_what_a_window_read_and_dropped() -> None:
    slide = Slide(100, 90, 500, 400, 3.0)
    events = (*READ[:4], Slid(CHECKPOINT, slide, SlideEnded.LOADED, None))
    found = parsed(folded(Outcome(Action.PREFETCH), events))
    assert found["read_bytes"] == {PART: 700}
    assert found["window_read_bytes"] == {PART: 500}
    assert found["window_dropped_bytes"] == {PART: 400}


def test_a_run_that_skips_has_read_nothing_and_is_complete() -> None:
    events = (wanted(), looked(None), decided(Verdict.SKIP, Reason.LOCAL_FITS))
    found = parsed(folded(Outcome(Action.PREFETCH), events))
    assert found["read_bytes"] == {PART: 0}
    assert found["complete"] == {RUN: 1}
    assert "resident_bytes" not in found


@pytest.mark.parametrize(
    ("events", "exit_code"),
    [
        ((*READ[:3], read(complete=False)), 0),
        ((*READ[:3], read(complete=False), Interrupted(15)), 143),
        ((Refused(CheckpointError("no")),), 3),
        ((wanted(failed=(Skipped("/m/a", "no", failed=True),)), *READ[1:]), 1),
    ],
)
def test_a_run_that_is_not_complete(events: tuple[Event, ...], exit_code: int) -> None:
    found = parsed(folded(Outcome(Action.PREFETCH), events))
    assert found["complete"] == {RUN: 0}
    assert found["exit_code"] == {RUN: exit_code}


def test_an_eviction() -> None:
    eviction = Eviction(300, 1, complete=True, failed=())
    events = (wanted(), looked(300), Evicted(CHECKPOINT, eviction))
    found = parsed(folded(Outcome(Action.EVICT), events))
    assert found["evicted_bytes"] == {PART: 300}
    assert "read_bytes" not in found


def test_each_part_has_its_own() -> None:
    found = parsed(folded(Outcome(Action.PREFETCH), (*READ, wanted(LIBRARIES))))
    of_libraries = frozenset({("part", "libraries")})
    assert found["total_bytes"] == {PART: 1000, of_libraries: 1000}


def common(outcome: Outcome, asked: Sequence[str]) -> dict[str, str]:
    text = metrics(outcome, asked, ended_seconds=1, took_seconds=1)
    families = text_string_to_metric_families(text)
    every = [sample.labels for family in families for sample in family.samples]
    (one,) = {(labels["checkpoint"], labels["rank"]) for labels in every}
    return dict(zip(("checkpoint", "rank"), one, strict=True))


def test_every_sample_says_whose_it_is() -> None:
    """Else the files of two runs would hold the same sample, which node_exporter refuses."""
    assert common(folded(Outcome(Action.PREFETCH), READ), ()) == {"checkpoint": "/m", "rank": "3"}
    early = Outcome(Action.CHECK, ending=Refused(CheckpointError("no")))
    assert common(early, ["/a", "b/c"]) == {"checkpoint": "/a, b/c", "rank": ""}


@given(st.text() | st.binary().map(lambda name: name.decode("utf-8", "surrogateescape")))
def test_any_name_is_a_label(name: str) -> None:
    shown = common(Outcome(Action.CHECK, warnings=Warned(()).warnings), [name])["checkpoint"]
    assert shown.isprintable()
    if name.isprintable():
        assert shown == name
