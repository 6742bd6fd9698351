"""The project's documents as text: sections, blocks of code, man(7) source without its escapes."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helpers.command import ROOT

PAGES = (
    "prefetch-cli.1",
    "prefetch-cli-json.5",
    "prefetch-cli-recipes.7",
    "prefetch-cli-caching.7",
)
# What a page writes so that a reader can paste the text into a shell, and the bullet of a list.
_ESCAPES = {
    r"\-": "-",
    r"\e": "\\",
    r"\&": "",
    r"\(aq": "'",
    r"\(bu": "*",
    r"\(ga": "`",
    r"\(ti": "~",
}
_COMMENT = re.compile(r'^\.\\".*\n', re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:\(..|f.|.)")
_BLOCK = re.compile(
    r'(?:^\.\\" recipe: (?P<name>[a-z-]+) (?P<language>[a-z]+)\n)?^\.EX\n(?P<text>.*?)^\.EE$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code of a man page; without a comment above it, name and language are empty."""

    name: str
    language: str
    text: str


def read(*parts: str) -> str:
    """Return the text of a file, by its path below the root of the tree."""
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


def page(name: str) -> str:
    """Return the source of a man page."""
    return read("man", name)


def section(text: str, heading: str, marker: str = "## ") -> str:
    """Return what stands under a heading."""
    _, found, rest = text.partition(f"{marker}{heading}\n")
    assert found, f"no section {heading}"
    return rest.partition(f"\n{marker}")[0]


def fenced(text: str, language: str) -> list[str]:
    """Return the contents of Markdown's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def plain(roff: str) -> str:
    """Return man(7) source without its comments and escapes; an unknown escape is a KeyError."""
    return _ESCAPE.sub(
        lambda match: "" if match[0].startswith(r"\f") else _ESCAPES[match[0]],
        _COMMENT.sub("", roff),
    )


def blocks(source: str) -> Iterator[Block]:
    """Yield the code blocks of a man page, in their order."""
    for match in _BLOCK.finditer(source):
        yield Block(match["name"] or "", match["language"] or "", plain(match["text"]))
