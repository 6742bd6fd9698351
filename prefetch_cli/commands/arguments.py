"""The arguments of a server -> what they name, by its syntax: pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefetch_cli.commands.syntaxes import Meaning, Option, Syntax, Takes


@dataclass
class Named:
    """What the words of a server name."""

    values: dict[Meaning, list[str]] = field(default_factory=dict)
    # Plain words behind an option that this program does not know: its value, or a positional.
    unclear: list[str] = field(default_factory=list)

    def one(self, meaning: Meaning) -> str | None:
        """Return the value of what can be there once, None if it is not there or empty."""
        values = self.values.get(meaning)
        return values[-1] or None if values else None

    def all(self, meaning: Meaning) -> list[str]:
        """Return the values of what can be there several times."""
        return [value for value in self.values.get(meaning, ()) if value]


def read(arguments: Sequence[str], environ: Mapping[str, str], syntax: Syntax) -> Named:
    """Return what the arguments of a server, and the variables that it heeds, name.

    Every word that begins with a dash counts as an option, as in argparse; so only words behind
    an option that is not in the syntax may be misunderstood, and these are told apart.
    """
    reader = _Reader(syntax)
    words = _moved(arguments, syntax.moves)
    reader.read_all(reader.without_keys(words) if syntax.dotted else words)
    named = reader.named
    for option in syntax.options:
        found = next((environ[name] for name in option.variables if environ.get(name)), None)
        if found is not None and option.meaning not in named.values:
            named.values[option.meaning] = _split(found, option)
    return named


def _moved(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments with the first value of this option in front."""
    words = list(arguments)
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if option and name == option and (value or not equals):
            if not equals and at + 1 == len(words):
                break
            behind = at + 1 if equals else at + 2
            return [value if equals else words[at + 1], *words[:at], *words[behind:]]
    return words


class _Reader:
    """Reads words one after the other."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._positionals: list[str] = []
        self._dotted: dict[
            str, dict[str, Any]
        ] = {}  # by the option's name, of which each is its own
        self.named = Named()

    def read_all(self, arguments: Sequence[str]) -> None:
        """Read all words, then give the positionals their meanings."""
        words = list(arguments)
        clear = True
        while words:
            word = words.pop(0)
            if word == "--":
                self._positionals += words
                break
            if len(word) > 1 and word.startswith("-"):
                clear = self._option(word, words) and not self._syntax.positional_first
            elif clear:
                self._positionals.append(word)
            else:
                self.named.unclear.append(word)
        for meaning, word in zip(self._syntax.positionals, self._positionals, strict=False):
            if self._syntax.moves or meaning not in self.named.values:
                self.named.values[meaning] = [word]

    def without_keys(self, words: Sequence[str]) -> list[str]:
        """Return the words less `--option.key value`; the keys go to the end, as JSON."""
        kept: list[str] = []
        below: dict[str, dict[str, Any]] = {}  # by the option's name, as it was written
        left = list(words)
        while left:
            word = left.pop(0)
            name, equals, value = word.partition("=")
            name, dot, key = name.partition(".")
            if not dot or not name.startswith("-"):
                kept.append(word)
                continue
            given = value if equals else (left.pop(0) if left else "")
            _put(below.setdefault(self._spelled(name), {}), key.removesuffix("+"), given)
        for name, keys in below.items():
            kept.append(f"{name}={json.dumps(keys)}")
        return kept

    def _spelled(self, name: str) -> str:
        is_long = self._syntax.dashes and name.startswith("--")
        return name.replace("_", "-") if is_long else name

    def _option(self, word: str, words: list[str]) -> bool:
        """Take an option and its values; return whether plain words behind it are positionals."""
        name, equals, value = word.partition("=") if self._syntax.equals else (word, "", "")
        name = self._spelled(name)
        option = self._known(name)
        if option is not None:
            self._take(option, value if equals else None, words)
            return True
        if not equals and name in self._syntax.valued and words:
            words.pop(0)
        return bool(equals) or name in (*self._syntax.switches, *self._syntax.valued)

    def _known(self, name: str) -> Option | None:
        """Return the option of a name, or of one that it abbreviates.

        If the server knows several that begin like this, it refuses the word itself.
        """
        if name in (*self._syntax.switches, *self._syntax.valued):
            return None
        by_name = {one: option for option in self._syntax.options for one in option.names}
        if name in by_name:
            return by_name[name]
        if not self._syntax.abbreviates or not name.startswith("--") or len(name) < len("--x"):
            return None
        near = {by_name[one].meaning: by_name[one] for one in by_name if one.startswith(name)}
        return next(iter(near.values())) if len(near) == 1 else None

    def _take(self, option: Option, value: str | None, words: list[str]) -> None:
        given: list[str] = []
        if option.takes is Takes.NOTHING:
            given = [option.gives]
        elif value is not None:
            given = [value]
        elif option.takes is Takes.MANY:
            while words and not words[0].startswith("-"):
                given.append(words.pop(0))
        elif words:
            given = [words.pop(0)]
        if option.takes is Takes.COMMAS:
            given = [one for word in given for one in _split(word, option)]
        values = self.named.values
        if option.takes in (Takes.MANY, Takes.COMMAS) and self._syntax.repeats:
            values.setdefault(option.meaning, []).extend(given)
        else:
            values[option.meaning] = given


def _split(text: str, option: Option) -> list[str]:
    if option.takes is not Takes.COMMAS:
        return [text]
    return [one.strip() for one in text.split(",")]


def _put(mapping: dict[str, Any], dotted: str, text: str) -> None:
    """Set a value below nested keys, as JSON if it is JSON."""
    *folders, last = dotted.split(".")
    for key in folders:
        below = mapping.setdefault(key, {})
        if not isinstance(below, dict):
            return
        mapping = below
    mapping[last] = parsed(text, default=text)


def parsed(text: str, *, default: Any = None) -> Any:
    """Return what a text holds as JSON, the default if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return default
