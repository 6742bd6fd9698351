"""Which flags give way, which exclude each other, and which need another."""

from collections.abc import Collection
from typing import Any

import pytest

from prefetch_cli.base.amounts import Amount
from prefetch_cli.base.errors import ExitCode, UsageError
from prefetch_cli.base.words import Engine, Split, Until
from prefetch_cli.cli.flags import COMMAND, FLAGS
from prefetch_cli.cli.rules import Given

NOTHING = {flag.parameter: flag.unset for flag in FLAGS if not flag.at_once}


def values(**changes: object) -> dict[str, Any]:
    assert changes.keys() <= NOTHING.keys()
    return {**NOTHING, **changes}


@pytest.mark.parametrize(
    ("given", "typed", "command", "expected"),
    [
        # An action on the command line replaces one of the environment.
        ({"check": True, "evict": True}, {"evict"}, (), {"evict": True}),
        ({"check": True, "evict": True}, {"check", "evict"}, (), {"check": True, "evict": True}),
        ({"check": True}, (), (), {"check": True}),
        ({"quiet": True, "verbose": True}, {"verbose"}, (), {"verbose": True}),
        ({"quiet": True, "check": True}, {"check"}, (), {"quiet": True, "check": True}),
        # So does COMMAND, and it replaces --json, but nothing that was typed beside it.
        ({"check": True, "json": True}, (), ("x",), {}),
        ({"dry_run": True, "evict": True}, (), ("x",), {}),
        ({"json": True}, {"json"}, ("x",), {"json": True}),
        ({"check": True, "dry_run": True}, {"dry_run"}, ("x",), {"dry_run": True}),
        ({"json": True}, (), (), {"json": True}),
        ({"quiet": True}, (), ("x",), {"quiet": True}),
        (
            {"lead": Amount(7), "best_effort": True},
            (),
            ("x",),
            {"lead": Amount(7), "best_effort": 1},
        ),
        # Where a variable lacks what it needs, it is meant for other runs.
        ({"lead": Amount(7), "best_effort": True, "libraries": True}, (), (), {}),
        ({"lead": Amount(7)}, {"lead"}, (), {"lead": Amount(7)}),
        ({"python": "p", "libraries": True}, (), (), {}),
        (
            {"python": "p", "libraries": True},
            (),
            ("x",),
            {"python": "p", "libraries": True},
        ),
        ({"python": "p", "package": ("a",)}, (), (), {"python": "p", "package": ("a",)}),
        # A rank that the launcher is asked for has the launcher's size.
        ({"rank": "auto", "world_size": 4}, {"rank"}, (), {"rank": "auto"}),
        ({"rank": "auto", "world_size": 4}, (), (), {"rank": "auto", "world_size": 4}),
        ({"rank": 1, "world_size": 4}, {"rank"}, (), {"rank": 1, "world_size": 4}),
    ],
)
def test_what_was_typed_stands_and_the_rest_gives_way(
    given: dict[str, object], typed: Collection[str], command: tuple[str, ...], expected: object
) -> None:
    before = values(**given)
    found = Given(before, typed, command).effective().values
    assert isinstance(expected, dict)
    assert found == values(**expected)
    assert before == values(**given)  # and is left as it was


def refused(
    given: dict[str, object], typed: Collection[str], command: tuple[str, ...] = ()
) -> UsageError:
    with pytest.raises(UsageError) as raised:
        Given(values(**given), typed, command).check()
    assert raised.value.exit_code is ExitCode.USAGE
    return raised.value


EXCLUDE_COMMAND = ("check", "dry_run", "evict", "json", "list")
NEED_COMMAND = ("lead", "best_effort", "libraries", "window")
EXCLUDE_EACH_OTHER = (
    ("dry_run", "check"),
    ("dry_run", "evict"),
    ("check", "evict"),
    ("list", "dry_run"),
    ("list", "check"),
    ("list", "evict"),
    ("quiet", "verbose"),
    ("verify", "check"),
    ("verify", "evict"),
    ("verify", "dry_run"),
    ("verify", "list"),
    ("keep", "dry_run"),
    ("keep", "check"),
    ("keep", "evict"),
    ("keep", "list"),
    ("tensors", "verify"),
    ("stage", "verify"),
    ("experts", "verify"),
)
EXCLUDED_BY_WINDOW = ("max_bytes", "rank", "world_size", "verify", "keep")
EXCLUDE_VALUES = (
    ("--split", "bytes"),
    ("--engine", "populate"),
    ("--engine", "advise"),
    ("--engine", "splice"),
)


def test_all_that_flags_exclude_or_need_is_tried_here() -> None:
    """Each limit on what goes together is meant: a new one takes its place here."""
    pairs = {(flag.parameter, name) for flag in FLAGS for name in flag.excludes}
    each_other = {(one, f"--{other}".replace("_", "-")) for one, other in EXCLUDE_EACH_OTHER}
    each_other |= {("window", f"--{one}".replace("_", "-")) for one in EXCLUDED_BY_WINDOW}
    of_list = {("print0", "--json")}
    assert pairs == each_other | of_list | {(one, COMMAND) for one in EXCLUDE_COMMAND}
    needs = {(flag.parameter, name) for flag in FLAGS for name in flag.needs}
    of_python = {("python", "--package"), ("python", "--libraries")}
    of_others = {
        ("trial", "--dry-run"),
        ("print0", "--list"),
        ("checksums", "--verify"),
        ("lock", "--keep"),
    }
    assert needs == of_python | of_others | {(one, COMMAND) for one in NEED_COMMAND}

    of_values = {(flag.parameter, flag.value_needs) for flag in FLAGS if flag.value_needs}
    assert of_values == {("keep", (Until.LOAD, COMMAND))}


