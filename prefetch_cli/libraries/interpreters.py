"""Which Python interpreter a server runs on, and where that looks for modules.

Nothing is imported: we ask the interpreter for its search path.
"""

import os
import re
import select
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefetch_cli.base.errors import CheckpointError, PrefetchError, error_words, is_of_the_path
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.linux.files import mode_of, read_head

if TYPE_CHECKING:
    import subprocess

# The answer stands between two marks: a sitecustomize may print, and what is no interpreter says
# anything.
_MARK = b"\0prefetch-cli\0"
_ASK = (
    "import os, sys\n"
    "found = [sys.implementation.cache_tag or '', *filter(None, sys.path)]\n"
    "mark = b'\\0prefetch-cli\\0'\n"
    "sys.stdout.buffer.write(mark + b'\\0'.join(map(os.fsencode, found)) + mark)"
)
_ANSWER_SECONDS = 120.0  # on slow storage an interpreter is slow to start
_ANSWER_POLL_SECONDS = 0.05
_PIECE_BYTES = 64 * 1024
_MOST_BYTES = 1024 * 1024  # of an answer
_COMPLAINT_BYTES = 1024
_EXPECTED = "expected the search path of a Python interpreter, found: "

_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*")
_SCRIPT_LINE_BYTES = 1024
# pip and others write this if an interpreter's path is too long for `#!` or has blanks.
_LONG_SCRIPT_LINE = re.compile(rb"#!/bin/sh\n'''exec' (?:\"([^\"\n]+)\"|(\S+)) ")


class OutOfReachError(PrefetchError):
    """What the system does not give of the libraries: no fault of what the user named."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}")
        self.path = path
        self.reason = reason


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
            # Whatever is wrong with the path, `mode_of` passes over it.
            raise OutOfReachError(place, _EXPECTED + error_words(error)) from None
    return shutil.which(name, path=path)  # perhaps it failed once


def unreadable(interpreter: Interpreter) -> Iterator[tuple[str, OSError]]:
    """Yield each folder of installed packages that cannot be listed, and why.

    importlib.metadata passes over it. A search path may name folders that do not exist, and
    archives.
    """
    for folder in interpreter.search_path:
        try:
            os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            yield folder, error


def assert_readable(interpreter: Interpreter) -> None:
    """Raise PrefetchError if what is installed cannot be listed."""
    for folder, error in unreadable(interpreter):
        reason = f"expected the packages of {printable(interpreter.path)}, found: "
        reason += error_words(error)
        if not is_of_the_path(error):
            raise OutOfReachError(folder, reason)
        raise CheckpointError(f"{printable(folder)}: {reason}", "check its permissions")


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

    pipe = subprocess.PIPE
    # -B: write no .pyc files.
    line = [python, "-B", "-c", _ASK]
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
            line, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        raise _no_answer(python, error_words(error), error) from None
    with process:
        try:
            said, complaint, trouble = _listen(process, stop)
        except OSError as error:
            raise OutOfReachError(python, f"{_EXPECTED}{error_words(error)}") from None
        finally:
            process.kill()
    _, begun, rest = said.partition(_MARK)
    answer, whole, _ = rest.partition(_MARK)
    if begun and whole:
        return [os.fsdecode(part) for part in answer.split(b"\0")]
    if len(said) > _MOST_BYTES:
        raise _no_answer(python, f"more than {_MOST_BYTES:,} bytes of something else")
    code = process.returncode
    if trouble is None and code < 0:
        trouble = f"no answer, ended by signal {-code}"
    if trouble is not None:
        raise OutOfReachError(python, _EXPECTED + trouble)
    last = [os.fsdecode(one) for one in complaint.splitlines() if one.strip()][-1:]
    raise _no_answer(python, ": ".join([f"no answer, exit code {code}", *last]))


def _listen(process: "subprocess.Popen[bytes]", stop: Stop) -> tuple[bytes, bytes, str | None]:
    """Return what a process puts out and the end of its complaints, and why it was not waited for.

    Raises OSError. A child of it may keep its output open.
    """
    pipes = process.stdout, process.stderr
    out, err = (pipe.fileno() for pipe in pipes if pipe is not None)
    heard = {out: b"", err: b""}
    poll = select.poll()
    for descriptor in heard:
        poll.register(descriptor, select.POLLIN)
    until = time.monotonic() + _ANSWER_SECONDS
    trouble = None
    while trouble is None:
        ended = process.poll() is not None
        ready = poll.poll(_ANSWER_POLL_SECONDS * 1000)
        for descriptor, _ in ready:
            if piece := os.read(descriptor, _PIECE_BYTES):
                heard[descriptor] += piece
            else:
                poll.unregister(descriptor)
        heard[err] = heard[err][-_COMPLAINT_BYTES:]
        if (ended and not ready) or len(heard[out]) > _MOST_BYTES:
            break
        if stop.requested:
            trouble = "no answer before the run was to end"
        elif time.monotonic() > until:
            trouble = f"no answer within {_ANSWER_SECONDS:.0f} s"
    return heard[out], heard[err], trouble


def _no_answer(python: str, found: str, error: OSError | None = None) -> PrefetchError:
    reason = _EXPECTED + printable(found)
    if error is not None and not is_of_the_path(error):
        return OutOfReachError(python, reason)
    return CheckpointError(f"{printable(python)}: {reason}", "give the server's with --python")
