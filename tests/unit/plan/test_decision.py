"""The decision table, row by row."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.words import Overrule
from prefetch_cli.plan.budget import Budget, budget
from prefetch_cli.plan.decision import (
    Facts,
    Forecast,
    Reason,
    Sample,
    Storage,
    Verdict,
    awaits_trial,
    decide,
)
from prefetch_cli.plan.window import Ahead, Wish

GIB = 1024**3
FACTS = Facts(
    total_bytes=10 * GIB,
    share_bytes=10 * GIB,
    resident_bytes=0,
    in_memory=False,
    bypasses_cache=False,
    storage=Storage.NETWORK,
    cold_bytes=0,
)
BUDGET = budget(100 * GIB, "host", 90.0, None)
SMALL = budget(10 * GIB, "/sys/fs/cgroup/job", 90.0, None)
NONE, FORCE, PARTIAL = Overrule.NONE, Overrule.FORCE, Overrule.PARTIAL
VERIFY = Overrule.VERIFY

local = FACTS._replace(storage=Storage.LOCAL)


def by_network(network: bool) -> Storage:
    return Storage.NETWORK if network else Storage.LOCAL


@pytest.mark.parametrize(
    ("network", "fits", "overrule", "action", "reason", "warning"),
    [
        (True, True, NONE, Verdict.PREFETCH, Reason.NETWORK_FITS, False),
        (True, True, FORCE, Verdict.PREFETCH, Reason.NETWORK_FITS, False),
        (True, True, PARTIAL, Verdict.PREFETCH, Reason.NETWORK_FITS, False),
        (True, True, FORCE | PARTIAL, Verdict.PREFETCH, Reason.NETWORK_FITS, False),
        (True, False, NONE, Verdict.SKIP, Reason.NETWORK_TOO_BIG, True),
        (True, False, FORCE, Verdict.PREFETCH, Reason.FORCED_TOO_BIG, True),
        (True, False, PARTIAL, Verdict.PARTIAL, Reason.PARTIAL, False),
        (True, False, FORCE | PARTIAL, Verdict.PARTIAL, Reason.PARTIAL, False),
        (False, True, NONE, Verdict.SKIP, Reason.LOCAL_FITS, False),
        (False, True, FORCE, Verdict.PREFETCH, Reason.FORCED, False),
        (False, True, PARTIAL, Verdict.SKIP, Reason.LOCAL_FITS, False),
        (False, True, FORCE | PARTIAL, Verdict.PREFETCH, Reason.FORCED, False),
        (False, False, NONE, Verdict.SKIP, Reason.LOCAL_TOO_BIG, False),
        (False, False, FORCE, Verdict.PREFETCH, Reason.FORCED_TOO_BIG, True),
        (False, False, PARTIAL, Verdict.SKIP, Reason.LOCAL_TOO_BIG, False),
        (False, False, FORCE | PARTIAL, Verdict.PARTIAL, Reason.PARTIAL, False),
        (True, True, VERIFY, Verdict.PREFETCH, Reason.NETWORK_FITS, False),
        (True, False, VERIFY, Verdict.PARTIAL, Reason.VERIFY, True),
        (True, False, VERIFY | PARTIAL, Verdict.PARTIAL, Reason.PARTIAL, False),
        (True, False, VERIFY | FORCE, Verdict.PREFETCH, Reason.FORCED_TOO_BIG, True),
        (False, True, VERIFY, Verdict.PREFETCH, Reason.VERIFY, False),
        (False, True, VERIFY | FORCE, Verdict.PREFETCH, Reason.FORCED, False),
        (False, False, VERIFY, Verdict.PARTIAL, Reason.VERIFY, True),
    ],
)
def test_each_row(
    network: bool,
    fits: bool,
    overrule: Overrule,
    action: Verdict,
    reason: Reason,
    warning: bool,
) -> None:
    decision = decide(
        FACTS._replace(storage=by_network(network)), BUDGET if fits else SMALL, overrule
    )
    assert (decision.action, decision.reason, decision.warning) == (action, reason, warning)
    limit = SMALL.size_bytes if action is Verdict.PARTIAL else None
    assert decision.limit_bytes == limit


STATES: dict[Reason, dict[str, Any]] = {
    Reason.EMPTY_SHARE: {"share_bytes": 0},
    Reason.IN_MEMORY_FILESYSTEM: {"in_memory": True},
    Reason.ALREADY_RESIDENT: {"resident_bytes": 10 * GIB},
    Reason.NO_PAGE_CACHE: {"bypasses_cache": True},
}


@pytest.mark.parametrize("overrule", [NONE, FORCE, PARTIAL, FORCE | PARTIAL])
@pytest.mark.parametrize("reason", STATES)
@pytest.mark.parametrize("network", [True, False])
def test_where_reading_gains_nothing_it_is_skipped_under_force_too(
    reason: Reason, overrule: Overrule, network: bool
) -> None:
    facts = FACTS._replace(storage=by_network(network), **STATES[reason])
    decision = decide(facts, BUDGET, overrule)
    assert (decision.action, decision.reason) == (Verdict.SKIP, reason)


def test_the_first_row_that_matches_wins() -> None:
    reasons = list(STATES)
    for number in range(len(reasons)):
        facts = FACTS
        for reason in reasons[number:]:
            facts = facts._replace(**STATES[reason])
        assert decide(facts, BUDGET, FORCE).reason is reasons[number]


@pytest.mark.parametrize(
    ("resident", "reason"),
    [
        (9_900, Reason.ALREADY_RESIDENT),
        (9_899, Reason.NETWORK_FITS),
        (None, Reason.NETWORK_FITS),  # unknown, or an estimate
    ],
)
def test_already_resident_means_99_percent_by_an_exact_method(
    resident: int | None, reason: Reason
) -> None:
    facts = FACTS._replace(share_bytes=10_000, resident_bytes=resident)
    assert decide(facts, BUDGET, NONE).reason is reason


@pytest.mark.parametrize(
    ("low_bytes", "overrule", "reason"),
    [
        (9_900, NONE, Reason.ALREADY_RESIDENT),
        (9_900, PARTIAL, Reason.ALREADY_RESIDENT),
        (9_900, FORCE, Reason.NETWORK_FITS),  # a sample may be wrong
        (9_899, NONE, Reason.NETWORK_FITS),
    ],
)
def test_already_resident_may_rest_on_the_lower_bound_of_a_sample(
    low_bytes: int, overrule: Overrule, reason: Reason
) -> None:
    facts = FACTS._replace(share_bytes=10_000, resident_bytes=None, sample=Sample(low_bytes, 1024))
    decision = decide(facts, BUDGET, overrule)
    assert decision.reason is reason
    if reason is Reason.ALREADY_RESIDENT:
        assert "timed sample of 1,024 pages" in decision.message
        assert "--force" in decision.message


def test_it_fits_up_to_the_last_byte_of_the_budget() -> None:
    exact = FACTS._replace(total_bytes=SMALL.size_bytes)
    assert decide(exact, SMALL, NONE).reason is Reason.NETWORK_FITS
    above = FACTS._replace(total_bytes=SMALL.size_bytes + 1)
    assert decide(above, SMALL, NONE).reason is Reason.NETWORK_TOO_BIG


@pytest.mark.parametrize("overrule", [FORCE, FORCE | PARTIAL, PARTIAL])
@pytest.mark.parametrize("network", [True, False])
def test_max_bytes_is_never_passed(overrule: Overrule, network: bool) -> None:
    capped = budget(100 * GIB, "host", 90.0, GIB)
    decision = decide(FACTS._replace(storage=by_network(network)), capped, overrule)
    assert decision.action is Verdict.SKIP or decision.limit_bytes == GIB
    assert capped.limited_by == "max-bytes"


def test_max_bytes_above_the_budget_bounds_what_is_forced() -> None:
    capped = budget(10 * GIB, "host", 50.0, 8 * GIB)
    assert (capped.size_bytes, capped.limited_by) == (5 * GIB, "host")
    decision = decide(FACTS, capped, FORCE)
    assert (decision.reason, decision.limit_bytes) == (Reason.FORCED_TOO_BIG, 8 * GIB)
    assert decide(FACTS, capped, PARTIAL).limit_bytes == 5 * GIB


@pytest.mark.parametrize(
    ("facts", "budget_", "overrule", "words"),
    [
        (FACTS, BUDGET, NONE, ["10 GiB", "90 GiB", "90 %", "100 GiB"]),
        (
            FACTS,
            SMALL,
            NONE,
            ["10 GiB", "9 GiB", "90 %", "--partial", "--force", "--ram-threshold"],
        ),
        (FACTS, SMALL, FORCE, ["10 GiB", "9 GiB", "90 %", "--partial", "memory may run out"]),
        (FACTS, SMALL, PARTIAL, ["10 GiB", "9 GiB", "90 %", "first 9 GiB"]),
        (local, BUDGET, NONE, ["10 GiB", "90 GiB", "90 %", "--force"]),
        (local, SMALL, NONE, ["10 GiB", "9 GiB", "90 %", "--force", "--partial"]),
        (local, BUDGET, FORCE, ["10 GiB", "90 GiB", "90 %", "forced"]),
        (FACTS, budget(100 * GIB, "host", 90.0, GIB), NONE, ["10 GiB", "1 GiB", "--max-bytes"]),
    ],
)
def test_each_message_names_the_sizes_the_percentage_and_the_flag_to_try(
    facts: Facts, budget_: Budget, overrule: Overrule, words: list[str]
) -> None:
    message = decide(facts, budget_, overrule).message
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


@given(
    st.builds(
        Facts,
        total_bytes=st.integers(0, 2**50),
        share_bytes=st.integers(0, 2**50),
        resident_bytes=st.none() | st.integers(0, 2**50),
        in_memory=st.booleans(),
        bypasses_cache=st.booleans(),
        storage=st.sampled_from(Storage),
    ),
    st.integers(0, 2**50),
    st.floats(1, 100),
    st.none() | st.integers(1, 2**50),
    st.sampled_from([NONE, FORCE, PARTIAL, FORCE | PARTIAL]),
)
def test_nothing_is_read_beyond_what_the_user_allows(
    facts: Facts, available: int, threshold: float, most: int | None, overrule: Overrule
) -> None:
    limits = budget(available, "host", threshold, most)
    decision = decide(facts, limits, overrule)
    allowed = facts.total_bytes if decision.limit_bytes is None else decision.limit_bytes
    if decision.action is not Verdict.SKIP:
        if most is not None:
            assert allowed <= most
        if FORCE not in overrule:
            assert allowed <= limits.size_bytes


@pytest.mark.parametrize(
    ("network", "limited_by", "most", "overrule", "message"),
    [
        (True, "host", 8, FORCE, "5 GiB, 50 % of 10 GiB available: forced, up to 8 GiB"),
        (False, "/user.slice", 8, FORCE, "5 GiB, 50 % of 10 GiB available: forced, up to 8 GiB"),
        (True, "user.slice", 8, FORCE, "5 GiB, 50 % of 10 GiB available: forced, up to 8 GiB"),
        (True, "host", 4, FORCE, "the 4 GiB of --max-bytes: forced, up to that"),
        (True, "user.slice", 4, PARTIAL, "the 4 GiB of --max-bytes: reading the first 4 GiB of it"),
        (
            False,
            "host",
            4,
            FORCE | PARTIAL,
            "the 4 GiB of --max-bytes: reading the first 4 GiB of it",
        ),
    ],
)
def test_what_is_too_big_is_said_with_what_bounds_it(
    network: bool, limited_by: str, most: int, overrule: Overrule, message: str
) -> None:
    capped = budget(10 * GIB, limited_by, 50.0, most * GIB)
    decision = decide(FACTS._replace(storage=by_network(network)), capped, overrule)
    where = "network" if network else "local"
    assert decision.message == f"{where} file system, but 10 GiB do not fit into {message}"
    assert decision.warning is (overrule is FORCE)
    assert decision.action is Verdict.PARTIAL
    assert decision.limit_bytes == (capped.size_bytes if PARTIAL in overrule else most * GIB)


@pytest.mark.parametrize("most", [10, 11])
def test_max_bytes_that_hold_it_all_bound_nothing_that_is_forced(most: int) -> None:
    decision = decide(FACTS, budget(10 * GIB, "host", 50.0, most * GIB), FORCE)
    assert (decision.action, decision.limit_bytes) == (Verdict.PREFETCH, None)


def test_what_bounds_the_budget_is_the_lesser_of_the_two() -> None:
    assert budget(100, "host", 100.0, 100).limited_by == "host"
    assert budget(100, "host", 100.0, 99).limited_by == "max-bytes"


@pytest.mark.parametrize(
    ("storage", "fits", "begins"),
    [
        (Storage.NETWORK, True, "network file system, and 10 GiB fit"),
        (Storage.NETWORK_DEVICE, True, "network block device, and 10 GiB fit"),
        (Storage.LOCAL, True, "local file system; 10 GiB fit"),
        (Storage.UNKNOWN, True, "unknown file system, so it counts as a local one; 10 GiB fit"),
        (Storage.NETWORK, False, "network file system, but 10 GiB do not fit"),
        (Storage.NETWORK_DEVICE, False, "network block device, but 10 GiB do not fit"),
        (Storage.LOCAL, False, "local file system, but 10 GiB do not fit"),
        (Storage.UNKNOWN, False, "unknown file system, but 10 GiB do not fit"),
    ],
)
def test_the_sentence_says_what_the_checkpoint_lies_on(
    storage: Storage, fits: bool, begins: str
) -> None:
    decision = decide(FACTS._replace(storage=storage), BUDGET if fits else SMALL, NONE)
    assert decision.message.startswith(begins)
    network = "network-fits" if fits else "network-too-big"
    local = "local-fits" if fits else "local-too-big"
    assert decision.reason.value == (network if storage.network else local)
    assert storage.network is storage.value.startswith("network")


@pytest.mark.parametrize(
    ("given", "shared_with", "percent", "because"),
    [
        (None, None, 90, None),
        (None, "NVIDIA GB10", 40, "NVIDIA GB10"),
        (90.0, "NVIDIA GB10", 90, None),
        (40.0, "NVIDIA GB10", 40, None),
        (55.5, None, 55.5, None),
    ],
)
def test_the_threshold_is_lower_where_the_gpu_uses_the_same_memory_and_none_is_given(
    given: float | None, shared_with: str | None, percent: float, because: str | None
) -> None:
    found = budget(100 * GIB, "host", given, None, shared_with)
    assert (found.threshold_percent, found.shared_with) == (percent, because)
    assert found.size_bytes == int(GIB * percent)
    reason = decide(FACTS._replace(total_bytes=200 * GIB), found, NONE).message
    assert ("which the GPU uses too" in reason) is (because is not None)


@pytest.mark.parametrize(
    ("most_cached", "most", "limited_by", "size", "words"),
    [
        (200, None, "host", 90, "90 % of 100 GiB available"),
        (90, None, "host", 90, "90 % of 100 GiB available"),
        (8, None, "lustre", 8, "8 GiB that Lustre's client keeps (llite.*.max_cached_mb)"),
        (8, 4, "max-bytes", 4, "the 4 GiB of --max-bytes"),
        (8, 9, "lustre", 8, "8 GiB that Lustre's client keeps"),
    ],
)
def test_what_a_client_keeps_bounds_the_budget(
    most_cached: int, most: int | None, limited_by: str, size: int, words: str
) -> None:
    found = budget(
        100 * GIB, "host", 90, None if most is None else most * GIB, None, most_cached * GIB
    )
    assert (found.limited_by, found.size_bytes) == (limited_by, size * GIB)
    message = decide(FACTS._replace(total_bytes=95 * GIB), found, NONE).message
    assert words in message


def test_no_flag_overrules_nothing() -> None:
    assert not NONE
    assert FORCE not in NONE
    assert PARTIAL not in NONE


LARGE = FACTS._replace(
    total_bytes=GIB,
    share_bytes=GIB,
    resident_bytes=None,
    storage=Storage.LOCAL,
    cold_bytes=GIB,
)
ROOMY = BUDGET._replace(size_bytes=2 * GIB, available_bytes=4 * GIB)


@pytest.mark.parametrize(
    ("warm_seconds", "loader_seconds", "reason"),
    [
        (40, 660, Reason.LOCAL_SLOW),
        (30, 60, Reason.LOCAL_SLOW),
        (30, 59.9, Reason.LOCAL_FITS),  # less than twice as long
        (14.9, 44.8, Reason.LOCAL_FITS),  # less than 30 s longer
        (0.001, 31, Reason.LOCAL_SLOW),
        (100, 10, Reason.LOCAL_FITS),
    ],
)
def test_a_local_file_system_is_slow_by_its_forecast(
    warm_seconds: float, loader_seconds: float, reason: Reason
) -> None:
    forecast = Forecast(GIB, GIB / warm_seconds, GIB / loader_seconds)
    facts = LARGE._replace(forecast=forecast)
    decision = decide(facts, ROOMY, NONE)
    assert decision.reason is reason
    assert decision.action is (Verdict.PREFETCH if reason is Reason.LOCAL_SLOW else Verdict.SKIP)
    assert "by a loader alone" in decision.message
    assert decide(facts, ROOMY, FORCE).reason is Reason.FORCED
    assert (
        decide(facts._replace(storage=Storage.NETWORK), ROOMY, NONE).reason is Reason.NETWORK_FITS
    )


def test_nothing_is_called_fast_that_was_not_measured() -> None:
    decision = decide(LARGE, ROOMY, NONE)
    assert decision.reason is Reason.LOCAL_FITS
    assert "fast" not in decision.message
    assert "a loader alone" not in decision.message


@pytest.mark.parametrize(
    ("facts", "overrule", "expected"),
    [
        (LARGE, NONE, True),
        (LARGE, PARTIAL, True),
        (LARGE, FORCE, False),
        (LARGE._replace(storage=Storage.NETWORK), NONE, False),
        (LARGE._replace(cold_bytes=GIB - 1), NONE, False),  # less than 1 GiB is cold
        (LARGE._replace(in_memory=True), NONE, False),
        (LARGE._replace(bypasses_cache=True), NONE, False),
    ],
)
def test_the_storage_is_tried_only_where_that_decides(
    facts: Facts, overrule: Overrule, expected: bool
) -> None:
    assert awaits_trial(decide(facts, ROOMY, overrule), facts) is expected


@pytest.mark.parametrize(
    "gained", [{"in_memory": True}, {"resident_bytes": 10 * GIB}, {"bypasses_cache": True}]
)
def test_what_costs_no_memory_is_verified_up_to_max_bytes(gained: dict[str, Any]) -> None:
    facts = FACTS._replace(**gained)
    for room in (BUDGET, SMALL):
        decision = decide(facts, room, VERIFY)
        assert (decision.action, decision.reason) == (Verdict.PREFETCH, Reason.VERIFY)
        assert decision.limit_bytes is None
    bounded = decide(facts, budget(100 * GIB, "host", 90.0, 8 * GIB), VERIFY)
    assert (bounded.action, bounded.reason) == (Verdict.PARTIAL, Reason.VERIFY)
    assert (bounded.limit_bytes, bounded.warning) == (8 * GIB, True)


def test_of_an_empty_share_nothing_is_verified() -> None:
    assert decide(FACTS._replace(share_bytes=0), BUDGET, VERIFY).reason is Reason.EMPTY_SHARE


# A window


def ahead(wish: Wish) -> Ahead:
    return Ahead(4 * GIB, wish)


@pytest.mark.parametrize(
    ("network", "fits", "overrule", "wish", "reason"),
    [
        (True, False, NONE, Wish.GIVEN, Reason.WINDOW),
        (True, False, NONE, Wish.DEFAULT, Reason.WINDOW),
        (True, False, NONE, Wish.NONE, Reason.NETWORK_TOO_BIG),
        (True, False, PARTIAL, Wish.GIVEN, Reason.WINDOW),
        (True, False, PARTIAL, Wish.DEFAULT, Reason.PARTIAL),
        (True, False, FORCE, Wish.DEFAULT, Reason.WINDOW),
        (True, True, NONE, Wish.GIVEN, Reason.WINDOW),
        (True, True, NONE, Wish.DEFAULT, Reason.NETWORK_FITS),
        (False, False, NONE, Wish.GIVEN, Reason.LOCAL_TOO_BIG),
        (False, False, FORCE, Wish.GIVEN, Reason.WINDOW),
        (False, False, FORCE, Wish.NONE, Reason.FORCED_TOO_BIG),
        (False, True, NONE, Wish.GIVEN, Reason.LOCAL_FITS),
        (False, True, FORCE, Wish.GIVEN, Reason.WINDOW),
    ],
)
def test_a_window_moves_where_all_would_be_read_if_it_fitted(
    network: bool, fits: bool, overrule: Overrule, wish: Wish, reason: Reason
) -> None:
    facts = FACTS._replace(storage=by_network(network))
    decision = decide(facts, BUDGET if fits else SMALL, overrule, ahead(wish))
    assert decision.reason is reason
    if reason is Reason.WINDOW:
        assert decision.action is Verdict.PREFETCH
        assert decision.limit_bytes == 4 * GIB
        verb = "fit" if fits else "do not fit"
        assert f"10 GiB {verb} into" in decision.message
        assert decision.message.endswith("a window of 4 GiB moves ahead of COMMAND's loader")


def test_a_local_file_system_that_is_slow_by_a_trial_gets_a_window_too() -> None:
    slow = Forecast(cold_bytes=100 * GIB, our_rate=1.0 * GIB, loader_rate=0.5 * GIB)
    decision = decide(local._replace(forecast=slow), BUDGET, NONE, ahead(Wish.GIVEN))
    assert decision.reason is Reason.WINDOW


@pytest.mark.parametrize("reason", STATES)
def test_where_reading_gains_nothing_there_is_no_window(reason: Reason) -> None:
    facts = FACTS._replace(**STATES[reason])
    assert decide(facts, SMALL, NONE, ahead(Wish.GIVEN)).reason is reason


@pytest.mark.parametrize("overrule", [NONE, PARTIAL])
@pytest.mark.parametrize("network", [True, False])
def test_where_there_could_be_a_window_the_message_names_it(
    overrule: Overrule, network: bool
) -> None:
    facts = FACTS._replace(storage=by_network(network))
    assert "--window" in decide(facts, SMALL, overrule, ahead(Wish.NONE)).message
    assert "--window" not in decide(facts, SMALL, overrule).message
