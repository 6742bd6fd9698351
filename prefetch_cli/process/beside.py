"""Warming beside a command: this process becomes COMMAND, and another one does the warming.

The process that the user started keeps its pid, its streams and everything else that a command
inherits, and execs COMMAND as soon as the warmer gives the word. The warmer is forked before any
thread is started, and twice: it is nobody's child that COMMAND could wait for, be signalled about,
or leave behind as a defunct entry, unless COMMAND is the one that orphans go to (the first process
of a container). So PR_SET_PDEATHSIG, which knows parents only, would not tell it that COMMAND has
ended; a pidfd does, which was opened before the fork and so is of that process and no other.

The two talk through a pair of sockets that closes by itself at the exec.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from prefetch_cli.base.amounts import Amount, format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.errors import interrupted_exit_code as interrupted
from prefetch_cli.base.progress import Snapshot
from prefetch_cli.plan.decision import Verdict
from prefetch_cli.process.command import CommandError, execute, which
from prefetch_cli.process.fork import QUIT, START, Channel, Warmer, fork
from prefetch_cli.run.outcome import Report
from prefetch_cli.show.audience import Audience
from prefetch_cli.show.display import Display

Warm = Callable[[Audience], int]


@dataclass(frozen=True)
class Terms:
    """What is to run beside the warming, and when it starts."""

    command: tuple[str, ...]  # at least the name
    lead: Amount
    best_effort: bool


def accompany(terms: Terms, display: Display, warm: Warm) -> int:
    """Become COMMAND, with `warm` under way in another process.

    Returns in the warmer, with what `warm` returned, and here where COMMAND does not start.
    Raises CommandError where it cannot be run. Only for a process that has one thread.
    """
    path = which(terms.command[0], os.environ)
    try:
        channel = fork()
    except OSError as error:
        display.warn(f"nothing is warmed: {error.strerror}; COMMAND starts all the same")
        execute(path, terms.command)
    if isinstance(channel, Warmer):
        channel.detach()
        return warm(_Beside(display, terms, channel))
    with channel:
        code = _await_word(channel, display)
    if code is not None:
        return code
    number, _ = channel.receive(0)  # a signal that came meanwhile; the next one ends the process
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


def _await_word(channel: Channel, display: Display) -> int | None:
    """Return None as soon as COMMAND may start, else the exit code to end with."""
    while True:
        number, said = channel.receive(None)
        if number is not None:
            channel.send(number)
            channel.await_exit()
            return interrupted(number)
        if said == b"":
            display.warn("the warming has ended before its time; COMMAND starts all the same")
            return None
        if said is not None:
            if said[0] == START:
                return None
            channel.await_exit()
            return said[0]


class _Beside:
    """Shows the run in the manner of a server's log, and gives the word."""

    def __init__(self, display: Display, terms: Terms, warmer: Warmer) -> None:
        self._display = display
        self._terms = terms
        self._warmer = warmer
        self._warm_bytes = self._resident_bytes = 0
        self._lead_bytes: int | None = None  # not known before the decision
        self._said = False

    def decided(self, report: Report) -> None:
        """Show the decision, and give the word where nothing is to be waited for."""
        self._display.decided(report)
        plan, decision = report.plan, report.decision
        if plan is None or decision is None or decision.action is Verdict.SKIP:
            if report.signal is None:
                self._say(START)
            return
        self._resident_bytes = plan.already_resident_bytes
        self._lead_bytes = self._terms.lead.of(plan.size_bytes + plan.already_resident_bytes)
        self._look(0)

    def gathered(self, report: Report) -> None:
        """Show what was found of the libraries."""
        self._display.gathered(report)

    def progress(self, snapshot: Snapshot) -> None:
        """Show how far it has come, and give the word where that is far enough."""
        self._display.progress(snapshot)
        self._look(snapshot.last_part_bytes)
        if snapshot.ended:
            self._start_short()

    def finished(self, report: Report, shown: Report | None) -> None:
        """Show what came of it, unless COMMAND has ended; it starts now at the latest."""
        if self._warmer.dismissed:
            return
        error = report.error
        if error is None:
            if report.signal is None:
                self._start_short()
            self._display.finished(report, shown)
        elif isinstance(error, CheckpointError) and self._terms.best_effort:
            hint = "" if error.hint is None else f"; {error.hint}"
            self._display.warn(f"{error.message}{hint}; COMMAND starts all the same")
            self._say(START)
        else:
            self._display.finished(report, shown)
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
        """Give the word where no more is to come."""
        found = format_size(self._warm_bytes)
        self._start(f"expected {format_size(self._lead_bytes or 0)} warm (--lead), found {found}")

    def _start(self, why: str) -> None:
        if not self._said:
            self._display.warn(f"{why}; COMMAND starts all the same")
            self._say(START)

    def _say(self, word: int) -> None:
        if not self._said:
            self._said = True
            self._warmer.send(word)
