"""Which Python interpreter a server runs on, and where that looks for modules.

Nothing is imported: we ask the interpreter for its search path.
"""

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError, PrefetchError, error_words, unreachable
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.linux.files import mode_of, read_head

_ASK = (
    "import os, sys\n"
    "found = [sys.implementation.cache_tag or '', *filter(None, sys.path)]\n"
    "sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, found)))"
)
_ANSWER_SECONDS = 120.0  # on slow storage an interpreter is slow to start
_ANSWER_POLL_SECONDS = 0.05

_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*")
_SCRIPT_LINE_BYTES = 1024
# pip and others write this if an interpreter's path is too long for `#!` or has blanks.
_LONG_SCRIPT_LINE = re.compile(rb"#!/bin/sh\n'''exec' (?:\"([^\"\n]+)\"|(\S+)) ")


class Interpreter(NamedTuple):
    """A Python interpreter and its search path."""

    path: str
    cache_tag: str  # in the names of its .pyc files: cpython-312
    search_path: tuple[str, ...]


def find_interpreter(
    python: str | None, command: Sequence[str], environ: Mapping[str, str], stop: Stop
) -> Interpreter:
    """Return the interpreter `python`, else COMMAND's, else the one on PATH.

    Raises CheckpointError if there is none, or if it does not answer.
    """
    wanted = python
    if wanted is None and command:
        wanted = _of_script(command[0], environ)
    found = _which(wanted or "python3", environ)
    if found is None:
        raise CheckpointError(
            f"expected a Python interpreter, found none at {printable(wanted or 'python3')}",
            "give the server's with --python",
        )
    cache_tag, *search_path = _ask(found, stop)
    return Interpreter(found, cache_tag, tuple(search_path))


def _which(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the path of a program, None where there is none; raises PrefetchError.

    shutil.which() says None where the system fails, too.
    """
    path = environ.get("PATH", os.defpath)
    found = shutil.which(name, path=path)
    if found is not None:
        return found
    for place in [name] if "/" in name else [os.path.join(one, name) for one in path.split(":")]:
        try:
            mode_of(place)
        except OSError as error:
            raise unreachable(
                error, f"cannot look at {printable(place)}: {error_words(error)}"
            ) from None
    return shutil.which(name, path=path)  # perhaps it failed once


def assert_readable(interpreter: Interpreter) -> None:
    """Raise PrefetchError if what is installed cannot be listed: importlib.metadata passes over it.

    A search path may name folders that do not exist, and archives.
    """
    for folder in interpreter.search_path:
        try:
            os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreachable(
                error,
                f"{printable(folder)}: expected the packages of {printable(interpreter.path)}, "
                f"found: {error_words(error)}",
                "check its permissions",
            ) from None


def _of_script(path: str, environ: Mapping[str, str]) -> str | None:
    """Return `path` if it is an interpreter, else the one in its `#!` line, else None."""
    if is_interpreter(path):
        return path
    try:
        head = read_head(path, _SCRIPT_LINE_BYTES) or b""
    except OSError:
        return None
    if match := _LONG_SCRIPT_LINE.match(head):
        return os.fsdecode(match[1] or match[2])
    line = head.partition(b"\n")[0]
    words = [os.fsdecode(word) for word in line[2:].split()] if line.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        # env's options and variables stand before the name.
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        words = [shutil.which(word, path=environ.get("PATH")) or word for word in words[:1]]
    return words[0] if words and is_interpreter(words[0]) else None


def is_interpreter(path: str) -> bool:
    """Return whether a path is named like an interpreter."""
    return _INTERPRETER.fullmatch(os.path.basename(path)) is not None


def _ask(python: str, stop: Stop) -> list[str]:
    """Return the cache tag of an interpreter, then its search path."""
    import subprocess  # noqa: PLC0415 - 10 ms that other runs save

    until = time.monotonic() + _ANSWER_SECONDS
    # -B: write no .pyc files.
    line = [python, "-B", "-c", _ASK]
    said = b""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise _no_answer(python, error_words(error), error) from None
    with process:
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                said, _ = process.communicate(timeout=_ANSWER_POLL_SECONDS)
            if stop.requested or time.monotonic() > until:
                process.kill()
    if process.returncode != 0 or not said:
        raise _no_answer(python, f"exit code {process.returncode}")
    return [os.fsdecode(part) for part in said.split(b"\0")]


def _no_answer(python: str, found: str, error: OSError | None = None) -> PrefetchError:
    message = (
        f"{printable(python)}: expected the search path of a Python interpreter, found: "
        f"{printable(found)}"
    )
    hint = "give the server's with --python"
    return CheckpointError(message, hint) if error is None else unreachable(error, message, hint)
