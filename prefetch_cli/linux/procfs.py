"""Small files of the kernel, /proc and cgroups: plain numbers, and `name value` lines."""

import os


def read(path: str) -> bytes:
    """Return the contents of a file; raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def number(text: bytes) -> int:
    """Return a plain decimal number; raises ValueError."""
    if not text.strip().isdigit():
        raise ValueError(f"expected a number, found {text!r}")
    return int(text)


def fields(path: str) -> dict[str, bytes]:
    """Return the values of a file of `name value` or `name: value kB` lines; raises OSError."""
    words = (line.split() for line in read(path).split(b"\n"))
    return {os.fsdecode(name): value for name, value, *_ in (w for w in words if len(w) > 1)}


def below(root: str, path: str) -> str:
    """Return where an absolute path lies in a tree that a test laid out under `root`."""
    return os.path.join(root, path.lstrip("/"))
