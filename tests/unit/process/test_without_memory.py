"""The end of a process that finds no memory, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import environment

SCRIPT = """
import sys
from prefetch_cli.process import without_memory
sys.exit(without_memory.end(sys.argv[2:], beside=sys.argv[1] == "beside"))
"""
WARNING = (
    "prefetch-cli: warning: expected more memory, found none; raise the limit (ulimit -v, or the "
    "cgroup's), or give fewer --threads; starting COMMAND anyway\n"
)


def ended(
    *words: str, beside: bool = False, changes: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "beside" if beside else "", *words],
        capture_output=True,
        check=False,
        env=environment(**(changes or {})),
        text=True,
    )


def test_command_starts_as_after_any_exec() -> None:
    """Python ignores SIGPIPE (bit 12) and SIGXFSZ (bit 24): COMMAND must not."""
    done = ended("x", "--", "grep", "SigIgn", "/proc/self/status")
    assert (done.returncode, done.stderr) == (0, WARNING)
    assert int(done.stdout.split()[1], 16) & (1 << 12 | 1 << 24) == 0


@pytest.mark.parametrize(
    ("command", "code", "found"),
    [
        ("no-such-command", 127, "No such file or directory"),
        ("./no-such-command", 127, "No such file or directory"),
        ("/", 126, "Permission denied"),
        ("text", 126, "Permission denied"),
    ],
)
def test_a_command_that_cannot_start_has_the_code_of_a_shell(
    tmp_path: Path, command: str, code: int, found: str
) -> None:
    (tmp_path / "text").write_text("text")
    done = ended("x", "--", command, changes={"PATH": f"/nowhere:{tmp_path}"})
    assert done.returncode == code, done
    _, error = done.stderr.splitlines()
    assert error == (
        f"prefetch-cli: error: expected COMMAND to be executable, found {command!r}: {found}"
    )


@pytest.mark.parametrize(
    ("words", "changes", "starts"),
    [
        (["--verify"], {}, False),
        (["--verify", "--best-effort"], {}, True),
        ([], {"PREFETCH_CLI_VERIFY": "1"}, False),
        (["--dry-run"], {}, True),
    ],
)
def test_a_command_that_waits_for_a_verdict_does_not_start(
    words: list[str], changes: dict[str, str], starts: bool
) -> None:
    done = ended(*words, "x", "--", "echo", "--verify", changes=changes)
    assert (done.returncode, done.stdout) == ((0, "--verify\n") if starts else (1, ""))
    assert ("error: cannot verify: expected more memory" in done.stderr) is not starts
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "beside"), [(["x"], False), (["x", "--", "echo", "y"], True)])
def test_without_a_command_or_beside_it_only_the_line_is_left(
    words: list[str], beside: bool
) -> None:
    done = ended(*words, beside=beside)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("prefetch-cli: error: expected more memory, found none; raise ")


def test_a_closed_standard_error_holds_nothing_up() -> None:
    line = 'exec "$0" -c "$1" "" x -- sh -c "exit 7" 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, SCRIPT], check=False, env=environment(), cwd=os.sep
    )
    assert done.returncode == 7


def test_it_imports_nothing_that_python_has_not_loaded() -> None:
    """There is no memory for it."""
    script = (
        "import sys, errno; before = set(sys.modules)\n"
        "from prefetch_cli.linux import shortage\n"
        "from prefetch_cli.process import without_memory\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=environment()
    )
    assert done.stdout.decode().split() == [
        "prefetch_cli",
        "prefetch_cli.linux",
        "prefetch_cli.linux.shortage",
        "prefetch_cli.process",
        "prefetch_cli.process.without_memory",
    ]
