"""Contents of an index or a layout file -> the names that it holds: pure, and wary.

A checkpoint may come from anywhere, so that a file's content bounds neither the memory nor the
time that it takes, nor the places that its names lead to, unless it is looked at first.
"""

import json
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import file_name, printable
from prefetch_cli.checkpoint.scanner import NotJsonError, Scanner, TooLargeError

DIFFUSERS_LAYOUT = "model_index.json"
SENTENCE_TRANSFORMERS_LAYOUT = "modules.json"

# Of a layout file: the largest known has 2 kB, and Python's own values take 20 times the bytes of
# the most wasteful text.
MOST_LAYOUT_BYTES = 1024 * 1024
# Nested deeper, the parser of Python 3.13 overruns the small stack of a thread.
_MOST_BRACKETS = 1000
# The models with the most have about a thousand shards.
_MOST_NAMES = 100_000
_MOST_NAME_CHARACTERS = 8 * 1024 * 1024  # of all names together
_LARGEST_SIZE = 2**63 - 1

# sentence-transformers writes nothing for a module without settings, and git keeps no empty folder.
_MODULES_WITHOUT_FILES = ("Normalize", "Identity")

_AGAIN = "download it again"
_DISTRUST = "do not use this checkpoint unless you know where it comes from"
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Index:
    """An index file: the shards that it names, and the size that it claims for them."""

    shards: frozenset[str]
    total_size_bytes: int | None


def parse_index(path: str, pieces: Iterable[bytes]) -> Index:
    """Return the index at `path` that has this content.

    Where a key is there twice, its last value counts, and the names of both for a tensor. Raises
    CheckpointError where it is not JSON, has no `weight_map` object of file names, or names a
    file outside the folder that it lies in.
    """
    shards, claimed = _scanned(path, lambda: _index(path, Scanner(pieces)))
    if not shards:
        raise CheckpointError(
            f"{printable(path)}: expected an object weight_map that names the shards, found none",
            _AGAIN,
        )
    return Index(shards=frozenset(shards), total_size_bytes=claimed)


def component_folders(path: str, content: bytes) -> list[str]:
    """Return the folders that the layout file at `path` names, other than its own, each once.

    The file is diffusers' `model_index.json` (component -> [library, class]) or
    sentence-transformers' `modules.json` (a list of objects with a `path`). Raises
    CheckpointError where it is not JSON, or names a folder outside the one that it lies in.
    """
    document = _scanned(path, lambda: _layout(content))
    if posixpath.basename(path) == DIFFUSERS_LAYOUT:
        return _below(path, "folders", _components(path, document))
    return _below(path, "folders", _modules(path, document))


def _components(path: str, document: object) -> list[object]:
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{printable(path)}: expected an object of components, found {_shown(document)}", _AGAIN
        )
    # [null, null] stands for a component that the pipeline does without.
    return [
        name
        for name, value in document.items()
        if isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and not name.startswith("_")
    ]


def _modules(path: str, document: object) -> list[object]:
    if not isinstance(document, list):
        raise CheckpointError(
            f"{printable(path)}: expected a list of modules, found {_shown(document)}", _AGAIN
        )
    return [
        module["path"]
        for module in document
        if isinstance(module, dict)
        and module.get("path", "") not in ("", ".")
        and not str(module.get("type")).endswith(_MODULES_WITHOUT_FILES)
    ]


def _index(path: str, scanner: Scanner) -> tuple[list[str], int | None]:
    """Return the shards that an index names, none where it has none, and the size it claims."""
    shards: list[str] = []
    claimed = None
    if not scanner.is_object():
        scanner.value()
        scanner.end()
        return shards, claimed
    for key in scanner.members():
        is_object = scanner.is_object()
        if key == "weight_map" and is_object:
            shards = _below(path, "file names", scanner.values())
        elif key == "weight_map":
            shards = []
            scanner.value()
        elif key == "metadata" and is_object:
            claimed = _total_size(scanner)
        else:
            scanner.value()
    scanner.end()
    return shards, claimed


def _total_size(scanner: Scanner) -> int | None:
    found = None
    for key in scanner.members():
        value = scanner.value()
        if key == "total_size":
            found = value
    # Some tools write 4000000000.0, and all that is out of bounds, NaN too, claims nothing.
    if isinstance(found, (int, float)) and 0 <= found <= _LARGEST_SIZE:
        return int(found)
    return None


_Scanned = TypeVar("_Scanned")


def _scanned(path: str, scan: Callable[[], _Scanned]) -> _Scanned:
    """Return what is made of a JSON text, or raise CheckpointError where it is none."""
    try:
        return scan()
    except (NotJsonError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{printable(path)}: expected JSON, found none ({printable(str(error))})", _AGAIN
        ) from None
    except TooLargeError:
        raise CheckpointError(
            f"{printable(path)}: expected the names of a model's files, found JSON far too large "
            "or nested for that",
            _DISTRUST,
        ) from None


def _layout(content: bytes) -> Any:
    """Return the value of a JSON text that is not larger than it can honestly be."""
    brackets = content.count(b"[") + content.count(b"{")
    if len(content) > MOST_LAYOUT_BYTES or brackets > _MOST_BRACKETS:
        raise TooLargeError
    return json.loads(content)


def _below(path: str, kind: str, values: Iterable[object]) -> list[str]:
    """Return names, normalized and each once, all of which must lead below the file's folder."""
    names: dict[str, None] = {}
    characters = 0
    for value in values:
        if isinstance(value, str) and value in names:
            continue
        if not isinstance(value, str) or not _stays_below(value):
            raise CheckpointError(
                f"{printable(path)}: expected {kind} inside the checkpoint, found {_shown(value)}",
                _DISTRUST,
            )
        names[value] = None
        characters += len(value)
        if len(names) > _MOST_NAMES or characters > _MOST_NAME_CHARACTERS:
            raise TooLargeError
    return list(dict.fromkeys(posixpath.normpath(file_name(name)) for name in names))


def _stays_below(name: str) -> bool:
    return (
        not name.startswith("/")
        and ".." not in name.split("/")
        and posixpath.normpath(name) != "."
        and _can_be_a_path(name)
    )


def _can_be_a_path(name: str) -> bool:
    try:
        return "\0" not in file_name(name)
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    if isinstance(value, str):
        return printable(repr(value[:_SHOWN_CHARACTERS]))
    kinds = {dict: "an object", list: "a list", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")