def test_load_by_itself_needs_command() -> None:
    error = refused({"keep": Until.LOAD}, {"keep"})
    assert error.message == "expected a COMMAND with --keep load, found none"
    Given(values(keep=Until.LOAD), {"keep"}, ("x",)).check()
    Given(values(keep=60.0), {"keep"}).check()
    # A variable is meant for other runs, and so is what it would have locked.
    given = Given(values(keep=Until.LOAD, lock=True), ()).effective()
    assert (given.values["keep"], given.values["lock"]) == (None, False)


def test_lock_needs_something_to_end_it() -> None:
    error = refused({"lock": True}, {"lock"})
    assert error.message == "expected --keep with --lock, found none"
    Given(values(lock=True, keep=60.0), {"lock", "keep"}).check()


@pytest.mark.parametrize("parameter", EXCLUDE_COMMAND)
def test_what_excludes_command(parameter: str) -> None:
    flag = "--" + parameter.replace("_", "-")
    error = refused({parameter: True}, {parameter}, ("x",))
    assert error.message == f"expected {flag} or COMMAND, found both"
    assert error.hint == f"run {flag} on its own, without --"
    Given(values(**{parameter: True}), {parameter}).check()


@pytest.mark.parametrize("parameter", NEED_COMMAND)
def test_what_means_nothing_without_command(parameter: str) -> None:
    given = {"lead": Amount(1), "best_effort": True, "libraries": True, "window": 1}
    flag = "--" + parameter.replace("_", "-")
    error = refused(given, {parameter})
    assert error.message == f"expected a COMMAND with {flag}, found none"
    # A variable is meant for other runs.
    Given(values(**given), {"check"}).check()


@pytest.mark.parametrize(("one", "other"), EXCLUDE_EACH_OTHER)
def test_what_excludes_each_other(one: str, other: str) -> None:
    expected = f"expected --{one} or --{other}, found both".replace("_", "-")
    for typed in ({one, other}, {one}, ()):
        error = refused({one: True, other: True}, typed)
        assert (error.message, error.hint) == (expected, "give one of them")


@pytest.mark.parametrize("other", EXCLUDED_BY_WINDOW)
def test_what_a_window_excludes(other: str) -> None:
    given = {"window": "auto", other: 1}
    error = refused(given, {"window", other}, ("x",))
    flag = "--" + other.replace("_", "-")
    assert error.message == f"expected --window or {flag}, found both"
    # A variable gives way.
    kept = Given(values(**given), {"window"}, ("x",)).effective()
    assert kept.values == values(window="auto")
    kept.check()


def test_all_values_that_flags_exclude_are_tried_here() -> None:
    pairs = [(flag.name, *pair) for flag in FLAGS for pair in flag.conflicts]
    assert pairs == [("--verify", *pair) for pair in EXCLUDE_VALUES]


@pytest.mark.parametrize(("flag", "word"), EXCLUDE_VALUES)
def test_a_value_that_a_flag_excludes(flag: str, word: str) -> None:
    parameter = flag.removeprefix("--")
    value = next(one.value for one in FLAGS if one.name == flag)
    assert value is not None
    given = {"verify": True, parameter: value.parse(word)}
    error = refused(given, {"verify", parameter})
    assert error.message == f"expected --verify or {flag} {word}, found both"
    # What was typed stands; a variable gives way, whichever of the two it is.
    for typed, other in (("verify", parameter), (parameter, "verify")):
        kept = Given(values(**given), {typed}).effective()
        kept.check()
        assert kept.values == values(**{typed: given[typed]})
        assert kept.values[other] != given[other]
    Given(values(verify=True, split=Split.FILES, engine=Engine.READ), {"verify"}).check()


def test_python_needs_packages() -> None:
    error = refused({"python": "p"}, {"python"})
    assert error.message == "expected --package or --libraries with --python, found neither"
    # Without a COMMAND, --libraries of the environment means nothing either.
    refused({"python": "p", "libraries": True}, {"python"})
    Given(values(python="p", libraries=True), {"python"}, ("x",)).check()
    Given(values(python="p", package=("a",)), {"python"}).check()


def test_a_trial_by_itself_needs_a_dry_run() -> None:
    error = refused({"trial": True}, {"trial"})
    assert error.message == "expected --dry-run with --trial, found none"
    Given(values(trial=True, dry_run=True), {"trial", "dry_run"}).check()
    Given(values(trial=True), ()).effective().check()


def test_names_ended_by_nul_need_a_list_that_is_no_document() -> None:
    error = refused({"print0": True}, {"print0"})
    assert error.message == "expected --list with --print0, found none"
    error = refused({"print0": True, "list": True, "json": True}, {"print0", "list"})
    assert error.message == "expected --print0 or --json, found both"
    Given(values(print0=True, list=True), {"print0", "list"}).check()
    found = Given(values(print0=True, list=True, json=True), {"json", "list"}).effective().values
    assert found == values(list=True, json=True)
