"""Waiting: what a stop and a time limit cut short; and how many threads a limit leaves."""

import os
import resource
import threading
import time
from collections.abc import Iterator

import pytest

from prefetch_cli.workers import Stop, affordable


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
