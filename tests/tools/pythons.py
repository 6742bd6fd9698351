"""Run the tests on each Python on this machine: `make test-pythons`.

Looks on PATH and among pyenv's versions, and tries each one, since some do not run (pyenv's shims).
Of several with the same minor version it takes the first. Needs only the standard library.
"""

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_ENVIRONMENTS = os.path.join(_ROOT, "build", "pythons")
_OLDEST = (3, 10)
_LONGEST_SECONDS = 20  # for an interpreter to describe itself
# Must run on Python 2 too. Debian packages `ensurepip` separately.
_ASK = """
import json, platform, sys
missing = []
for module in ("ensurepip", "venv"):
    try:
        __import__(module)
    except ImportError:
        missing.append(module)
print(json.dumps([platform.python_implementation(), list(sys.version_info[:4]), missing]))
"""


@dataclass(frozen=True)
class Found:
    """An interpreter, and why it is not tested, if it is not."""

    path: str
    version: str  # "3.12.1", or "?" if it does not run
    minor: str  # "3.12"
    refusal: str | None


def main() -> int:
    """Return 0 if there is a usable interpreter and the tests passed on every usable one."""
    parser = argparse.ArgumentParser(prog="tests/tools/pythons.py", description=__doc__)
    parser.add_argument(
        "--but",
        default="",
        metavar="MINOR",
        help="not this one (3.11)",
    )
    parser.add_argument(
        "--ends",
        action="store_true",
        help="the oldest and the newest only",
    )
    given = parser.parse_args()
    but = given.but
    outcomes: dict[str, str] = {}
    codes = []
    everything = list(find())
    good = [found for found in everything if found.refusal is None]
    for found in everything:
        label = f"{found.version:8} {found.path}"
        if but and found.minor == but:
            outcomes[label] = "skipped: as asked by --but"
            codes.append(0)
            continue
        if found.refusal is not None:
            outcomes[label] = f"skipped: {found.refusal}"
            continue
        if given.ends and found not in (good[0], good[-1]):
            outcomes[label] = "skipped: neither the oldest nor the newest"
            continue
        print(f"\n== Python {found.version} ({found.path})", flush=True)
        code = _test(found)
        codes.append(code)
        outcomes[label] = "passed" if code == 0 else f"FAILED (exit {code})"
    print()
    for label, outcome in outcomes.items():
        print(f"{label}: {outcome}")
    if not codes:
        print("expected a Python of at least 3.10, found none", file=sys.stderr)
        return 1
    return int(any(codes))  # a signal gives a negative code


def find() -> Iterator[Found]:
    """Yield each interpreter once, those to test last and in version order."""
    known: dict[str, Found] = {}
    for path in _candidates():
        found = _ask(path)
        if found.refusal is not None:
            yield found
        elif found.minor in known:
            if found.version != known[found.minor].version:
                yield Found(path, found.version, found.minor, f"{found.minor} is tested already")
        else:
            known[found.minor] = found
    yield from sorted(known.values(), key=lambda found: int(found.minor.partition(".")[2]))


def _candidates() -> Iterator[str]:
    """Yield each possible interpreter's path once."""
    names = ("python3", "python", *(f"python3.{minor}" for minor in range(_OLDEST[1], 40)))
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    paths = [
        path
        for name in names
        for directory in directories
        if (path := shutil.which(name, path=directory))
    ]
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    paths += sorted(glob.glob(os.path.join(glob.escape(pyenv), "versions", "*", "bin", "python")))
    seen = set()
    for path in paths:
        if (real_path := os.path.realpath(path)) not in seen:
            seen.add(real_path)
            yield path


def _ask(path: str) -> Found:
    try:
        done = subprocess.run(
            [path, "-c", _ASK],
            capture_output=True,
            check=True,
            text=True,
            timeout=_LONGEST_SECONDS,
        )
        name, numbers, missing = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return Found(path, "?", "?", f"it does not run: {lines[0] if lines else 'no word why'}")
    *version, level = numbers
    refusal = None
    if tuple(version[:2]) < _OLDEST:
        refusal = "older than 3.10"
    elif name != "CPython" or level != "final":
        refusal = f"no release of CPython: {name}, {level}"
    elif missing:
        refusal = f"it has no module {' and no '.join(missing)}"
    return Found(path, ".".join(map(str, version)), ".".join(map(str, version[:2])), refusal)


def _test(found: Found) -> int:
    """Return the exit code of the tests, or of the step that failed before them."""
    environment = os.path.join(_ENVIRONMENTS, found.version)
    python = os.path.join(environment, "bin", "python")
    try:
        if not _is_fresh(environment):
            _run(found.path, "-m", "venv", "--clear", environment)
            _run(python, "-m", "pip", "install", "--quiet", "--editable", ".[test]")
            _mark_fresh(environment)
        _run(python, "-m", "pytest", "--numprocesses", "4", "--dist", "loadscope")
    except subprocess.CalledProcessError as error:
        return error.returncode or 1
    return 0


def _is_fresh(environment: str) -> bool:
    """Whether the environment was made from the current pyproject.toml."""
    try:
        with open(_stamp(environment), encoding="utf-8") as stamp:
            return stamp.read() == _project()
    except FileNotFoundError:
        return False


def _mark_fresh(environment: str) -> None:
    with open(_stamp(environment), "w", encoding="utf-8") as stamp:
        stamp.write(_project())


def _stamp(environment: str) -> str:
    return os.path.join(environment, "made-from.toml")


def _project() -> str:
    with open(os.path.join(_ROOT, "pyproject.toml"), encoding="utf-8") as file:
        return file.read()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=_ROOT, env=_clean_environment())


def _clean_environment() -> dict[str, str]:
    """Return the environment without what would point one interpreter at another's modules."""
    names: Sequence[str] = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in names}


if __name__ == "__main__":
    sys.exit(main())
