"""Words, lines and the bar: how a run looks to people. The only module that knows rich."""

import enum
import json
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Protocol, TextIO, cast

from prefetch_cli.errors import PrefetchError
from prefetch_cli.pagecache import Method
from prefetch_cli.progress import Snapshot, Wait
from prefetch_cli.report import Action, Report, by_filesystem, document, falls_short
from prefetch_cli.sizes import format_duration, format_percent, format_rate, format_size
from prefetch_cli.streams import Stream
from prefetch_cli.survey import Survey
from prefetch_cli.text import counted, printable

if TYPE_CHECKING:
    from rich.console import Console

_NAME = "prefetch-cli"
# Between lines that say what is waited for; the first one comes after a third of it.
_HEARTBEAT_SECONDS = 30.0
_LABEL_COLUMNS = 13
_MOST_NAMES = 3  # of distributions: the rest is counted
_TEXT_LEAST_COLUMNS = 20  # beside the labels
_NUMBER_WITH_UNIT = re.compile(r"(\d) ([KMGTPE]?i?B\b|bytes?\b|%|s\b)")
_NOT_ABLE = {"", "dumb", "unknown"}  # terminfo's words for terminals of which nothing is known

Line = tuple[str, str]  # a label and a text


class ProgressMode(enum.Enum):
    """Where progress goes."""

    AUTO = "auto"
    BAR = "bar"
    LOG = "log"
    NONE = "none"


