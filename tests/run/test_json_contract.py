"""The JSON document, whose shape users script against: every key, its type, and when it is null."""

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from prefetch_cli import __version__
from prefetch_cli.base.words import Action, Engine, LoadFormat, Server
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.loaders import Lost
from prefetch_cli.residency.keep import Ended
from prefetch_cli.run.states import SlideEnded
from tests.conftest import MIB
from tests.helpers import command, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import Running, run

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WORD: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
NULL: Schema = {"type": "null"}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def words(*values: str) -> Schema:
    return {"enum": list(values)}


def record(**properties: Schema) -> Schema:
    """Return the schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def several(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


NUMBERS = either(record(start=COUNT, end=COUNT, total=COUNT), NULL)
PART = record(
    tensors=several(WORD),
    stage=either(WORD, NULL),
    experts=either(WORD, NULL),
    layers_read=NUMBERS,
    experts_read=NUMBERS,
    tensors_read=COUNT,
    total_tensors=COUNT,
    whole_bytes=COUNT,
)
FORECAST = either(record(warm_seconds=NUMBER, loader_seconds=NUMBER, sampled_bytes=COUNT), NULL)


def document(action: str, **changed: Schema) -> Schema:
    """Return a whole document's schema; the `changed` keys differ by action and decision."""
    keys: dict[str, Schema] = {
        "schema_version": {"const": 1},
        "version": {"const": __version__},
        "action": {"const": action},
        "exit_code": COUNT,
        "checkpoint": record(
            sources=several(
                record(
                    argument=WORD,
                    kind=words("directory", "file", "huggingface", "modelscope", "ollama"),
                    path=WORD,
                    revision=either(WORD, NULL),
                    load_format=words(*(one.value for one in LoadFormat if one.value != "auto")),
                    server=either(
                        words(*(one.value for one in Server if one.value != "auto")), NULL
                    ),
                    part=either(PART, NULL),
                )
            ),
            files=COUNT,
            total_bytes=COUNT,
            failed=several(record(path=WORD, error=WORD)),
        ),
        "filesystems": several(
            record(
                type=WORD,
                mount_point=WORD,
                source=TEXT,
                network=FLAG,
                device=either(
                    record(
                        name=WORD,
                        kind=words("disk", "network", "memory", "unknown"),
                        rotational=FLAG,
                    ),
                    NULL,
                ),
                files=COUNT,
                total_bytes=COUNT,
            )
        ),
        "memory": record(
            available_bytes=COUNT,
            host_available_bytes=COUNT,
            cgroup_available_bytes=either(COUNT, NULL),
            limited_by=WORD,
            threshold_percent=NUMBER,
            budget_bytes=COUNT,
        ),
        "decision": NULL,
        "share": record(
            rank=COUNT,
            world_size={"type": "integer", "minimum": 1},
            split=words("files", "bytes"),
            files=COUNT,
            bytes=COUNT,
        ),
        "plan": NULL,
        "result": NULL,
        "residency": RESIDENCY,
        "forecast": FORECAST,
        "verification": NULL,
        "keep": NULL,
        "window": NULL,
        "libraries": NULL,
        "warnings": several(TEXT),
    }
    return record(**{**keys, **changed})


