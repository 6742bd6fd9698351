"""Who is told how a run goes."""

from typing import Protocol

from prefetch_cli.base.progress import Snapshot
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.parts import Kind


class Audience(Protocol):
    """Who is told how a run goes."""

    def learned(self, outcome: Outcome, kind: Kind) -> None:
        """Take what has become known of one part, several times before it is read."""

    def progress(self, snapshot: Snapshot) -> None:
        """Take how far reading has come; what has been read was learned of before."""

    def finished(self, outcome: Outcome) -> None:
        """Take what came of the run."""

    def stop_bar(self) -> None:
        """Take the bar off the terminal."""
