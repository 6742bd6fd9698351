"""All that became known of a run -> its JSON document and its exit code: pure functions."""

import enum
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefetch_cli import __version__
from prefetch_cli.checkpoint import Checkpoint
from prefetch_cli.decision import Budget, Decision, Reason
from prefetch_cli.errors import ExitCode, PrefetchError, interrupted_exit_code
from prefetch_cli.eviction import Eviction
from prefetch_cli.filesystem import FileSystem
from prefetch_cli.memory import Memory
from prefetch_cli.pagecache import Method
from prefetch_cli.partition import Share
from prefetch_cli.reader import Plan, ReadResult
from prefetch_cli.survey import Survey

SCHEMA_VERSION = 1


# Decisions by which no file was meant to be read, so that none failed to be.
_NOTHING_MEANT = {
    Reason.IN_MEMORY_FILESYSTEM,
    Reason.NO_PAGE_CACHE,
    Reason.NETWORK_TOO_BIG,
    Reason.LOCAL_FITS,
    Reason.LOCAL_TOO_BIG,
}


class Action(enum.Enum):
    """What the command was asked to do."""

    PREFETCH = "prefetch"
    DRY_RUN = "dry-run"
    CHECK = "check"
    EVICT = "evict"


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


def document(report: Report) -> dict[str, Any]:
    """Return the JSON document, by the contract of `schema_version` 1."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "action": report.action.value,
        "exit_code": int(exit_code(report)),
    }
    if report.error is not None:
        error = {"message": report.error.message, "hint": report.error.hint}
        return {**head, "error": error}
    return {
        **head,
        "checkpoint": _checkpoint(report),
        "filesystems": _filesystems(report),
        "memory": _memory(report),
        "decision": _decision(report),
        "share": _share(report),
        "plan": _plan(report),
        "result": _result(report),
        "residency": _residency(report),
        "libraries": _libraries(report),
        "warnings": list(report.warnings),
    }


def json_path(path: str) -> str:
    """Return a path as JSON can hold it: bytes that are not UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def by_filesystem(report: Report) -> list[tuple[FileSystem, int, int]]:
    """Return each file system with the number and the bytes of the files that lie on it."""
    totals: dict[FileSystem, tuple[int, int]] = {}
    if report.checkpoint is not None and report.filesystems is not None:
        for file, found in zip(report.checkpoint.files, report.filesystems, strict=True):
            files, size = totals.get(found, (0, 0))
            totals[found] = (files + 1, size + file.size_bytes)
    return [(found, files, size) for found, (files, size) in totals.items()]


def _checkpoint(report: Report) -> dict[str, Any] | None:
    checkpoint = report.checkpoint
    if checkpoint is None:
        return None
    return {
        "sources": [
            {
                "argument": json_path(source.argument),
                "kind": source.kind,
                "path": json_path(source.path),
                "revision": source.revision,
                "load_format": source.load_format.value,
            }
            for source in checkpoint.sources
        ],
        "files": len(checkpoint.files),
        "total_bytes": checkpoint.size_bytes,
    }


def _filesystems(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "type": found.type,
            "mount_point": json_path(found.mount_point),
            "source": json_path(found.source),
            "network": found.network,
            "files": files,
            "total_bytes": size,
        }
        for found, files, size in by_filesystem(report)
    ]


def _memory(report: Report) -> dict[str, Any] | None:
    if report.memory is None or report.budget is None:
        return None
    return {
        "available_bytes": report.memory.available_bytes,
        "host_available_bytes": report.memory.host_available_bytes,
        "cgroup_available_bytes": report.memory.cgroup_available_bytes,
        "limited_by": json_path(report.budget.limited_by),
        "threshold_percent": report.budget.threshold_percent,
        "budget_bytes": report.budget.size_bytes,
    }


def _decision(report: Report) -> dict[str, Any] | None:
    decision = report.decision
    if decision is None:
        return None
    return {
        "action": decision.action.value,
        "reason": decision.reason.value,
        "message": decision.message,
    }


def _share(report: Report) -> dict[str, Any] | None:
    share = report.share
    if share is None:
        return None
    return {
        "rank": share.rank,
        "world_size": share.world_size,
        "split": share.split.value,
        "files": share.files,
        "bytes": share.size_bytes,
    }


def _plan(report: Report) -> dict[str, Any] | None:
    plan = report.plan
    if plan is None:
        return None
    return {
        "threads": plan.threads,
        "block_size_bytes": plan.block_size_bytes,
        "engine": plan.engine.value,
    }


def _result(report: Report) -> dict[str, Any] | None:
    failed = _failures(replace(report, libraries=None).failed)
    if report.eviction is not None:
        return {
            "bytes_evicted": report.eviction.bytes_evicted,
            "elapsed_seconds": round(report.eviction.elapsed_seconds, 6),
            "complete": report.eviction.complete and not failed,
            "failed": failed,
        }
    result = report.result
    if result is None:
        return None
    return {
        "bytes_read": result.bytes_read,
        "bytes_already_resident": result.bytes_already_resident,
        "elapsed_seconds": round(result.elapsed_seconds, 6),
        "bytes_per_second": round(result.bytes_per_second, 1),
        "engine": result.engine.value,
        "complete": result.complete and not failed,
        "interrupted": report.signal is not None,
        "failed": failed,
    }


def _libraries(report: Report) -> dict[str, Any] | None:
    """Return what became of the files that are read before the checkpoint, counted apart."""
    part = report.libraries
    if part is None or part.checkpoint is None:
        return None
    return {
        "distributions": list(part.names),
        "files": len(part.checkpoint.files),
        "total_bytes": part.checkpoint.size_bytes,
        "decision": _decision(part),
        "share": _share(part),
        "result": _result(replace(part, signal=report.signal)),
        "residency": _residency(part),
    }


def _failures(failed: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"path": json_path(path), "error": error} for path, error in failed]


def _residency(report: Report) -> dict[str, Any] | None:
    before, after = report.before, report.after
    known = after or before
    if known is None:
        return None
    surveys = [one for one in (before, after) if one is not None]
    # The figure rests on the less sure of the two.
    method = max((one.method for one in surveys), key=list(Method).index)
    return {
        "before_bytes": None if before is None else before.resident_bytes,
        "after_bytes": None if after is None else after.resident_bytes,
        "total_bytes": known.total_bytes,
        "method": method.value,
    }
