"""Warms beside COMMAND: this process becomes COMMAND, and a forked one, the warmer, reads.

The original process keeps its pid, streams and all that a command inherits, and execs COMMAND when
the warmer tells it to. We fork twice, before any thread starts, so that the warmer is not a child
of COMMAND: COMMAND sees no SIGCHLD and leaves no zombie, unless it is pid 1 of a container, which
inherits orphans. PR_SET_PDEATHSIG follows parents only, so the warmer watches COMMAND through a
pidfd that was opened before the fork.

A socket pair connects the two; the exec closes COMMAND's end.
"""

import os
from collections.abc import Callable
from contextlib import closing

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import (
    CheckpointError,
    ExitCode,
    PrefetchError,
    UsageError,
    error_words,
)
from prefetch_cli.base.errors import interrupted_exit_code as interrupted
from prefetch_cli.base.progress import Progress
from prefetch_cli.base.text import counted
from prefetch_cli.plan.decision import Verdict
from prefetch_cli.process.command import CommandError, Terms, execute, which
from prefetch_cli.process.fork import QUIT, START, Channel, Warmer, fork
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.parts import CHECKPOINT, Kind
from prefetch_cli.run.states import Decided, Read
from prefetch_cli.show.audience import Audience
from prefetch_cli.show.display import Display

_UNVERIFIED_HINT = "give --best-effort to start COMMAND anyway"

Warm = Callable[[Audience], int]
# What the user can mend: COMMAND does not start, unless `--best-effort` says so.
_OF_THE_USER = (CheckpointError, UsageError)


def accompany(terms: Terms, display: Display, warm: Warm) -> int:
    """Become COMMAND while another process runs `warm`.

    Returns an exit code in the warmer, and in this process where COMMAND does not start. Raises
    CommandError where COMMAND cannot be run. The process must have a single thread.
    """
    path = which(terms.command[0], os.environ)
    try:
        channel = fork()
    except OSError as error:
        if terms.awaits_verdict:
            raise PrefetchError(f"cannot verify: {error.strerror}", _UNVERIFIED_HINT) from None
        display.warn(f"not warming: {error.strerror}; starting COMMAND anyway")
        execute(path, terms.command)
    with closing(channel):
        if isinstance(channel, Warmer):
            channel.detach()
            return warm(_Beside(display, terms, channel))
        return _become_command(path, terms, display, channel)


def _become_command(path: str, terms: Terms, display: Display, channel: Channel) -> int:
    """Exec COMMAND when it may start; returns an exit code where it does not."""
    try:
        code = _awaited(channel, terms, display)
    except OSError as error:
        if terms.awaits_verdict:
            message = f"cannot wait until all is verified: {error_words(error)}"
            raise PrefetchError(message, _UNVERIFIED_HINT) from error
        display.warn(f"cannot wait for the warmer: {error_words(error)}; starting COMMAND anyway")
        code = None
    if code is not None:
        return code
    try:
        execute(path, terms.command)
    except CommandError:
        channel.send(QUIT)
        channel.await_exit()
        raise


def _awaited(channel: Channel, terms: Terms, display: Display) -> int | None:
    """Return None when COMMAND may start, or the exit code to end with; raises OSError."""
    with channel:
        code = _await_start(channel, terms, display)
    if code is not None:
        return code
    number, _ = channel.receive(0)  # a signal that arrived meanwhile; the next one ends the process
    if number is None:
        return None
    channel.send(number)
    channel.await_exit()
    return interrupted(number)


def _await_start(channel: Channel, terms: Terms, display: Display) -> int | None:
    """Return None when COMMAND may start, or the exit code to end with."""
    while True:
        number, said = channel.receive(None)
        if number is not None:
            channel.send(number)
            channel.await_exit()
            return interrupted(number)
        if said == b"" and terms.awaits_verdict:
            raise PrefetchError("the warmer exited before all was verified", _UNVERIFIED_HINT)
        if said == b"":
            display.warn("the warmer exited early; starting COMMAND anyway")
            return None
        if said is not None:
            if said[0] == START:
                return None
            channel.await_exit()
            return said[0]


