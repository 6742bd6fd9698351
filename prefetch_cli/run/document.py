"""An outcome -> its JSON document, by the contract of `schema_version` 1."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefetch_cli import __version__
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.run.outcome import Report, by_filesystem, exit_code

SCHEMA_VERSION = 1


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
