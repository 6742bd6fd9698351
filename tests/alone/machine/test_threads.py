"""Waiting: what a stop and a time limit cut short; and how many threads there are of use."""

import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import threads
from prefetch_cli.linux.threads import affordable, map_threads


def test_a_pause_is_not_cut_short_by_the_time_limit() -> None:
    stop = Stop(time_limit_seconds=0.0)
    began = time.monotonic()
    stop.sleep(5.0)
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    stop.pause(0.3)
    assert time.monotonic() - began >= 0.3


def test_a_pause_ends_at_a_request() -> None:
    stop = Stop()
    threading.Timer(0.1, stop.request).start()
    began = time.monotonic()
    stop.pause(30.0)
    assert time.monotonic() - began < 5.0
    assert stop.interrupted


def test_a_pause_is_not_overdue() -> None:
    stop = Stop(time_limit_seconds=0.0)
    assert stop.overdue_seconds > 0
    pause = threading.Thread(target=stop.pause, args=(30.0,))
    pause.start()
    deadline = time.monotonic() + 5.0
    while stop.overdue_seconds > -20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stop.overdue_seconds == pytest.approx(-30.0, abs=5.0)
    assert stop.requested
    stop.request()
    pause.join()


def test_without_a_time_limit_nothing_is_overdue() -> None:
    stop = Stop()
    stop.pause(0.0)
    assert stop.overdue_seconds == 0.0


@pytest.fixture
def limit() -> Iterator[int]:
    """A limit on open files of 40, and how many are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, before[1]))
    try:
        yield sum(int(name) < 40 for name in os.listdir("/proc/self/fd")) - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_threads_are_as_many_as_may_open_files(limit: int) -> None:
    left = 40 - limit - 3
    assert affordable(64) == left
    assert affordable(64, descriptors=3) == left // 3
    assert affordable(2) == 2
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(left - 1)]
    try:
        assert affordable(64) == 1
        assert affordable(64, descriptors=3) == 1
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_without_a_limit_that_matters_all_threads_are_affordable() -> None:
    assert affordable(8) == 8


def test_all_threads_join_while_items_wait() -> None:
    together = threading.Barrier(8)  # passed by eight at once, or by nobody

    def look(item: int) -> int:
        together.wait(60)
        return item

    assert map_threads(look, range(16), 8) == list(range(16))


def test_one_thread_does_what_is_quick() -> None:
    """With a count that says so: on a busy machine nothing is quick."""
    began, ended = threading.Event(), threading.Event()
    counts = iter(range(0, 10**12, 10**6))

    def begun() -> int:
        if (count := next(counts)) > 2 * 10**7:
            ended.set()
        return count

    def work() -> None:
        assert not began.is_set(), "a second thread"
        began.set()
        ended.wait(60)

    spawned = threads._spawn_as_needed(work, 8, begun, 10**12)
    assert len(spawned) == 1


def test_what_is_quick_no_longer_gets_more_threads() -> None:
    """Quick at first, from a cache; then each item waits for the storage."""
    together = threading.Barrier(4)

    def look(item: int) -> int:
        if item >= 20_000:
            together.wait(60)
        return item

    assert map_threads(look, range(20_008), 4) == list(range(20_008))


def test_the_first_failure_in_order_is_raised() -> None:
    both = threading.Barrier(2)

    def fail(item: int) -> None:
        both.wait(60)
        raise OSError(item)

    with pytest.raises(OSError, match=r"^0$"):
        map_threads(fail, range(2), 2)


def test_where_no_more_threads_are_to_be_had_one_does_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system refuses any but the first; a real limit is in tests/alone/own/test_limits.py."""

    def refuse(*_: object) -> list[threading.Thread]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "spawn_many", refuse)

    def look(item: int) -> int:
        time.sleep(0.01)
        return item

    assert map_threads(look, range(5), 4) == list(range(5))
