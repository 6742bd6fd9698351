"""`--from-file`: the checkpoints of a list, one a line or ended by NUL bytes."""

import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prefetch_cli.base.errors import UsageError, error_words, unreachable
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import listing, printable
from prefetch_cli.checkpoint.locate import is_uri
from prefetch_cli.checkpoint.request import Reference, Request
from prefetch_cli.linux.files import close

if TYPE_CHECKING:
    from prefetch_cli.commands.infer import Inferred

STANDARD_INPUT = "-"
# PATH_MAX without its NUL byte, and NAME_MAX: no system call takes more.
_MOST_PATH_BYTES = 4095
_MOST_NAME_BYTES = 255
_MOST_BYTES = 16 * 1024 * 1024  # of the list
_PIECE_BYTES = 64 * 1024
_MOST_SHOWN = 10


class FromFile(NamedTuple):
    """A list of checkpoints, and what turns them into CHECKPOINT arguments."""

    path: str  # STANDARD_INPUT for that
    revision: str | None  # that the user gives
    inferred: "Inferred | None"  # what COMMAND says, None without one


def requested(request: Request, source: FromFile, monitor: Monitor) -> Request:
    """Return the request with the checkpoints of the list behind its own.

    Waits for as long as a pipe does not end: not for a thread that must never hang. Raises
    UsageError where the list cannot be read, or has lines that can be no checkpoint.
    """
    shown = f"--from-file {printable(source.path)}"
    try:
        content = _content(source.path, monitor)
    except OSError as error:
        message = f"{shown}: expected a list of checkpoints, found: {error_words(error)}"
        raise unreachable(error, message, "check the path", UsageError) from error
    except ValueError as error:
        raise UsageError(
            f"{shown}: expected a list of checkpoints, found: a path that can be none",
            "check the path",
        ) from error
    if len(content) > _MOST_BYTES:
        raise UsageError(
            f"{shown}: expected a list of at most {_MOST_BYTES:,} bytes, found more",
            "give the checkpoints in several runs",
        )
    names = list(entries(content))
    bad = [f"line {number} ({why})" for number, name in names if (why := unusable(name))]
    if bad:
        raise UsageError(
            f"{shown}: expected a checkpoint on each line, found {listing(bad, most=_MOST_SHOWN)}",
            "correct them, or put # in front",
        )
    more = (Reference(os.fsdecode(name), source.revision) for _, name in names)
    request = request._replace(references=(*request.references, *more))
    if source.inferred is None:
        return request
    from prefetch_cli.commands.infer import completed  # noqa: PLC0415 - loaded by now

    return completed(request, source.inferred, source.revision)


def entries(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and name of each entry that is no comment: after NUL bytes if there are any.

    White space around a line is none of its name, and a blank line is no entry; between NUL bytes
    every byte counts.
    """
    by_nul = b"\0" in content
    lines = content.removesuffix(b"\0").split(b"\0") if by_nul else content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        name = line if by_nul else line.strip()
        if not name.startswith(b"#") and (name or by_nul):
            yield number, name


def unusable(name: bytes) -> str | None:
    """Return why a name can be no CHECKPOINT, in words, or None where it can."""
    if not name:
        return "an empty name"
    if len(name) > _MOST_PATH_BYTES:
        return f"a path of {len(name):,} bytes, where {_MOST_PATH_BYTES:,} are the most"
    if (longest := max(map(len, name.split(b"/")))) > _MOST_NAME_BYTES:
        return f"a name of {longest:,} bytes, where {_MOST_NAME_BYTES} are the most"
    if name.startswith(b"-"):
        return "an option; a path begins with ./"
    if is_uri(os.fsdecode(name)):
        return "an object store's URI"
    return None


def _content(path: str, monitor: Monitor) -> bytes:
    """Return what the list has, a bit more than _MOST_BYTES at most."""
    if path == STANDARD_INPUT:
        with monitor.waiting("standard input"):
            return _read(0)
    with monitor.waiting(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return _read(descriptor)
        finally:
            close(descriptor)


def _read(descriptor: int) -> bytes:
    content = bytearray()
    while len(content) <= _MOST_BYTES and (piece := _piece(descriptor)):
        content += piece
    return bytes(content)


def _piece(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _PIECE_BYTES)
        except BlockingIOError:  # a pipe may be such that nobody waits for it
            select.select([descriptor], [], [])