class _Beside:
    """Shows the run as log lines, and tells when COMMAND starts."""

    def __init__(self, display: Display, terms: Terms, warmer: Warmer) -> None:
        self._display = display
        self._terms = terms
        self._warmer = warmer
        self._warm_bytes = self._resident_bytes = 0
        self._lead_bytes: int | None = None  # unknown before the decision
        self._said = False

    def learned(self, outcome: Outcome, kind: Kind) -> None:
        """Show the decision, and start COMMAND if enough is warm already."""
        self._display.learned(outcome, kind)
        if self._terms.awaits_verdict:
            return
        if read := outcome.checkpoint.get(Read):
            self._look(read.result.bytes_read)
            self._start_short()
        decided = outcome.checkpoint.get(Decided)
        if decided is None or self._lead_bytes is not None:
            return
        if decided.decision.action is Verdict.SKIP:
            self._say(START)
            return
        plan = decided.plan
        self._resident_bytes = plan.already_resident_bytes
        self._lead_bytes = self._terms.lead.of(plan.size_bytes + plan.already_resident_bytes)
        self._look(0)

    def progress(self, snapshot: Progress) -> None:
        """Show the progress, and start COMMAND once enough is warm."""
        self._warmer.look()
        self._display.progress(snapshot)
        self._look(snapshot.done_by_part.get(CHECKPOINT.name, 0))

    def finished(self, outcome: Outcome) -> None:
        """Show the result, unless COMMAND has ended. COMMAND starts now if it has not yet."""
        if self._warmer.dismissed:
            return
        error = outcome.error
        if self._terms.awaits_verdict:
            self._display.finished(outcome)
            self._start_if_verified(outcome)
        elif error is None:
            if outcome.signal is None:
                self._start_short()
            self._display.finished(outcome)
        elif isinstance(error, _OF_THE_USER) and self._terms.best_effort:
            hint = "" if error.hint is None else f"; {error.hint}"
            self._display.warn(f"{error.message}{hint}; starting COMMAND anyway")
            self._say(START)
        else:
            self._display.finished(outcome)
            if isinstance(error, _OF_THE_USER):
                self._say(int(error.exit_code))
            else:
                self._start("nothing is warm")

    def warn(self, warning: str) -> None:
        """Show a warning, unless COMMAND has ended."""
        if not self._warmer.dismissed:
            self._display.warn(warning)

    def stop_bar(self) -> None:
        """Do nothing: a log has no bar."""

    def _look(self, done_bytes: int) -> None:
        self._warm_bytes = self._resident_bytes + done_bytes
        if self._lead_bytes is not None and self._warm_bytes >= self._lead_bytes:
            self._say(START)

    def _start_short(self) -> None:
        """Start COMMAND, with a warning, where no more will be read."""
        found = format_size(self._warm_bytes)
        self._start(f"expected {format_size(self._lead_bytes or 0)} warm (--lead), found {found}")

    def _start_if_verified(self, outcome: Outcome) -> None:
        """Start COMMAND, or have it not started where a file failed or the run was refused."""
        if outcome.signal is not None:
            return
        if outcome.error is not None:
            self._say(int(outcome.error.exit_code))
        elif outcome.failed:
            self._display.warn(
                f"{counted(len(outcome.failed), 'file')} failed: COMMAND is not started; "
                "--best-effort starts it anyway"
            )
            self._say(int(ExitCode.READ_FAILED))
        else:
            read = outcome.checkpoint.get(Read)
            if read is not None and not read.result.complete:
                self._display.warn("not all is verified; starting COMMAND anyway")
            self._say(START)

    def _start(self, why: str) -> None:
        if not self._said:
            self._display.warn(f"{why}; starting COMMAND anyway")
            self._say(START)

    def _say(self, word: int) -> None:
        if not self._said:
            self._said = True
            self._warmer.send(word)
