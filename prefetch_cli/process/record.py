"""Writes the metrics of a run that ends, whoever else watches it."""

import time
from collections.abc import Sequence

from prefetch_cli.base import limits
from prefetch_cli.base.progress import Progress
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.linux.replace import replace_file
from prefetch_cli.linux.threads import KILLED, spawn
from prefetch_cli.run.metrics import metrics
from prefetch_cli.run.outcome import Outcome, fold
from prefetch_cli.run.parts import Kind
from prefetch_cli.run.states import Warned
from prefetch_cli.show.audience import Audience


class Record:
    """The file of metrics of one run."""

    def __init__(self, path: str, asked: Sequence[str]) -> None:
        self._path = path
        self._asked = asked
        self._began = time.monotonic()

    def write(self, outcome: Outcome, stop: Stop | None = None) -> str | None:
        """Write the metrics of an outcome; return a warning where that fails.

        Another thread writes, and is not waited for where the storage hangs, or a stop is
        requested meanwhile.
        """
        text = metrics(
            outcome,
            self._asked,
            ended_seconds=time.time(),
            took_seconds=time.monotonic() - self._began,
        )
        answers = [f"no answer for {limits.RECORD_SECONDS:g} s"]

        def work() -> None:
            try:
                replace_file(self._path, text.encode())
            except (OSError, ValueError) as error:
                answers.append(getattr(error, "strerror", None) or str(error))
            else:
                answers.clear()

        try:
            thread = spawn(work)
            until = time.monotonic() + limits.RECORD_SECONDS
            while thread.is_alive() and (left := until - time.monotonic()) > 0:
                if stop is not None and stop.interrupted:
                    answers.append("a signal came before the storage answered")
                    break
                thread.join(min(left, limits.POLL_SECONDS))
            if thread.killed:
                answers.append(KILLED)
        except RuntimeError as error:
            answers.append(str(error))
        if not answers:
            return None
        return f"--metrics {printable(self._path)}: not written: {answers[-1]}"


class Recorded:
    """An audience, and the metrics once it has seen the end."""

    def __init__(self, audience: Audience, record: Record, stop: Stop) -> None:
        self._audience = audience
        self._record = record
        self._stop = stop

    def learned(self, outcome: Outcome, kind: Kind) -> None:
        """Pass on a new state of one part."""
        self._audience.learned(outcome, kind)

    def progress(self, snapshot: Progress) -> None:
        """Pass on the progress."""
        self._audience.progress(snapshot)

    def finished(self, outcome: Outcome) -> None:
        """Write the metrics and show the end, with a warning where they are not written."""
        if outcome.signal is not None:
            # The process ends within a second: what the user sees comes first.
            self._audience.finished(outcome)
            self._warn(self._record.write(outcome))
            return
        problem = self._record.write(outcome, self._stop)
        if problem is not None and outcome.error is None:
            outcome = fold(outcome, Warned((problem,)))
        else:
            self._warn(problem)  # of an error nothing else is shown
        self._audience.finished(outcome)

    def _warn(self, problem: str | None) -> None:
        if problem is not None:
            self._audience.warn(problem)

    def warn(self, warning: str) -> None:
        """Pass on a warning."""
        self._audience.warn(warning)

    def stop_bar(self) -> None:
        """Erase the bar."""
        self._audience.stop_bar()
