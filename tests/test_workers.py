"""Waiting: what a stop and a time limit cut short, and what they do not."""

import threading
import time

import pytest

from prefetch_cli.workers import Stop


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
