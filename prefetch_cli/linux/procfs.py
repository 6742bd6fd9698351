"""Small files of the kernel, /proc and cgroups: plain numbers, and `name value` lines."""

import os
import sys

from prefetch_cli.linux.files import close, pieces

_MOST_TEXT_BYTES = 4096


def read(path: str, most_bytes: int = sys.maxsize) -> bytes:
    """Return the contents of a file, at most so much; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(pieces(descriptor, most_bytes))
    finally:
        close(descriptor)


def text(path: str) -> str:
    """Return the stripped content of a file of a few words, empty where there is none."""
    try:
        return os.fsdecode(read(path, _MOST_TEXT_BYTES)).strip()
    except OSError:
        return ""


def number(digits: bytes) -> int:
    """Return a plain decimal number; raises ValueError."""
    if not digits.strip().isdigit():
        raise ValueError(f"expected a number, found {digits!r}")
    return int(digits)


def fields(path: str) -> dict[str, bytes]:
    """Return the values of a file of `name value` or `name: value kB` lines; raises OSError."""
    words = (line.split() for line in read(path).split(b"\n"))
    return {os.fsdecode(name): value for name, value, *_ in (w for w in words if len(w) > 1)}


def below(root: str, path: str) -> str:
    """Return where an absolute path lies in a tree that a test laid out under `root`."""
    return os.path.join(root, path.lstrip("/"))
