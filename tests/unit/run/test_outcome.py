"""Published states, folded and cut short, become an exit code and a document."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from man import content
from prefetch_cli.base.errors import CheckpointError, ExitCode
from prefetch_cli.base.progress import Progress
from prefetch_cli.base.words import Action, Engine, Split
from prefetch_cli.checkpoint.files import File, Found, Skipped
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.memory import Memory
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.budget import Budget
from prefetch_cli.plan.decision import Decision, Reason, Verdict
from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Plan, ReadResult, Threads
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.samples import Sampled
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.document import document
from prefetch_cli.run.outcome import (
    Event,
    Interrupted,
    Outcome,
    Refused,
    cut_short,
    evicted_so_far,
    exit_code,
    falls_short,
    fold,
    folded,
)
from prefetch_cli.run.parts import CHECKPOINT, LIBRARIES, Kind
from prefetch_cli.run.states import Decided, Evicted, Looked, Proven, Read, State, Wanted, Warned

FILE = File("/m/a", "/m/a", 1000, weight=True, device=1, inode=2)
EXTENT = Extent(0, 0, 1000)
SURVEY = Survey(0, 1000, Method.MINCORE, (EXTENT,), {0: 0}, ())
PLAN = Plan((EXTENT,), None, 0, Threads.fixed(1), 4096, Engine.AUTO, None, yielding=False)
READ = Decision(Verdict.PREFETCH, Reason.FORCED, "forced", warning=False, limit_bytes=None)
SKIP = Decision(Verdict.SKIP, Reason.LOCAL_FITS, "local", warning=False, limit_bytes=None)
SNAPSHOT = Progress(2000, 700, 2, 0, 3.0, None, 0.0, part_seconds=2.0)


def wanted(kind: Kind, *failed: str, warnings: tuple[str, ...] = ()) -> Wanted:
    skipped = tuple(Skipped(path, "Input/output error", failed=True) for path in failed)
    found = (
        Checkpoint((FILE,), skipped, warnings, names=(), sources=())
        if kind == CHECKPOINT
        else Found((FILE,), skipped, warnings, names=("torch",))
    )
    return Wanted(
        kind,
        found,
        (UNKNOWN,),
        Memory(1 << 30, 1 << 30, None, "host"),
        Budget(1 << 30, 1 << 30, 90.0, "host", None),
        Share(0, 1, Split.FILES, (EXTENT,), 1, 1000),
        launcher=None,
        threads=Threads.fixed(1),
    )


def up_to(kind: Kind, decision: Decision) -> list[State]:
    return [wanted(kind), Looked(kind, SURVEY), Decided(kind, decision, PLAN)]


def read(kind: Kind, *failed: str) -> Read:
    errors = tuple((path, "Input/output error") for path in failed)
    return Read(kind, ReadResult(1000, 0, 1.0, Engine.SPLICE, 1, complete=True, failed=errors))


def outcome(*events: Event, action: Action = Action.PREFETCH) -> Outcome:
    return folded(Outcome(action), events)


def test_the_last_state_of_a_class_counts() -> None:
    first, second = Decided(CHECKPOINT, READ, PLAN), Decided(CHECKPOINT, SKIP, PLAN)
    assert outcome(first, second).checkpoint.get(Decided) is second


def test_states_of_parts_do_not_mix() -> None:
    found = outcome(*up_to(CHECKPOINT, READ), Looked(LIBRARIES, SURVEY))
    assert found.of(LIBRARIES).get(Decided) is None
    assert found.of(LIBRARIES).get(Looked) is not None
    assert [part.kind for part in found.beside] == [LIBRARIES]


def test_warnings_keep_their_order_and_come_once() -> None:
    doubt = Proven(CHECKPOINT, SURVEY, doubt="c")
    events = (Warned(("a",)), wanted(CHECKPOINT, warnings=("b", "a")), doubt, doubt)
    assert outcome(*events).warnings == ("a", "b", "c")


SAMPLED = SURVEY._replace(method=Method.TIMED, resident_bytes=970)


@pytest.mark.parametrize(
    ("low", "high", "code", "words"),
    [
        (950, 1000, 0, ""),
        (949, 1000, 4, "found 94.9 to 100 % resident, by a sample that cannot tell"),
        (900, 950, 4, "found 90 to 95 % resident, by a sample that cannot tell"),
        (900, 949, 4, "found 90 to 94.9 % resident"),
    ],
)
def test_of_a_sample_the_bounds_decide_whether_enough_is_resident(
    low: int, high: int, code: int, words: str
) -> None:
    survey = SAMPLED._replace(sampled=Sampled(low, low, high, 1024))
    found = outcome(Proven(CHECKPOINT, survey), action=Action.CHECK)._replace(
        min_resident_percent=95
    )
    assert exit_code(found) == code
    said = falls_short(found) or ""
    assert words in said
    assert ("cannot tell" in said) is (low < 950 <= high)


def test_the_interval_is_that_of_the_last_look() -> None:
    exact, sampled = (
        Proven(CHECKPOINT, survey)
        for survey in (SURVEY, SAMPLED._replace(sampled=Sampled(900, 970, 1000, 512)))
    )
    names = ("method", "after_bytes", "low_bytes", "high_bytes", "sampled_pages")
    for proven, figures in (
        (sampled, ["timed", 970, 900, 1000, 512]),
        (exact, ["mincore", 0, None, None, None]),
    ):
        found = document(outcome(*up_to(CHECKPOINT, READ), proven))["residency"]
        assert [found[name] for name in names] == figures


STATES = st.sampled_from(
    [
        *up_to(CHECKPOINT, READ),
        *up_to(LIBRARIES, READ),
        read(CHECKPOINT),
        read(LIBRARIES, "/m/b"),
        Evicted(CHECKPOINT, Eviction(5, 1.0, complete=True, failed=())),
        Proven(CHECKPOINT, SURVEY, doubt="d"),
        Proven(LIBRARIES, SURVEY),
    ]
)


@given(st.lists(STATES), st.sampled_from(Action), st.sampled_from([None, 2, 15]))
def test_whatever_is_known_has_an_exit_code_and_a_document(
    states: list[State], action: Action, received: int | None
) -> None:
    found = outcome(*states, action=action)
    if received is not None:
        found = fold(found, Interrupted(received))
    code = exit_code(found)
    assert document(found)["exit_code"] == code
    assert code in {0, 1, 4, 130, 143}


def test_a_run_that_hangs_has_read_of_each_part_what_arrived_of_it() -> None:
    found = outcome(*up_to(CHECKPOINT, READ), *up_to(LIBRARIES, READ))
    snapshot = SNAPSHOT._replace(done_by_part={"libraries": 700})
    short = cut_short(found, snapshot)
    parts = [short.of(kind).get(Read) for kind in (LIBRARIES, CHECKPOINT)]
    assert [part.result.bytes_read for part in parts if part] == [700, 0]
    assert not any(part.result.complete for part in parts if part)


def test_what_was_read_before_is_not_cut_short() -> None:
    done = read(LIBRARIES)
    found = outcome(*up_to(CHECKPOINT, READ), *up_to(LIBRARIES, READ), done)
    assert cut_short(found, SNAPSHOT).of(LIBRARIES).get(Read) is done


def test_a_part_that_is_skipped_is_not_cut_short() -> None:
    found = outcome(*up_to(CHECKPOINT, SKIP), *up_to(LIBRARIES, READ))
    assert cut_short(found, SNAPSHOT).checkpoint.get(Read) is None


def test_how_much_a_hanging_eviction_dropped_is_unknown() -> None:
    found = outcome(wanted(CHECKPOINT), Looked(CHECKPOINT, SURVEY), action=Action.EVICT)
    evicted = evicted_so_far(found, 2.0).checkpoint.get(Evicted)
    assert evicted is not None
    assert evicted.eviction == Eviction(None, 2.0, complete=False, failed=())


@pytest.mark.parametrize(
    ("states", "action", "code"),
    [
        ([*up_to(CHECKPOINT, READ), read(CHECKPOINT, "/m/a")], Action.PREFETCH, 1),
        ([*up_to(CHECKPOINT, READ), *up_to(LIBRARIES, READ), read(LIBRARIES, "/m/b")], None, 1),
        ([wanted(CHECKPOINT, "/m/a"), *up_to(CHECKPOINT, READ)[1:]], Action.DRY_RUN, 0),
        ([wanted(CHECKPOINT, "/m/a"), *up_to(CHECKPOINT, SKIP)[1:]], Action.PREFETCH, 0),
        ([wanted(CHECKPOINT, "/m/a"), *up_to(CHECKPOINT, READ)[1:]], Action.PREFETCH, 1),
    ],
)
def test_a_file_fails_the_run_where_it_should_have_been_read(
    states: Sequence[State], action: Action | None, code: int
) -> None:
    assert exit_code(outcome(*states, action=action or Action.PREFETCH)) == code


@pytest.mark.parametrize("reason", Reason)
def test_each_decision_to_skip_says_whether_files_that_failed_were_meant(reason: Reason) -> None:
    """A new reason takes its place here, and in `_NOTHING_MEANT` or not."""
    skips_what_was_meant = {Reason.EMPTY_SHARE, Reason.ALREADY_RESIDENT}
    skips = {row.reason for row in content.DECISIONS if row.action is Verdict.SKIP}
    action = Verdict.SKIP if reason in skips else Verdict.PREFETCH
    decided = Decision(action, reason, "x", warning=False, limit_bytes=None)
    states = (wanted(CHECKPOINT, "/m/a"), Decided(CHECKPOINT, decided, PLAN))
    meant = action is not Verdict.SKIP or reason in skips_what_was_meant
    assert exit_code(outcome(*states)) == (ExitCode.READ_FAILED if meant else ExitCode.OK)


def test_an_error_has_the_code_of_its_class() -> None:
    assert exit_code(outcome(Refused(CheckpointError("x")))) == ExitCode.CHECKPOINT
