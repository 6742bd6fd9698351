"""An outcome -> the labelled lines that people read: pure functions."""

import math
import signal
from collections.abc import Iterator

from prefetch_cli.base.amounts import (
    format_duration,
    format_percent,
    format_range,
    format_rate,
    format_size,
)
from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.base.progress import Progress, Wait
from prefetch_cli.base.text import counted
from prefetch_cli.base.words import Action
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.checkpoint.request import Role
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.blockdev import Kind
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.decision import NOTHING_MEANT, forecast_in_words
from prefetch_cli.reading.plan import Plan, ReadResult
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.outcome import History, Outcome
from prefetch_cli.run.states import (
    Decided,
    Evicted,
    Looked,
    Proven,
    Read,
    Tried,
    Verified,
    Wanted,
)
from prefetch_cli.run.verification import Finding
from prefetch_cli.show.part import parts
from prefetch_cli.show.verified import verified_in_words

_MOST_NAMES = 3  # names of a part; the rest is counted
_WORTH_TELLING = 0.01  # of a share: a page or two are always lost

Line = tuple[str, str]  # a label and a text


def facts(outcome: Outcome) -> Iterator[Line]:
    """Yield the facts and the decision about the checkpoint, as far as they are known."""
    part = outcome.checkpoint
    wanted = part.get(Wanted)
    if wanted is None or outcome.action is Action.LIST:
        return
    if not _sources(wanted):
        yield "memory", _memory(wanted)  # only other parts are wanted
        return
    for source in _sources(wanted):
        revision = f" at {source.revision[:12]}" if source.revision else ""
        redirect = f", redirected to {source.redirect}" if source.redirect else ""
        yield "checkpoint", f"{source.argument}{revision}{_how(source)}{redirect}"
    yield from parts(_sources(wanted))
    yield "size", _size(wanted)
    for found, files, size_bytes in wanted.by_filesystem:
        share = "" if files == len(wanted.found.files) else f", {format_size(size_bytes)} of it"
        yield "file system", f"{_named(found)} ({_distance(found)}) at {found.mount_point}{share}"
    yield "memory", _memory(wanted)
    if wanted.share.world_size > 1:
        yield "share", _share(wanted)
    if looked := part.get(Looked):
        yield "resident", resident(looked.survey) + _reclaimed(looked.survey)
    if tried := part.get(Tried):
        yield "forecast", forecast_in_words(tried.forecast)
    if decided := part.get(Decided):
        decision = decided.decision
        yield "decision", f"{decision.action.value}: {decision.message}"
        if outcome.action is Action.DRY_RUN:
            yield "plan", _plan(decided.plan)


def _named(found: FileSystem) -> str:
    """Return the type of a file system, and what it lies on."""
    if found.below is not None:
        return f"{found.type} over {_named(found.below)}"
    return found.type if found.block is None else f"{found.type} on {found.block.name}"


def _distance(found: FileSystem) -> str:
    if found.in_memory:
        return "in memory"
    if found.network_type:
        return "network"
    if found.network_device:
        return "network block device"
    if found.storage is not None and found.storage.kind is Kind.MEMORY:
        return "block device in memory"
    return "local" if found.known else "counts as local"


def _sources(wanted: Wanted) -> tuple[Source, ...]:
    return wanted.found.sources if isinstance(wanted.found, Checkpoint) else ()


def _how(source: Source) -> str:
    """Return by whose rules a checkpoint is read, and where its name was found."""
    parts = []
    if source.role is Role.TOKENIZER:
        parts.append("only its config and tokenizer files")
    elif source.server is not None:
        parts.append(f"as {source.server.value} reads it")
    if source.inferred:
        if source.role is Role.MODEL:
            parts.append(f"load format {source.load_format.value}")
        parts.append("from COMMAND")
    return f" ({', '.join(parts)})" if parts else ""


def _size(wanted: Wanted) -> str:
    found = wanted.found
    weights = sum(file.weight for file in found.files)
    others = len(found.files) - weights
    size = f"{format_size(found.size_bytes)} in {counted(weights, 'weight file')}"
    size += f" and {counted(others, 'other file')}" if others else ""
    # How much is in those that cannot be looked at is not known.
    return f"at least {size}, {len(found.failed)} out of reach" if found.failed else size


