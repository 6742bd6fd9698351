"""An outcome -> its JSON document, by the contract of `schema_version` 1: pure functions."""

import os
import signal
from collections.abc import Mapping
from typing import Any

from prefetch_cli import __version__
from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.base.words import Action, Verbosity
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.blockdev import BlockDevice
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.run.excerpts import excerpt_document
from prefetch_cli.run.lasting import keep_document, window_document
from prefetch_cli.run.listing import listed
from prefetch_cli.run.outcome import History, Outcome, exit_code
from prefetch_cli.run.parts import BESIDE
from prefetch_cli.run.states import (
    Decided,
    Evicted,
    Looked,
    Proven,
    Read,
    Tried,
    Verified,
    Wanted,
)
from prefetch_cli.run.verification import Finding

SCHEMA_VERSION = 1

Json = dict[str, Any]


def document(outcome: Outcome, verbosity: Verbosity = Verbosity.NORMAL) -> Json:
    """Return the JSON document of a run that has ended, with each file where that is asked for."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "action": outcome.action.value,
        "exit_code": int(exit_code(outcome)),
    }
    checkpoint = outcome.checkpoint
    error = outcome.error or _interrupted_early(outcome)
    wanted = checkpoint.get(Wanted)
    if error is not None or wanted is None:
        message, hint = ("", None) if error is None else (error.message, error.hint)
        return {**head, "error": {"message": message, "hint": hint}}
    beside = {
        kind.name: _beside(outcome, outcome.of(kind))
        for kind in dict.fromkeys((*BESIDE, *(part.kind for part in outcome.beside)))
    }
    return {
        **head,
        "checkpoint": _checkpoint(wanted, checkpoint),
        "filesystems": _filesystems(wanted),
        "memory": _memory(wanted),
        "decision": _decision(checkpoint),
        "share": _share(wanted),
        "plan": _plan(checkpoint),
        "result": _result(outcome, checkpoint),
        "residency": _residency(checkpoint),
        "forecast": _forecast(checkpoint),
        "verification": _verification(checkpoint),
        "keep": keep_document(checkpoint),
        "window": window_document(checkpoint),
        **beside,
        **_files(outcome, verbosity),
        "warnings": list(outcome.warnings),
    }


def json_path(path: str) -> str:
    """Return a path as JSON can hold it: bytes that are not UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _interrupted_early(outcome: Outcome) -> PrefetchError | None:
    """Return the error of a run that a signal ended before the decision."""
    if outcome.signal is None or outcome.is_ready(outcome.checkpoint):
        return None
    name = signal.Signals(outcome.signal).name
    return PrefetchError(f"interrupted by {name} before anything was read")


def _errors(errors: Mapping[str, str]) -> list[Json]:
    return [{"path": json_path(path), "error": error} for path, error in errors.items()]


def _checkpoint(wanted: Wanted, part: History) -> Json:
    found = wanted.found
    sources = found.sources if isinstance(found, Checkpoint) else ()
    return {
        "sources": [
            {
                "argument": json_path(source.argument),
                "kind": source.kind,
                "path": json_path(source.path),
                "revision": source.revision,
                "load_format": source.load_format.value,
                "server": None if source.server is None else source.server.value,
                "part": None if source.excerpt is None else excerpt_document(source.excerpt),
            }
            for source in sources
        ],
        "files": len(found.files),
        "total_bytes": found.size_bytes,
        "failed": _errors(part.unseen),
    }


def _filesystems(wanted: Wanted) -> list[Json]:
    return [
        {
            "type": found.type,
            "mount_point": json_path(found.mount_point),
            "source": json_path(found.source),
            "network": found.network,
            "device": _device(found.storage),
            "files": files,
            "total_bytes": size_bytes,
        }
        for found, files, size_bytes in wanted.by_filesystem
    ]


def _device(found: BlockDevice | None) -> Json | None:
    if found is None:
        return None
    return {"name": found.name, "kind": found.kind.value, "rotational": found.rotational}


def _memory(wanted: Wanted) -> Json:
    memory, budget = wanted.memory, wanted.budget
    return {
        "available_bytes": memory.available_bytes,
        "host_available_bytes": memory.host_available_bytes,
        "cgroup_available_bytes": memory.cgroup_available_bytes,
        "limited_by": json_path(budget.limited_by),
        "threshold_percent": budget.threshold_percent,
        "budget_bytes": budget.size_bytes,
    }


def _decision(part: History) -> Json | None:
    decided = part.get(Decided)
    if decided is None:
        return None
    return {
        "action": decided.decision.action.value,
        "reason": decided.decision.reason.value,
        "message": decided.decision.message,
    }


