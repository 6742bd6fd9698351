"""Bytes -> nearly valid bytes, which get further than random ones."""

import random
from collections.abc import Callable, Sequence

_MOST_BYTES = 256 * 1024  # ever-growing texts would only slow the fuzzing down
_MOST_TIMES = 200
_TELLING = (
    *(b"\x00", b"\xff", b"\n", b"\r", b"\t", b" ", b"\\", b'"', b"'", b"/", b"..", b"../../", b","),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b"*",
        b"?",
        b"[!",
        b"(",
        b")",
        b"%",
        b"~",
        b"$HOME",
        b"=",
        b"-",
    ),
    *(b"0", b"-1", b"1e999", b"9" * 30, b"18446744073709551615", b"9223372036854771712", b"NaN"),
    *(b"\x1b[31m", b"\x1b]0;x\x07", b"\xe2\x80\xae", b"\xf0\x9f\x8e\x89", b"\xed\xa0\x80", b"\x9b"),
    *(b"\\u0000", b"\\ud800", b"\\040", b"\\134", b"null", b"true", b"max", b"(x99999999)"),
)


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return one of the seeds, changed a few times."""
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        chance.choice(_CHANGES)(chance, content, seeds)
    return bytes(content[:_MOST_BYTES])


def _span(chance: random.Random, content: bytearray) -> tuple[int, int]:
    start = chance.randint(0, len(content))
    return start, min(len(content), start + chance.choice((1, 2, 8, 64, 1024)))


def _flip(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _drop(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    start, end = _span(chance, content)
    del content[start:end]


def _cut(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    del content[chance.randint(0, len(content)) :]


def _insert(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    start, _ = _span(chance, content)
    content[start:start] = chance.choice(_TELLING)


def _overwrite(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    start, end = _span(chance, content)
    content[start:end] = chance.choice(_TELLING)


def _noise(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    start, end = _span(chance, content)
    content[start:end] = chance.randbytes(end - start)


def _repeat(chance: random.Random, content: bytearray, _seeds: Sequence[bytes]) -> None:
    start, end = _span(chance, content)
    content[start:end] = content[start:end] * chance.randint(2, _MOST_TIMES)


def _cross(chance: random.Random, content: bytearray, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    at = chance.randint(0, len(other))
    start, _ = _span(chance, content)
    content[start:] = other[at:]


_CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _drop, _cut, _insert, _insert, _overwrite, _noise, _repeat, _cross),
)
