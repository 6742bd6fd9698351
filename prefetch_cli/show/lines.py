"""An outcome -> the labelled lines that people read: pure functions."""

import math
import signal
from collections.abc import Iterator

from prefetch_cli.base.amounts import format_duration, format_percent, format_rate, format_size
from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.base.progress import Snapshot, Wait
from prefetch_cli.base.text import counted
from prefetch_cli.base.words import Action
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.outcome import Report, by_filesystem

_MOST_NAMES = 3  # of distributions: the rest is counted

Line = tuple[str, str]  # a label and a text


def is_decided(report: Report) -> bool:
    """Whether all is known that is shown before anything is done."""
    if report.action in {Action.PREFETCH, Action.DRY_RUN}:
        return report.plan is not None
    return report.before is not None


def found_lines(report: Report) -> Iterator[Line]:
    """Yield what is always shown first, as far as it is known."""
    checkpoint = report.checkpoint
    if checkpoint is None:
        return
    if not checkpoint.sources:
        yield from _memory(report)  # only libraries are wanted
        return
    weights = sum(file.weight for file in checkpoint.files)
    others = len(checkpoint.files) - weights
    size = f"{format_size(checkpoint.size_bytes)} in {counted(weights, 'weight file')}"
    for source in checkpoint.sources:
        revision = f" at {source.revision[:12]}" if source.revision else ""
        yield "checkpoint", f"{source.argument}{revision}"
    yield "size", size + (f" and {counted(others, 'other file')}" if others else "")
    for found, files, size_bytes in by_filesystem(report):
        kind = "network" if found.network else "local"
        kind = "in memory" if found.in_memory else kind
        part = "" if files == len(checkpoint.files) else f", {format_size(size_bytes)} of it"
        yield "file system", f"{found.type} ({kind}) at {found.mount_point}{part}"
    yield from _memory(report)
    share = report.share
    if share is not None and share.world_size > 1:
        by = f", as {report.launcher} says" if report.launcher else ""
        yield (
            "share",
            f"rank {share.rank} of {share.world_size}{by}: {format_size(share.size_bytes)} in "
            f"{counted(share.files, 'file')}, split by {share.split.value}",
        )
    if report.before is not None:
        yield "resident", _resident(report.before)
    if report.decision is not None:
        yield "decision", f"{report.decision.action.value}: {report.decision.message}"
    if report.action is Action.DRY_RUN:
        yield from _plan(report)


def _memory(report: Report) -> Iterator[Line]:
    memory, budget = report.memory, report.budget
    if memory is None or budget is None:
        return
    bound = "the host" if memory.limited_by == "host" else f"the cgroup {memory.limited_by}"
    limit = f"{budget.threshold_percent:g} %"
    if budget.limited_by == "max-bytes":
        limit = "--max-bytes"
    yield (
        "memory",
        f"{format_size(memory.available_bytes)} available, bound by {bound}; "
        f"budget {format_size(budget.size_bytes)} ({limit})",
    )


def _plan(report: Report) -> Iterator[Line]:
    plan = report.plan
    if plan is None:
        return
    if not plan.extents:
        yield "plan", "read nothing"
        return
    yield (
        "plan",
        f"read {format_size(plan.size_bytes)} of {counted(plan.files, 'file')} with "
        f"{counted(plan.threads, 'thread')} in blocks of {format_size(plan.block_size_bytes)}, "
        f"engine {plan.engine.value}",
    )


def gathered_lines(part: Report) -> Iterator[Line]:
    """Yield what was found of the libraries."""
    checkpoint, before = part.checkpoint, part.before
    if checkpoint is None or before is None:
        return
    of = ""
    if part.names:
        rest = len(part.names) - _MOST_NAMES
        of = f" of {', '.join(part.names[:_MOST_NAMES])}" + (f" and {rest} more" * (rest > 0))
    size, files = format_size(checkpoint.size_bytes), counted(len(checkpoint.files), "file")
    plan = ""
    if part.action is Action.DRY_RUN and part.plan is not None:
        plan = f"; read {format_size(part.plan.size_bytes)}"
    yield "libraries", f"{size} in {files}{of}; resident {_resident(before)}{plan}"
    if part.decision is not None and part.plan is not None and part.plan.cut is not None:
        yield "", part.decision.message


