"""The values of flags: how each kind is written and parsed."""

import enum
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from prefetch_cli.base.amounts import parse_amount, parse_duration, parse_size
from prefetch_cli.base.words import Until, Which
from prefetch_cli.checkpoint.placement import LEFT_OUT, Ranks, Span

_MOST = 1_000_000  # threads or ranks; more is a typing error


class Value(NamedTuple):
    """How a flag's value is named in the help, and how its text is parsed."""

    metavar: str
    parse: Callable[[str], object] = str  # raises ValueError, in words for the user
    words: tuple[str, ...] = ()  # for completion: all it can be, or those it can be beside others
    paths: str = ""  # for completion: "file" or "dir"


SIZE = Value("SIZE", parse_size)
DURATION = Value("DURATION", parse_duration)


def _until(text: str) -> float | Until:
    try:
        return Until(text)
    except ValueError:
        pass
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}".replace(", found", ", or load, found")) from None


UNTIL = Value("DURATION|load", _until, (Until.LOAD.value,))
AMOUNT = Value("SIZE|PERCENT", parse_amount)


_RANKS = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?/([0-9]{1,6})")
_SPAN = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")


def _stages(text: str) -> Ranks | Which:
    if text == Which.ALL.value:
        return Which.ALL
    found = _ranks(text)
    if found is None:
        raise ValueError(f"expected I/N with I below N, as in 0/2, or all, found {text!r}")
    return found


def _experts(text: str) -> Ranks | Span | Which:
    if text == Which.ALL.value:
        return Which.ALL
    found = _ranks(text) or _span(text)
    if found is None:
        raise ValueError(
            f"expected A-B with A up to B, as in 0-7, I/N with I below N, as in 0/2, or all, "
            f"found {text!r}"
        )
    return found


def _ranks(text: str) -> Ranks | None:
    """Return some of several, as in `0/2` or `0-3/8`."""
    match = _RANKS.fullmatch(text)
    if match is None:
        return None
    first, last, count = int(match[1]), int(match[2] or match[1]), int(match[3])
    return Ranks(first, last, count) if first <= last < count else None


def _span(text: str) -> Span | None:
    match = _SPAN.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        return None
    return Span(int(match[1]), int(match[2]))


def _tensors(text: str) -> str:
    if not text.removeprefix(LEFT_OUT):
        raise ValueError(f"expected a glob, as in '*.mlp.*', found {text!r}")
    return text


STAGES = Value("I/N|all", _stages, (Which.ALL.value,))
EXPERTS = Value("A-B|I/N|all", _experts, (Which.ALL.value,))
TENSORS = Value("GLOB", _tensors)


def _size_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{error}".replace(", found", ", or auto, found")) from None


SIZE_OR_AUTO = Value("SIZE|auto", _size_or_auto, ("auto",))


def percent(least: int) -> Value:
    """Return a percentage from `least` to 100."""

    def parse(text: str) -> float:
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = math.nan
        if not least <= number <= 100:
            raise ValueError(f"expected {least} to 100, found {text!r}")
        return number

    return Value("PERCENT", parse)


def count(least: int, *, auto: bool = False) -> Value:
    """Return a whole number of at least `least`, or the word `auto` where that is allowed."""
    or_auto = " or auto" if auto else ""

    def parse(text: str) -> int | str:
        if auto and text == "auto":
            return text
        expected = f"a whole number of at least {least}"
        # int() refuses thousands of digits.
        number = int(text[:20]) if text.isascii() and text.isdecimal() else -1
        if number > _MOST:
            expected = f"at most {_MOST:,}"
        elif number >= least:
            return number
        raise ValueError(f"expected {expected}{or_auto}, found {text!r}")

    return Value("N|auto", parse, ("auto",)) if auto else Value("N", parse)


def one_of(kind: type[enum.Enum], metavar: str, *, any_case: bool = False) -> Value:
    """Return the words of an enum, in any case where asked; the parsed value is its member."""
    words = tuple(str(member.value) for member in kind)

    def parse(text: str) -> enum.Enum:
        word = text.lower() if any_case else text
        if word not in words:
            raise ValueError(f"expected {listed(kind)}, found {text!r}")
        return kind(word)

    return Value(metavar, parse, words)


def listed(kind: type[enum.Enum]) -> str:
    """Return the words of an enum as a phrase: `auto, files or bytes`."""
    *others, last = (str(member.value) for member in kind)
    return f"{', '.join(others)} or {last}"
