"""What became known of a run, folded from the states that it published, and its exit code."""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from prefetch_cli.base.amounts import format_range
from prefetch_cli.base.errors import ExitCode, PrefetchError, interrupted_exit_code
from prefetch_cli.base.progress import Progress
from prefetch_cli.base.words import Action
from prefetch_cli.plan.decision import NOTHING_MEANT, Verdict
from prefetch_cli.reading.plan import ReadResult
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.run.parts import CHECKPOINT, Kind
from prefetch_cli.run.states import (
    Decided,
    Evicted,
    Keeping,
    Looked,
    Proven,
    Read,
    Sliding,
    State,
    Verified,
    Wanted,
    Warned,
)

_State = TypeVar("_State", bound=State)


class Completed(NamedTuple):
    """The run came to its end, or has not been ended by anything else."""


class Interrupted(NamedTuple):
    """A signal ended the run."""

    signal: int


class Refused(NamedTuple):
    """An error ended the run early."""

    error: PrefetchError


# The state that completes what is shown of a part before anything is done.
_SHOWN_WITH: Mapping[Action, type[State]] = {
    Action.LIST: Wanted,
    Action.CHECK: Looked,
    Action.EVICT: Looked,
}

Ending = Completed | Interrupted | Refused
Event = State | Warned | Interrupted | Refused


class History(NamedTuple):
    """The states that one part has been through."""

    kind: Kind
    states: Mapping[type[State], State] = MappingProxyType({})

    def get(self, state: type[_State]) -> _State | None:
        """Return a state, None where the part has not reached it."""
        found = self.states.get(state)
        return found if isinstance(found, state) else None

    def after(self, state: State) -> "History":
        """Return the history with one more state, or one that replaces its like."""
        return self._replace(states={**self.states, type(state): state})

    @property
    def is_due(self) -> bool:
        """Whether the decision is to read it and no result is known."""
        decided = self.get(Decided)
        return (
            decided is not None
            and decided.decision.action is not Verdict.SKIP
            and self.get(Read) is None
        )

    @property
    def unseen(self) -> dict[str, str]:
        """The error of each file, by its path, that could not be looked at beforehand."""
        wanted, looked = self.get(Wanted), self.get(Looked)
        errors: dict[str, str] = {}
        if wanted is not None:
            errors |= {one.path: one.reason for one in wanted.found.failed}
        if looked is not None:
            errors |= dict(looked.survey.failed)
        return errors

    def failed(self, action: Action) -> dict[str, str]:
        """Return the error of each file, by its path, that could not be read, or dropped."""
        decided = self.get(Decided)
        if action is Action.DRY_RUN or (decided and decided.decision.reason in NOTHING_MEANT):
            return {}
        errors: dict[str, str] = {}
        for path, error in self._failed():
            errors.setdefault(path, error)
        return errors

    def _failed(self) -> Iterator[tuple[str, str]]:
        if wanted := self.get(Wanted):
            yield from ((one.path, one.reason) for one in wanted.found.failed)
        if read := self.get(Read):
            yield from read.result.failed
        if verified := self.get(Verified):
            yield from verified.failed
        if evicted := self.get(Evicted):
            yield from evicted.eviction.failed
        if proven := self.get(Proven):
            yield from proven.survey.failed


class Outcome(NamedTuple):
    """All that is known of a run."""

    action: Action
    min_resident_percent: float | None = None
    parts: tuple[History, ...] = ()  # in the order in which they became known
    warnings: tuple[str, ...] = ()
    ending: Ending = Completed()

    @property
    def checkpoint(self) -> History:
        """What is known of the checkpoint."""
        return self.of(CHECKPOINT)

    @property
    def goes_on(self) -> bool:
        """Whether something goes on, or has gone on, behind the reading."""
        return any(self.checkpoint.get(state) for state in (Keeping, Sliding))

    @property
    def beside(self) -> list[History]:
        """What is known of the other parts."""
        return [one for one in self.parts if one.kind != CHECKPOINT]

    @property
    def signal(self) -> int | None:
        """The signal that ended the run, None where none did."""
        return self.ending.signal if isinstance(self.ending, Interrupted) else None

    @property
    def error(self) -> PrefetchError | None:
        """The error that ended the run early, None where none did."""
        return self.ending.error if isinstance(self.ending, Refused) else None

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """Path and error of each file that could not be read, or dropped."""
        parts = (*self.beside, self.checkpoint)
        return tuple(one for part in parts for one in part.failed(self.action).items())

    @property
    def unseen(self) -> tuple[tuple[str, str], ...]:
        """Path and error of each file that could not be looked at, and did not fail later."""
        failed = dict(self.failed)
        parts = (*self.beside, self.checkpoint)
        return tuple(one for part in parts for one in part.unseen.items() if one[0] not in failed)

    def of(self, kind: Kind) -> History:
        """Return what is known of a part, which may be nothing yet."""
        return next((one for one in self.parts if one.kind == kind), History(kind))

    def is_ready(self, part: History) -> bool:
        """Whether all is known of a part that is shown before anything is done."""
        return part.get(_SHOWN_WITH.get(self.action, Decided)) is not None


