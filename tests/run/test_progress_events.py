"""`--progress json`: all of standard error is an object a line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from prefetch_cli import __version__
from tests.helpers.command import Done, Running, environment, run
from tests.run.test_json_contract import COUNT, NULL, NUMBER, WORD, Schema, either, record, words

PROGRESS = record(
    event=words("progress"),
    rank=either(COUNT, NULL),
    percent=either({"type": "integer", "minimum": 0, "maximum": 100}, NULL),
    bytes=COUNT,
    total_bytes=COUNT,
    files=COUNT,
    total_files=COUNT,
    elapsed_seconds=NUMBER,
    bytes_per_second=NUMBER,
    eta_seconds=either(NUMBER, NULL),
    waiting_for=either(record(path=WORD, offset_bytes=either(COUNT, NULL), seconds=NUMBER), NULL),
)
MESSAGE = record(
    event=words("info", "warning", "error"), rank=either(COUNT, NULL), message={"type": "string"}
)
EVENT: Schema = either(PROGRESS, MESSAGE)


def events(done: Done) -> list[dict[str, Any]]:
    """Return the objects on standard error, which has nothing else."""
    assert done.errors.isascii()
    found = [json.loads(line) for line in done.errors.splitlines()]
    for one in found:
        jsonschema.validate(one, EVENT, jsonschema.Draft202012Validator)
    return found


def messages(done: Done, level: str) -> list[str]:
    return [one["message"] for one in events(done) if one["event"] == level]


def as_json(*arguments: str, **env: str) -> Done:
    return run("--progress", "json", *arguments, env=env)


def test_each_tenth_has_an_object(cold: str) -> None:
    done = as_json("--force", "--rank", "1", "--world-size", "2", cold)
    assert done.code == 0
    found = [one for one in events(done) if one["event"] == "progress"]
    assert found == events(done)
    assert {one["percent"] // 10 for one in found} == set(range(1, 11))
    counted = [one["bytes"] for one in found]
    assert counted == sorted(counted)
    last = found[-1]
    assert (last["percent"], last["bytes"]) == (100, last["total_bytes"])
    assert last["files"] == last["total_files"]
    assert last["eta_seconds"] == 0
    assert {one["rank"] for one in found} == {1}


def test_standard_output_is_as_ever(cold: str) -> None:
    assert as_json("--force", cold).lines["decision"].startswith("prefetch: ")
    assert as_json("--force", "--json", cold).document["exit_code"] == 0


def test_a_warning_is_an_object(small: Path) -> None:
    (small / "model-00002-of-00003.safetensors").unlink()
    done = as_json("--dry-run", "--allow-incomplete", str(small))
    (warning,) = messages(done, "warning")
    assert "found 1 file missing or cut short" in warning


def test_an_error_is_an_object(small: Path) -> None:
    done = as_json("/no/such")
    assert done.code == 3
    (error,) = messages(done, "error")
    assert error.startswith("/no/such: expected a file")
    done = as_json("--check", "--min-resident", "100", str(small))
    assert done.code == 4
    (error,) = messages(done, "error")
    assert error.startswith("--min-resident 100: expected 100 %, found ")


@pytest.mark.parametrize(
    "arguments", [("--nope", "/m"), ("--check", "--evict", "/m"), ("--threads", "x", "/m"), ()]
)
def test_a_refused_option_is_an_object(arguments: tuple[str, ...]) -> None:
    done = as_json(*arguments)
    assert done.code == 2
    assert len(messages(done, "error")) == len(events(done)) == 1
    done = run(*arguments, env={"PREFETCH_CLI_PROGRESS": "json"})
    assert len(messages(done, "error")) == len(events(done)) == 1


def test_quiet_leaves_errors(cold: str) -> None:
    done = as_json("--quiet", "--force", cold)
    assert (done.code, done.errors) == (0, "")
    assert len(messages(as_json("--quiet", "/no/such"), "error")) == 1


def test_the_trace_of_a_defect_is_objects(cold: str) -> None:
    script = (
        "from prefetch_cli.cli import main\n"
        "from prefetch_cli.run import pipeline\n"
        "def fail(*_, **__): raise KeyError('a')\n"
        "pipeline.run = fail\n"
        "main.main()"
    )
    line = (sys.executable, "-c", script, "--progress", "json", "--verbose", cold)
    ended = subprocess.run(line, capture_output=True, check=False, text=True, env=environment())
    done = Done(ended.returncode, ended.stdout, ended.stderr)
    assert done.code == 1
    assert messages(done, "info")[0].startswith("Traceback")
    (error,) = messages(done, "error")
    assert f"a defect of prefetch-cli {__version__}: KeyError" in error


def test_what_a_log_says_beside_command_is_objects_too(cold: str) -> None:
    done = as_json("--force", "--lead", "100%", cold, "--", "true")
    assert done.code == 0
    info = messages(done, "info")
    assert f"checkpoint: {cold} (as vllm reads it)" in info
    assert any(text.startswith("decision: prefetch: ") for text in info)


def test_what_hangs_is_named_while_nothing_is_read_yet(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Running.start("--progress", "json", "--from-file", str(fifo)) as running:
        line = running.await_line('"event": "progress"', times=2)
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    found = json.loads(line)
    assert (found["total_bytes"], found["percent"], found["rank"]) == (0, None, None)
    assert found["waiting_for"]["path"] == str(fifo)
    assert found["waiting_for"]["seconds"] > 0
    assert events(done)


def test_a_name_that_is_no_text_is_escaped(small: Path) -> None:
    odd = os.fsencode(small) + b"/\xff\x1b[31m\n.safetensors"
    os.rename(small / "model-00001-of-00003.safetensors", odd)
    with open(odd, "wb"):
        pass
    done = as_json("--force", os.fsdecode(odd))
    assert done.code == 3
    (error,) = messages(done, "error")
    assert error.startswith(f"{small}/\\xff\\x1b[31m\\n.safetensors: ")