METHOD = words("mincore", "cachestat", "nowait", "timed", "unknown")
RESIDENCY = record(
    before_bytes=either(COUNT, NULL),
    after_bytes=either(COUNT, NULL),
    total_bytes=COUNT,
    low_bytes=either(COUNT, NULL),
    high_bytes=either(COUNT, NULL),
    sampled_pages=either(COUNT, NULL),
    evicted_bytes=either(COUNT, NULL),
    recently_evicted_bytes=either(COUNT, NULL),
    method=METHOD,
)
FILES = several(
    record(
        path=WORD,
        bytes=COUNT,
        resident_before_bytes=either(COUNT, NULL),
        resident_after_bytes=either(COUNT, NULL),
        verified=either(FLAG, NULL),
    )
)
KEEP = record(
    until=words("duration"),
    seconds=NUMBER,
    lock=FLAG,
    held_bytes=COUNT,
    locked_bytes=COUNT,
    resident_bytes=either(COUNT, NULL),
    bytes_read_again=COUNT,
    bytes_given_up=COUNT,
    looks=COUNT,
    elapsed_seconds=NUMBER,
    reason_ended=words(*(ended.value for ended in Ended)),
)
WINDOW_KEYS: Schema = {
    "size_bytes": COUNT,
    "furthest_bytes": COUNT,
    "bytes_read": COUNT,
    "dropped_bytes": COUNT,
    "elapsed_seconds": NUMBER,
    "reason_ended": words(*(ended.value for ended in SlideEnded)),
    "fallback": either(words(*(lost.value for lost in Lost)), NULL),
}
WINDOW = record(**WINDOW_KEYS)
FAILED = several(record(path=WORD, error=WORD))
READ_REASONS = (
    "network-fits",
    "local-slow",
    "forced",
    "forced-too-big",
    "partial",
    "verify",
    "window",
)
SKIP_REASONS = (
    "empty-share",
    "in-memory-filesystem",
    "already-resident",
    "no-page-cache",
    "network-too-big",
    "local-fits",
    "local-too-big",
)
ENGINE = words(*(engine.value for engine in Engine))
READ = record(action=words("prefetch", "partial"), reason=words(*READ_REASONS), message=WORD)
SKIP = record(action=words("skip"), reason=words(*SKIP_REASONS), message=WORD)
PLAN = record(
    threads={"type": "integer", "minimum": 1},
    block_size_bytes={"type": "integer", "minimum": 4096},
    engine=ENGINE,
)
VERIFICATION = record(
    verified_files=COUNT,
    verified_bytes=COUNT,
    mismatched_files=COUNT,
    unchecked_files=COUNT,
    unchecked=several(record(path=WORD, reason=WORD)),
    ignored_lines=COUNT,
)
READ_RESULT = record(
    bytes_read=COUNT,
    bytes_already_resident=COUNT,
    elapsed_seconds=NUMBER,
    bytes_per_second=NUMBER,
    engine=ENGINE,  # auto: nothing was read
    threads={"type": "integer", "minimum": 1},
    complete=FLAG,
    interrupted=FLAG,
    failed=FAILED,
)
EVICTION = record(
    bytes_evicted=either(COUNT, NULL),
    elapsed_seconds=NUMBER,
    complete=either(FLAG, NULL),
    failed=FAILED,
)


def libraries(decision: Schema, result: Schema, residency: Schema = RESIDENCY) -> Schema:
    return record(
        distributions=several(WORD),
        files=COUNT,
        total_bytes=COUNT,
        failed=FAILED,
        decision=decision,
        share=record(
            rank=COUNT,
            world_size={"type": "integer", "minimum": 1},
            split=words("files", "bytes"),
            files=COUNT,
            bytes=COUNT,
        ),
        result=result,
        residency=residency,
    )


PREFETCH = document("prefetch", decision=READ, plan=PLAN, result=READ_RESULT)
SKIPPED = document("prefetch", decision=SKIP, plan=PLAN)
VERIFIED = document(
    "prefetch", decision=READ, plan=PLAN, result=READ_RESULT, verification=VERIFICATION
)
DRY_RUN = document("dry-run", decision=either(READ, SKIP), plan=PLAN)
CHECK = document("check")
EVICT = document("evict", result=EVICTION)
LIST = document("list", residency=NULL, forecast=NULL, files=FILES)
VERBOSE = document("prefetch", decision=READ, plan=PLAN, result=READ_RESULT, files=FILES)
ERROR = record(
    schema_version={"const": 1},
    version={"const": __version__},
    action=words("prefetch", "dry-run", "check", "evict", "list"),
    exit_code=COUNT,
    error=record(message=WORD, hint=either(WORD, NULL)),
)


