"""The text of `sh -c` -> the words of its one simple command: pure.

What a shell would expand in a way that this process cannot foresee is refused, not guessed.
"""

import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_PLAIN_VALUE = re.compile(r"[\w./:@%+=,-]+", re.ASCII)  # stays one word, and means itself
_OPERATORS = frozenset("|&;<>()`\n*?[]{}~#!")  # outside of quotes
_ESCAPED_IN_QUOTES = frozenset('$`"\\\n')


class NotSimpleError(Exception):
    """The text is more than one simple command, or what it expands to is not known."""


def split(text: str, environ: Mapping[str, str]) -> list[str]:
    """Return the words of a simple command, quotes removed and known variables expanded.

    A variable counts as known if its value is one plain word. Raises NotSimpleError for anything
    else that a shell treats specially: operators, globs, substitutions, several lines.
    """
    return _Words(text.strip(), environ).all()


class _Words:
    """Takes a text apart, character by character."""

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self._text = text
        self._environ = environ
        self._at = 0
        self._words: list[str] = []
        self._word: str | None = None  # None: between two words

    def all(self) -> list[str]:
        """Return all words."""
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in " \t":
                self._end_word()
                self._at += 1
            elif char == "\\":
                self._escape()
            elif char == "'":
                self._single_quoted()
            elif char == '"':
                self._double_quoted()
            elif char == "$":
                self._add(self._expanded())
            elif char in _OPERATORS:
                raise NotSimpleError
            else:
                self._add(char)
                self._at += 1
        self._end_word()
        return self._words

    def _add(self, text: str) -> None:
        self._word = (self._word or "") + text

    def _end_word(self) -> None:
        if self._word is not None:
            self._words.append(self._word)
        self._word = None

    def _escape(self) -> None:
        escaped = self._text[self._at + 1 : self._at + 2]
        if not escaped:
            raise NotSimpleError
        if escaped != "\n":  # else the line goes on
            self._add(escaped)
        self._at += 2

    def _single_quoted(self) -> None:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise NotSimpleError
        self._add(self._text[self._at + 1 : end])
        self._at = end + 1

    def _double_quoted(self) -> None:
        self._add("")
        self._at += 1
        while (char := self._text[self._at : self._at + 1]) != '"':
            following = self._text[self._at + 1 : self._at + 2]
            if char == "\\" and following and following in _ESCAPED_IN_QUOTES:
                self._escape()
            elif char == "$":
                self._add(self._expanded())
            elif char in ("", "`"):
                raise NotSimpleError
            else:
                self._add(char)
                self._at += 1
        self._at += 1

    def _expanded(self) -> str:
        match = _VARIABLE.match(self._text, self._at)
        value = self._environ.get(match[1] or match[2], "") if match else ""
        if match is None or not _PLAIN_VALUE.fullmatch(value):
            raise NotSimpleError
        self._at = match.end()
        return value
