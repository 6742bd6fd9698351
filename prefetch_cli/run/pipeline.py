"""The stages in their order: the table of contents of this program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefetch_cli.base.errors import LimitError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Action
from prefetch_cli.checkpoint import checksums
from prefetch_cli.checkpoint.checksums import Checksums
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux import priority
from prefetch_cli.plan import ranks
from prefetch_cli.plan.decision import Decision, Verdict, allows_trial
from prefetch_cli.plan.ranks import LocalRank
from prefetch_cli.reading.trial import Unmeasured
from prefetch_cli.run import holding, keeping, parts, proving, sliding, stages, trials, verification
from prefetch_cli.run.loading import Watch
from prefetch_cli.run.options import Keep, Options
from prefetch_cli.run.parts import CHECKPOINT, Kind, Part
from prefetch_cli.run.states import (
    Decided,
    Looked,
    Proven,
    Read,
    State,
    Tried,
    Verified,
    Wanted,
    Warned,
)
from prefetch_cli.run.verification import Expected

Publish = Callable[[State | Warned], None]


def run(
    options: Options, environ: Mapping[str, str], monitor: Monitor, stop: Stop, publish: Publish
) -> None:
    """Publish each state of each part as soon as it is known.

    Raises PrefetchError where the run cannot go on. Touches the storage: not for a thread that
    must never hang.
    """
    if options.background and (refused := priority.give_way()) is not None:
        publish(Warned((refused,)))
    listed = None if options.checksums is None else checksums.read(options.checksums)
    work = _Stages(options, listed, environ, monitor, stop, publish)
    asked = tuple(parts.asked(options, environ, monitor, stop))
    match options.action:
        case Action.CHECK:
            work.prove_unchanged(work.look(asked))
        case Action.EVICT:
            work.evict(work.look(asked))
        case Action.DRY_RUN:
            work.plan(asked)
        case Action.LIST:
            work.want(asked)
        case Action.PREFETCH:
            work.read(work.plan(asked))
        case _:
            raise NotImplementedError(options.action)


@dataclass(frozen=True)
class _Seen:
    """A part that has been looked at."""

    part: Part
    wanted: Wanted
    looked: Looked
    tried: Tried | None
    expected: Expected | None  # None: its content is not to be verified


@dataclass(frozen=True)
class _Planned(_Seen):
    """A part that has been decided about."""

    decided: Decided


class _Stages:
    """What all stages share. Parts come and go in the order in which they are read."""

    def __init__(
        self,
        options: Options,
        listed: Checksums | None,
        environ: Mapping[str, str],
        monitor: Monitor,
        stop: Stop,
        publish: Publish,
    ) -> None:
        self._options = options
        self._listed = listed
        self._rank = _rank(options, environ)
        self._monitor = monitor
        self._stop = stop
        self._publish = publish
        self._known: list[File] = []  # files: each is read once, whoever names it

    def want(self, asked: Sequence[Part]) -> None:
        """Find the files of all parts, the checkpoint's first."""
        for part in sorted(asked, key=_after_checkpoint):
            self._want(part)

    def look(self, asked: Sequence[Part]) -> list[_Seen]:
        """Return the parts with what is resident of them, the checkpoint first looked at."""
        seen = {part.kind: self._look(part) for part in sorted(asked, key=_after_checkpoint)}
        return [seen[part.kind] for part in asked]

    def plan(self, asked: Sequence[Part]) -> list[_Planned]:
        """Return the parts with their plans.

        COMMAND starts when the checkpoint is decided about, so the many small files of other parts
        are looked for behind it. `--max-bytes` bounds all parts together, in the order of reading,
        so the checkpoint is planned again where others take some of that.
        """
        (checkpoint,) = (self._decide(part, 0) for part in asked if part.kind is CHECKPOINT)
        planned: list[_Planned] = []
        # A trial has read some of it already, which may lie behind the limit that others leave.
        sampled_bytes = 0 if checkpoint.tried is None else checkpoint.tried.trial.sampled_bytes
        taken_bytes = sampled_bytes
        for part in asked:
            if part.kind is not CHECKPOINT:
                planned.append(self._decide(part, taken_bytes))
            elif taken_bytes > sampled_bytes:
                planned.append(self._plan(checkpoint, checkpoint.decided.decision, taken_bytes))
            else:
                planned.append(checkpoint)
            taken_bytes += stages.taken_bytes(planned[-1].wanted, planned[-1].decided)
        return planned

    def read(self, planned: Sequence[_Planned]) -> None:
        """Read all plans, then prove what stayed."""
        due = [one for one in planned if one.decided.decision.action is not Verdict.SKIP]
        self._monitor.announce(
            {
                one.part.kind.name: (one.decided.plan.size_bytes, one.decided.plan.files)
                for one in due
            }
        )
        (first,) = (one for one in planned if one.part.kind is CHECKPOINT)
        seen = first.wanted, first.looked, first.decided
        loading = holding.watch(self._options.keep, *seen, self._stop)
        window = sliding.follow(self._options, *seen, self._stop)
        results: dict[Kind, Read] = {}
        proofs: dict[Kind, Proven] = {}
        for one in due:
            result = stages.read(one.wanted, one.decided, self._monitor, self._stop)
            results[one.part.kind] = result
            self._publish(result)
        if window is not None and not self._stop.interrupted:
            window.run(results.get(CHECKPOINT), self._monitor, self._stop, self._publish)
        for one in planned:
            self._verify(one, results.get(one.part.kind))
        for one in planned:
            if self._stop.interrupted:
                return  # whoever interrupts does not wait for a proof
            read = results.get(one.part.kind)
            if read is None:
                self.prove_unchanged([one])
                continue
            proven = proving.prove_read(
                one.wanted, one.looked, one.decided, read, self._monitor, self._stop
            )
            if proven is not None:
                proofs[one.part.kind] = proven
                self._publish(proven)
        self._keep(first, results.get(CHECKPOINT), proofs.get(CHECKPOINT), loading)

    def _keep(
        self, one: _Planned, read: Read | None, proven: Proven | None, loading: Watch | None
    ) -> None:
        """Keep what is warm of the checkpoint: COMMAND needs its libraries before that."""
        keep = self._options.keep
        if keep is None or self._stop.interrupted:
            return
        held = holding.to_hold(one.wanted, one.looked, one.decided, read, proven)
        keeping.Stage(
            keep,
            one.wanted,
            one.decided,
            self._options,
            loading,
            self._monitor,
            self._stop,
            self._publish,
        ).run(held)

    def evict(self, seen: Sequence[_Seen]) -> None:
        """Drop all parts from the page cache, then look what stayed."""
        drops = [stages.drop(one.wanted, self._monitor, self._stop) for one in seen]
        for evicted in drops:
            if self._stop.interrupted or not evicted.eviction.unproven:
                self._publish(evicted)
        for one, evicted in zip(seen, drops, strict=True):
            if self._stop.interrupted:
                return
            found = one.wanted, one.looked, evicted
            for state in proving.prove_evicted(*found, self._monitor, self._stop):
                self._publish(state)

    def prove_unchanged(self, seen: Sequence[_Seen]) -> None:
        """Publish what is resident of parts that nothing has changed."""
        for one in seen:
            self._publish(Proven(one.part.kind, one.looked.survey))

    def _want(self, part: Part) -> Wanted:
        wanted = stages.want(part, self._options, self._rank, self._known, self._monitor)
        self._known += wanted.found.files
        self._publish(wanted)
        if part.kind is CHECKPOINT and self._rank.warning is not None:
            self._publish(Warned((self._rank.warning,)))
        return wanted

    def _look(self, part: Part) -> _Seen:
        wanted = self._want(part)
        looked = stages.look(wanted, self._monitor)
        self._publish(looked)
        return _Seen(part, wanted, looked, None, self._expect(wanted))

    def _expect(self, wanted: Wanted) -> Expected | None:
        if not self._options.verifies or not isinstance(wanted.found, Checkpoint):
            return None
        found = wanted.found
        expected = verification.expect(found.files, found.sources, self._listed)
        before = verification.unread(found.files, wanted.share, expected)
        self._publish(Verified(wanted.kind, before, expected.warning))
        return expected

    def _verify(self, one: _Planned, read: Read | None) -> None:
        if one.expected is None:
            return
        found = verification.conclude(
            one.wanted.found.files,
            one.wanted.share,
            one.expected,
            one.decided.plan,
            None if read is None else read.result,
            self._monitor,
            self._stop,
        )
        self._publish(Verified(one.part.kind, found, one.expected.warning))

    def _decide(self, part: Part, taken_bytes: int) -> _Planned:
        seen = self._look(part)
        decision = stages.decide(part, seen.wanted, seen.looked)
        if self._is_to_try(seen, decision):
            seen = replace(seen, tried=self._try(seen, decision))
            decision = stages.decide(part, seen.wanted, seen.looked, seen.tried)
        return self._plan(seen, decision, taken_bytes)

    def _try(self, seen: _Seen, decision: Decision) -> Tried | None:
        plan = stages.plan(seen.wanted, seen.looked, decision, self._options, 0)
        found = trials.try_storage(
            seen.wanted, seen.looked, plan, self._options, self._monitor, self._stop
        )
        if isinstance(found, Tried):
            self._publish(found)
            return found
        if self._options.trial or found is Unmeasured.NO_ANSWER:
            self._publish(Warned((f"how fast the storage is was not measured: {found.value}",)))
        return None

    def _is_to_try(self, seen: _Seen, decision: Decision) -> bool:
        if seen.part.kind is not CHECKPOINT:
            return False
        if self._options.action is Action.DRY_RUN:
            return self._options.trial and allows_trial(decision)
        return stages.awaits_trial(seen.wanted, seen.looked, decision)

    def _plan(self, seen: _Seen, decision: Decision, taken_bytes: int) -> _Planned:
        decided = stages.plan(
            seen.wanted,
            seen.looked,
            decision,
            self._options,
            taken_bytes,
            seen.tried,
            None if seen.expected is None else seen.expected.digests,
        )
        keep = self._options.keep
        if keep is not None and keep.lock and seen.part.kind is CHECKPOINT:
            self._check_lock(keep, seen, decided)  # COMMAND has not started yet
        self._publish(decided)
        return _Planned(seen.part, seen.wanted, seen.looked, seen.tried, seen.expected, decided)

    def _check_lock(self, keep: Keep, seen: _Seen, decided: Decided) -> None:
        try:
            holding.check_lock(seen.wanted, seen.looked, decided)
        except LimitError as refused:
            if not keep.best_effort:
                raise
            self._publish(Warned((f"{refused.message}; what is dropped is read again instead",)))
            self._options = self._options._replace(keep=keep._replace(lock=False))


def _rank(options: Options, environ: Mapping[str, str]) -> LocalRank:
    if options.rank is None or options.world_size is None:
        return ranks.detect(environ)
    return LocalRank(options.rank, options.world_size, launcher=None, warning=None)


def _after_checkpoint(part: Part) -> bool:
    return part.kind is not CHECKPOINT
