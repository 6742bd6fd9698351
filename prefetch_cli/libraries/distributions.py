"""Names of Python distributions -> the paths of the files that importing them opens.

A distribution is what a package manager installs under one name; its RECORD lists its files.
Nothing is imported or compiled: we ask the interpreter for its search path and read what lies
there as text.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from prefetch_cli.base.errors import CheckpointError, error_words
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import file_name, printable
from prefetch_cli.checkpoint.files import Skipped
from prefetch_cli.libraries.interpreters import Interpreter, assert_readable, is_interpreter
from prefetch_cli.linux.threads import map_threads

if TYPE_CHECKING:
    from importlib import metadata

# Largest first. A server opens no headers, static libraries or test data when it starts.
_KINDS = (re.compile(r"\.so(\.[0-9]+)*$"), re.compile(r"\.pyc$"), re.compile(r"\.py$"))

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
_UNDER_AN_EXTRA = re.compile(r"\bextra\b")
# METADATA and the like may be unreachable, or not text.
# TypeError: where a read says EAGAIN, Python's own files return None.
_UNREADABLE = (OSError, UnicodeError, TypeError)
_EDITABLE = re.compile(r'"editable"\s*:\s*true')
_SOURCE = re.compile(r'"url"\s*:\s*"file://([^"]+)"')


class Distribution(NamedTuple):
    """One installed distribution."""

    name: str
    paths: frozenset[str]  # of the files that count, whether they exist or not
    requires: tuple[str, ...]
    warning: str | None
    failed: tuple[Skipped, ...] = ()  # what tells of its files, or of what it requires


def canonical(name: str, interpreter: Interpreter) -> str:
    """Return the normalized name of an installed distribution.

    Raises CheckpointError if no distribution of that name is installed.
    """
    if _REQUIREMENT.fullmatch(name) is None or _found(name, interpreter) is None:
        raise CheckpointError(
            f"--package {printable(name) or repr(name)}: expected a distribution that is "
            f"installed for {printable(interpreter.path)}, found none of that name",
            "check the name, as in pip list, or give the server's interpreter with --python",
        )
    return _normalized(name)


def owner(command: Sequence[str], interpreter: Interpreter) -> str:
    """Return the distribution whose RECORD lists COMMAND's script or module.

    Raises CheckpointError if there is none.
    """
    from importlib import metadata  # noqa: PLC0415 - 20 ms that other runs save

    has, what = _belonging(command)
    for found in metadata.distributions(path=list(interpreter.search_path)):
        if has(found, _read_text(found, "RECORD")) and (own := _own_name(found)) is not None:
            return _normalized(own)
    assert_readable(interpreter)
    raise CheckpointError(
        f"--libraries: expected a distribution that {printable(what)} belongs to, found none "
        f"installed for {printable(interpreter.path)}",
        "name it with --package",
    )


def closure(
    names: Sequence[str], interpreter: Interpreter, monitor: Monitor, threads: int
) -> list[Distribution]:
    """Return these distributions and everything that they require and that is installed.

    Environment markers are ignored: being installed is what counts. Requirements of extras are
    left out.
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


def position(path: str) -> int:
    """Return a file's position in the order of warming; files that do not count come last."""
    return next((number for number, kind in enumerate(_KINDS) if kind.search(path)), len(_KINDS))


def _found(name: str, interpreter: Interpreter) -> "metadata.Distribution | None":
    """Return what `_installed` does; raises PrefetchError where the system does not tell."""
    from importlib import metadata  # noqa: PLC0415 - as in `owner`

    found = _installed(name, interpreter)
    if found is None:
        assert_readable(interpreter)
        # A listing may have failed once. Before Python 3.12 this is no class method.
        metadata.MetadataPathFinder().invalidate_caches()
        found = _installed(name, interpreter)
    return found


def _installed(name: str, interpreter: Interpreter) -> "metadata.Distribution | None":
    """Return the distribution of this name that comes first on the search path."""
    from importlib import metadata  # noqa: PLC0415 - as in `owner`

    path = list(interpreter.search_path)
    return next(iter(metadata.distributions(name=name, path=path)), None)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()  # PEP 503