def documented(schema: Schema, *arguments: str, code: int = 0, **env: str) -> dict[str, Any]:
    """Return the document of a run, checked against this schema and exit code."""
    done = run("--json", *arguments, env=env)
    assert done.code == code, done
    found = done.document
    jsonschema.validate(found, schema, jsonschema.Draft202012Validator)
    assert found["exit_code"] == code
    return found


def test_the_contract_has_each_method() -> None:
    """Which of them a run reports depends on the kernel, so no run shows all."""
    assert words(*(method.value for method in Method)) == METHOD


def test_prefetch(cold: str) -> None:
    found = documented(PREFETCH, "--force", cold)
    result, residency = found["result"], found["residency"]
    assert found["decision"]["reason"] == "forced"
    assert result["complete"] is True
    assert result["interrupted"] is False
    assert result["failed"] == []
    assert result["bytes_read"] + result["bytes_already_resident"] == found["share"]["bytes"]
    assert residency["before_bytes"] <= result["bytes_already_resident"] + 4096
    assert residency["after_bytes"] >= 0.99 * residency["total_bytes"]
    assert found["checkpoint"]["sources"] == [
        {
            "argument": cold,
            "kind": "directory",
            "path": cold,
            "revision": None,
            "load_format": "hf",
            "server": "vllm",
            "part": None,
        }
    ]


def test_libraries_are_counted_apart(built: BuiltCheckpoint, cold: str, tmp_path: Path) -> None:
    total_bytes = sum(map(os.path.getsize, built.files))
    library = tmp_path / "lib.so"
    library.write_bytes(os.urandom(3_000_000))
    oracle.evict([str(library)])
    also = ("--also", str(library), "--force", cold)
    dry = libraries(decision=READ, result=NULL)
    documented(document("dry-run", decision=READ, plan=PLAN, libraries=dry), "-n", *also)
    read = libraries(decision=READ, result=READ_RESULT)
    schema = document("prefetch", decision=READ, plan=PLAN, result=READ_RESULT, libraries=read)
    found = documented(schema, *also)
    part = found["libraries"]
    assert (part["distributions"], part["files"], part["total_bytes"]) == ([], 1, 3_000_000)
    assert part["result"]["bytes_read"] == oracle.about(3_000_000)
    assert part["residency"]["after_bytes"] == oracle.about(3_000_000)
    assert found["checkpoint"]["total_bytes"] == found["share"]["bytes"] == total_bytes
    assert found["result"]["bytes_read"] <= total_bytes
    documented(document("check", libraries=libraries(NULL, NULL)), "--check", *also)
    gone = document("evict", result=EVICTION, libraries=libraries(NULL, EVICTION))
    evicted = documented(gone, "--evict", *also)["libraries"]["result"]["bytes_evicted"]
    assert evicted == oracle.about(3_000_000)


def test_verify(warm: str) -> None:
    found = documented(VERIFIED, "--verify", warm)
    assert found["decision"]["reason"] == "verify"
    assert found["verification"]["unchecked_files"] == found["checkpoint"]["files"]


def test_skip(warm: str) -> None:
    found = documented(SKIPPED, warm)
    assert found["decision"]["action"] == "skip"
    assert found["decision"]["reason"] == "already-resident"


def test_keep(cold: str) -> None:
    schema = document("prefetch", decision=READ, plan=PLAN, result=READ_RESULT, keep=KEEP)
    kept = documented(schema, "--force", "--keep", "1s", cold)["keep"]
    assert kept["reason_ended"] == "duration"
    assert (kept["until"], kept["seconds"], kept["lock"]) == ("duration", 1, False)
    assert kept["held_bytes"] == oracle.about(kept["resident_bytes"])
    assert kept["elapsed_seconds"] >= 1


def test_dry_run_reads_nothing(cold: str) -> None:
    for flags in ((), ("--force",)):
        found = documented(DRY_RUN, "--dry-run", *flags, cold)
        assert found["residency"]["before_bytes"] < 0.1 * found["residency"]["total_bytes"]
    assert found["plan"] == {"threads": 64, "block_size_bytes": 16 * MIB, "engine": "auto"}


