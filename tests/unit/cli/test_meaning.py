"""What the values of the flags become."""

import os
from typing import Any

import pytest

from prefetch_cli.base.amounts import Amount
from prefetch_cli.base.errors import CheckpointError, ExitCode
from prefetch_cli.base.words import Action
from prefetch_cli.cli.flags import FLAGS
from prefetch_cli.cli.meaning import refuse, to_options, to_terms
from prefetch_cli.process.command import Terms
from prefetch_cli.run.options import Window

NOTHING = {flag.parameter: flag.unset for flag in FLAGS if not flag.at_once}


def values(**changes: object) -> dict[str, Any]:
    return {**NOTHING, "checkpoints": ("/m",), **changes}


def test_the_terms_are_those_of_the_flags() -> None:
    given = values(lead=Amount(percent=25), best_effort=True)
    expected = Terms(("serve", "--json", ""), lead=Amount(percent=25), best_effort=True)
    assert to_terms(given, ["serve", "--json", ""]) == expected
    assert to_terms(values(), ("x",)) == Terms(("x",), lead=Amount(), best_effort=False)
    assert to_terms(given, ()) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Action.PREFETCH),
        ({"dry_run": True}, Action.DRY_RUN),
        ({"check": True}, Action.CHECK),
        ({"evict": True}, Action.EVICT),
        ({"list": True}, Action.LIST),
    ],
)
def test_the_action_is_that_of_the_flag(given: dict[str, object], expected: Action) -> None:
    assert to_options(values(**given), (), {}).action is expected


def test_what_is_refused_needs_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    error = CheckpointError("expected a checkpoint, found none")
    assert refuse({}, error, None) == ExitCode.CHECKPOINT
    assert capsys.readouterr() == ("", "prefetch-cli: error: expected a checkpoint, found none\n")
    assert refuse({"json": True, "check": True, "evict": True}, error, None) == 3
    assert '"action": "prefetch"' in capsys.readouterr().out


# The window


def window(**given: object) -> Window | None:
    return to_options(values(**given), ("serve",), {}).window


def test_a_window_is_as_large_as_the_flag_says() -> None:
    assert window(window=1000) == Window(1000, os.getpid(), given=True)
    assert window(window="auto") == Window(None, os.getpid(), given=True)
    # The hardware may ask for one.
    assert window() == Window(None, os.getpid(), given=False)
    assert to_options(values(), (), {}).window is None


@pytest.mark.parametrize(
    "given",
    [
        {"rank": "auto"},
        {"rank": 0, "world_size": 2},
        {"verify": True},
        {"keep": 60.0},
        {"max_bytes": 5},
    ],
)
def test_where_a_window_is_excluded_the_hardware_gets_none(given: dict[str, object]) -> None:
    assert window(**given) is None