def _memory(wanted: Wanted) -> str:
    memory, budget = wanted.memory, wanted.budget
    bound = "the host" if memory.limited_by == "host" else f"the cgroup {memory.limited_by}"
    limit = f"{budget.threshold_percent:g} %"
    if budget.shared_with is not None:
        limit += f", because the GPU of {budget.shared_with} uses the same memory"
    if budget.limited_by == "max-bytes":
        limit = "--max-bytes"
    elif budget.limited_by == "lustre":
        limit = "Lustre's max_cached_mb"
    return (
        f"{format_size(memory.available_bytes)} available, bound by {bound}; "
        f"budget {format_size(budget.size_bytes)} ({limit})"
    )


def _share(wanted: Wanted) -> str:
    share = wanted.share
    by = f", as {wanted.launcher} says" if wanted.launcher else ""
    return (
        f"rank {share.rank} of {share.world_size}{by}: {format_size(share.size_bytes)} in "
        f"{counted(share.files, 'file')}, split by {share.split.value}"
    )


def _plan(plan: Plan) -> str:
    if not plan.extents:
        return "read nothing"
    return (
        f"read {format_size(plan.size_bytes)} of {counted(plan.files, 'file')} with "
        f"{plan.threads} in blocks of {format_size(plan.block_size_bytes)}, "
        f"engine {plan.engine.value}"
    )


def facts_beside(outcome: Outcome, part: History) -> Iterator[Line]:
    """Yield the facts about a part beside the checkpoint."""
    wanted, looked, decided = part.get(Wanted), part.get(Looked), part.get(Decided)
    if wanted is None or looked is None:
        return
    names = wanted.found.names
    of = ""
    if names:
        rest = len(names) - _MOST_NAMES
        of = f" of {', '.join(names[:_MOST_NAMES])}" + (f" and {rest} more" * (rest > 0))
    size, files = format_size(wanted.found.size_bytes), counted(len(wanted.found.files), "file")
    plan = ""
    if outcome.action is Action.DRY_RUN and decided is not None:
        plan = f"; read {format_size(decided.plan.size_bytes)}"
    yield part.kind.name, f"{size} in {files}{of}; resident {resident(looked.survey)}{plan}"
    if decided is None:
        return
    decision = decided.decision
    if decision.reason in NOTHING_MEANT:
        yield "", f"{decision.action.value}: {decision.message}"
    elif decided.plan.cut is not None:
        yield "", decision.message


def summary(outcome: Outcome) -> Iterator[Line]:
    """Yield the result of the run; of a list, nothing beside the paths."""
    if outcome.action is Action.LIST:
        return
    for part in outcome.beside:
        yield from _summary_beside(part)
    part = outcome.checkpoint
    wanted, decided = part.get(Wanted), part.get(Decided)
    read, evicted, proven = part.get(Read), part.get(Evicted), part.get(Proven)
    if wanted is not None and not _sources(wanted) and outcome.signal is None:
        return  # only other parts were wanted
    if read is not None and decided is not None:
        yield "read", _result(outcome, decided.plan, read.result)
        if (tried := part.get(Tried)) and read.result.complete:
            forecast = format_duration(tried.forecast.warm_seconds)
            took = format_duration(read.result.elapsed_seconds)
            yield "forecast", f"about {forecast} to warm; it took {took}"
    elif evicted is not None:
        took = format_duration(evicted.eviction.elapsed_seconds)
        ending = _ending(outcome, complete=True)
        yield "evicted", f"{_dropped(evicted.eviction)} in {took}{ending}"
    elif outcome.signal is not None:
        what = "nothing read" if outcome.action is Action.PREFETCH else "not finished"
        yield outcome.action.value, f"{what}{_ending(outcome, complete=False)}"
    if verified := part.get(Verified):
        yield "verified", verified_in_words(verified.verification)
    if proven is not None and (read or evicted):
        yield "resident", resident(proven.survey)


def _summary_beside(part: History) -> Iterator[Line]:
    if read := part.get(Read):
        size = format_size(read.result.bytes_read)
        took = format_duration(read.result.elapsed_seconds)
        proven = part.get(Proven)
        after = "" if proven is None else f"; resident {resident(proven.survey)}"
        yield part.kind.name, f"read {size} in {took}{after}"
    elif evicted := part.get(Evicted):
        yield part.kind.name, f"evicted {_dropped(evicted.eviction)}"