def test_check(warm: str) -> None:
    residency = documented(CHECK, "--check", warm)["residency"]
    assert residency["before_bytes"] == residency["after_bytes"]
    assert 0.99 * residency["total_bytes"] <= residency["after_bytes"] <= residency["total_bytes"]


def test_check_that_falls_short(cold: str) -> None:
    documented(CHECK, "--check", "--min-resident", "90", cold, code=4)


def test_each_file_where_that_is_asked_for(cold: str) -> None:
    found = documented(VERBOSE, "--force", "--verbose", cold)
    files = found["files"]
    assert [os.path.dirname(one["path"]) for one in files] == [cold] * 8
    assert sum(one["bytes"] for one in files) == found["share"]["bytes"]
    for when in ("before", "after"):
        each = [one[f"resident_{when}_bytes"] for one in files]
        assert sum(each) == found["residency"][f"{when}_bytes"]
    assert files[-1]["resident_before_bytes"] < files[-1]["bytes"]
    assert files[-1]["resident_after_bytes"] == oracle.about(files[-1]["bytes"])
    assert {one["verified"] for one in files} == {None}


def test_each_file_has_what_the_share_has_of_it(cold: str) -> None:
    ranks = [
        documented(
            VERBOSE,
            *("--force", "--verbose", "--split", "bytes", "--block-size", "1M"),
            *("--rank", str(rank), "--world-size", "2", cold),
        )
        for rank in range(2)
    ]
    for found in ranks:
        assert sum(one["bytes"] for one in found["files"]) == found["share"]["bytes"]
        assert len(found["files"]) == found["share"]["files"]
    total: dict[str, int] = {}
    for one in (one for found in ranks for one in found["files"]):
        total[one["path"]] = total.get(one["path"], 0) + one["bytes"]
    assert total == {path: os.path.getsize(path) for path in total}
    assert len(total) == 8


def test_each_file_before_where_nothing_is_read(warm: str) -> None:
    dry = document("dry-run", decision=SKIP, plan=PLAN, files=FILES)
    for one in documented(dry, "--dry-run", "--verbose", warm)["files"]:
        assert one["resident_before_bytes"] == oracle.about(one["bytes"])
        assert one["resident_after_bytes"] is None
    check = document("check", files=FILES)
    for one in documented(check, "--check", "--verbose", warm)["files"]:
        assert one["resident_before_bytes"] == one["resident_after_bytes"]


def test_list(built: BuiltCheckpoint, cold: str, tmp_path: Path) -> None:
    found = documented(LIST, "--list", cold)
    assert {one["path"]: one["bytes"] for one in found["files"]} == {
        path: os.path.getsize(path) for path in built.files
    }
    library = tmp_path / "lib.so"
    library.write_bytes(b"x" * 1000)
    beside = document(
        "list", residency=NULL, forecast=NULL, files=FILES, libraries=libraries(NULL, NULL, NULL)
    )
    found = documented(beside, "--list", "--also", str(library), cold)
    assert found["files"][0]["path"] == str(library)
    assert len(found["files"]) == 1 + len(built.files)


def test_evict(warm: str) -> None:
    found = documented(EVICT, "--evict", warm)
    assert found["result"]["complete"] is True
    assert found["result"]["bytes_evicted"] >= 0.99 * found["share"]["bytes"]


def test_share_of_a_rank(cold: str) -> None:
    found = documented(
        PREFETCH, "--force", "--rank", "1", "--world-size", "2", "--split", "bytes", cold
    )
    assert found["share"]["rank"] == 1
    assert found["share"]["split"] == "bytes"
    assert found["result"]["bytes_read"] <= found["share"]["bytes"]


def test_max_bytes_bounds_the_budget(cold: str) -> None:
    found = documented(PREFETCH, "--force", "--partial", "--max-bytes", "5MiB", cold)
    assert found["memory"]["limited_by"] == "max-bytes"
    assert found["memory"]["budget_bytes"] == 5 * MIB
    assert found["decision"]["action"] == "partial"
    assert found["result"]["complete"] is True
    assert found["result"]["bytes_read"] <= 5 * MIB


