"""An index or a layout file -> the names in it: pure.

A checkpoint may be hostile, so we bound the memory and time that a file can cost, and refuse
names that lead out of its folder.
"""

import json
import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import file_name, printable
from prefetch_cli.checkpoint.files import stays_below
from prefetch_cli.checkpoint.scanner import NotJsonError, Scanner, TooLargeError

DIFFUSERS_LAYOUT = "model_index.json"
SENTENCE_TRANSFORMERS_LAYOUT = "modules.json"

# The largest known layout file has 2 kB. json.loads takes up to 30 times the size of its text.
MOST_LAYOUT_BYTES = 1024 * 1024
# Deeper nesting overruns the small stack of a thread in Python 3.13's parser.
_MOST_BRACKETS = 1000
_MOST_SHARDS = 100_000  # the largest models have about a thousand
_MOST_NAME_CHARACTERS = 8 * 1024 * 1024  # in all names together
_MOST_TOTAL_BYTES = 2**63 - 1

# sentence-transformers writes no file for these modules, and git keeps no empty folder.
_MODULES_WITHOUT_FILES = ("Normalize", "Identity")

_AGAIN = "download it again"
_DISTRUST = "do not use this checkpoint unless you know where it comes from"
_QUOTED_CHARACTERS = 80


@dataclass(frozen=True)
class Index:
    """The shards that an index file names, and the size that it claims for them."""

    shards: frozenset[str]
    total_size_bytes: int | None


def parse_index(path: str, pieces: Iterable[bytes]) -> Index:
    """Return the index at `path` that has this content.

    If a key occurs twice, its last value counts; of a tensor that occurs twice, both shards do.
    Raises CheckpointError if the content is not JSON, has no `weight_map` object of file names,
    or names a file outside its own folder.
    """
    shards, claimed = _parsed(path, lambda: _index(path, Scanner(pieces)))
    if not shards:
        raise CheckpointError(
            f"{printable(path)}: expected an object weight_map that names the shards, found none",
            _AGAIN,
        )
    return Index(shards=frozenset(shards), total_size_bytes=claimed)


def component_folders(path: str, content: bytes) -> list[str]:
    """Return the folders that the layout file at `path` names, except its own, each once.

    The file is diffusers' `model_index.json` (component -> [library, class]) or
    sentence-transformers' `modules.json` (a list of objects with a `path`). Raises
    CheckpointError if it is not JSON, or names a folder outside its own.
    """
    document = _parsed(path, lambda: _layout(content))
    if posixpath.basename(path) == DIFFUSERS_LAYOUT:
        return _names_below(path, "folders", _components(path, document))
    return _names_below(path, "folders", _modules(path, document))


def _components(path: str, document: object) -> list[object]:
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{printable(path)}: expected an object of components, found {_shown(document)}",
            _AGAIN,
        )
    # [null, null] means that the pipeline has no such component.
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
            f"{printable(path)}: expected a list of modules, found {_shown(document)}",
            _AGAIN,
        )
    return [
        module["path"]
        for module in document
        if isinstance(module, dict)
        and module.get("path", "") not in ("", ".")
        and not str(module.get("type")).endswith(_MODULES_WITHOUT_FILES)
    ]


def _index(path: str, scanner: Scanner) -> tuple[list[str], int | None]:
    """Return the shards that an index names, if any, and the size that it claims."""
    shards: list[str] = []
    claimed = None
    if not scanner.is_object():
        scanner.value()
        scanner.end()
        return shards, claimed
    for key in scanner.members():
        is_object = scanner.is_object()
        if key == "weight_map" and is_object:
            shards = _names_below(path, "file names", scanner.values())
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
    # Some tools write 4000000000.0. Values out of bounds, and NaN, claim nothing.
    if isinstance(found, (int, float)) and 0 <= found <= _MOST_TOTAL_BYTES:
        return int(found)
    return None


_Parsed = TypeVar("_Parsed")


def _parsed(path: str, parse: Callable[[], _Parsed]) -> _Parsed:
    """Return what `parse` returns; raises CheckpointError if the text is not JSON or too large."""
    try:
        return parse()
    except (NotJsonError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{printable(path)}: expected JSON, found none ({printable(str(error))})",
            _AGAIN,
        ) from None
    except TooLargeError:
        raise CheckpointError(
            f"{printable(path)}: expected the names of a model's files, found JSON far too large "
            "or nested for that",
            _DISTRUST,
        ) from None


def _layout(content: bytes) -> Any:
    """Return the value of a JSON text; raises TooLargeError if no honest layout is so large."""
    brackets = content.count(b"[") + content.count(b"{")
    if len(content) > MOST_LAYOUT_BYTES or brackets > _MOST_BRACKETS:
        raise TooLargeError
    return json.loads(content)


def _names_below(path: str, noun: str, values: Iterable[object]) -> list[str]:
    """Return the names, normalized and each once; raises CheckpointError if one leads outside."""
    names: dict[str, None] = {}
    characters = 0
    for value in values:
        if isinstance(value, str) and value in names:
            continue
        if not isinstance(value, str) or not stays_below(value):
            raise CheckpointError(
                f"{printable(path)}: expected {noun} inside the checkpoint, found {_shown(value)}",
                _DISTRUST,
            )
        names[value] = None
        characters += len(value)
        if len(names) > _MOST_SHARDS or characters > _MOST_NAME_CHARACTERS:
            raise TooLargeError
    return list(dict.fromkeys(posixpath.normpath(file_name(name)) for name in names))


def _shown(value: object) -> str:
    if isinstance(value, str):
        return printable(repr(value[:_QUOTED_CHARACTERS]))
    kinds = {dict: "an object", list: "a list", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")
