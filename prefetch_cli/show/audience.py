"""The interface between a run and whoever watches it."""

from typing import Protocol

from prefetch_cli.base.progress import Progress
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.parts import Kind


class Audience(Protocol):
    """Whoever watches a run. An audience that wraps another may keep `finished` from it."""

    def learned(self, outcome: Outcome, kind: Kind) -> None:
        """Take a new state of one part, which `outcome` includes."""

    def progress(self, snapshot: Progress) -> None:
        """Take the progress. The decisions behind it have been learned before."""

    def finished(self, outcome: Outcome) -> None:
        """Take the final outcome."""

    def warn(self, warning: str) -> None:
        """Take a warning that no outcome holds."""

    def stop_bar(self) -> None:
        """Erase the bar."""
