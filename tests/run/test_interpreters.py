"""Interpreters that do not answer, or answer anything: `--python` and `--package`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command import Running, run

MOST_SECONDS = 20.0
EXPECTED = "expected the search path of a Python interpreter, found: "


def script(body: str) -> Callable[[Path], None]:
    """Return what writes an executable script."""

    def write(path: Path) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return write


def _wrong_machine(path: Path) -> None:
    head = bytearray(Path(sys.executable).read_bytes()[:4096])
    head[18:20] = b"\xff\xff"  # e_machine
    path.write_bytes(head)
    path.chmod(0o755)


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o755)
    path.chmod(0o755)


def _text(path: Path) -> None:
    path.write_text("print()\n")


def _no_such_shell(path: Path) -> None:
    path.write_text("#!/no/such/shell\n")
    path.chmod(0o755)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


# Wrong with what the user gave: nothing is read.
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a directory": (lambda path: path.mkdir(), "found none at"),
    "a FIFO": (_fifo, f"{EXPECTED}Permission denied"),
    "a text": (_text, "found none at"),
    "the base of a venv is gone": (lambda path: path.symlink_to("/gone/python3"), "found none at"),
    "a loop": (_loop, "found none at"),
    "its interpreter is gone": (_no_such_shell, f"{EXPECTED}No such file or directory"),
    "another machine's": (_wrong_machine, f"{EXPECTED}Exec format error"),
    "true": (script("true"), f"{EXPECTED}no answer, exit code 0"),
    "echo": (script('echo "$@"'), f"{EXPECTED}no answer, exit code 0"),
    "rubbish": (script("echo rubbish; echo why >&2; exit 3"), "no answer, exit code 3: why"),
    "half an answer": (
        script("printf '\\0prefetch-cli\\0cpython-311\\0/usr/li'"),
        "no answer, exit code 0",
    ),
    "no end": (script("exec cat /dev/zero"), "more than 1,048,576 bytes of something else"),
    "its output is closed": (
        script(f'exec {sys.executable} "$@" >&-'),
        "no answer, exit code 1: AttributeError: ",
    ),
}
# No fault of the user's: the rest goes on.
FAILING: dict[str, tuple[str, str]] = {
    "a signal": ("kill -SEGV $$", "no answer, ended by signal 11"),
    "a hang": ("exec sleep 300", "no answer before the run was to end"),
    "a hang, silent": ("exec >&- 2>&-; exec sleep 300", "no answer before the run was to end"),
    "a hang, and a word": ("echo; exec sleep 300", "no answer before the run was to end"),
    "complaints without end": ("exec cat /dev/zero >&2", "no answer before the run was to end"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_interpreter_is_named(tmp_path: Path, cold: str, case: str) -> None:
    write, found = WRONG[case]
    python = tmp_path / "python"
    write(python)
    began = time.monotonic()
    done = run("--json", "--package", "x", "--python", str(python), cold)
    assert time.monotonic() - began < MOST_SECONDS
    assert done.code == 3, done
    message = done.document["error"]["message"]
    assert found in message
    assert str(python) in message
    assert "check the name" not in done.output


@pytest.mark.parametrize("case", FAILING)
def test_an_interpreter_that_fails_does_not_hold_the_rest_up(
    tmp_path: Path, cold: str, case: str
) -> None:
    body, found = FAILING[case]
    python = tmp_path / "python"
    script(body)(python)
    began = time.monotonic()
    asked = ("--force", "--time-limit", "2s", "--package", "x", "--python", str(python), cold)
    done = run("--json", *asked)
    assert time.monotonic() - began < MOST_SECONDS
    assert done.code == 1, done
    assert done.document["libraries"]["failed"] == [
        {"path": str(python), "error": f"{EXPECTED}{found}"}
    ]
    assert "error" not in done.document
    if case == "a signal":
        result = done.document["result"]
        assert result["complete"] is True
    # COMMAND goes on until it is said.
    command = ("sh", "-c", "echo started; read line; exit 7")
    with Running.start(*asked, "--", *command, stdin=subprocess.PIPE) as running:
        running.await_line(f"{python}: {EXPECTED}{found}")
        assert running.process.stdin is not None
        running.process.stdin.close()
        beside = running.end()
    assert (beside.code, beside.output) == (7, "started\n"), beside


@pytest.mark.parametrize("noise", ["echo hello", "sleep 30 &", "echo hello >&2"])
def test_noise_is_passed_over(tmp_path: Path, cold: str, noise: str) -> None:
    """Also that of a child which keeps the output open."""
    python = tmp_path / "python"
    script(f'{noise}\n{sys.executable} "$@"\n{noise}\nexit 1')(python)
    began = time.monotonic()
    done = run("--json", "--dry-run", "--package", "click", "--python", str(python), cold)
    assert time.monotonic() - began < MOST_SECONDS
    assert done.code == 0, done
    assert done.document["libraries"]["distributions"] == ["click"]
