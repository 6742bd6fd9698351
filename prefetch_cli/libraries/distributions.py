"""Names of Python distributions -> the paths of the files that importing them opens.

A distribution is what a package manager installs under one name; its RECORD names its files.
Nothing of it is imported or compiled: the interpreter whose distributions are meant is asked for
its search path, and what lies there is read as text.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import file_name, printable
from prefetch_cli.linux.threads import map_threads

if TYPE_CHECKING:
    from importlib import metadata

# By what a server opens first and in the largest pieces. Headers, static libraries, tests' data
# and the like are no part of its start.
_KINDS = (re.compile(r"\.so(\.[0-9]+)*$"), re.compile(r"\.pyc$"), re.compile(r"\.py$"))

_ASK = (
    "import os, sys\n"
    "found = [sys.implementation.cache_tag or '', *filter(None, sys.path)]\n"
    "sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, found)))"
)
_ASK_SECONDS = 120.0  # an interpreter on slow storage takes its time to start
_POLL_SECONDS = 0.05

_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*")
_SCRIPT_LINE_BYTES = 1024
# How pip and others write an interpreter's path that is too long for a script line, or has blanks.
_LONG_SCRIPT_LINE = re.compile(rb"#!/bin/sh\n'''exec' (?:\"([^\"\n]+)\"|(\S+)) ")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
_UNDER_AN_EXTRA = re.compile(r"\bextra\b")
# Of METADATA and its like: not text, or out of reach.
_UNREADABLE = (OSError, UnicodeError)
_EDITABLE = re.compile(r'"editable"\s*:\s*true')
_SOURCE = re.compile(r'"url"\s*:\s*"file://([^"]+)"')


@dataclass(frozen=True)
class Interpreter:
    """An interpreter, and where it looks for modules."""

    path: str
    cache_tag: str  # in the names of the .pyc files that it reads: cpython-312
    search_path: tuple[str, ...]


@dataclass(frozen=True)
class Distribution:
    """What is installed under one name."""

    name: str
    paths: frozenset[str]  # of the files that count, there or not
    requires: tuple[str, ...]
    warning: str | None


def find_interpreter(
    python: str | None, command: Sequence[str], environ: Mapping[str, str], stop: Stop
) -> Interpreter:
    """Return the interpreter that was named, else COMMAND's, else that of PATH.

    Raises CheckpointError where there is none, or where it does not answer.
    """
    wanted = python
    if wanted is None and command:
        wanted = _of_script(command[0], environ)
    found = shutil.which(wanted or "python3", path=environ.get("PATH", os.defpath))
    if found is None:
        raise CheckpointError(
            f"expected a Python interpreter, found none at {printable(wanted or 'python3')}",
            "give the server's with --python",
        )
    cache_tag, *search_path = _ask(found, stop)
    return Interpreter(found, cache_tag, tuple(search_path))


def canonical(name: str, interpreter: Interpreter) -> str:
    """Return the one spelling of an installed distribution's name.

    Raises CheckpointError where nothing of that name is installed.
    """
    if _REQUIREMENT.fullmatch(name) is None or _installed(name, interpreter) is None:
        raise CheckpointError(
            f"--package {printable(name) or repr(name)}: expected a distribution that is "
            f"installed for {printable(interpreter.path)}, found none of that name",
            "check the name, as in pip list, or give the server's interpreter with --python",
        )
    return _normalized(name)


def owner(command: Sequence[str], interpreter: Interpreter) -> str:
    """Return the distribution whose RECORD has COMMAND's script, or the module that it runs.

    Raises CheckpointError where none has.
    """
    from importlib import metadata  # noqa: PLC0415 - 20 ms that other runs need not pay

    has, what = _belonging(command)
    for found in metadata.distributions(path=list(interpreter.search_path)):
        if has(found, _text(found, "RECORD")) and (own := _own_name(found)) is not None:
            return _normalized(own)
    raise CheckpointError(
        f"--libraries: expected a distribution that {printable(what)} belongs to, found none "
        f"installed for {printable(interpreter.path)}",
        "name it with --package",
    )


def closure(
    names: Sequence[str], interpreter: Interpreter, monitor: Monitor, threads: int
) -> list[Distribution]:
    """Return these distributions, and all that they require as far as it is installed.

    No marker is evaluated, since what is installed is what counts; what is required under an extra
    is not.
    """

    def look(name: str) -> Distribution | None:
        with monitor.waiting(name):
            found = _installed(name, interpreter)
            return None if found is None else _distribution(name, found, interpreter.cache_tag)

    found: list[Distribution] = []
    seen: set[str] = set()
    pending = list(dict.fromkeys(names))
    while pending:
        seen.update(pending)
        looked = [one for one in map_threads(look, pending, threads) if one is not None]
        found += looked
        required = dict.fromkeys(name for one in looked for name in one.requires)
        pending = [name for name in required if name not in seen]
    return found


def place(path: str) -> int:
    """Return the place of a file in the order of warming, by its kind; the last for no kind."""
    return next((place for place, kind in enumerate(_KINDS) if kind.search(path)), len(_KINDS))


def _of_script(path: str, environ: Mapping[str, str]) -> str | None:
    """Return the interpreter that runs the script, or that it is; None where it is neither."""
    if _is_interpreter(path):
        return path
    try:
        with open(path, "rb") as file:
            head = file.read(_SCRIPT_LINE_BYTES)
    except OSError:
        return None
    if match := _LONG_SCRIPT_LINE.match(head):
        return os.fsdecode(match[1] or match[2])
    line = head.partition(b"\n")[0]
    words = [os.fsdecode(word) for word in line[2:].split()] if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        # Before the name stand options of env, and variables.
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        words = [shutil.which(word, path=environ.get("PATH")) or word for word in words[:1]]
    return words[0] if words and _is_interpreter(words[0]) else None


def _is_interpreter(path: str) -> bool:
    return _INTERPRETER.fullmatch(os.path.basename(path)) is not None


def _ask(python: str, stop: Stop) -> list[str]:
    """Return the cache tag of an interpreter, and its search path."""
    import subprocess  # noqa: PLC0415 - 10 ms that other runs need not pay

    until = time.monotonic() + _ASK_SECONDS
    # -B: even where it may, it writes nothing.
    line = [python, "-B", "-c", _ASK]
    said = b""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise _no_answer(python, error.strerror or str(error)) from None
    with process:
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                said, _ = process.communicate(timeout=_POLL_SECONDS)
            if stop.requested or time.monotonic() > until:
                process.kill()
    if process.returncode != 0 or not said:
        raise _no_answer(python, f"exit code {process.returncode}")
    return [os.fsdecode(part) for part in said.split(b"\0")]


def _no_answer(python: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(python)}: expected the search path of a Python interpreter, found: "
        f"{printable(found)}",
        "give the server's with --python",
    )


def _installed(name: str, interpreter: Interpreter) -> "metadata.Distribution | None":
    """Return the distribution of this name that the interpreter finds first."""
    from importlib import metadata  # noqa: PLC0415 - as in `owner`

    path = list(interpreter.search_path)
    return next(iter(metadata.distributions(name=name, path=path)), None)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # PEP 503


def _belonging(
    command: Sequence[str],
) -> tuple[Callable[["metadata.Distribution", str], bool], str]:
    """Return a test of a distribution and its RECORD, and in words what is looked for."""
    script = command[0]
    if _is_interpreter(script):
        if (module := _module(command[1:])) is not None:
            path = re.escape(module.replace(".", "/"))
            row = re.compile(rf"^{path}(/__init__)?\.py,", re.MULTILINE)
            return lambda _, record: row.search(record) is not None, f"the module {module}"
        script = next((word for word in command[1:] if not word.startswith("-")), script)
        if any(word.startswith("-c") for word in command[1 : command.index(script)]):
            return lambda *_: False, f"what {script!r} runs"
    name, wanted = os.path.basename(script), os.path.realpath(script)

    def has(distribution: "metadata.Distribution", record: str) -> bool:
        return f"/{name}," in record and any(
            os.path.realpath(str(distribution.locate_file(row))) == wanted
            for row in _rows(record)
            if os.path.basename(row) == name
        )

    return has, script


def _module(words: Sequence[str]) -> str | None:
    """Return what an interpreter is told to run by -m, None where that is a script or a string."""
    for number, word in enumerate(words):
        if word.startswith("-m"):
            return word[2:] or next(iter(words[number + 1 :]), None)
        if word in ("-W", "-X"):
            return _module(words[number + 2 :])
        if not word.startswith("-") or word.startswith("-c"):
            return None
    return None


def _distribution(name: str, found: "metadata.Distribution", cache_tag: str) -> Distribution:
    paths = frozenset(_paths(found, cache_tag))
    warning = None if paths else _nothing_recorded(name, found)
    try:
        required = [_requirement(text) for text in found.requires or ()]
    except _UNREADABLE:
        required = []
        warning = f"{name}: its METADATA cannot be read, so what it requires is left out"
    return Distribution(
        name=name,
        paths=paths,
        requires=tuple(one for one in required if one is not None),
        warning=warning,
    )


def _requirement(text: str) -> str | None:
    match, marker = _REQUIREMENT.match(text), text.partition(";")[2]
    return None if match is None or _UNDER_AN_EXTRA.search(marker) else _normalized(match[1])


def _paths(found: "metadata.Distribution", cache_tag: str) -> Iterator[str]:
    record = _text(found, "RECORD")
    rows = _rows(record) if record else _other_rows(found)
    base = str(found.locate_file(""))
    for row in rows:
        if os.path.isabs(row) or "\0" in row or place(row) == len(_KINDS):
            continue
        path = os.path.normpath(os.path.join(base, row))
        yield path
        if path.endswith(".py"):
            # Not every installer that compiles says so in RECORD.
            folder, name = os.path.split(path)
            yield os.path.join(folder, "__pycache__", f"{name[:-3]}.{cache_tag}.pyc")


def _text(found: "metadata.Distribution", name: str) -> str:
    """Return a file beside a distribution's METADATA, empty where it has none that is text."""
    try:
        return found.read_text(name) or ""
    except _UNREADABLE:
        return ""


def _own_name(found: "metadata.Distribution") -> str | None:
    try:
        return found.metadata["Name"]
    except _UNREADABLE:
        return None


def _other_rows(found: "metadata.Distribution") -> list[str]:
    """Return the paths that the lists of older installers name."""
    try:
        return [file_name(str(path)) for path in found.files or ()]
    except _UNREADABLE:
        return []


def _rows(record: str) -> Iterator[str]:
    """Yield the path of each row: comma-separated values, as PEP 376 and 427 have it."""
    import csv  # noqa: PLC0415 - as in `owner`

    with suppress(csv.Error):
        yield from (file_name(row[0]) for row in csv.reader(record.splitlines()) if row)


def _nothing_recorded(name: str, found: "metadata.Distribution") -> str:
    origin = _text(found, "direct_url.json")
    if _EDITABLE.search(origin) and (source := _SOURCE.search(origin)):
        where = f"give --also {printable(source[1])}"
        return f"{name}: it is installed in editable form, so its files lie elsewhere: {where}"
    return f"{name}: no list of its files was found: give its folder with --also"
