"""What the servers open is exactly what is warmed for them, or stands in the table of cases."""

import json
import mmap
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.command import COMMAND, run
from tests.servers import environment, llama, trace
from tests.servers.cases import LIBRARY_CASES, LLAMA_CASES, Case, LlamaCase

_FILE = re.compile(r"^(?:prefetch-cli: )?file +(/.*): .* of .* resident$", re.MULTILINE)
_LONGEST_SECONDS = 30


@dataclass(frozen=True)
class Loaded:
    """What one library opened."""

    opened: Mapping[str, set[str]]  # by case: real paths
    failures: Mapping[str, str]  # by case: a traceback


def _below(root: str) -> list[str]:
    return [
        path
        for folder, _, names in os.walk(root)
        for path in (os.path.join(folder, name) for name in names)
        if not os.path.islink(path)
    ]


@pytest.fixture(scope="session")
def loaded(models: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """Return what a server opens of all its cases, from cold; all in one process of it."""
    known: dict[str, Loaded] = {}

    def load(server: str) -> Loaded:
        if server not in known:
            jobs = [
                {
                    "name": case.name,
                    "library": case.library or server,
                    "model": _filled(case.model, models, case.folder),
                    "options": {key: _filled(v, models) for key, v in case.options.items()},
                }
                for case in LIBRARY_CASES
                if case.server == server
            ]
            log = str(tmp_path_factory.mktemp("trace") / "opened")
            loader = [environment.PYTHON, os.path.join(environment.HERE, "load.py")]
            oracle.make_cold(_below(models))
            done = subprocess.run(
                trace.traced([*loader, json.dumps(jobs)], log),
                env=environment.variables(),
                capture_output=True,
                check=False,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            failures = json.loads(done.stdout.splitlines()[-1])
            known[server] = Loaded(trace.opened_below(log, models), failures)
        return known[server]

    return load


@pytest.mark.parametrize("case", LIBRARY_CASES, ids=lambda case: case.name)
def test_a_library_opens_exactly_what_is_warmed(
    case: Case, models: str, loaded: Callable[[str], Loaded]
) -> None:
    result = loaded(case.server)
    failure = result.failures.get(case.name)
    assert failure is None, failure
    opened = result.opened[case.name]
    flags = [_filled(flag, models) for flag in case.flags]
    argument = _filled(case.model, models, case.folder)
    root = os.path.join(models, case.folder)
    warmed = _warmed("--server", case.server, *flags, argument, root=root)
    assert _names(opened - warmed, root) == sorted(case.opened_only)
    assert _names(warmed - opened, root) == sorted(case.warmed_only)


@pytest.mark.parametrize("case", LLAMA_CASES, ids=lambda case: case.name)
def test_llama_server_opens_exactly_what_is_warmed(
    case: LlamaCase, models: str, tmp_path: Path
) -> None:
    words = [_filled(word, models) for word in case.words]
    log = str(tmp_path / "opened")
    oracle.make_cold(_below(models))
    with llama.serving(*words, before=trace.traced([], log)) as server:
        assert server.answers()
    opened = trace.opened_below(log, models)[""]
    paths = [word for word in words if os.path.isabs(word)]
    assert opened == _warmed("--server", "llama.cpp", *paths, root=models)
    assert opened == _warmed_beside(words, str(tmp_path / "errors"), len(opened))


def _filled(text: str, root: str, folder: str = "") -> str:
    return text.format(root=root, folder=folder)


def _warmed(*arguments: str, root: str) -> set[str]:
    """Return the real paths of what the command warms, from cold, by its own account.

    All of it is resident then, as another tool sees it.
    """
    oracle.make_cold(_below(root))
    done = run("--force", "--verbose", *arguments)
    assert done.code == 0, done.errors
    warmed = {os.path.realpath(path) for path in _FILE.findall(done.output)}
    pages = sum(-(-os.path.getsize(path) // mmap.PAGESIZE) for path in warmed)
    assert oracle.resident_bytes(sorted(warmed)) == oracle.about(pages * mmap.PAGESIZE)
    return warmed


def _warmed_beside(words: Sequence[str], errors: str, files: int) -> set[str]:
    """Return the real paths of what is warmed for llama-server by its own words alone."""
    before = [*COMMAND, "--force", "--verbose", "--"]
    warmed: list[str] = []
    with llama.serving(*words, before=before, errors=errors):
        deadline = time.monotonic() + _LONGEST_SECONDS
        while len(warmed) < files and time.monotonic() < deadline:  # it goes on beside the server
            time.sleep(0.05)
            warmed = _FILE.findall(Path(errors).read_text(encoding="utf-8", errors="replace"))
    return {os.path.realpath(path) for path in warmed}


def _names(paths: set[str], root: str) -> list[str]:
    return sorted(os.path.relpath(path, root) for path in paths)
