"""An outcome -> its JSON document, by the contract of `schema_version` 1: pure functions."""

import os
import signal
from typing import Any

from prefetch_cli import __version__
from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.blockdev import BlockDevice
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.run.outcome import History, Outcome, exit_code
from prefetch_cli.run.parts import BESIDE
from prefetch_cli.run.states import Decided, Evicted, Looked, Proven, Read, Tried, Wanted

SCHEMA_VERSION = 1

Json = dict[str, Any]


def document(outcome: Outcome) -> Json:
    """Return the JSON document of a run that has ended."""
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
        "checkpoint": _checkpoint(wanted),
        "filesystems": _filesystems(wanted),
        "memory": _memory(wanted),
        "decision": _decision(checkpoint),
        "share": _share(wanted),
        "plan": _plan(checkpoint),
        "result": _result(outcome, checkpoint),
        "residency": _residency(checkpoint),
        "forecast": _forecast(checkpoint),
        **beside,
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


def _checkpoint(wanted: Wanted) -> Json:
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
            }
            for source in sources
        ],
        "files": len(found.files),
        "total_bytes": found.size_bytes,
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
        "threads": decided.plan.threads,
        "block_size_bytes": decided.plan.block_size_bytes,
        "engine": decided.plan.engine.value,
    }


def _result(outcome: Outcome, part: History) -> Json | None:
    failed = [
        {"path": json_path(path), "error": error}
        for path, error in part.failed(outcome.action).items()
    ]
    if evicted := part.get(Evicted):
        return {
            "bytes_evicted": evicted.eviction.bytes_evicted,
            "elapsed_seconds": round(evicted.eviction.elapsed_seconds, 6),
            "complete": evicted.eviction.complete and not failed,
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
    return {
        "before_bytes": None if looked is None else looked.survey.resident_bytes,
        "after_bytes": None if proven is None else proven.survey.resident_bytes,
        "total_bytes": surveys[-1].total_bytes,
        "evicted_bytes": None if reclaimed is None else reclaimed.size_bytes,
        "recently_evicted_bytes": None if reclaimed is None else reclaimed.recent_bytes,
        "method": method.value,
    }


def _forecast(part: History) -> Json | None:
    tried = part.get(Tried)
    if tried is None:
        return None
    return {
        "warm_seconds": round(tried.forecast.warm_seconds, 3),
        "loader_seconds": round(tried.forecast.loader_seconds, 3),
        "sampled_bytes": tried.trial.sampled_bytes,
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
        "decision": _decision(part),
        "share": _share(wanted),
        "result": _result(outcome, part),
        "residency": _residency(part),
    }
