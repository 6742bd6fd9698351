"""Shows a run on standard output and standard error."""

import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import TextIO

from prefetch_cli.base import limits
from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.progress import Progress
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import PROGRAM, Action, ProgressMode, Terminator, Verbosity
from prefetch_cli.run.document import document
from prefetch_cli.run.lasting import window_document
from prefetch_cli.run.listing import listed
from prefetch_cli.run.outcome import History, Outcome, falls_short
from prefetch_cli.run.parts import CHECKPOINT, Kind
from prefetch_cli.run.states import (
    Evicted,
    Keeping,
    Kept,
    Looked,
    Proven,
    Read,
    Slid,
    Sliding,
    Verified,
    Wanted,
)
from prefetch_cli.show import events
from prefetch_cli.show.bar import Bar
from prefetch_cli.show.events import Feed, Level
from prefetch_cli.show.keeping import keeping, kept
from prefetch_cli.show.layout import LABEL_COLUMNS, hanging, has_cursor, wrapped
from prefetch_cli.show.lines import (
    Line,
    each_doubtful,
    each_file,
    facts,
    facts_beside,
    in_one_line,
    so_far,
    summary,
    waiting,
)
from prefetch_cli.show.sliding import slid, sliding
from prefetch_cli.show.streams import Stream


class Display:
    """Shows a run: results on standard output, progress and warnings on standard error."""

    def __init__(
        self,
        progress: ProgressMode,
        verbosity: Verbosity,
        *,
        json_document: bool,
        beside_command: bool = False,
        terminator: Terminator = Terminator.NEWLINE,
        output: TextIO | None = None,
        errors: TextIO | None = None,
    ) -> None:
        self._output = Stream(sys.stdout if output is None else output)
        self._errors = Stream(sys.stderr if errors is None else errors)
        self._verbosity = verbosity
        self._terminator = terminator
        self._json = json_document
        # Beside COMMAND, standard output belongs to it and standard error is its log.
        self._beside = beside_command
        self._as_json = progress is ProgressMode.JSON  # all of standard error, however little
        self._feed = Feed()
        self._mode = _mode(progress, verbosity, self._errors)
        if beside_command and self._mode is ProgressMode.BAR:
            self._mode = ProgressMode.LOG
        self._bar: Bar | None = None
        self._steps_said = 0
        self._beats_said = 0
        self._shown: set[Kind] = set()
        self._warnings_said = 0
        self._summary_said = False
        self._window_said = False
        self._kept_next_seconds = 0.0
        # Several ranks write to one log, so each line carries its rank.
        self._rank = ""
        self._rank_number: int | None = None

    def learned(self, outcome: Outcome, kind: Kind) -> None:
        """Show the facts and the decision of a part, once, when both are known."""
        part = outcome.of(kind)
        if kind not in self._shown and outcome.is_ready(part):
            self._show(outcome, part)
        if (state := part.get(Keeping)) and not part.get(Kept):
            self._keeping(outcome, state)
        if moving := part.get(Sliding):
            self._sliding(outcome, moving)

    def progress(self, snapshot: Progress) -> None:
        """Show how far reading has come, and any file that has not answered for long."""
        if self._mode is ProgressMode.NONE:
            return
        if self._mode is ProgressMode.JSON:
            if self._summary_said:
                return  # all is read
            for event in self._feed.due(snapshot, self._rank_number):
                self._errors.write(events.line(event))
            return
        beats = int(snapshot.idle_seconds / limits.HEARTBEAT_SECONDS + 2 / 3)
        if beats > self._beats_said and snapshot.longest_wait is not None:
            self._tell(waiting(snapshot, snapshot.longest_wait))
        self._beats_said = beats
        if snapshot.total_bytes == 0 or self._summary_said:
            return
        if self._mode is ProgressMode.BAR:
            self._bar = self._bar or Bar(self._errors)
            self._bar.draw(snapshot)
        else:
            self._step(snapshot)

    def finished(self, outcome: Outcome) -> None:
        """Show the result."""
        self.stop_bar()
        if outcome.error is not None:
            self._document(outcome)
            self._tell(in_one_line(outcome.error), Level.ERROR)
            return
        if CHECKPOINT not in self._shown:
            self._show(outcome, outcome.checkpoint)
        self._warn_of_new(outcome)
        for path, error in outcome.failed:
            self._tell(f"{path}: {error}", Level.ERROR)
        for path, error in outcome.unseen:
            self._tell(f"{path}: {error}", Level.WARNING)
        if (short := falls_short(outcome)) is not None:
            self._tell(short, Level.WARNING if self._beside else Level.ERROR)
        self._document(outcome)
        if outcome.action is Action.LIST and not self._json:
            self._list(outcome)
        if not self._summary_said:
            self._say(summary(outcome))
        self._say(kept(outcome))
        self._say(slid(outcome))
        part = outcome.checkpoint
        wanted, proven = part.get(Wanted), part.get(Proven)
        changed = part.get(Read) or part.get(Evicted)
        if self._verbosity is Verbosity.VERBOSE and changed and wanted and proven:
            self._say(each_file(wanted, proven.survey))
        if self._verbosity is Verbosity.VERBOSE and (verified := part.get(Verified)):
            self._say(each_doubtful(verified))

    def failed(self, outcome: Outcome, defect: BaseException | None = None) -> None:
        """Show a run that never started; with --verbose, the traceback of a defect."""
        if defect is not None and self._verbosity is Verbosity.VERBOSE:
            self.stop_bar()
            for line in "".join(traceback.format_exception(defect)).splitlines():
                if self._as_json:
                    self._tell(line)
                else:
                    self._errors.write(printable(line) + "\n")
        self.finished(outcome)

    def stop_bar(self) -> None:
        """Erase the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def warn(self, warning: str) -> None:
        """Show a warning."""
        if self._verbosity is not Verbosity.QUIET:
            self._tell(warning, Level.WARNING)

    def _warn_of_new(self, outcome: Outcome) -> None:
        """Show the warnings that are new."""
        for warning in outcome.warnings[self._warnings_said :]:
            self.warn(warning)
        self._warnings_said = len(outcome.warnings)

    def _show(self, outcome: Outcome, part: History) -> None:
        """Show the facts and the decision of a part."""
        self._shown.add(part.kind)
        if part.kind != CHECKPOINT:
            self._say(facts_beside(outcome, part))
            return
        wanted, looked = part.get(Wanted), part.get(Looked)
        self._rank_number = None if wanted is None else wanted.share.rank
        if wanted is not None and wanted.share.world_size > 1:
            self._rank = f"rank {wanted.share.rank}/{wanted.share.world_size}"
        self._say(facts(outcome))
        if self._verbosity is Verbosity.VERBOSE and wanted and looked:
            self._say(each_file(wanted, looked.survey))
        self._warn_of_new(outcome)

    def _keeping(self, outcome: Outcome, state: Keeping) -> None:
        """Show the result of reading when keeping begins; then, at times, what is read again."""
        began = not self._summary_said
        if began:
            self.stop_bar()
            self._say(summary(outcome))
        self._warn_of_new(outcome)
        now = state.tally.elapsed_seconds
        if began or (state.tally.bytes_read_again and now >= self._kept_next_seconds):
            if self._mode is not ProgressMode.NONE:
                self._tell(keeping(outcome, state))
            if not began:
                self._kept_next_seconds = now + limits.KEEPING_SECONDS
        self._summary_said = True

    def _sliding(self, outcome: Outcome, state: Sliding) -> None:
        """Show the result of reading when the window begins to move; what is wrong at its end."""
        if not self._summary_said:
            self.stop_bar()
            self._say(summary(outcome))
            if self._mode is not ProgressMode.NONE:
                self._tell(sliding(state))
            self._summary_said = True
        self._warn_of_new(outcome)
        if self._as_json and outcome.checkpoint.get(Slid) and not self._window_said:
            self._window_said = True
            event = {
                "event": "window",
                "rank": self._rank_number,
                **(window_document(outcome.checkpoint) or {}),
            }
            self._errors.write(events.line(event))

    def _tell(self, text: str, level: Level = Level.INFO) -> None:
        """Write a line to standard error, above the bar if there is one.

        On a terminal it is wrapped. In a log, and beside COMMAND, it stays one line.
        """
        if self._as_json:
            event = events.message(level, printable(text), self._rank_number)
            self._errors.write(events.line(event))
            return
        name = f"{PROGRAM} {self._rank}".rstrip()
        kind = "" if level is Level.INFO else f"{level.value}: "
        line = printable(f"{name}: {kind}{text}")
        if not self._beside and self._errors.isatty() and has_cursor():
            line = hanging(line, self._errors.columns)
        if self._bar is not None:
            self._bar.tell(line)
        else:
            self._errors.write(line + "\n")

    def _step(self, snapshot: Progress) -> None:
        """Write a line for each 10 % passed since the last call."""
        reached = 10 * snapshot.done_bytes // snapshot.total_bytes
        for step in range(self._steps_said + 1, reached):
            passed = format_size(snapshot.total_bytes * step // 10)
            self._tell(f"{10 * step}% {passed} of {format_size(snapshot.total_bytes)}")
        if reached > self._steps_said:
            self._tell(f"{10 * reached}% {so_far(snapshot)}")
            self._steps_said = reached

    def _say(self, lines: Iterable[Line]) -> None:
        """Write labelled lines, unless --json or --quiet suppresses them."""
        if self._json or self._verbosity is Verbosity.QUIET:
            return
        safe = [(label, printable(text)) for label, text in lines]
        if self._beside:
            for label, text in safe:
                if self._as_json:
                    self._tell(f"{label}: {text}" if label else text)
                else:
                    self._tell(f"{label:<{LABEL_COLUMNS}}{text}")
            return
        if self._output.isatty() and has_cursor():
            columns = self._output.columns
            self._output.write(
                "".join(f"{wrapped(label, text, columns)}\n" for label, text in safe)
            )
            return
        margin = f"{self._rank}  ".lstrip()
        self._output.write(
            "".join(f"{margin}{label:<{LABEL_COLUMNS}}{text}\n" for label, text in safe)
        )

    def _document(self, outcome: Outcome) -> None:
        if self._json:
            found = document(outcome, self._verbosity)
            self._output.write(json.dumps(found, indent=2) + "\n")

    def _list(self, outcome: Outcome) -> None:
        """Write the paths as they are, escaped on a terminal; none if a signal ended the run."""
        if outcome.signal is not None:
            return
        paths = [one.path for one in listed(outcome)]
        if self._output.isatty():
            paths = [printable(path) for path in paths]
        end = self._terminator.value
        self._output.write_bytes(b"".join(os.fsencode(path) + end for path in paths))


def _mode(asked: ProgressMode, verbosity: Verbosity, errors: Stream) -> ProgressMode:
    """Return where progress goes; `--progress bar` draws into a pipe too."""
    if verbosity is Verbosity.QUIET:
        return ProgressMode.NONE
    if asked is ProgressMode.AUTO:
        return ProgressMode.BAR if errors.isatty() and has_cursor() else ProgressMode.LOG
    return ProgressMode.LOG if asked is ProgressMode.BAR and not has_cursor() else asked
