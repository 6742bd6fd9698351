"""Standard streams that are closed, full or gone: warming goes on and the exit code stays."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, ROOT, environment

LINE = " ".join(COMMAND)


def shell(redirected: str) -> "subprocess.CompletedProcess[str]":
    """Return the result of a shell that ran `prefetch-cli` with these redirections."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; prefetch-cli() {{ {LINE} "$@"; }}; {redirected}'],
        capture_output=True,
        check=False,
        text=True,
        env=environment(),
        timeout=60,
    )


TEXT = "--force --verbose"
DOCUMENT = "--force --json --progress bar"


@pytest.mark.parametrize(
    ("flags", "redirection"),
    [
        (TEXT, ">&-"),
        (TEXT, "2>&-"),
        (TEXT, ">&- 2>&-"),
        (TEXT, "<&-"),
        (TEXT, "</dev/null"),
        (TEXT, ">/dev/full"),
        (TEXT, "2>/dev/full"),
        (TEXT, "| head -1"),
        (TEXT, "2> >(head -c 1 >&2)"),
        (TEXT, "2>&1 | head -1"),
        (DOCUMENT, "<&- >&- 2>&-"),
        (DOCUMENT, ">/dev/full 2>/dev/full"),
        (DOCUMENT, "| true"),
        (DOCUMENT, "2> >(head -c 1 >&2)"),
    ],
)
def test_a_stream_that_fails_stops_nothing(
    built: BuiltCheckpoint, cold: str, flags: str, redirection: str
) -> None:
    done = shell(f"prefetch-cli {flags} --max-rate 200M {cold} {redirection}")
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "error" not in done.stderr.lower()
    if oracle.oracle_name():
        size_bytes = sum(os.path.getsize(path) for path in built.files)
        assert oracle.resident_bytes(built.files) >= 0.99 * size_bytes


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&-", "| true"])
def test_the_exit_code_stays_that_of_the_run(redirection: str) -> None:
    for arguments, code in (
        ("--help", 0),
        ("--version", 0),
        ("--nope", 2),
        ("/no/such/path", 3),
        ("--json /no/such/path", 3),
    ):
        done = shell(f"prefetch-cli {arguments} {redirection}")
        assert done.returncode == code, (arguments, done)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_a_log_on_both_streams_keeps_their_order(cold: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = shell(f"prefetch-cli --force {cold} >{log} 2>&1")
    assert done.returncode == 0
    heads = [line.split()[0] for line in log.read_text().splitlines()]
    assert heads[:6] == ["checkpoint", "size", "file", "memory", "resident", "decision"]
    assert heads[6:16] == ["prefetch-cli:"] * 10
    assert heads[16:] == ["read", "resident"]


@contextmanager
def full_pipe() -> Iterator[tuple[int, int, int]]:
    """Yield the ends of a pipe that does not block and is full, and how much it holds."""
    end, other = os.pipe()
    try:
        os.set_blocking(other, False)
        held = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                held += os.write(other, b" " * 1024)
        yield end, other, held
    finally:
        os.close(end)


def started(output: int, errors: int, *arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=output, stderr=errors, env=environment(), cwd=ROOT
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_does_not_block_gets_everything(cold: str, stream: str) -> None:
    arguments = ("--force", "--json", "--verbose", "--progress", "json", cold)
    with full_pipe() as (end, other, held), open(os.devnull, "wb") as null:
        output, errors = (other, null.fileno()) if stream == "stdout" else (null.fileno(), other)
        process = started(output, errors, *arguments)
        os.close(other)
        time.sleep(2)  # by then it has something to say
        assert process.poll() is None
        with open(end, "rb", closefd=False) as file:
            said = file.read()[held:]
        assert process.wait(30) == 0
    if stream == "stdout":
        assert json.loads(said)["exit_code"] == 0
    else:
        assert len([json.loads(line) for line in said.splitlines()]) >= 10


def test_a_signal_ends_the_wait_for_a_pipe(cold: str) -> None:
    with full_pipe() as (_, other, _):
        process = started(other, other, "--force", "--json", cold)
        os.close(other)
        time.sleep(2)
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM
