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


# Where it is not like the libraries: it is read behind the checkpoint, and may be skipped


def with_reads(tmp_path: Path, body: str) -> tuple[str, ...]:
    """Return the command, whose reads of a path go through this body before they are made."""
    lines = (
        "import errno, os, runpy, threading, time",
        "from prefetch_cli.base import limits",
        "real = os.sendfile",
        "def sendfile(out, descriptor, offset, count):",
        "    path = os.readlink(f'/proc/self/fd/{descriptor}')",
        *(f"    {line}" for line in body.splitlines()),
        "    return real(out, descriptor, offset, count)",
        "os.sendfile = sendfile",
        "runpy.run_module('tests.run.third_part', run_name='__main__')",
    )
    script = tmp_path / "script.py"
    script.write_text("\n".join(lines))
    return (sys.executable, str(script))


SPLICED = ("--force", "--engine", "splice")


def test_a_read_of_it_that_hangs_has_its_result(
    tmp_path: Path, cold: str, draft: BuiltCheckpoint
) -> None:
    command = with_reads(tmp_path, "if '/draft/' in path: threading.Event().wait()")
    env = {"DRAFT": draft.directory}
    with Running.start("--json", *SPLICED, cold, command=command, env=env) as running:
        running.await_line("80%")  # of 24 MiB, 20 of which are the checkpoint
        running.send(signal.SIGTERM)
        found = running.end().document
    assert found["result"]["complete"] is True
    assert found["draft"]["result"]["complete"] is False


def test_an_eviction_of_it_that_hangs_has_its_result(
    tmp_path: Path, cold: str, draft: BuiltCheckpoint
) -> None:
    script = (
        "import os, runpy, threading\n"
        "real = os.posix_fadvise\n"
        "def advise(descriptor, *how):\n"
        "    path = os.readlink(f'/proc/self/fd/{descriptor}')\n"
        "    if '/draft/' in path and how[1] > 1 << 20: threading.Event().wait()\n"
        "    return real(descriptor, *how)\n"
        "os.posix_fadvise = advise\n"
        "runpy.run_module('tests.run.third_part', run_name='__main__')"
    )
    command = (sys.executable, "-c", script)
    env = {"DRAFT": draft.directory}
    done = run("--json", "--evict", "--time-limit", "2s", cold, command=command, env=env)
    assert done.document["draft"]["result"]["complete"] is False


def test_a_stall_behind_a_part_that_failed_is_waited_for(
    tmp_path: Path, cold: str, draft: BuiltCheckpoint
) -> None:
    """Only a proof behind reads that failed is given up."""
    body = (
        "limits.PROOF_IDLE_SECONDS = 0.3\n"
        "if '/draft/' not in path: raise OSError(errno.EIO, 'Input/output error')\n"
        "if offset == 0: time.sleep(1)"
    )
    done = run(
        *("--json", *SPLICED, "--threads", "1", cold),
        command=with_reads(tmp_path, body),
        env={"DRAFT": draft.directory},
    )
    assert done.code == 1
    assert done.document["draft"]["result"]["complete"] is True


def test_command_does_not_wait_for_it(tmp_path: Path, cold: str, draft: BuiltCheckpoint) -> None:
    """Where the lead cannot be reached, COMMAND starts as soon as the checkpoint is read."""
    served, late = tmp_path / "served", tmp_path / "late"
    body = (
        "if 'model-00001-of-00003' in path: raise OSError(errno.EIO, 'Input/output error')\n"
        "began = time.monotonic()\n"
        f"while '/draft/' in path and not os.path.exists({str(served)!r}):\n"
        f"    if time.monotonic() - began > 5: open({str(late)!r}, 'w').close(); break\n"
        "    time.sleep(0.05)"
    )
    command = with_reads(tmp_path, body)
    line = (*SPLICED, "--lead", "100%", cold, "--", "touch", str(served))
    assert run(*line, command=command, env={"DRAFT": draft.directory}).code == 0
    assert served.exists()
    assert not late.exists()


def test_where_it_is_skipped_a_line_says_why(cold: str, draft: BuiltCheckpoint) -> None:
    lines = with_draft(draft, cold).output.splitlines()
    assert lines[-1].strip().startswith("skip: local file system")
    assert lines[-2].startswith("draft ")
