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
from dataclasses import dataclass

from prefetch_cli.base.amounts import Amount, format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.errors import interrupted_exit_code as interrupted
from prefetch_cli.base.progress import Progress
from prefetch_cli.plan.decision import Verdict
from prefetch_cli.process.command import CommandError, execute, which
from prefetch_cli.process.fork import QUIT, START, Channel, Warmer, fork
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.parts import CHECKPOINT, Kind
from prefetch_cli.run.states import Decided, Read
from prefetch_cli.show.audience import Audience
from prefetch_cli.show.display import Display

Warm = Callable[[Audience], int]


@dataclass(frozen=True)
class Terms:
    """The command that runs beside the warming, and when it starts."""

    command: tuple[str, ...]  # never empty
    lead: Amount
    best_effort: bool


def accompany(terms: Terms, display: Display, warm: Warm) -> int:
    """Become COMMAND while another process runs `warm`.

    Returns an exit code in the warmer, and in this process where COMMAND does not start. Raises
    CommandError where COMMAND cannot be run. The process must have a single thread.
    """
    path = which(terms.command[0], os.environ)
    try:
        channel = fork()
    except OSError as error:
        display.warn(f"not warming: {error.strerror}; starting COMMAND anyway")
        execute(path, terms.command)
    if isinstance(channel, Warmer):
        channel.detach()
        return warm(_Beside(display, terms, channel))
    with channel:
        code = _await_start(channel, display)
    if code is not None:
        return code
    number, _ = channel.receive(0)  # a signal that arrived meanwhile; the next one ends the process
    if number is not None:
        channel.send(number)
        channel.await_exit()
        return interrupted(number)
    try:
        execute(path, terms.command)
    except CommandError:
        channel.send(QUIT)
        channel.await_exit()
        raise


def _await_start(channel: Channel, display: Display) -> int | None:
    """Return None when COMMAND may start, or the exit code to end with."""
    while True:
        number, said = channel.receive(None)
        if number is not None:
            channel.send(number)
            channel.await_exit()
            return interrupted(number)
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
        self._display.progress(snapshot)
        self._look(snapshot.done_by_part.get(CHECKPOINT.name, 0))

    def finished(self, outcome: Outcome) -> None:
        """Show the result, unless COMMAND has ended. COMMAND starts now if it has not yet."""
        if self._warmer.dismissed:
            return
        error = outcome.error
        if error is None:
            if outcome.signal is None:
                self._start_short()
            self._display.finished(outcome)
        elif isinstance(error, CheckpointError) and self._terms.best_effort:
            hint = "" if error.hint is None else f"; {error.hint}"
            self._display.warn(f"{error.message}{hint}; starting COMMAND anyway")
            self._say(START)
        else:
            self._display.finished(outcome)
            if isinstance(error, CheckpointError):
                self._say(int(error.exit_code))
            else:
                self._start("nothing is warm")

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

    def _start(self, why: str) -> None:
        if not self._said:
            self._display.warn(f"{why}; starting COMMAND anyway")
            self._say(START)

    def _say(self, word: int) -> None:
        if not self._said:
            self._said = True
            self._warmer.send(word)