def _share(wanted: Wanted) -> Json:
    share = wanted.share
    return {
        "rank": share.rank,
        "world_size": share.world_size,
        "split": share.split.value,
        "files": share.files,
        "bytes": share.size_bytes,
    }


def _plan(part: History) -> Json | None:
    decided = part.get(Decided)
    if decided is None:
        return None
    return {
        "threads": decided.plan.threads.most,
        "block_size_bytes": decided.plan.block_size_bytes,
        "engine": decided.plan.engine.value,
    }


def _result(outcome: Outcome, part: History) -> Json | None:
    failed = _errors(part.failed(outcome.action))
    if evicted := part.get(Evicted):
        return {
            "bytes_evicted": evicted.eviction.bytes_evicted,
            "elapsed_seconds": round(evicted.eviction.elapsed_seconds, 6),
            "complete": False if failed else evicted.eviction.complete,
            "failed": failed,
        }
    read = part.get(Read)
    if read is None:
        return None
    result = read.result
    return {
        "bytes_read": result.bytes_read,
        "bytes_already_resident": result.bytes_already_resident,
        "elapsed_seconds": round(result.elapsed_seconds, 6),
        "bytes_per_second": round(result.bytes_per_second, 1),
        "engine": result.engine.value,
        "threads": result.threads,
        "complete": result.complete and not failed,
        "interrupted": outcome.signal is not None,
        "failed": failed,
    }


def _residency(part: History) -> Json | None:
    looked, proven = part.get(Looked), part.get(Proven)
    surveys = [state.survey for state in (looked, proven) if state is not None]
    if not surveys:
        return None
    # The figure rests on the less sure of the two.
    method = max((one.method for one in surveys), key=list(Method).index)
    reclaimed = surveys[-1].reclaimed
    sampled = surveys[-1].sampled
    return {
        "before_bytes": None if looked is None else looked.survey.resident_bytes,
        "after_bytes": None if proven is None else proven.survey.resident_bytes,
        "total_bytes": surveys[-1].total_bytes,
        "low_bytes": None if sampled is None else sampled.low_bytes,
        "high_bytes": None if sampled is None else sampled.high_bytes,
        "sampled_pages": None if sampled is None else sampled.pages,
        "evicted_bytes": None if reclaimed is None else reclaimed.size_bytes,
        "recently_evicted_bytes": None if reclaimed is None else reclaimed.recent_bytes,
        "method": method.value,
    }


def _files(outcome: Outcome, verbosity: Verbosity) -> Json:
    if outcome.action is not Action.LIST and verbosity is not Verbosity.VERBOSE:
        return {}
    files = [
        {
            "path": json_path(one.path),
            "bytes": one.size_bytes,
            "resident_before_bytes": one.resident_before_bytes,
            "resident_after_bytes": one.resident_after_bytes,
            "verified": one.verified,
        }
        for one in listed(outcome)
    ]
    return {"files": files}


def _forecast(part: History) -> Json | None:
    tried = part.get(Tried)
    if tried is None:
        return None
    return {
        "warm_seconds": round(tried.forecast.warm_seconds, 3),
        "loader_seconds": round(tried.forecast.loader_seconds, 3),
        "sampled_bytes": tried.trial.sampled_bytes,
    }


def _verification(part: History) -> Json | None:
    verified = part.get(Verified)
    if verified is None:
        return None
    found = verified.verification
    unchecked = found.of(Finding.UNCHECKED)
    return {
        "verified_files": len(found.of(Finding.MATCH)),
        "verified_bytes": found.verified_bytes,
        "mismatched_files": len(found.of(Finding.MISMATCH)),
        "unchecked_files": len(unchecked),
        "unchecked": [{"path": json_path(one.path), "reason": one.reason} for one in unchecked],
        "ignored_lines": found.ignored_lines,
    }


def _beside(outcome: Outcome, part: History) -> Json | None:
    """Return what became of a part beside the checkpoint, None where that was not asked for."""
    wanted = part.get(Wanted)
    if wanted is None or not outcome.is_ready(part):
        return None
    names = {} if part.kind.names_key is None else {part.kind.names_key: list(wanted.found.names)}
    return {
        **names,
        "files": len(wanted.found.files),
        "total_bytes": wanted.found.size_bytes,
        "failed": _errors(part.unseen),
        "decision": _decision(part),
        "share": _share(wanted),
        "result": _result(outcome, part),
        "residency": _residency(part),
    }
