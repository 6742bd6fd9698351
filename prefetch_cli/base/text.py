"""Names and text: file systems allow any byte in a name, terminals and text files do not."""

import os
import posixpath
from collections.abc import Sequence


def printable(name: str) -> str:
    r"""Return `name` with everything escaped that a terminal or a log could act on.

    Control characters, terminal escapes, line ends, direction marks and bytes that are not UTF-8
    (surrogates, PEP 383) become backslash escapes; a backslash stays as it is.
    """
    if name.isascii() and name.isprintable():
        return name
    return "".join(char if char.isprintable() else _escape(char) for char in name)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def file_name(text: str) -> str:
    """Return a name read from a UTF-8 file as this process spells names.

    In an ASCII locale with Python's UTF-8 mode off, that is with escaped bytes (PEP 383). Raises
    UnicodeEncodeError for half a surrogate pair, which JSON can hold.
    """
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def listing(names: Sequence[str], *, most: int = 5) -> str:
    """Return the first `most` names joined by commas, and a count of the rest."""
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 file`, `1,024 files`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def stays_below(name: str) -> bool:
    """Return whether a name from a file or a flag is a path below the folder it is used in."""
    try:
        path = file_name(name)
    except UnicodeEncodeError:
        return False
    return (
        not name.startswith("/")
        and ".." not in name.split("/")
        and posixpath.normpath(name) != "."
        and "\0" not in path
    )
