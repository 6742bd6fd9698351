"""The tuners, driven by simulated storage: no clock, no thread, no file."""

import heapq
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.words import Engine
from prefetch_cli.reading.tune import (
    MOST_STEP_BYTES,
    STEP_BYTES,
    Climb,
    EngineTuner,
    Portion,
    StepTuner,
    ThreadTuner,
    Trial,
    trial,
)
from tests.helpers.reading import GIB, MIB

# Engines


NEAR = Trial((Engine.SPLICE, Engine.ADVISE), better=1.1, fast_is_enough=True)
FAR = Trial((Engine.ADVISE, Engine.READ), better=1.3, fast_is_enough=False)
THREE = Trial((Engine.ADVISE, Engine.READ, Engine.SPLICE), better=1.3, fast_is_enough=False)


def tuner(*, far: bool, threads: int = 2) -> EngineTuner:
    return EngineTuner(FAR if far else NEAR, threads=threads, compare=True)


def drive(tuned: EngineTuner, rates: dict[Engine, float], blocks: int = 60) -> list[Engine]:
    """Read that many blocks, two at a time, at these rates; return the engines in order."""
    engines = []
    for _ in range(blocks // 2):
        picked = [tuned.pick(MIB), tuned.pick(MIB)]
        for portion in picked:
            assert portion.size_bytes == MIB
            engines.append(portion.engine)
            seconds = MIB / rates[portion.engine]
            if tuned.abandon(portion.engine, MIB // 4, seconds / 4):
                tuned.record(portion, MIB // 4, seconds / 4)
            else:
                tuned.record(portion, MIB, seconds)
    return engines


def test_auto_keeps_the_likely_engine_unless_another_is_clearly_better() -> None:
    rates = {Engine.ADVISE: 100e6, Engine.READ: 120e6}
    assert drive(tuner(far=True), rates)[-1] is Engine.ADVISE
    assert set(drive(tuner(far=True), rates)) == {Engine.ADVISE, Engine.READ}
    near = {Engine.SPLICE: 100e6, Engine.ADVISE: 105e6}
    assert drive(tuner(far=False), near)[-1] is Engine.SPLICE
    near[Engine.ADVISE] = 115e6
    assert drive(tuner(far=False), near)[-1] is Engine.ADVISE


def test_auto_takes_the_engine_that_is_measured_to_be_better() -> None:
    assert drive(tuner(far=True), {Engine.ADVISE: 20e6, Engine.READ: 100e6})[-1] is Engine.READ
    near = {Engine.SPLICE: 20e6, Engine.ADVISE: 100e6}
    assert drive(tuner(far=False), near)[-1] is Engine.ADVISE


def test_one_comparison_alone_changes_nothing_unless_it_is_clear() -> None:
    """As if something else had the processor while the likely engine was measured."""
    rates = {Engine.ADVISE: 100e6, Engine.READ: 100e6}
    misled, again, clear = (tuner(far=True) for _ in range(3))
    # Two threads settle with one portion each, then read two each by one engine and by the other.
    for tuned, read_rate in ((misled, 150e6), (again, 150e6), (clear, 250e6)):
        engines = drive(tuned, rates | {Engine.READ: read_rate}, blocks=10)
        assert engines == [Engine.ADVISE] * 6 + [Engine.READ] * 4
    engines = drive(misled, rates)
    assert (engines[0], engines[-1]) == (Engine.ADVISE, Engine.ADVISE)
    assert Engine.READ in engines
    engines = drive(again, rates | {Engine.READ: 150e6})
    assert (engines[0], engines[-1]) == (Engine.ADVISE, Engine.READ)
    assert set(drive(clear, rates | {Engine.READ: 250e6})) == {Engine.READ}


def test_an_engine_that_turns_out_slow_is_left_at_once() -> None:
    engines = drive(tuner(far=True), {Engine.ADVISE: 2e6, Engine.READ: 0.1e6})
    assert engines.count(Engine.READ) <= 2
    assert engines[-1] is Engine.ADVISE


def test_a_start_that_is_slow_by_itself_is_not_held_against_an_engine() -> None:
    """The first portions open a connection's window, whichever engine reads them."""
    tuned = tuner(far=True)
    for _ in range(2):
        portion = tuned.pick(MIB)
        assert (portion.engine, portion.measured) == (Engine.ADVISE, False)
        tuned.record(portion, portion.size_bytes, 10.0)
    assert drive(tuned, {Engine.ADVISE: 100e6, Engine.READ: 100e6})[-1] is Engine.ADVISE


@pytest.mark.parametrize("far", [False, True])
def test_a_comparison_costs_some_halves_of_blocks(far: bool) -> None:
    block, threads = 16 * MIB, 8
    how = trial(Engine.AUTO, far=far, block_bytes=block)
    tuned = EngineTuner(how, threads=threads, compare=True)
    picked = []
    while (portion := tuned.pick(block)).size_bytes < block:
        picked.append(portion.engine)
        tuned.record(portion, portion.size_bytes, 1.0)
    likely, *others = how.engines
    expected = [likely] * 3 * threads
    for other in others:
        expected += [other] * 2 * threads
    assert picked == expected
    assert (portion.engine, portion.measured) == (likely, False)
    assert not how.pays(2 * GIB * len(others) - 1, threads)
    assert how.pays(2 * GIB * len(others), threads)


def test_what_is_far_faster_is_measured_although_the_other_still_runs() -> None:
    """As where advice does nothing: dozens of portions are read while one of its own ends."""
    tuned = tuner(far=True)
    for _ in range(5):
        portion = tuned.pick(MIB)
        tuned.record(portion, MIB, 1.0)
    slow, fast = tuned.pick(MIB), tuned.pick(MIB)
    assert (slow.engine, fast.engine) == (Engine.ADVISE, Engine.READ)
    tuned.record(fast, MIB, 0.1)
    for _ in range(50):
        portion = tuned.pick(MIB)
        assert (portion.engine, portion.measured) == (Engine.READ, False)
        tuned.record(portion, MIB, 0.1)
    tuned.record(slow, MIB, 1.0)
    assert drive(tuned, {Engine.ADVISE: MIB, Engine.READ: 10 * MIB})[-1] is Engine.READ


def test_nothing_is_tried_where_the_likely_engine_is_fast_on_a_near_medium() -> None:
    fast = {Engine.SPLICE: 2e9, Engine.ADVISE: 9e9}
    assert set(drive(tuner(far=False), fast)) == {Engine.SPLICE}
    slow = {Engine.SPLICE: 20e6, Engine.ADVISE: 200e6}
    assert drive(tuner(far=False), slow)[-1] is Engine.ADVISE


@pytest.mark.parametrize("engine", Engine.fixed())
@pytest.mark.parametrize("far", [False, True])
def test_an_engine_that_was_asked_for_is_not_compared(engine: Engine, far: bool) -> None:
    how = trial(engine, far=far, block_bytes=MIB)
    assert how.engines == (engine,)
    tuned = EngineTuner(how, threads=2, compare=how.pays(1 << 50, 2))
    assert set(drive(tuned, {engine: 100e6})) == {engine}


def test_auto_has_a_prior_of_real_engines() -> None:
    for far in (False, True):
        engines = trial(Engine.AUTO, far=far, block_bytes=MIB).engines
        assert len(set(engines)) == len(engines) > 1
        assert set(engines) <= set(Engine.fixed())


def simulate(
    tuned: EngineTuner, rates: dict[Engine, float], threads: int, portions: int
) -> Counter[Engine]:
    """Return the bytes that each engine reads, by threads that each go at a constant rate."""
    read: Counter[Engine] = Counter()
    now = 0.0
    busy: list[tuple[float, int]] = []
    flying: dict[int, tuple[Portion, float]] = {}
    for number in range(portions):
        if len(busy) == threads:
            now, done = heapq.heappop(busy)
            portion, began = flying.pop(done)
            seconds = now - began
            size = int(seconds * rates[portion.engine] + 0.5)
            tuned.record(portion, size, seconds)
            read[portion.engine] += size
        portion = tuned.pick(16 * MIB)
        seconds = portion.size_bytes / rates[portion.engine]
        # The job looks after each step; here, one look when the rate is known.
        if tuned.abandon(portion.engine, int(0.25 * rates[portion.engine]), 0.25):
            seconds = min(seconds, 0.25)
        flying[number] = portion, now
        heapq.heappush(busy, (now + seconds, number))
    return read


RATES = st.floats(1e6, 5e8)


@given(RATES, RATES, RATES, st.integers(1, 32), st.sampled_from([2, 3]))
def test_the_choice_is_never_far_from_the_best(
    first: float, second: float, third: float, threads: int, count: int
) -> None:
    how = Trial(THREE.engines[:count], THREE.better, fast_is_enough=False, portion_bytes=8 * MIB)
    rates = dict(zip(THREE.engines, (first, second, third), strict=True))
    tuned = EngineTuner(how, threads=threads, compare=True)
    simulate(tuned, rates, threads, portions=40 * threads)
    # Whatever is still in flight, the next blocks are read whole, by the engine that was chosen.
    portion = tuned.pick(16 * MIB)
    assert portion.size_bytes == 16 * MIB
    assert not portion.measured
    best = max(rates[engine] for engine in how.engines)
    assert rates[portion.engine] * how.better >= best * 0.999


@given(st.lists(st.tuples(st.integers(0, 7), st.floats(0, 1), st.floats(0, 100)), max_size=300))
def test_any_order_of_ends_and_failures_leaves_an_engine(
    events: list[tuple[int, float, float]],
) -> None:
    """Whatever times are handed in, every pick is an engine of the trial and makes progress."""
    tuned = EngineTuner(THREE, threads=4, compare=True)
    flying: list[Portion] = []
    for turn, part, seconds in events:
        if turn < len(flying):
            portion = flying.pop(turn)
            tuned.abandon(portion.engine, int(part * portion.size_bytes), seconds)
            tuned.record(portion, int(part * portion.size_bytes), seconds)
        else:
            flying.append(tuned.pick(MIB))
        assert all(0 < one.size_bytes <= MIB and one.engine in THREE.engines for one in flying)
    for portion in flying:
        tuned.record(portion, 0, 0.0)  # each failed


def test_a_third_engine_is_compared_like_the_second() -> None:
    rates = {Engine.ADVISE: 10e6, Engine.READ: 20e6, Engine.SPLICE: 50e6}
    tuned = EngineTuner(THREE, threads=2, compare=True)
    engines = drive(tuned, rates)
    assert list(dict.fromkeys(engines)) == list(THREE.engines)
    assert engines[-1] is Engine.SPLICE
    assert THREE.pays(128 * MIB, 2)
    assert not THREE.pays(128 * MIB - 1, 2)


# Threads


def climb(threads: ThreadTuner, rate: Callable[[int], float], seconds: float) -> list[int]:
    """Return how many were admitted, ten times a second, on a disk with this rate by threads."""
    admitted = []
    for tick in range(1, int(10 * seconds) + 1):
        threads.record(int(rate(threads.admitted) / 10), tick / 10)
        admitted.append(threads.admitted)
    return admitted


def test_all_threads_read_unless_others_do() -> None:
    threads = ThreadTuner(8, None, now=0.0)
    assert (threads.admitted, threads.fixed) == (8, True)
    one = ThreadTuner(1, Climb.YIELDING, now=0.0)
    assert (one.admitted, one.fixed) == (1, True)


def test_one_thread_is_enough_for_a_disk_that_it_saturates() -> None:
    threads = ThreadTuner(32, Climb.YIELDING, now=0.0)
    assert not threads.fixed
    admitted = climb(threads, lambda _: 100e6, 60)
    assert admitted[0] == 1
    assert max(admitted) == 2  # tried once in a while
    assert admitted.count(1) > 0.8 * len(admitted)


@given(st.integers(1, 64), st.integers(1, 64))
def test_as_many_threads_read_as_the_disk_needs(most: int, needed: int) -> None:
    """Each adds the same rate, up to the number that saturates the disk."""
    threads = ThreadTuner(most, Climb.YIELDING, now=0.0)
    admitted = climb(threads, lambda count: 1e8 * min(count, needed), 120)
    assert all(1 <= count <= most for count in admitted)
    usual = Counter(admitted[50:]).most_common(1)[0][0]
    # Climbing ends where the last step raised the rate to less than one and a half times.
    assert min(most, needed) <= 1.5 * usual
    assert usual < 2 * needed


def test_a_disk_that_spins_keeps_one_reader() -> None:
    """Each reader more costs turns of the head."""
    threads = ThreadTuner(8, Climb.SPINNING, now=0.0)
    admitted = climb(threads, lambda count: 200e6 / count, 60)
    assert admitted[0] == 1
    assert max(admitted) == 2
    assert admitted.count(1) > 0.8 * len(admitted)


@pytest.mark.parametrize("gain", [1.3, 1.9])
def test_a_disk_that_only_says_that_it_spins_gets_all_threads_within_a_second(gain: float) -> None:
    threads = ThreadTuner(8, Climb.SPINNING, now=0.0)
    admitted = climb(threads, lambda count: 200e6 * gain ** math.log2(count), 10)
    assert admitted[10] == 8
    assert admitted.count(8) > 0.8 * len(admitted)


def test_a_number_that_settled_is_tested_again() -> None:
    threads = ThreadTuner(8, Climb.YIELDING, now=0.0)
    saturated, now = True, 0.0
    admitted: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for tick in range(600):
        saturated = tick < 300  # then the other reader is gone, and each thread adds its rate
        now += 0.1
        threads.record(int(1e7 * (1 if saturated else threads.admitted)), now)
        admitted[saturated][threads.admitted] += 1
    assert admitted[True].most_common(1)[0][0] == 1
    assert admitted[False].most_common(1)[0][0] == 8


def test_who_hangs_holds_nobody_up() -> None:
    threads = ThreadTuner(4, Climb.YIELDING, now=0.0)
    threads.look(2.0)
    assert threads.admitted == 1
    threads.look(2.1)
    assert threads.admitted == 2
    threads.look(3.0)
    assert threads.admitted == 2
    threads.look(4.2)
    threads.look(6.3)
    assert threads.admitted == 4


def test_all_are_admitted_at_the_end() -> None:
    threads = ThreadTuner(64, Climb.YIELDING, now=0.0)
    threads.end(0.1)
    assert threads.admitted == 64


# Steps


def test_short_calls_read_more_and_long_ones_less() -> None:
    steps = StepTuner(short_seconds=0.05, long_seconds=0.2)
    sizes = []
    for seconds in (0.01, 0.04, 0.01, 0.05, 0.1, 0.2, 0.3, 1.0, 9.0, 0.01):
        steps.record(seconds)
        sizes.append(steps.size_bytes // MIB)
    assert sizes == [2, 4, 4, 4, 4, 4, 2, 1, 1, 2]
    assert (STEP_BYTES, MOST_STEP_BYTES) == (MIB, 4 * MIB)
