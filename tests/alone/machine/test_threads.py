"""Waiting, which a stop or a time limit cuts short; and how many threads are useful."""

import _thread
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator

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
    """Sets the limit on open files to 40; the number of files open now."""
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
    together = threading.Barrier(8)  # eight pass it together, or nobody does

    def look(item: int) -> int:
        together.wait(60)
        return item

    assert map_threads(look, range(16), 8) == list(range(16))


def test_one_thread_does_what_is_quick() -> None:
    """The count is fake: on a busy machine nothing is quick."""
    began, ended = threading.Event(), threading.Event()
    counts = iter(range(0, 10**12, 10**6))

    def started() -> int:
        if (count := next(counts)) > 2 * 10**7:
            ended.set()
        return count

    def work() -> None:
        assert not began.is_set(), "a second thread"
        began.set()
        ended.wait(60)

    spawned = threads._spawn_as_needed(work, 8, started, 10**12)
    assert len(spawned) == 1


def test_what_is_quick_no_longer_gets_more_threads() -> None:
    """Quick at first, as from a cache; then each item waits, as for the storage."""
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


def test_if_no_more_threads_can_start_one_does_all_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system refuses all but the first; tests/alone/own/test_limits.py has a real limit."""

    def refuse(*_: object) -> list[threads.Thread]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "spawn_many", refuse)

    def look(item: int) -> int:
        time.sleep(0.01)
        return item

    assert map_threads(look, range(5), 4) == list(range(5))


def test_a_thread_that_never_begins_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that finds no memory for its first frame: that needs a limit to the byte."""
    late: list[Callable[[], None]] = []
    ran: list[int] = []
    monkeypatch.setattr(threads, "_BEGIN_SECONDS", 0.05)
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, _: late.append(run))
    with pytest.raises(RuntimeError, match="start new thread"):
        threads.spawn(lambda: ran.append(1))
    for run in late:
        run()  # nobody waits for it any more
    assert ran == []


def test_a_thread_is_alive_until_it_has_ended() -> None:
    end = threading.Event()

    def work() -> None:
        end.wait()

    thread = threads.spawn(work)
    thread.join(0.05)
    assert thread.is_alive()
    end.set()
    thread.join()
    assert not thread.is_alive()