def fold(outcome: Outcome, event: Event) -> Outcome:
    """Return the outcome with what the event says."""
    if isinstance(event, (Interrupted, Refused)):
        return outcome._replace(ending=event)
    warnings = tuple(dict.fromkeys((*outcome.warnings, *event.warnings)))
    if isinstance(event, Warned):
        return outcome._replace(warnings=warnings)
    changed = outcome.of(event.kind).after(event)
    others = {one.kind: one for one in outcome.parts}
    return outcome._replace(parts=(*{**others, event.kind: changed}.values(),), warnings=warnings)


def folded(outcome: Outcome, events: Iterable[Event]) -> Outcome:
    """Return the outcome with what all the events say."""
    return reduce(fold, events, outcome)


def cut_short(outcome: Outcome, snapshot: Progress) -> Outcome:
    """Return the outcome of a run that hangs in reading, with what was read of each part."""
    results = (
        Read(
            part.kind,
            ReadResult(
                bytes_read=snapshot.done_by_part.get(part.kind.name, 0),
                bytes_already_resident=decided.plan.already_resident_bytes,
                elapsed_seconds=snapshot.part_seconds,
                engine=decided.plan.engine,
                threads=decided.plan.threads.first,
                complete=False,
                failed=(),
            ),
        )
        for part in outcome.parts
        if part.is_due and (decided := part.get(Decided))
    )
    return folded(outcome, results)


def evicted_so_far(outcome: Outcome, seconds: float) -> Outcome:
    """Return the outcome of a run that hangs in dropping pages: how many it dropped is unknown."""
    return folded(
        outcome,
        (
            Evicted(part.kind, Eviction(None, seconds, complete=False, failed=()))
            for part in outcome.parts
            if part.get(Looked) and not part.get(Evicted)
        ),
    )


def falls_short(outcome: Outcome) -> str | None:
    """Return why `--min-resident` is not reached, in words, or None where it is or is not asked."""
    wanted = outcome.min_resident_percent
    if wanted is None or outcome.action not in {Action.PREFETCH, Action.CHECK}:
        return None
    proven = outcome.checkpoint.get(Proven)
    if proven is None:
        return f"--min-resident {wanted:g}: the run ended before it was known what is resident"
    survey = proven.survey
    if survey.low_bytes is None or survey.high_bytes is None:
        return f"--min-resident {wanted:g}: this user cannot tell how much is resident"
    low, high = (
        100.0 * found / survey.total_bytes if survey.total_bytes else 100.0
        for found in (survey.low_bytes, survey.high_bytes)
    )
    if low >= wanted:
        return None
    found = f"{low:.1f} %"
    if survey.sampled is not None:
        found = f"{format_range(survey.low_bytes, survey.high_bytes, survey.total_bytes)}"
    missed = f"--min-resident {wanted:g}: expected {wanted:g} %, found {found} resident"
    if high < wanted or survey.sampled is None:
        return missed
    return f"{missed}, by a sample that cannot tell whether that is enough"


def exit_code(outcome: Outcome) -> int:
    """Return the exit code of the process."""
    if outcome.signal is not None:
        return interrupted_exit_code(outcome.signal)
    if outcome.error is not None:
        return outcome.error.exit_code
    if outcome.failed:
        return ExitCode.READ_FAILED
    if falls_short(outcome) is not None:
        return ExitCode.NOT_RESIDENT
    return ExitCode.OK