def _belonging(
    command: Sequence[str],
) -> tuple[Callable[["metadata.Distribution", str], bool], str]:
    """Return a test of a distribution and its RECORD, and a description of its target."""
    script = command[0]
    if is_interpreter(script):
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
    """Return the module that `-m` names, or None if a script or a string is run."""
    for number, word in enumerate(words):
        if word.startswith("-m"):
            return word[2:] or next(iter(words[number + 1 :]), None)
        if word in ("-W", "-X"):
            return _module(words[number + 2 :])
        if not word.startswith("-") or word.startswith("-c"):
            return None
    return None


def _distribution(name: str, found: "metadata.Distribution", cache_tag: str) -> Distribution:
    failed: list[Skipped] = []
    paths = frozenset(_paths(found, cache_tag))
    warning = None
    if not paths and (error := _failure(found, "RECORD")) is not None:
        failed.append(_skipped(name, found, "RECORD", error))
    elif not paths:
        warning = _nothing_recorded(name, found)
    try:
        required = [_requirement(text) for text in found.requires or ()]
    except OSError as error:
        required = []
        failed.append(_skipped(name, found, "METADATA", error))
    except _UNREADABLE:
        required = []
        warning = f"{name}: its METADATA cannot be read, so what it requires is left out"
    return Distribution(
        name=name,
        paths=paths,
        requires=tuple(one for one in required if one is not None),
        warning=warning,
        failed=tuple(failed),
    )


def _failure(found: "metadata.Distribution", name: str) -> OSError | None:
    """Return what the system says of a file beside a distribution's METADATA, None if it is read.

    importlib.metadata takes a file that the user may not read for one that is missing.
    """
    try:
        found.read_text(name)
    except OSError as error:
        return error
    except _UNREADABLE:
        return None
    return None


def _skipped(name: str, found: "metadata.Distribution", file: str, error: OSError) -> Skipped:
    path = os.path.join(str(found.locate_file("")), f"{name}-*.dist-info", file)
    return Skipped(str(error.filename or path), error_words(error), failed=True)


def _requirement(text: str) -> str | None:
    match, marker = _REQUIREMENT.match(text), text.partition(";")[2]
    return None if match is None or _UNDER_AN_EXTRA.search(marker) else _normalized(match[1])


def _paths(found: "metadata.Distribution", cache_tag: str) -> Iterator[str]:
    record = _read_text(found, "RECORD")
    rows = _rows(record) if record else _other_rows(found)
    base = str(found.locate_file(""))
    for row in rows:
        if os.path.isabs(row) or "\0" in row or position(row) == len(_KINDS):
            continue
        path = os.path.normpath(os.path.join(base, row))
        yield path
        if path.endswith(".py"):
            # Not every installer that compiles lists the result in RECORD.
            folder, name = os.path.split(path)
            yield os.path.join(folder, "__pycache__", f"{name[:-3]}.{cache_tag}.pyc")


def _read_text(found: "metadata.Distribution", name: str) -> str:
    """Return a file beside a distribution's METADATA, empty if missing or not text."""
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
    """Return the paths that older installers list."""
    try:
        return [file_name(str(path)) for path in found.files or ()]
    except _UNREADABLE:
        return []


def _rows(record: str) -> Iterator[str]:
    """Yield the path in each row of a RECORD (CSV, PEP 376 and 427)."""
    import csv  # noqa: PLC0415 - as in `owner`

    with suppress(csv.Error):
        yield from (file_name(row[0]) for row in csv.reader(record.splitlines()) if row)


def _nothing_recorded(name: str, found: "metadata.Distribution") -> str:
    origin = _read_text(found, "direct_url.json")
    if _EDITABLE.search(origin) and (source := _SOURCE.search(origin)):
        where = f"give --also {printable(source[1])}"
        return f"{name}: it is installed in editable form, so its files lie elsewhere: {where}"
    return f"{name}: no list of its files was found: give its folder with --also"
