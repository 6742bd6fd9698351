"""Who is told how a run goes."""

from typing import Protocol

from prefetch_cli.base.progress import Snapshot
from prefetch_cli.run.outcome import Report


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