class Verbosity(enum.Enum):
    """How much is said."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


class Audience(Protocol):
    """Who is told how a run goes."""

    def decided(self, report: Report) -> None:
        """Take what was found and decided, before anything is read."""

    def gathered(self, report: Report) -> None:
        """Take what was found of the libraries, before anything of them is read."""

    def progress(self, snapshot: Snapshot) -> None:
        """Take how far reading has come."""

    def finished(self, report: Report, shown: Report | None) -> None:
        """Take what came of it; `shown` is what `decided` was given, None where an error came."""

    def stop_bar(self) -> None:
        """Take the bar off the terminal."""


class Display:
    """Shows a run on standard output and standard error, whatever these are."""

    def __init__(
        self,
        progress: ProgressMode,
        verbosity: Verbosity,
        *,
        json_document: bool,
        beside_command: bool = False,
        output: TextIO | None = None,
        errors: TextIO | None = None,
    ) -> None:
        self._output = Stream(sys.stdout if output is None else output)
        self._errors = Stream(sys.stderr if errors is None else errors)
        self._verbosity = verbosity
        self._json = json_document
        # Standard output is COMMAND's then, and standard error its log.
        self._beside = beside_command
        self._mode = _mode(progress, verbosity, self._errors)
        if beside_command and self._mode is ProgressMode.BAR:
            self._mode = ProgressMode.LOG
        self._bar: _Bar | None = None
        self._steps_said = 0
        self._beats_said = 0
        # Lines of several ranks meet in one log, so each says whose it is.
        self._rank = ""

    def decided(self, report: Report) -> None:
        """Show what was found and decided, before anything is read."""
        if report.share is not None and report.share.world_size > 1:
            self._rank = f"rank {report.share.rank}/{report.share.world_size}"
        self._say(_found(report))
        if self._verbosity is Verbosity.VERBOSE:
            self._say(_each_file(report, report.before))
        self._warn(report.warnings)

    def gathered(self, report: Report) -> None:
        """Show what was found of the libraries, before anything of them is read."""
        if report.libraries is not None:
            self._say(_gathered(report.libraries))

    def progress(self, snapshot: Snapshot) -> None:
        """Show how far reading has come, and what has been awaited for long."""
        if self._mode is ProgressMode.NONE:
            return
        beats = int(snapshot.idle_seconds / _HEARTBEAT_SECONDS + 2 / 3)
        if beats > self._beats_said and snapshot.longest_wait is not None:
            self._tell(_waiting(snapshot, snapshot.longest_wait))
        self._beats_said = beats
        if snapshot.total_bytes == 0:
            return
        if self._mode is ProgressMode.BAR:
            self._bar = self._bar or _Bar(self._errors)
            self._bar.draw(snapshot)
        else:
            self._step(snapshot)

    def finished(self, report: Report, shown: Report | None) -> None:
        """Show what came of it; `shown` is what `decided` was given, None where an error came."""
        self.stop_bar()
        if report.error is not None:
            self._document(report)
            self._tell(f"error: {_in_one_line(report.error)}")
            return
        self._warn(report.warnings[len(shown.warnings) if shown is not None else 0 :])
        for path, error in report.failed:
            self._tell(f"error: {path}: {error}")
        if (short := falls_short(report)) is not None:
            self._tell(f"{'warning' if self._beside else 'error'}: {short}")
        self._document(report)
        self._say(_summary(report))
        changed = report.result is not None or report.eviction is not None
        if self._verbosity is Verbosity.VERBOSE and changed:
            self._say(_each_file(report, report.after))

    def failed(self, report: Report, defect: BaseException | None = None) -> None:
        """Show a run that came to nothing; the trace of a defect for whoever asks for more."""
        if defect is not None and self._verbosity is Verbosity.VERBOSE:
            self.stop_bar()
            for line in "".join(traceback.format_exception(defect)).splitlines():
                self._errors.write(printable(line) + "\n")
        self.finished(report, None)

    def stop_bar(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def warn(self, warning: str) -> None:
        """Show what does not end the run."""
        self._warn([warning])

    def _warn(self, warnings: Iterable[str]) -> None:
        if self._verbosity is not Verbosity.QUIET:
            for warning in warnings:
                self._tell(f"warning: {warning}")

    def _tell(self, text: str) -> None:
        """Write a line on standard error: above the bar, where there is one."""
        name = f"{_NAME} {self._rank}".rstrip()
        line = printable(f"{name}: {text}")
        if self._bar is not None:
            self._bar.tell(line)
        else:
            self._errors.write(line + "\n")

    def _step(self, snapshot: Snapshot) -> None:
        """Write a line for each tenth that has been passed since the last call."""
        reached = 10 * snapshot.done_bytes // snapshot.total_bytes
        for step in range(self._steps_said + 1, reached):
            passed = format_size(snapshot.total_bytes * step // 10)
            self._tell(f"{10 * step}% {passed} of {format_size(snapshot.total_bytes)}")
        if reached > self._steps_said:
            self._tell(f"{10 * reached}% {_so_far(snapshot)}")
            self._steps_said = reached

    def _say(self, lines: Iterable[Line]) -> None:
        """Write labelled lines where people read them, unless they are not to be written."""
        if self._json or self._verbosity is Verbosity.QUIET:
            return
        safe = [(label, printable(text)) for label, text in lines]
        if self._beside:
            for label, text in safe:
                self._tell(f"{label:<{_LABEL_COLUMNS}}{text}")
            return
        if self._output.isatty() and _is_able():
            columns = shutil.get_terminal_size().columns
            self._output.write(
                "".join(f"{_beside_label(label, text, columns)}\n" for label, text in safe)
            )
            return
        margin = f"{self._rank}  ".lstrip()
        self._output.write(
            "".join(f"{margin}{label:<{_LABEL_COLUMNS}}{text}\n" for label, text in safe)
        )

    def _document(self, report: Report) -> None:
        if self._json:
            self._output.write(json.dumps(document(_whole(report)), indent=2) + "\n")


class _Bar:
    """One line at the foot of a terminal, drawn anew at each call."""

    def __init__(self, stream: Stream) -> None:
        from rich.live import Live  # noqa: PLC0415 - 50 ms that a log need not pay

        self._live = Live(
            console=_console(stream),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        # A process that is killed could not show it again.
        self._live.console.show_cursor(show=True)

    def draw(self, snapshot: Snapshot) -> None:
        """Show how far reading has come."""
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        # Asked anew each time, since a terminal may change its width.
        text, bar_columns = bar_line(snapshot, self._live.console.width - 1)
        line = Table.grid(padding=(0, 1, 0, 0))
        if bar_columns:
            bar = ProgressBar(
                total=snapshot.total_bytes,
                completed=snapshot.done_bytes,
                width=bar_columns,
                complete_style="cyan",
            )
            line.add_row(bar, Text(text, no_wrap=True))
        else:
            line.add_row(Text(text, no_wrap=True))
        self._live.update(line, refresh=True)

    def tell(self, line: str) -> None:
        """Write a line above the bar."""
        self._live.console.print(line, soft_wrap=True)

    def stop(self) -> None:
        """Leave nothing behind."""
        self._live.stop()


def is_decided(report: Report) -> bool:
    """Whether all is known that is shown before anything is done."""
    if report.action in {Action.PREFETCH, Action.DRY_RUN}:
        return report.plan is not None
    return report.before is not None


def bar_line(snapshot: Snapshot, columns: int) -> tuple[str, int]:
    """Return the text beside the bar and the columns of the bar: the most that fits, 0 for none.

    Figures that change have a fixed width, so that the line does not tremble.
    """
    # Rounded down: 100 is the end.
    percent = f"{100 * snapshot.done_bytes // snapshot.total_bytes:3}%"
    rate = format_rate(snapshot.bytes_per_second)
    left = "?" if snapshot.left_seconds is None else _coarse(snapshot.left_seconds)
    files = f"{snapshot.done_files:>{len(str(snapshot.total_files))}}/{snapshot.total_files}"
    total = format_size(snapshot.total_bytes)
    # Each with the columns that its bar takes at least; the last ones have none.
    texts = (
        (16, f"{percent} of {total}  {rate:>12}  {left:>7} left  {files} files"),
        (12, f"{percent}  {rate:>12}  {left:>7} left  {files} files"),
        (4, f"{percent} {rate:>12} {left:>7} {files}"),
        (0, f"{percent} {rate} {left} {files}"),
        (0, f"{percent} {rate}"),
        (0, percent),
    )
    for least, text in texts:
        room = columns - len(text) - 1 if least else 0
        if room >= least and len(text) <= columns:
            return text, room
    return percent[:columns], 0


def _mode(asked: ProgressMode, verbosity: Verbosity, errors: Stream) -> ProgressMode:
    """Return where progress goes; a bar that is asked for is drawn into a pipe too."""
    if verbosity is Verbosity.QUIET:
        return ProgressMode.NONE
    if asked is ProgressMode.AUTO:
        return ProgressMode.BAR if errors.isatty() and _is_able() else ProgressMode.LOG
    return ProgressMode.LOG if asked is ProgressMode.BAR and not _is_able() else asked


def _is_able() -> bool:
    """Whether the terminal moves its cursor and knows colours, by what it says it is."""
    return os.environ.get("TERM", "") not in _NOT_ABLE


def _found(report: Report) -> Iterator[Line]:
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


def _gathered(part: Report) -> Iterator[Line]:
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


def _summary(report: Report) -> Iterator[Line]:
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


def _each_file(report: Report, survey: Survey | None) -> Iterator[Line]:
    if report.checkpoint is None or survey is None:
        return
    for number, resident in survey.resident_by_file.items():
        file = report.checkpoint.files[number]
        known = "unknown" if resident is None else format_size(resident)
        yield "file", f"{file.path}: {known} of {format_size(file.size_bytes)} resident"


def _so_far(snapshot: Snapshot) -> str:
    left = ""
    if snapshot.left_seconds:
        left = f", {_coarse(snapshot.left_seconds)} left"
    return (
        f"{format_size(snapshot.done_bytes)} of {format_size(snapshot.total_bytes)}, "
        f"{format_rate(snapshot.bytes_per_second)}, "
        f"{snapshot.done_files:,} of {counted(snapshot.total_files, 'file')}{left}"
    )


def _waiting(snapshot: Snapshot, wait: Wait) -> str:
    at = "" if wait.offset is None else f" at offset {wait.offset:,}"
    return (
        f"nothing has arrived for {_coarse(int(snapshot.idle_seconds))}: "
        f"waiting {_coarse(int(wait.seconds))} for {wait.path}{at}"
    )


def _coarse(seconds: float) -> str:
    """Return a duration to the second: that of a forecast or a wait is no finer."""
    whole = math.ceil(seconds)
    return f"{whole} s" if whole < 60 else format_duration(whole)


def _in_one_line(error: PrefetchError) -> str:
    return error.message if error.hint is None else f"{error.message}; {error.hint}"


def _whole(report: Report) -> Report:
    """Return the report as one that has a document: what ends before the decision is an error."""
    if report.error is not None or report.signal is None or is_decided(report):
        return report
    name = signal.Signals(report.signal).name
    return replace(report, error=PrefetchError(f"interrupted by {name} before anything was read"))


def _beside_label(label: str, text: str, columns: int) -> str:
    """Return a labelled line, its text wrapped beside the label, or below where that is narrow."""
    # What belongs together stays together: `64 MiB`, `90 %`.
    tied = _NUMBER_WITH_UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text)
    beside = columns - _LABEL_COLUMNS >= _TEXT_LEAST_COLUMNS
    indent = _LABEL_COLUMNS if beside else 2
    lines = textwrap.wrap(tied, max(1, columns - indent), break_on_hyphens=False)
    head = _bold(f"{label:<{indent}}") if beside else _bold(label) + "\n" + " " * indent
    return (head + ("\n" + " " * indent).join(lines)).replace("\N{NO-BREAK SPACE}", " ")


def _bold(text: str) -> str:
    return text if os.environ.get("NO_COLOR") else f"\x1b[1m{text}\x1b[0m"


def _console(stream: Stream) -> "Console":
    from rich.console import Console  # noqa: PLC0415 - 50 ms that a log need not pay

    return Console(
        file=cast("IO[str]", stream),
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
