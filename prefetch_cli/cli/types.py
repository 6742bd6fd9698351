"""The values of flags, as click parses them."""

import math
import os
from typing import Any

import click

from prefetch_cli.base.amounts import Amount, parse_amount, parse_duration, parse_size

_MOST = 1_000_000  # threads or ranks; more is a slip of the keyboard


class Size(click.ParamType):  # type: ignore[type-arg]
    """A size, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the value; a wrong one fails in words for the user."""
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A duration, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the value; a wrong one fails in words for the user."""
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class AmountType(click.ParamType):  # type: ignore[type-arg]
    """A part of something: a size or a percentage."""

    name = "amount"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Amount:
        """Return the value; a wrong one fails in words for the user."""
        try:
            return parse_amount(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A percentage."""

    name = "percent"

    def __init__(self, least: float) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the value; a wrong one fails in words for the user."""
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not self._least <= percent <= 100:
            self.fail(f"expected {self._least:g} to 100, found {str(value)!r}", param, ctx)
        return percent


class Count(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or `auto`."""

    name = "number"

    def __init__(self, least: int, *, auto: bool = False) -> None:
        self._least = least
        self._auto = auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the value; a wrong one fails in words for the user."""
        text = str(value)
        if self._auto and text == "auto":
            return "auto"
        expected = f"a whole number of at least {self._least}"
        # int() refuses thousands of digits.
        number = int(text[:20]) if text.isascii() and text.isdecimal() else -1
        if number > _MOST:
            expected = f"at most {_MOST:,}"
        elif number >= self._least:
            return number
        or_auto = " or auto" if self._auto else ""
        return self.fail(f"expected {expected}{or_auto}, found {text!r}", param, ctx)


class OneOf(click.Choice):  # type: ignore[type-arg]
    """One of some words, which are the values of an enum that `--help` need not load."""

    def __init__(self, *words: str) -> None:
        super().__init__(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value; a wrong one fails in words for the user."""
        if value not in self.choices:
            words = f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
            self.fail(f"expected {words}, found {value!r}", param, ctx)
        return str(value)


class Several(click.ParamType):  # type: ignore[type-arg]
    """A text that may be given several times."""

    # How several stand in one environment variable.
    envvar_list_splitter = os.pathsep

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value; a wrong one fails in words for the user."""
        return str(value)