def _result(outcome: Outcome, plan: Plan, result: ReadResult) -> str:
    of = how = ""
    if not result.complete:
        of = f" of {format_size(plan.size_bytes)}"
    if result.bytes_read:
        how = f", {format_rate(result.bytes_per_second)}, engine {result.engine.value}"
        if result.threads > plan.threads.first:  # more paid
            how += f", {counted(result.threads, 'thread')}"
    return (
        f"{format_size(result.bytes_read)}{of} in {format_duration(result.elapsed_seconds)}"
        f"{how}{_ending(outcome, complete=result.complete)}"
    )


def _dropped(eviction: Eviction) -> str:
    dropped = eviction.bytes_evicted
    return "unknown how much" if dropped is None else format_size(dropped)


def _ending(outcome: Outcome, *, complete: bool) -> str:
    if outcome.signal is not None and not outcome.goes_on:
        return f"; {by_signal(outcome.signal)}"
    if outcome.failed:
        return f"; {counted(len(outcome.failed), 'file')} failed"
    return "" if complete else "; ended by --time-limit"


def by_signal(number: int) -> str:
    """Return that a signal ended the run."""
    return f"interrupted by {signal.Signals(number).name}"


def resident(survey: Survey) -> str:
    """Return how much is resident."""
    if survey.resident_bytes is None:
        return "unknown: this user has no way to tell"
    if survey.sampled is not None:
        how = "timed sample" if survey.method is Method.TIMED else "sample"
        pages = counted(survey.sampled.pages, "page")
        between = format_range(
            survey.sampled.low_bytes, survey.sampled.high_bytes, survey.total_bytes
        )
        return f"{between} of {format_size(survey.total_bytes)} ({how} of {pages})"
    how = survey.method.value
    return (
        f"{format_size(survey.resident_bytes)} of {format_size(survey.total_bytes)} "
        f"({format_percent(survey.resident_bytes, survey.total_bytes)}, {how})"
    )


def _reclaimed(survey: Survey) -> str:
    """Return what was resident once, for lines that are printed before anything is read."""
    reclaimed = survey.reclaimed
    if reclaimed is None or reclaimed.size_bytes < _WORTH_TELLING * survey.total_bytes:
        return ""
    return f"; {format_size(reclaimed.size_bytes)} more were here and dropped again"


def each_file(wanted: Wanted, survey: Survey) -> Iterator[Line]:
    """Yield how much of each file is resident."""
    for number, resident in survey.resident_by_file.items():
        file = wanted.found.files[number]
        about = "" if survey.sampled is None else "about "
        known = "unknown" if resident is None else f"{about}{format_size(resident)}"
        yield "file", f"{file.path}: {known} of {format_size(file.size_bytes)} resident"


def each_doubtful(verified: Verified) -> Iterator[Line]:
    """Yield each file that was not checked, and why. Those that failed are named as errors."""
    for one in verified.verification.of(Finding.UNCHECKED):
        yield "file", f"{one.path}: not checked: {one.reason}"


def so_far(snapshot: Progress) -> str:
    """Return how far reading has come."""
    left = ""
    if snapshot.left_seconds:
        left = f", {coarse(snapshot.left_seconds)} left"
    return (
        f"{format_size(snapshot.done_bytes)} of {format_size(snapshot.total_bytes)}, "
        f"{format_rate(snapshot.bytes_per_second)}, "
        f"{snapshot.done_files:,} of {counted(snapshot.total_files, 'file')}{left}"
    )


def waiting(snapshot: Progress, wait: Wait) -> str:
    """Return which file has not answered, and for how long."""
    at = "" if wait.offset is None else f" at offset {wait.offset:,}"
    return (
        f"nothing has arrived for {coarse(int(snapshot.idle_seconds))}: "
        f"waiting {coarse(int(wait.seconds))} for {wait.path}{at}"
    )


def coarse(seconds: float) -> str:
    """Return a duration in whole seconds, for forecasts and waits."""
    whole = math.ceil(seconds)
    return f"{whole} s" if whole < 60 else format_duration(whole)


def in_one_line(error: PrefetchError) -> str:
    """Return an error and its hint."""
    return error.message if error.hint is None else f"{error.message}; {error.hint}"
