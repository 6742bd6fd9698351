"""One measured run of one command, from a known state of the page cache."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from tests.helpers import oracle

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_LAUNCH = os.path.join(ROOT, "tests", "bench", "launch.py")
_ERROR_CHARACTERS = 400
_TIME_LIMIT_SECONDS = 1800
_TOUCHED_PER_FILLED = 3  # the allocator may pick free pages other than those just touched


@dataclass(frozen=True)
class Usage:
    """What one process cost, children it waited for included; `stdout` as printed."""

    wall_seconds: float
    cpu_seconds: float  # user and system
    peak_rss_bytes: int  # of the largest process; never below the launcher's own, about 10 MB
    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str | None:
        """Why the run does not count, in one line; None if it does."""
        if self.exit_code == 0:
            return None
        text = " ".join((self.stderr or self.stdout).split())
        return f"exit {self.exit_code}: {text[-_ERROR_CHARACTERS:]}"


def run(command: Sequence[str], *, input_text: str = "", discard_output: bool = False) -> Usage:
    """Return what `command` cost from start to exit, measured by a small process.

    `discard_output` connects its standard output to /dev/null, as `> /dev/null` would.
    """
    with tempfile.TemporaryDirectory(prefix="prefetch-bench-") as directory:
        stdin, stdout, stderr = (os.path.join(directory, name) for name in ("in", "out", "err"))
        with open(stdin, "w", encoding="utf-8") as file:
            file.write(input_text)
        spec = {
            "command": list(command),
            "stdin": stdin,
            "stdout": os.devnull if discard_output else stdout,
            "stderr": stderr,
        }
        launched = subprocess.run(
            [sys.executable, "-I", "-S", _LAUNCH, json.dumps(spec)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,  # where `-m prefetch_cli` finds the package
            timeout=_TIME_LIMIT_SECONDS,
        )
        measured = json.loads(launched.stdout)
        return Usage(
            **measured, stdout="" if discard_output else _text(stdout), stderr=_text(stderr)
        )


def run_cold(
    command: Sequence[str],
    files: Sequence[str],
    *,
    input_text: str = "",
    discard_output: bool = False,
) -> Usage:
    """Return what `command` cost with `files` proven cold and memory touched beforehand.

    Raises oracle.OracleError if they cannot be made cold.
    """
    oracle.make_cold(files)
    # Do this last, right before the run: a host may take freed pages back after two seconds.
    oracle.pretouch(sum(os.path.getsize(path) for path in files) * _TOUCHED_PER_FILLED)
    return run(command, input_text=input_text, discard_output=discard_output)


def tool(*arguments: str) -> tuple[str, ...]:
    """Return the command line that runs the measured tool with this interpreter."""
    return (sys.executable, "-m", "prefetch_cli", *arguments)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
