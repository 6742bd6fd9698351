"""What index and layout files share: the bounds of a hostile one, and its errors."""

import json
import posixpath
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import file_name, printable, stays_below
from prefetch_cli.checkpoint.scanner import NotJsonError, TooLargeError

# The largest known layout file has 2 kB, a config.json 100 kB. json.loads takes up to 30 times the
# size of its text.
MOST_BYTES = 1024 * 1024
# Deeper nesting overruns the small stack of a thread in Python 3.13's parser.
_MOST_BRACKETS = 1000
_MOST_NAMES = 100_000  # the largest models have about a thousand shards
_MOST_NAME_CHARACTERS = 8 * 1024 * 1024  # in all names together

AGAIN = "download it again"
_DISTRUST = "do not use this checkpoint unless you know where it comes from"
_QUOTED_CHARACTERS = 80

_Parsed = TypeVar("_Parsed")


def parsed(path: str, parse: Callable[[], _Parsed]) -> _Parsed:
    """Return what `parse` returns; raises CheckpointError if the text is not JSON or too large."""
    try:
        return parse()
    except (NotJsonError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{printable(path)}: expected JSON, found none ({printable(str(error))})",
            AGAIN,
        ) from None
    except TooLargeError:
        raise CheckpointError(
            f"{printable(path)}: expected the names of a model's files, found JSON far too large "
            "or nested for that",
            _DISTRUST,
        ) from None


def bounded_json(content: bytes) -> Any:
    """Return the value of a JSON text; raises TooLargeError if no honest one is so large."""
    brackets = content.count(b"[") + content.count(b"{")
    if len(content) > MOST_BYTES or brackets > _MOST_BRACKETS:
        raise TooLargeError
    return json.loads(content)


def names_below(path: str, noun: str, values: Iterable[object]) -> list[str]:
    """Return the names, normalized and each once; raises CheckpointError if one leads outside."""
    names: dict[str, None] = {}
    characters = 0
    for value in values:
        if isinstance(value, str) and value in names:
            continue
        if not isinstance(value, str) or not stays_below(value):
            raise CheckpointError(
                f"{printable(path)}: expected {noun} inside the checkpoint, found {shown(value)}",
                _DISTRUST,
            )
        names[value] = None
        characters += len(value)
        if len(names) > _MOST_NAMES or characters > _MOST_NAME_CHARACTERS:
            raise TooLargeError
    return list(dict.fromkeys(posixpath.normpath(file_name(name)) for name in names))


def shown(value: object) -> str:
    """Return a JSON value in words, or the start of a text."""
    if isinstance(value, str):
        return printable(repr(value[:_QUOTED_CHARACTERS]))
    kinds = {dict: "an object", list: "a list", type(None): "null", bool: "a truth value"}
    return kinds.get(type(value), "a number")