def test_time_limit_ends_a_run_that_is_not_complete(cold: str) -> None:
    # The limit counts from the start of the process, which takes a while on a busy machine.
    found = documented(PREFETCH, "--force", "--max-rate", "4M", "--time-limit", "1s", cold)
    result = found["result"]
    assert result["complete"] is False
    assert result["interrupted"] is False
    assert 0 < result["bytes_read"] < found["share"]["bytes"]
    assert 0.4 < result["elapsed_seconds"] < 1.5


def test_the_contract_has_each_action() -> None:
    assert set(ERROR["properties"]["action"]["enum"]) == {action.value for action in Action}


@pytest.mark.parametrize(
    ("arguments", "code", "action"),
    [
        (("--threads", "0", "/m"), 2, "prefetch"),
        (("--nope", "/m"), 2, "prefetch"),
        (("--check", "--split"), 2, "check"),
        (("--evict",), 2, "evict"),
        (("--check", "--evict", "/m"), 2, "prefetch"),
        (("-n", "--engine", "x", "/m"), 2, "dry-run"),
        (("--evict", "--rank", "3", "/m"), 2, "evict"),
        (("/no/such/checkpoint",), 3, "prefetch"),
        (("--check", "s3://bucket/model"), 3, "check"),
    ],
)
def test_error(arguments: Sequence[str], code: int, action: str) -> None:
    assert documented(ERROR, *arguments, code=code)["action"] == action


@pytest.mark.parametrize(
    ("variable", "as_document"), [("1", True), ("true", True), ("0", False), ("false", False)]
)
@pytest.mark.parametrize("arguments", [("--nope", "/m"), ("--rank", "1", "/m"), ("/no/such",)])
def test_error_where_the_environment_asks_for_json(
    variable: str, as_document: bool, arguments: Sequence[str]
) -> None:
    done = run(*arguments, env={"PREFETCH_CLI_JSON": variable, "PREFETCH_CLI_CHECK": "1"})
    assert done.errors.startswith("prefetch-cli: error: ")
    if as_document:
        jsonschema.validate(done.document, ERROR)
        assert done.document["action"] == "check"
    else:
        assert done.output == ""


def test_error_after_the_json_flag_is_no_json_where_it_names_a_checkpoint() -> None:
    assert run("--threads", "0", "--", "--json").output == ""


def test_interrupted(cold: str) -> None:
    with Running.start("--json", "--force", "--max-rate", "4M", cold) as running:
        running.await_line("10%")
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    found = done.document
    jsonschema.validate(found, PREFETCH)
    assert found["exit_code"] == 143
    assert found["result"]["interrupted"] is True
    assert found["result"]["complete"] is False
    assert found["result"]["bytes_read"] > 0


def test_failed_file(small: Path) -> None:
    shard = small / "model-00002-of-00003.safetensors"
    shard.chmod(0)
    done = run("--json", "--force", str(small), command=[*command.unprivileged(), *command.COMMAND])
    assert done.code == 1, done
    jsonschema.validate(done.document, PREFETCH)
    assert [Path(one["path"]) for one in done.document["result"]["failed"]] == [shard]
    assert done.document["checkpoint"]["failed"] == done.document["result"]["failed"]
    assert done.document["result"]["complete"] is False


def test_names_that_are_not_utf_8(small: Path) -> None:
    odd = os.fsencode(small) + b"/\xff\x1b[31m[red]\n.safetensors"
    os.rename(small / "model-00001-of-00003.safetensors", odd)
    found = documented(PREFETCH, "--force", os.fsdecode(odd), code=0)
    source = found["checkpoint"]["sources"][0]
    assert source["path"] == f"{small}/\\xff\x1b[31m[red]\n.safetensors"


def test_warnings_are_texts(small: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(small / "tokenizer.sock.json"))
        found = documented(DRY_RUN, "--dry-run", str(small))
    assert any("a socket" in warning for warning in found["warnings"])
