"""One thread leads; while it waits the next one does."""

import threading
import time

import pytest

from prefetch_cli.residency.relay import Relay

FAR_AWAY = 60.0


def relayed(items: int, act: object, threads: int, *, seconds: float = FAR_AWAY) -> None:
    relay = Relay(
        range(items),
        act,  # type: ignore[arg-type]
        patience_seconds=0.005,
        deadline=time.monotonic() + seconds,
    )
    relay.run(threads)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_each_item_once(threads: int) -> None:
    seen: list[int] = []
    relayed(1000, seen.append, threads)
    assert sorted(seen) == list(range(1000))


def test_items_that_wait_wait_side_by_side() -> None:
    together = threading.Barrier(4, timeout=FAR_AWAY)
    # Only four threads in it at the same time can leave it.
    relayed(8, lambda _: together.wait(), 4)


def test_nothing_begins_after_the_deadline_and_what_has_begun_ends() -> None:
    seen: list[int] = []

    def slowly(item: int) -> None:
        time.sleep(0.05)
        seen.append(item)

    relayed(1000, slowly, 3, seconds=0.12)
    assert seen
    assert sorted(seen) == list(range(len(seen)))  # the first ones, without a gap
    assert len(seen) < 1000


def test_of_nothing_nothing_is_done() -> None:
    relayed(0, None, 8)