def summary(report: Report) -> Iterator[Line]:
    """Yield what came of it."""
    part = report.libraries
    if part is not None and part.result is not None:
        read = format_size(part.result.bytes_read)
        took = format_duration(part.result.elapsed_seconds)
        after = "" if part.after is None else f"; resident {_resident(part.after)}"
        yield "libraries", f"read {read} in {took}{after}"
    elif part is not None and part.eviction is not None:
        dropped = part.eviction.bytes_evicted
        size = "unknown how much" if dropped is None else format_size(dropped)
        yield "libraries", f"evicted {size}"
    result, eviction = report.result, report.eviction
    if report.checkpoint is not None and not report.checkpoint.sources and report.signal is None:
        return  # only libraries were wanted
    if result is not None:
        of = how = ""
        if report.plan is not None and not result.complete:
            of = f" of {format_size(report.plan.size_bytes)}"
        if result.bytes_read:
            how = f", {format_rate(result.bytes_per_second)}, engine {result.engine.value}"
        yield (
            "read",
            f"{format_size(result.bytes_read)}{of} in {format_duration(result.elapsed_seconds)}"
            f"{how}{_ending(report, complete=result.complete)}",
        )
    elif eviction is not None:
        dropped = eviction.bytes_evicted
        size = "unknown how much" if dropped is None else format_size(dropped)
        yield (
            "evicted",
            f"{size} in {format_duration(eviction.elapsed_seconds)}"
            f"{_ending(report, complete=True)}",
        )
    elif report.signal is not None:
        what = "nothing read" if report.action is Action.PREFETCH else "not finished"
        yield report.action.value, f"{what}{_ending(report, complete=False)}"
    changed = result is not None or eviction is not None
    if report.after is not None and changed:
        yield "resident", _resident(report.after)


def _ending(report: Report, *, complete: bool) -> str:
    if report.signal is not None:
        return f"; interrupted by {signal.Signals(report.signal).name}"
    if report.failed:
        return f"; {counted(len(report.failed), 'file')} failed"
    return "" if complete else "; ended by --time-limit"


def _resident(survey: Survey) -> str:
    if survey.resident_bytes is None:
        return "unknown: nothing here can tell this user"
    how = "an estimate by samples" if survey.method is Method.NOWAIT else survey.method.value
    return (
        f"{format_size(survey.resident_bytes)} of {format_size(survey.total_bytes)} "
        f"({format_percent(survey.resident_bytes, survey.total_bytes)}, {how})"
    )


def each_file(report: Report, survey: Survey | None) -> Iterator[Line]:
    """Yield how much of each file is resident."""
    if report.checkpoint is None or survey is None:
        return
    for number, resident in survey.resident_by_file.items():
        file = report.checkpoint.files[number]
        known = "unknown" if resident is None else format_size(resident)
        yield "file", f"{file.path}: {known} of {format_size(file.size_bytes)} resident"


def so_far(snapshot: Snapshot) -> str:
    """Return how far reading has come."""
    left = ""
    if snapshot.left_seconds:
        left = f", {coarse(snapshot.left_seconds)} left"
    return (
        f"{format_size(snapshot.done_bytes)} of {format_size(snapshot.total_bytes)}, "
        f"{format_rate(snapshot.bytes_per_second)}, "
        f"{snapshot.done_files:,} of {counted(snapshot.total_files, 'file')}{left}"
    )


def waiting(snapshot: Snapshot, wait: Wait) -> str:
    """Return what is waited for, and how long."""
    at = "" if wait.offset is None else f" at offset {wait.offset:,}"
    return (
        f"nothing has arrived for {coarse(int(snapshot.idle_seconds))}: "
        f"waiting {coarse(int(wait.seconds))} for {wait.path}{at}"
    )


def coarse(seconds: float) -> str:
    """Return a duration to the second: that of a forecast or a wait is no finer."""
    whole = math.ceil(seconds)
    return f"{whole} s" if whole < 60 else format_duration(whole)


def in_one_line(error: PrefetchError) -> str:
    """Return an error and its hint."""
    return error.message if error.hint is None else f"{error.message}; {error.hint}"
