"""What flags mean for each other: which give way, which exclude each other, which need another."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from prefetch_cli.base.errors import UsageError
from prefetch_cli.cli.flags import COMMAND, FLAGS, Flag, rivals

Values = Mapping[str, Any]  # by parameter, each of the type that its flag parses to


class Given(NamedTuple):
    """What a command line and its environment gave."""

    values: Values
    typed: Collection[str]  # the parameters that were on the command line
    command: tuple[str, ...] = ()  # what follows `--`
    flags: tuple[Flag, ...] = FLAGS

    def effective(self) -> "Given":
        """Return what was given after variables have given way.

        A variable may have been set for other runs. It yields to whatever on this command line
        excludes or replaces it, and where this command line lacks what it needs.
        """
        yielding = {
            flag.parameter: flag.unset
            for flag in self.flags
            if flag.parameter in self.values
            and flag.parameter not in self.typed
            and (
                self._has_typed_rival(flag)
                or self._has_typed_conflict(flag)
                or self._is_implied(flag)
                or self._lacks(flag)
            )
        }
        return self._replace(values={**self.values, **yielding})

    def check(self) -> None:
        """Raise UsageError where flags exclude each other, or one that was typed needs another."""
        for flag in self.flags:
            if flag.parameter in self.typed and self._lacks(flag):
                raise _lacking(flag)
        for flag in self.flags:
            for rival in flag.excludes:
                if self._has(flag.name) and self._has(rival):
                    raise _clash(flag, rival)
            for name, word in flag.conflicts:
                if self._has(flag.name) and self._is(name, word):
                    raise _clash(flag, f"{name} {word}")

    def _has_typed_rival(self, flag: Flag) -> bool:
        typed = {one.name for one in self.flags if one.parameter in self.typed}
        return any(
            rival in typed or (rival == COMMAND and self.command)
            for rival in rivals(flag, self.flags)
        )

    def _has_typed_conflict(self, flag: Flag) -> bool:
        pairs = [(one, *conflict) for one in self.flags for conflict in one.conflicts]
        return any(
            (one is flag and self._flag(name).parameter in self.typed and self._is(name, word))
            or (name == flag.name and one.parameter in self.typed and self._is(name, word))
            for one, name, word in pairs
        )

    def _is(self, name: str, word: str) -> bool:
        """Return whether a flag has the value that this word stands for."""
        flag = self._flag(name)
        return flag.value is not None and self.values.get(flag.parameter) == flag.value.parse(word)

    def _is_implied(self, flag: Flag) -> bool:
        if flag.implied_by is None:
            return False
        name, value = flag.implied_by
        parameter = self._flag(name).parameter
        return parameter in self.typed and self.values[parameter] == value

    def _lacks(self, flag: Flag) -> bool:
        if flag.needs and not any(self._has(need) for need in flag.needs):
            return True
        return self._lacks_of_value(flag)

    def _lacks_of_value(self, flag: Flag) -> bool:
        if flag.value_needs is None:
            return False
        value, need = flag.value_needs
        return self.values.get(flag.parameter) == value and not self._has(need)

    def _has(self, name: str) -> bool:
        """Return whether a flag is set and has what it needs; for COMMAND, whether there is one."""
        if name == COMMAND:
            return bool(self.command)
        flag = self._flag(name)
        return self.values.get(flag.parameter) not in (None, flag.unset) and not self._lacks(flag)

    def _flag(self, name: str) -> Flag:
        return next(flag for flag in self.flags if flag.name == name)


def _lacking(flag: Flag) -> UsageError:
    if flag.value_needs is not None:
        value, need = flag.value_needs
        return _without_command(f"{flag.name} {value.value}", need)
    if flag.needs == (COMMAND,):
        return _without_command(flag.name, COMMAND)
    found = "neither" if len(flag.needs) == 2 else "none"
    needs = " or ".join(flag.needs)
    return UsageError(f"expected {needs} with {flag.name}, found {found}", f"give {flag.needs[0]}")


def _without_command(given: str, need: str) -> UsageError:
    return UsageError(f"expected a {need} with {given}, found none", "put it last, after --")


def _clash(flag: Flag, rival: str) -> UsageError:
    hint = f"run {flag.name} on its own, without --" if rival == COMMAND else "give one of them"
    return UsageError(f"expected {flag.name} or {rival}, found both", hint)
