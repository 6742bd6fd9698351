"""The command as its users run it: in a process of its own, in a known environment."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMAND = (sys.executable, "-m", "prefetch_cli")
_LONGEST_SECONDS = 60
# Variables that would change the words, the width or the choice of files.
_DROPPED = (
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"),
    *("VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "OLLAMA_MODELS"),
)


def unprivileged() -> list[str]:
    """Return a command prefix under which permissions count even for root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv (util-linux): root may read everything")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


def environment(**changes: str | None) -> dict[str, str]:
    """Return this process's environment without the command's settings, with these changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFETCH_CLI_") and name not in _DROPPED
    }
    kept.update({"PYTHONPATH": ROOT, "TERM": "xterm-256color"})
    for name, value in changes.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    return kept


@dataclass(frozen=True)
class Done:
    """A finished run."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output, parsed: one JSON document and nothing else."""
        document: dict[str, Any] = json.loads(self.output)
        return document

    @property
    def lines(self) -> dict[str, str]:
        """The lines of standard output by label; the last one wins."""
        return {line[:13].strip(): line[13:] for line in self.output.splitlines()}

    @property
    def resident_percent(self) -> float:
        """The last reported resident share; other users may have taken 1 % back."""
        share = re.search(r"\(([\d.]+) %", self.lines["resident"])
        assert share is not None, self.output
        return float(share[1])


def run(
    *arguments: str,
    env: Mapping[str, str | None] | None = None,
    command: Sequence[str] = COMMAND,
) -> Done:
    """Run the command with these arguments and return the result."""
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        timeout=_LONGEST_SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def refused(*arguments: str, code: int = 2, env: Mapping[str, str | None] | None = None) -> str:
    """Return the one-line error, without its prefix, with which the command refuses these."""
    done = run(*arguments, env=env)
    assert done.code == code, done
    assert not done.output, done
    head, found, line = done.errors.partition("prefetch-cli: error: ")
    assert (head, found) == ("", "prefetch-cli: error: "), done
    assert line.count("\n") == 1 and line.endswith("\n"), done  # noqa: PT018
    return line.rstrip("\n")


@dataclass
class Running:
    """A run in progress, followed line by line on standard error."""

    process: subprocess.Popen[str]
    output: str = ""
    errors: list[str] = field(default_factory=list)
    _ended: bool = False
    _more: threading.Condition = field(default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        *arguments: str,
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str] = COMMAND,
        **how: Any,
    ) -> "Running":
        process = subprocess.Popen(
            [*command, *arguments],
            env=environment(**(env or {})),
            text=True,
            errors="surrogateescape",
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **how},
            stderr=subprocess.PIPE,
        )
        running = cls(process)
        for target in (running._follow_errors, running._follow_output):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            running._threads.append(thread)
        return running

    def _follow_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.errors.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def _follow_output(self) -> None:
        if self.process.stdout is not None:
            self.output = self.process.stdout.read()

    def await_line(self, part: str, *, times: int = 1) -> str:
        """Return the `times`-th line on standard error that contains `part`, once it is there."""
        return self.await_match(re.escape(part), times=times)

    def await_match(self, part: str, *, times: int = 1) -> str:
        """Like `await_line`, with a regular expression."""

        def found() -> str | None:
            lines = [line for line in self.errors if re.search(part, line)]
            return lines[times - 1] if len(lines) >= times else None

        with self._more:
            assert self._more.wait_for(lambda: self._ended or found() is not None, _LONGEST_SECONDS)
            line = found()
        assert line is not None, (part, self.errors)
        return line

    def send(self, number: signal.Signals) -> None:
        """Send the run a signal."""
        self.process.send_signal(number)

    def end(self) -> Done:
        """Return the result once the run has exited by itself."""
        code = self.process.wait(_LONGEST_SECONDS)
        for thread in self._threads:
            thread.join(_LONGEST_SECONDS)
        errors = "\n".join(self.errors)
        assert "Traceback" not in errors, errors
        assert "Exception ignored" not in errors, errors
        return Done(code, self.output, errors)

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
