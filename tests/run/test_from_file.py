"""`--from-file`: checkpoints from a list, whatever brings it."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Running, environment, refused, run


@pytest.fixture
def names(tmp_path: Path, cold: str, small: Path) -> Path:
    """A list of two checkpoints."""
    path = tmp_path / "list"
    path.write_text(f"# models of this node\n\n{small}\n  {cold}\n", encoding="utf-8")
    return path


def sources(*arguments: str, **env: str) -> list[str]:
    done = run("--json", "--list", *arguments, env=env)
    assert done.code == 0, done
    return [one["argument"] for one in done.document["checkpoint"]["sources"]]


def test_the_checkpoints_of_a_list_are_read(
    names: Path, built: BuiltCheckpoint, small: Path
) -> None:
    found = run("--json", "--force", "--from-file", str(names)).document
    assert [one["argument"] for one in found["checkpoint"]["sources"]] == [
        str(small),
        built.directory,
    ]
    total = sum(map(os.path.getsize, built.files))
    assert oracle.resident_bytes(built.files) == oracle.about(total)


def test_they_come_behind_the_arguments_and_from_a_variable(names: Path, small: Path) -> None:
    assert sources(str(small), PREFETCH_CLI_FROM_FILE=str(names))[0] == str(small)
    assert len(sources(str(small), PREFETCH_CLI_FROM_FILE=str(names))) == 3


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_they_come_from_standard_input(cold: str, small: Path, end: str) -> None:
    line = [*COMMAND, "--list", "--weights-only", "--from-file", "-"]
    names = f"{small}{end}{cold}{end}"
    done = subprocess.run(
        line, input=names, capture_output=True, check=True, text=True, env=environment()
    )
    folders = [os.path.dirname(path) for path in done.stdout.splitlines()]
    assert folders == [str(small)] * 3 + [cold] * 3


def test_a_name_need_not_be_text(small: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\n model "
    os.rename(small, odd)
    path = tmp_path / "list"
    path.write_bytes(odd + b"\0")
    line = [*COMMAND, "--list", "--print0", "--from-file", str(path)]
    done = subprocess.run(line, capture_output=True, check=True, env=environment())
    assert {os.path.dirname(one) for one in done.stdout.split(b"\0")} == {odd, b""}


def test_a_bad_line_ends_the_run_before_anything_is_read(names: Path, cold: str) -> None:
    with names.open("a", encoding="utf-8") as file:
        file.write("gs://bucket/model\n")
    message = refused("--force", "--from-file", str(names))
    assert "found line 5 (an object store's URI); correct them" in message
    found = run("--json", "--force", "--from-file", str(names), cold)
    assert (found.code, found.document["exit_code"]) == (2, 2)
    assert run("--check", cold).resident_percent < 50
    assert "found line 5" in refused("--from-file", str(names), "--", "true")
    done = run("--from-file", str(names), "--best-effort", "--", "echo", "started")
    assert (done.code, done.output) == (0, "started\n")


def test_a_line_that_names_nothing_is_as_an_argument(names: Path) -> None:
    names.write_text("/no/such\n", encoding="utf-8")
    assert refused("--from-file", str(names), code=3).startswith("/no/such: expected a file")


def test_a_list_without_a_checkpoint_is_refused(names: Path, small: Path) -> None:
    names.write_text("# none yet\n", encoding="utf-8")
    assert "expected at least one checkpoint, found none" in refused("--from-file", str(names))
    assert "expected at least one checkpoint" in refused("--from-file", "-")
    assert sources("--from-file", str(names), str(small)) == [str(small)]


def test_a_list_goes_with_command_unless_it_is_command_s_own_input(names: Path, cold: str) -> None:
    done = run("--force", "--lead", "100%", "--from-file", str(names), "--", "echo", "started")
    assert (done.code, done.output) == (0, "started\n")
    assert f"checkpoint   {cold} (as vllm reads it)" in done.errors
    assert "expected a file, found -, which COMMAND reads" in refused(
        "--from-file", "-", "--", "cat"
    )


def test_a_pipe_that_never_ends_is_ended_by_a_signal(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for number in (signal.SIGINT, signal.SIGTERM):
        with Running.start("--check", "--from-file", str(fifo)) as running:
            writing = _once_awaited(fifo)
            try:
                running.send(number)
                done = running.end()
            finally:
                os.close(writing)
        assert done.code == 128 + number


def test_a_pipe_that_nobody_writes_ends_with_the_time_limit(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = run("--check", "--time-limit", "1s", "--from-file", str(fifo))
    assert done.code == 1
    assert f"expected an answer within --time-limit, found none from {fifo}" in done.errors


def _once_awaited(fifo: Path) -> int:
    """Return the writing end of a FIFO once someone waits for it."""
    for _ in range(600):
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.1)
    raise AssertionError("expected a reader, found none")
