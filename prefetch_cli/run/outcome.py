"""All that became known of a run, and the exit code that follows from it."""

from dataclasses import dataclass

from prefetch_cli.base.errors import ExitCode, PrefetchError, interrupted_exit_code
from prefetch_cli.base.words import Action
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.memory import Memory
from prefetch_cli.plan.decision import Budget, Decision, Reason
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Plan, ReadResult
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.survey import Survey

# Decisions by which no file was meant to be read, so that none failed to be.
_NOTHING_MEANT = {
    Reason.IN_MEMORY_FILESYSTEM,
    Reason.NO_PAGE_CACHE,
    Reason.NETWORK_TOO_BIG,
    Reason.LOCAL_FITS,
    Reason.LOCAL_TOO_BIG,
}


@dataclass(frozen=True)
class Report:
    """What is known so far: each stage adds its value."""

    action: Action
    min_resident_percent: float | None = None
    checkpoint: Checkpoint | None = None
    filesystems: tuple[FileSystem, ...] | None = None  # one for each file
    memory: Memory | None = None
    budget: Budget | None = None
    share: Share | None = None
    launcher: str | None = None  # who told the rank
    before: Survey | None = None
    decision: Decision | None = None
    plan: Plan | None = None
    result: ReadResult | None = None
    eviction: Eviction | None = None
    after: Survey | None = None
    # What is read before the checkpoint has gone through the same stages.
    libraries: "Report | None" = None
    names: tuple[str, ...] = ()  # of the distributions, in a report of libraries
    warnings: tuple[str, ...] = ()
    signal: int | None = None  # the one that interrupted the run
    error: PrefetchError | None = None  # the one that ended it early

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """Path and error of each file that could not be read, or dropped, each once."""
        own = () if self._nothing_meant else self._own_failed
        return own if self.libraries is None else (*self.libraries.failed, *own)

    @property
    def _nothing_meant(self) -> bool:
        if self.decision is not None and self.decision.reason in _NOTHING_MEANT:
            return True
        return self.action is Action.DRY_RUN

    @property
    def _own_failed(self) -> tuple[tuple[str, str], ...]:
        parts: dict[str, str] = {}
        if self.checkpoint is not None:
            parts.update((one.path, one.reason) for one in self.checkpoint.failed)
        for found in (self.result, self.eviction, self.after):
            if found is not None:
                for path, error in found.failed:
                    parts.setdefault(path, error)
        return tuple(parts.items())


def falls_short(report: Report) -> str | None:
    """Return why `--min-resident` is not reached, in words, or None where it is or is not asked."""
    wanted = report.min_resident_percent
    if wanted is None or report.action not in {Action.PREFETCH, Action.CHECK}:
        return None
    survey = report.after
    if survey is None:
        return f"--min-resident {wanted:g}: the run ended before it was known what is resident"
    if survey.resident_bytes is None:
        return f"--min-resident {wanted:g}: it cannot be known here how much is resident"
    percent = 100.0 * survey.resident_bytes / survey.total_bytes if survey.total_bytes else 100.0
    if percent >= wanted:
        return None
    return f"--min-resident {wanted:g}: expected {wanted:g} %, found {percent:.1f} % resident"


def exit_code(report: Report) -> int:
    """Return the exit code of the process."""
    if report.signal is not None:
        return interrupted_exit_code(report.signal)
    if report.error is not None:
        return report.error.exit_code
    if report.failed:
        return ExitCode.READ_FAILED
    if falls_short(report) is not None:
        return ExitCode.NOT_RESIDENT
    return ExitCode.OK


def by_filesystem(report: Report) -> list[tuple[FileSystem, int, int]]:
    """Return each file system with the number and the bytes of the files that lie on it."""
    totals: dict[FileSystem, tuple[int, int]] = {}
    if report.checkpoint is not None and report.filesystems is not None:
        for file, found in zip(report.checkpoint.files, report.filesystems, strict=True):
            files, size = totals.get(found, (0, 0))
            totals[found] = (files + 1, size + file.size_bytes)
    return [(found, files, size) for found, (files, size) in totals.items()]
