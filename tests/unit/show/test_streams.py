"""Standard streams that are closed, full or gone: warming goes on and the exit code stays."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, environment

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
