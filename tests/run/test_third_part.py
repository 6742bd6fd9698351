"""A third kind of part goes through everything: text, JSON, signals, ranks, limits, COMMAND."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import Done, Running, run
from tests.run.test_json_contract import (
    EVICTION,
    NULL,
    PLAN,
    READ,
    READ_RESULT,
    Schema,
    document,
    libraries,
    several,
)

MIB = 1024 * 1024
COMMAND = (sys.executable, "-m", "tests.run.third_part")
TEXT: Schema = {"type": "string"}


@pytest.fixture
def draft(tmp_path: Path, cold: str) -> BuiltCheckpoint:
    """A cold draft model of 4 MiB."""
    built = checkpoints.write_sharded(str(tmp_path / "draft"), shard_bytes=[3 * MIB, 1 * MIB])
    oracle.evict(built.files)
    return built


def with_draft(draft: BuiltCheckpoint, *arguments: str) -> Done:
    return run(*arguments, command=COMMAND, env={"DRAFT": draft.directory})


def part(decision: Schema, result: Schema) -> Schema:
    """Return the schema of the draft model, which is that of the libraries with its own names."""
    schema = libraries(decision, result)
    properties = {**schema["properties"], "drafts": several(TEXT)}
    properties.pop("distributions")
    return {**schema, "properties": properties, "required": list(properties)}


def checked(draft: BuiltCheckpoint, schema: Schema, *arguments: str) -> dict[str, Any]:
    done = with_draft(draft, "--json", *arguments)
    assert done.code == 0, done
    jsonschema.validate(done.document, schema, jsonschema.Draft202012Validator)
    return done.document


def size_of(built: BuiltCheckpoint) -> int:
    return sum(map(os.path.getsize, built.files))


def test_each_action_has_it_in_its_document(
    built: BuiltCheckpoint, cold: str, draft: BuiltCheckpoint
) -> None:
    planned = part(READ, NULL)
    dry_run = document("dry-run", decision=READ, plan=PLAN, draft=planned)
    checked(draft, dry_run, "-n", "--force", cold)
    prefetch = document(
        "prefetch", decision=READ, plan=PLAN, result=READ_RESULT, draft=part(READ, READ_RESULT)
    )
    found = checked(draft, prefetch, "--force", cold)
    assert found["draft"]["drafts"] == [draft.directory]
    assert found["draft"]["result"]["complete"] is True
    assert found["draft"]["residency"]["after_bytes"] == oracle.about(size_of(draft))
    assert found["residency"]["after_bytes"] == oracle.about(size_of(built))
    checked(draft, document("check", draft=part(NULL, NULL)), "--check", cold)
    evict = document("evict", result=EVICTION, draft=part(NULL, EVICTION))
    evicted = checked(draft, evict, "--evict", cold)["draft"]["result"]["bytes_evicted"]
    assert evicted == oracle.about(size_of(draft))


def test_lines_name_it(cold: str, draft: BuiltCheckpoint) -> None:
    done = with_draft(draft, "--force", cold)
    lines = [line for line in done.output.splitlines() if line.startswith("draft")]
    assert len(lines) == 2
    assert f"4.0 MiB in 7 files of {draft.directory}; resident" in lines[0].replace(
        "4 MiB", "4.0 MiB"
    )
    assert lines[1].startswith("draft        read ")
    assert done.errors.count("100%") == 1


def test_each_rank_reads_its_share_of_it(cold: str, draft: BuiltCheckpoint) -> None:
    shares = [
        with_draft(draft, "--json", "--force", "--rank", rank, "--world-size", "2", cold)
        for rank in ("0", "1")
    ]
    parts = [done.document["draft"]["share"] for done in shares]
    assert [one["rank"] for one in parts] == [0, 1]
    assert sum(one["bytes"] for one in parts) == size_of(draft)
    assert all(one["bytes"] for one in parts)


def test_a_limit_bounds_all_parts_together(
    built: BuiltCheckpoint, cold: str, draft: BuiltCheckpoint
) -> None:
    limit = size_of(built) + 2 * MIB
    found = with_draft(draft, "--json", "--force", "--max-bytes", str(limit), cold).document
    read = [found["result"], found["draft"]["result"]]
    total = sum(one["bytes_read"] + one["bytes_already_resident"] for one in read)
    assert limit - 64 * 1024 <= total <= limit


def test_a_signal_ends_it_with_what_was_read_of_each(cold: str, draft: BuiltCheckpoint) -> None:
    arguments = ("--json", "--force", "--max-rate", "12M", cold)
    env = {"DRAFT": draft.directory}
    with Running.start(*arguments, command=COMMAND, env=env) as running:
        running.await_line("90%")  # of 24 MiB: the checkpoint is read by then
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    found = done.document
    assert found["result"]["complete"] is True
    assert found["draft"]["result"]["complete"] is False
    assert 0 < found["draft"]["result"]["bytes_read"] < size_of(draft)


def test_a_file_of_it_that_fails_fails_the_run(cold: str, draft: BuiltCheckpoint) -> None:
    gone = draft.weight_files[0]
    arguments = ("--json", "--force", "--max-rate", "20M", cold)
    with Running.start(*arguments, command=COMMAND, env={"DRAFT": draft.directory}) as running:
        running.await_line("10%")
        os.unlink(gone)
        done = running.end()
    assert done.code == 1
    assert [one["path"] for one in done.document["draft"]["result"]["failed"]] == [gone]
    assert done.document["result"]["failed"] == []


def test_command_starts_beside_it(cold: str, draft: BuiltCheckpoint) -> None:
    done = with_draft(draft, "--force", cold, "--", "echo", "served")
    assert (done.code, done.output) == (0, "served\n")
