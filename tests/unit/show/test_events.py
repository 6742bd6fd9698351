"""When an object of progress is due, and what it says: from crafted snapshots, no time passes."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.progress import Progress, Wait
from prefetch_cli.base.words import ProgressMode, Verbosity
from prefetch_cli.run.document import Json
from prefetch_cli.show.display import Display
from prefetch_cli.show.events import Feed

MIB = 1024 * 1024
NOTHING = Progress(
    total_bytes=0,
    done_bytes=0,
    total_files=0,
    done_files=0,
    elapsed_seconds=0.0,
    longest_wait=None,
    idle_seconds=0.0,
)
READING = NOTHING._replace(total_bytes=100 * MIB, total_files=3, elapsed_seconds=10.0)


def due(feed: Feed, done_bytes: int, of: Progress = READING) -> list[Json]:
    return list(feed.due(of._replace(done_bytes=done_bytes), 0))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which only the test advances."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_an_object_says_all(clock: list[float]) -> None:
    wait = Wait("/m/\udcff", 4096, 1.23456)
    shown = READING._replace(done_bytes=25 * MIB, done_files=1, longest_wait=wait)
    assert list(Feed().due(shown, 7))[-1] == {
        "event": "progress",
        "rank": 7,
        "percent": 25,
        "bytes": 25 * MIB,
        "total_bytes": 100 * MIB,
        "files": 1,
        "total_files": 3,
        "elapsed_seconds": 10.0,
        "bytes_per_second": 2.5 * MIB,
        "eta_seconds": 30.0,
        "waiting_for": {"path": "/m/\\xff", "offset_bytes": 4096, "seconds": 1.235},
    }


def test_tenths_that_pass_at_once_have_an_object_each(clock: list[float]) -> None:
    feed = Feed()
    found = due(feed, 35 * MIB)
    assert [one["percent"] for one in found] == [10, 20, 35]
    assert [one["bytes"] for one in found] == [10 * MIB, 20 * MIB, 35 * MIB]
    assert due(feed, 39 * MIB) == []
    assert [one["percent"] for one in due(feed, 100 * MIB)] == [40, 50, 60, 70, 80, 90, 100]
    assert due(feed, 100 * MIB) == []


@given(st.lists(st.integers(0, 300)), st.integers(1, 300))
def test_each_tenth_that_the_bytes_passed_has_an_object(growth: list[int], total: int) -> None:
    feed = Feed()
    feed._last = float("inf")  # no time passes
    found: list[Json] = []
    done = 0
    for size in growth:
        done = min(total, done + size)
        found += due(feed, done, READING._replace(total_bytes=total))
        feed._last = float("inf")
    tenths = [one["percent"] // 10 for one in found]
    assert tenths == list(range(1, 10 * done // total + 1))
    assert all(one["bytes"] <= done for one in found)


def test_after_five_seconds_without_one_an_object_is_due(clock: list[float]) -> None:
    feed = Feed()
    assert due(feed, 0) == []
    clock[0] += 4.9
    assert due(feed, 5 * MIB) == []
    clock[0] += 0.1
    (one,) = due(feed, 5 * MIB)
    assert one["percent"] == 5
    assert due(feed, 5 * MIB) == []
    clock[0] += 3
    assert len(due(feed, 10 * MIB)) == 1
    clock[0] += 3
    assert due(feed, 10 * MIB) == []
    clock[0] += 2
    assert len(due(feed, 10 * MIB)) == 1


def test_before_the_size_is_known_it_says_what_it_waits_for(clock: list[float]) -> None:
    feed = Feed()
    clock[0] += 5
    (one,) = feed.due(NOTHING._replace(longest_wait=Wait("/m", None, 4.0)), None)
    assert (one["percent"], one["total_bytes"], one["eta_seconds"]) == (None, 0, None)
    assert one["waiting_for"] == {"path": "/m", "offset_bytes": None, "seconds": 4.0}


def test_a_storage_that_hangs_is_told_by_progress_alone(clock: list[float]) -> None:
    errors = io.StringIO()
    shown = Display(
        ProgressMode.JSON,
        Verbosity.NORMAL,
        json_document=False,
        output=io.StringIO(),
        errors=errors,
    )
    stalled = READING._replace(
        done_bytes=30 * MIB, longest_wait=Wait("/m/a", 0, 31.0), idle_seconds=31.0
    )
    for _ in range(3):
        clock[0] += 5
        shown.progress(stalled)
    found = [json.loads(line) for line in errors.getvalue().splitlines()]
    assert [one["event"] for one in found] == ["progress"] * 5
    assert {one["waiting_for"]["path"] for one in found} == {"/m/a"}
