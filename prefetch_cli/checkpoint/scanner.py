"""JSON in pieces -> its values, one after the other, in memory that the text does not bound.

Python's own parser takes up to twenty times the bytes of a text, and its stack where values nest.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator

_PIECE_BYTES = 64 * 1024  # the pattern for a run of members keeps some memory for each of them
_MOST_BYTES = 64 * 1024 * 1024  # an index of 300,000 tensors, more than any model has, takes 40 MB
_MOST_TOKENS = 1_000_000  # beside runs of members
_MOST_TOKEN_CHARACTERS = 1024 * 1024
_MOST_NUMBER_CHARACTERS = 1000
_MOST_NESTED = 1000

_STRING = r'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"'
_PLAIN = r'"[^"\\\x00-\x1f]*"'
_SPACE = r"[ \t\n\r]*"
_TOKEN = re.compile(rf"[\[\]{{}},:]|{_STRING}|[^\[\]{{}},:\" \t\n\r]+", re.DOTALL)
_SOLID = re.compile(r"[^ \t\n\r]")
_RUN = re.compile(rf"(?:{_SPACE}{_PLAIN}{_SPACE}:{_SPACE}{_PLAIN}{_SPACE},)+")
_MEMBER = re.compile(rf'{_PLAIN}{_SPACE}:{_SPACE}"([^"]*)"')
_WHOLE = '[]{},:"'  # what begins with one of these ends where it seems to
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS: dict[str, float | bool | None] = {"null": None, "true": True, "false": False}
# Python writes and reads them, although they are no JSON.
_WORDS |= {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

# What a container comes to, which is read past.
Value = str | int | float | bool | list[object] | dict[str, object] | None


class NotJsonError(Exception):
    """Why a text is no JSON, and where."""


class TooLargeError(Exception):
    """A text that is larger, longer or deeper than one that tells a model's files."""


class Scanner:
    """Reads one JSON document from the front to the end.

    Every method takes the value, or the part of one, that comes next. Each raises NotJsonError
    where it is none, and TooLargeError.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = self._decoded(pieces)
        self._text = ""
        self._at = 0
        self._begun = False
        self._before = 0  # characters ahead of `_text`
        self._tokens = 0

    def is_object(self) -> bool:
        """Whether an object comes next."""
        return self._first() == "{"

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; whoever takes them takes the value of each, too."""
        self._expect("{")
        if self._first() == "}":
            self._token()
            return
        while True:
            yield self._key()
            if self._closed("}"):
                return

    def values(self) -> Iterator[Value]:
        """Yield the values of an object's members, equal texts in a row perhaps only once."""
        self._expect("{")
        if self._first() == "}":
            self._token()
            return
        while True:
            yield from self._run()
            self._key()
            yield self.value()
            if self._closed("}"):
                return

    def value(self) -> Value:
        """Return a value, or an empty container for one that is read past."""
        first = self._first()
        taken = self._token()
        if first == '"':
            return _text(taken)
        if first not in ("[", "{"):
            return self._scalar(taken)
        self._skip(first)
        return {} if first == "{" else []

    def end(self) -> None:
        """Take the end of the document."""
        if self._first():
            raise self._wrong("the end")

    def _decoded(self, pieces: Iterable[bytes]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        size_bytes = 0
        try:
            for piece in pieces:
                size_bytes += len(piece)
                if size_bytes > _MOST_BYTES:
                    raise TooLargeError
                for start in range(0, len(piece), _PIECE_BYTES):
                    yield decoder.decode(piece[start : start + _PIECE_BYTES])
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise NotJsonError(f"expected UTF-8: {error.reason}") from None

    def _fill(self) -> bool:
        """Add the next piece, and return whether there was one."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        if not self._begun and piece:
            piece, self._begun = piece.removeprefix("\ufeff"), True
        self._before += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        if len(self._text) > _MOST_TOKEN_CHARACTERS:
            raise TooLargeError
        return True

    def _first(self) -> str:
        """Return the character that comes next, empty at the end."""
        while True:
            solid = _SOLID.search(self._text, self._at)
            if solid is not None:
                self._at = solid.start()
                return solid[0]
            self._at = len(self._text)
            if not self._fill():
                return ""

    def _token(self) -> str:
        if not self._first():
            raise self._wrong("a value")
        self._tokens += 1
        if self._tokens > _MOST_TOKENS:
            raise TooLargeError
        while True:
            token = _TOKEN.match(self._text, self._at)
            # What reaches to the end of the piece may go on in the next one.
            if token is None or (token.end() == len(self._text) and token[0][0] not in _WHOLE):
                if self._fill():
                    continue
                if token is None:
                    raise self._wrong("a value")
            self._at = token.end()
            return token[0]

    def _expect(self, wanted: str) -> None:
        if self._first() != wanted:
            raise self._wrong(wanted)
        self._token()

    def _key(self) -> str:
        if self._first() != '"':
            raise self._wrong("a key")
        key = _text(self._token())
        self._expect(":")
        return key

    def _closed(self, bracket: str) -> bool:
        """Take what follows a member: False where it is a comma, True where it is the bracket."""
        found = self._first()
        if found not in (",", bracket):
            raise self._wrong(f"a comma or {bracket}")
        self._token()
        return found == bracket

    def _run(self) -> Iterator[str]:
        """Yield texts of members that have no escapes, each of which has a comma behind it."""
        while run := _RUN.match(self._text, self._at):
            self._at = run.end()
            yield from dict.fromkeys(_MEMBER.findall(run[0]))

    def _skip(self, opening: str) -> None:
        """Read past what follows the opening bracket of a container."""
        closing = {"[": "]", "{": "}"}
        nested = [closing[opening]]
        if self._first() == nested[-1]:
            self._token()
            return
        while nested:
            if nested[-1] == "}":
                self._key()
            token = self._token()
            if token in closing:
                nested.append(closing[token])
                if len(nested) > _MOST_NESTED:
                    raise TooLargeError
                if self._first() != nested[-1]:
                    continue
                self._token()
                nested.pop()
            elif token[0] != '"':
                self._scalar(token)
            while nested and self._closed(nested[-1]):
                nested.pop()

    def _scalar(self, token: str) -> int | float | bool | None:
        if token in _WORDS:
            return _WORDS[token]
        if len(token) > _MOST_NUMBER_CHARACTERS or not _NUMBER.fullmatch(token):
            raise NotJsonError(f"expected a value near character {self._before + self._at:,}")
        return int(token) if _INTEGER.fullmatch(token) else float(token)

    def _wrong(self, wanted: str) -> NotJsonError:
        where = f"character {self._before + self._at:,}" if self._text[self._at :] else "its end"
        return NotJsonError(f"expected {wanted} at {where}")


def _text(token: str) -> str:
    if "\\" not in token:
        return token[1:-1]
    try:
        return str(json.loads(token))
    except ValueError:
        raise NotJsonError("expected an escape that JSON has") from None
