"""--max-rate by a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.stop import Stop
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.reading.pace import Limiter

MIB = 1024 * 1024


class Clock(Stop):
    """A clock, and a stop whose sleep turns it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds)


@given(
    st.integers(1, 1 << 32),
    st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 1), st.floats(0, 1)), min_size=1),
)
def test_the_rate_is_kept_whatever_is_read(
    rate: int, calls: list[tuple[int, float, float]]
) -> None:
    clock = Clock()
    limiter = Limiter(rate, clock)
    read = 0.0
    for size, part, seconds in calls:
        assert limiter.wait(size, clock)
        # The one that is allowed now was not waited for; each before it has had its time.
        assert read <= rate * clock.now * (1 + 1e-9) + 1
        returned = int(size * part)
        limiter.give_back(size - returned)
        read += returned
        clock.now += seconds


def test_what_a_short_read_leaves_is_waited_for_once() -> None:
    clock = Clock()
    limiter = Limiter(MIB, clock)
    for _ in range(8):
        assert limiter.wait(MIB, clock)
        limiter.give_back(MIB // 2)
    assert clock.now == pytest.approx(3.5)


def test_a_step_is_a_tenth_of_a_second_in_whole_pages() -> None:
    assert Limiter(None).step_bytes(MIB) == MIB
    assert Limiter(1 << 40).step_bytes(MIB) == MIB
    assert Limiter(10 * MIB + 10).step_bytes(4 * MIB) == MIB
    assert Limiter(1).step_bytes(MIB) == PAGE_BYTES


def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    limiter = Limiter(None, clock)
    assert limiter.wait(1 << 60, clock)
    limiter.give_back(1 << 60)
    assert clock.now == 0


def test_a_stop_ends_the_wait() -> None:
    clock = Clock()
    limiter = Limiter(MIB, clock)
    assert limiter.wait(MIB, clock)
    clock.request()
    assert not limiter.wait(MIB, clock)


class Still(Clock):
    """A clock that stands still, and a stop that counts how long was slept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += max(0.0, seconds)


def test_with_a_clock_that_stands_still_the_rate_is_kept_and_no_wait_grows() -> None:
    clock = Still()
    limiter = Limiter(MIB, clock)
    for _ in range(100):
        assert limiter.wait(MIB, clock)
    assert clock.slept == pytest.approx(99)
