r"""A list of checksums, as sha256sum writes it -> the digest of each file that it names.

Mirrors `sha256sum --check` (coreutils, src/cksum.c): the marker for text or binary, names with a
backslash escape (a leading `\` says so), `--tag`, comments, line ends of Windows. A list from
`--zero` is recognised by its NULs.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import UsageError, error_words, unreachable
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.digests import Algorithm, Digest
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.files import close, open_to_read, pieces

_MOST_BYTES = 64 * 1024 * 1024  # half a million lines; the largest checkpoints have 1,000 files
_LINE = re.compile(rb"([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
_TAGGED = re.compile(rb"SHA256 \((.+)\) = ([0-9a-fA-F]{64})", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}
_HINT = "give --checksums a list that sha256sum wrote"
_EXCERPT_CHARACTERS = 60


class Line(NamedTuple):
    """One line of the list."""

    number: int  # from 1
    name: str
    hexdigits: str  # lower case


class Checksums(NamedTuple):
    """A list of checksums."""

    path: str
    lines: tuple[Line, ...]

    def match(
        self, files: Sequence[File], folders: Sequence[str]
    ) -> tuple[Mapping[int, Digest], int]:
        """Return the digest of each file by its number, and how many lines name none of them.

        A relative name is looked up below the list's own folder, then below each of `folders`. The
        first that has it wins. Raises UsageError where two lines disagree about a file.
        """
        numbers: dict[str, int] = {}
        for number, file in enumerate(files):
            numbers.setdefault(os.path.abspath(file.path), number)
            numbers.setdefault(file.real_path, number)
        own = os.path.dirname(os.path.abspath(self.path))
        places = dict.fromkeys((own, os.path.realpath(own), *map(os.path.abspath, folders)))
        said: dict[int, Line] = {}
        strays = 0
        for line in self.lines:
            paths = (os.path.normpath(os.path.join(place, line.name)) for place in places)
            found = next((numbers[path] for path in paths if path in numbers), None)
            if found is None:
                strays += 1
                continue
            first = said.setdefault(found, line)
            if first.hexdigits != line.hexdigits:
                raise _malformed(
                    self.path,
                    line.number,
                    f"another checksum of {line.name!r} than in line {first.number:,}",
                )
        digests = {
            number: Digest(
                Algorithm.SHA256,
                line.hexdigits,
                f"line {line.number:,} of {os.path.basename(self.path)}",
            )
            for number, line in said.items()
        }
        return digests, strays


def read(path: str) -> Checksums:
    """Return the list in a file; raises UsageError if it cannot be read or has a malformed line."""
    content = _content(path)
    zero = b"\0" in content
    found = []
    for number, line in enumerate(content.split(b"\0" if zero else b"\n"), 1):
        text = line if zero else line.removesuffix(b"\r")
        if text and not text.startswith(b"#"):
            found.append(_parsed(path, number, text, zero=zero))
    if not found:
        raise UsageError(f"{printable(path)}: expected checksums, found none", _HINT)
    return Checksums(path, tuple(found))


def _content(path: str) -> bytes:
    try:
        descriptor = open_to_read(path)
        try:
            content = b"".join(pieces(descriptor, _MOST_BYTES + 1))
        finally:
            close(descriptor)
    except OSError as error:
        message = f"cannot read --checksums {printable(path)}: {error_words(error)}"
        raise unreachable(error, message, _HINT, UsageError) from None
    except ValueError as error:
        raise UsageError(f"cannot read --checksums {printable(path)}: {error}", _HINT) from None
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{printable(path)}: expected checksums, found more than 64 MiB", _HINT)
    return content


def _parsed(path: str, number: int, text: bytes, *, zero: bool) -> Line:
    escaped = text.startswith(b"\\") and not zero
    text = text.removeprefix(b"\\") if escaped else text
    if match := _LINE.fullmatch(text):
        digits, name = match.groups()
    elif match := _TAGGED.fullmatch(text):
        name, digits = match.groups()
    else:
        shown = os.fsdecode(text[:_EXCERPT_CHARACTERS])
        raise _malformed(path, number, f"{shown!r}")
    if escaped:
        wrong = [one for one in _ESCAPE.findall(name) if one not in _ESCAPED]
        if wrong:
            raise _malformed(path, number, f"an escape that sha256sum has not: {wrong[0]!r}")
        name = _ESCAPE.sub(lambda match: _ESCAPED[match[1]], name)
    if b"\0" in name:
        raise _malformed(path, number, "a name with a NUL")
    return Line(number, os.fsdecode(name), digits.decode("ascii").lower())


def _malformed(path: str, number: int, found: str) -> UsageError:
    return UsageError(
        f"{printable(path)}, line {number:,}: expected 64 hex digits, two characters and a name, "
        f"found {printable(found)}",
        _HINT,
    )
