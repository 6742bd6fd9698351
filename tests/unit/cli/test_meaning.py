"""What the flags mean together: which of them give way, and what COMMAND excludes."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from prefetch_cli.base.amounts import Amount
from prefetch_cli.base.errors import ExitCode, UsageError
from prefetch_cli.cli.meaning import settled, to_terms
from prefetch_cli.process.beside import Terms

NOTHING: dict[str, Any] = {
    "check": False,
    "dry_run": False,
    "evict": False,
    "quiet": False,
    "verbose": False,
    "json_document": False,
    "lead": Amount(),
    "best_effort": False,
    "rank": None,
    "world_size": None,
}


def values(**changes: object) -> dict[str, Any]:
    return {**NOTHING, **changes}


@pytest.mark.parametrize(
    ("given", "typed", "command", "expected"),
    [
        # An action of the command line takes the place of one of the environment.
        ({"check": True, "evict": True}, {"evict"}, (), {"evict": True}),
        ({"check": True, "evict": True}, {"check", "evict"}, (), {"check": True, "evict": True}),
        ({"check": True}, (), (), {"check": True}),
        ({"quiet": True, "verbose": True}, {"verbose"}, (), {"verbose": True}),
        ({"quiet": True, "check": True}, {"check"}, (), {"quiet": True, "check": True}),
        # So does COMMAND, and of the output as well, but not what was typed beside it.
        ({"check": True, "json_document": True}, (), ("x",), {}),
        ({"dry_run": True, "evict": True}, (), ("x",), {}),
        ({"json_document": True}, {"json_document"}, ("x",), {"json_document": True}),
        ({"check": True, "dry_run": True}, {"dry_run"}, ("x",), {"dry_run": True}),
        ({"json_document": True}, (), (), {"json_document": True}),
        ({"quiet": True}, (), ("x",), {"quiet": True}),
        (
            {"lead": Amount(7), "best_effort": True},
            (),
            ("x",),
            {"lead": Amount(7), "best_effort": 1},
        ),
        # A rank that the launcher is asked for has the launcher's size.
        ({"rank": "auto", "world_size": 4}, {"rank"}, (), {"rank": "auto"}),
        ({"rank": "auto", "world_size": 4}, (), (), {"rank": "auto", "world_size": 4}),
        ({"rank": 1, "world_size": 4}, {"rank"}, (), {"rank": 1, "world_size": 4}),
    ],
)
def test_what_was_typed_stands_and_the_rest_gives_way(
    given: dict[str, object], typed: Collection[str], command: Sequence[str], expected: object
) -> None:
    before = values(**given)
    found = settled(before, typed, command)
    assert isinstance(expected, dict)
    assert found == values(**expected)
    assert before == values(**given)  # and is left as it was


def test_the_terms_are_those_of_the_flags() -> None:
    given = values(lead=Amount(percent=25), best_effort=True)
    expected = Terms(("serve", "--json", ""), lead=Amount(percent=25), best_effort=True)
    assert to_terms(given, {"lead", "best_effort"}, ["serve", "--json", ""]) == expected
    assert to_terms(values(), (), ("x",)) == Terms(("x",), lead=Amount(), best_effort=False)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("check", "--check"),
        ("dry_run", "--dry-run"),
        ("evict", "--evict"),
        ("json_document", "--json"),
    ],
)
def test_what_excludes_command(name: str, flag: str) -> None:
    with pytest.raises(UsageError) as raised:
        to_terms(values(**{name: True}), {name}, ("x",))
    assert raised.value.message == f"expected {flag} or COMMAND, found both"
    assert raised.value.exit_code is ExitCode.USAGE
    assert to_terms(values(**{name: True}), {name}, ()) is None


@pytest.mark.parametrize(("name", "flag"), [("lead", "--lead"), ("best_effort", "--best-effort")])
def test_what_means_nothing_without_command(name: str, flag: str) -> None:
    given = values(lead=Amount(1), best_effort=True)
    with pytest.raises(UsageError) as raised:
        to_terms(given, {name}, ())
    assert raised.value.message == f"expected a COMMAND with {flag}, found none"
    # Of the environment, it is meant for other runs.
    assert to_terms(given, {"check"}, ()) is None
