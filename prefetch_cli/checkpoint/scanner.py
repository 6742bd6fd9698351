"""JSON in pieces -> its values, one by one, in memory that does not grow with the text.

json.loads took 142 MiB for an honest index of 300,000 tensors (33 MB) and 1,968 MiB for a hostile
one of 64 MiB; here both took less than 15 MiB, in at most 2.3 s. Staying below 100 MiB with
json.loads means refusing more than 4 MiB, 40,000 tensors: DeepSeek-V3's index has 92,000.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator

_PIECE_BYTES = 64 * 1024  # _RUN keeps some memory for each member that it matches
_MOST_BYTES = 64 * 1024 * 1024  # an index of 300,000 tensors, more than any model's, has 40 MB
_MOST_TOKENS = 1_000_000  # outside runs of members
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
_WHOLE = '[]{},:"'  # a token that starts with one of these cannot go on in the next piece
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS: dict[str, float | bool | None] = {"null": None, "true": True, "false": False}
# Not JSON, but Python writes and reads them.
_WORDS |= {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

# A container that is skipped counts as an empty one.
Json = str | int | float | bool | list[object] | dict[str, object] | None


class NotJsonError(Exception):
    """A text that is not JSON: why, and where."""


class TooLargeError(Exception):
    """A text that is larger or deeper than any honest index."""


class Scanner:
    """Reads one JSON document from front to end.

    Every method consumes the next value, or a part of it, and raises NotJsonError or
    TooLargeError.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = self._decoded(pieces)
        self._text = ""
        self._at = 0
        self._begun = False
        self._before = 0  # characters ahead of `_text`
        self._tokens = 0

    def is_object(self) -> bool:
        """Return whether the next value is an object; consumes nothing."""
        return self._first() == "{"

    def is_array(self) -> bool:
        """Return whether the next value is an array; consumes nothing."""
        return self._first() == "["

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller consumes the value after each key."""
        self._expect("{")
        if self._first() == "}":
            self._token()
            return
        while True:
            yield self._key()
            if self._closed("}"):
                return

    def elements(self) -> Iterator[None]:
        """Yield once for each element of an array; the caller consumes its value."""
        self._expect("[")
        if self._first() == "]":
            self._token()
            return
        while True:
            yield
            if self._closed("]"):
                return

    def values(self) -> Iterator[Json]:
        """Yield the values of an object; equal strings in a row may come only once."""
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

    def value(self) -> Json:
        """Return the next value; a container is skipped and comes back empty."""
        first = self._first()
        taken = self._token()
        if first == '"':
            return _text(taken)
        if first not in ("[", "{"):
            return self._scalar(taken)
        self._skip(first)
        return {} if first == "{" else []

    def end(self) -> None:
        """Check that the document ends here."""
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
        """Add the next piece and return whether there was one."""
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
        """Return the next character that is no blank, empty at the end."""
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
            # A token at the end of a piece may go on in the next one.
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
        """Consume what follows a member; return True for the bracket, False for a comma."""
        found = self._first()
        if found not in (",", bracket):
            raise self._wrong(f"a comma or {bracket}")
        self._token()
        return found == bracket

    def _run(self) -> Iterator[str]:
        """Yield the string values of members without escapes that are followed by a comma."""
        while run := _RUN.match(self._text, self._at):
            self._at = run.end()
            yield from dict.fromkeys(_MEMBER.findall(run[0]))

    def _skip(self, opening: str) -> None:
        """Skip the rest of a container, after its opening bracket."""
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
