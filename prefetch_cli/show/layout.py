"""Text on a terminal: labelled lines and warnings, wrapped between words."""

import os
import re
import textwrap

LABEL_COLUMNS = 13
_TEXT_LEAST_COLUMNS = 20  # beside the labels
_HANG = "  "  # in front of the second and later lines of a warning
_NUMBER_WITH_UNIT = re.compile(r"(\d) ([KMGTPE]?i?B\b|bytes?\b|%|s\b)")
_PLAIN_TERMINALS = {"", "dumb", "unknown"}  # terminfo: no known capabilities


def has_cursor() -> bool:
    """Whether the terminal can move its cursor, according to TERM."""
    return os.environ.get("TERM", "") not in _PLAIN_TERMINALS


def wrapped(label: str, text: str, columns: int) -> str:
    """Return a labelled line, wrapped beside its label, or below it on a narrow terminal."""
    beside = columns - LABEL_COLUMNS >= _TEXT_LEAST_COLUMNS
    indent = LABEL_COLUMNS if beside else 2
    lines = textwrap.wrap(_tied(text), max(1, columns - indent), break_on_hyphens=False)
    head = _bold(f"{label:<{indent}}") if beside else _bold(label) + "\n" + " " * indent
    return _untied(head + ("\n" + " " * indent).join(lines))


def hanging(text: str, columns: int) -> str:
    """Return a text, wrapped between words, its later lines indented.

    A path that is longer than a line stays whole, so that it can be copied: the terminal cuts it.
    """
    lines = textwrap.wrap(
        _tied(text),
        columns,
        subsequent_indent=_HANG,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return _untied("\n".join(lines))


def _tied(text: str) -> str:
    """Return a text in which a number and its unit stay on one line."""
    return _NUMBER_WITH_UNIT.sub("\\1\N{NO-BREAK SPACE}\\2", text)


def _untied(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def _bold(text: str) -> str:
    return text if os.environ.get("NO_COLOR") else f"\x1b[1m{text}\x1b[0m"
