"""A stop within a stop."""

from prefetch_cli.base.stop import Stop


def test_a_stop_within_another_is_requested_with_it() -> None:
    above = Stop()
    within = above.within(60)
    assert not within.requested
    above.request()
    assert within.requested
    assert not within.interrupted


def test_a_stop_within_another_ends_alone() -> None:
    above = Stop(60)
    assert above.within(0).requested
    within = above.within(60)
    within.request()
    assert within.requested
    assert not above.requested


def test_a_stop_within_another_is_not_later_than_it() -> None:
    assert Stop(0).within(60).requested


def test_a_time_limit_that_is_lifted_has_not_passed() -> None:
    stop = Stop(0)
    assert stop.requested
    assert stop.overdue_seconds >= 0
    stop.lift_time_limit()
    assert not stop.requested
    assert stop.overdue_seconds == 0
    stop.request()
    assert stop.requested
