"""One record for each flag: what is derived from it, and that nothing else has to be touched."""

import enum
import re
from typing import Any

import click
import pytest

from man import generate
from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.words import Action, Engine, Hub, LoadFormat, ProgressMode, Split
from prefetch_cli.cli import completion, meaning
from prefetch_cli.cli.command import Command, build
from prefetch_cli.cli.flags import COMMAND, FLAGS, GROUPS, Flag, rivals
from prefetch_cli.cli.rules import Given
from prefetch_cli.cli.types import listed, one_of

NAMES = [flag.name for flag in FLAGS]
SETTABLE = [flag for flag in FLAGS if not flag.at_once]
EXAMPLES = {
    "DURATION": "90s",
    "N": "3",
    "N|auto": "3",
    "PERCENT": "42",
    "SIZE": "3MiB",
    "SIZE|PERCENT": "25%",
}

# A flag that does not exist.
ZONE = Flag(
    names=("-z", "--cold-zone"),
    group="Reading",
    value=one_of(Split, "ZONE"),
    default="files",
    excludes=("--force", COMMAND),
    needs=("--engine",),
    help="Where to begin, with --engine.",
    details="Nothing acts on it.",
)
WITH_ZONE = (*FLAGS, ZONE)


def built(flags: tuple[Flag, ...]) -> Command:
    return build(lambda **_: 0, flags)


def parsed(*words: str, flags: tuple[Flag, ...] = FLAGS) -> dict[str, Any]:
    command = built(flags)
    return command.make_context("x", [*words, "/m"], **command.context_settings).params


# A new record is enough


def test_a_new_flag_is_in_the_help() -> None:
    command = built(WITH_ZONE)
    text = command.get_help(click.Context(command, **command.context_settings))
    (entry,) = re.findall(r"^  -z, --cold-zone ZONE +(.*?)^\S", text, re.MULTILINE | re.DOTALL)
    assert " ".join(entry.split()) == "Where to begin, with --engine. [default: files]"


def test_a_new_flag_is_parsed_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(flags=WITH_ZONE)["cold_zone"] is Split.FILES
    assert parsed("-z", "bytes", flags=WITH_ZONE)["cold_zone"] is Split.BYTES
    with pytest.raises(click.BadParameter, match="expected auto, files or bytes, found 'x'"):
        parsed("-z", "x", flags=WITH_ZONE)
    monkeypatch.setenv("PREFETCH_CLI_COLD_ZONE", "bytes")
    assert parsed(flags=WITH_ZONE)["cold_zone"] is Split.BYTES


def test_a_new_flag_is_in_the_man_page() -> None:
    page = generate.man_page(WITH_ZONE)
    assert (
        r"""
.TP
\fB\-z\fR, \fB\-\-cold\-zone\fR \fIZONE\fR
Where to begin, with \fB\-\-engine\fR.
Nothing acts on it.
It needs \fB\-\-engine\fR.
It excludes \fB\-\-force\fR and COMMAND.
Default: \fBfiles\fR.
"""
        in page
    )
    assert "\\fBPREFETCH_CLI_COLD_ZONE\\fR\n\\fB\\-\\-cold\\-zone\\fR\n" in page
    # The other one says so as well.
    force = page.partition(r"\fB\-\-force\fR" + "\n")[2].partition(".TP")[0]
    assert r"It excludes \fB\-\-cold\-zone\fR." in force.splitlines()


def test_a_new_flag_is_in_the_table_of_options_and_named_by_readme() -> None:
    row = "| `-z`, `--cold-zone ZONE` | `files` | Where to begin, with `--engine`. |"
    assert row in generate.option_table(WITH_ZONE).splitlines()
    markers = "".join(
        f"<!-- {name}: by `make man` -->\n<!-- end of {name} -->\n"
        for name in ("options", "decision", "exit-codes")
    )
    assert "`--cold-zone`" in generate.readme(markers, WITH_ZONE)


@pytest.mark.parametrize(
    ("words", "command", "message"),
    [
        (["-z", "bytes"], (), "expected --engine with --cold-zone, found none"),
        (["-fz", "bytes", "--engine", "read"], (), "expected --cold-zone or --force, found both"),
        (["-z", "bytes", "--engine", "read"], ("x",), "expected --cold-zone or COMMAND, found bo"),
    ],
)
def test_a_new_flag_is_checked(words: list[str], command: tuple[str, ...], message: str) -> None:
    values = parsed(*words, flags=WITH_ZONE)
    typed = {"cold_zone"} | ({"force"} if "-fz" in words else set())
    with pytest.raises(UsageError, match=message):
        Given(values, typed, command, WITH_ZONE).check()


def test_a_new_flag_of_the_environment_gives_way() -> None:
    values = parsed("-z", "bytes", "--engine", "read", flags=WITH_ZONE)
    for typed, command, expected in (
        (set(), (), Split.BYTES),
        ({"force"}, (), Split.FILES),
        (set(), ("x",), Split.FILES),
        ({"cold_zone", "force"}, (), Split.BYTES),
    ):
        found = Given(values, typed, command, WITH_ZONE).effective().values
        assert found["cold_zone"] is expected
    lacking = {**values, "engine": Engine.AUTO}
    assert Given(lacking, (), (), WITH_ZONE).effective().values["cold_zone"] is Split.FILES


# The records that there are


# What no shell can complete: numbers, amounts, and names that only the user knows.
UNKNOWN_TO_SHELLS = {"DURATION", "GLOB", "N", "N|auto", "NAME", "PERCENT", "REV", "SIZE"}


def test_a_value_is_completed_or_known_not_to_be() -> None:
    values = {flag.metavar: flag.value for flag in SETTABLE if flag.value is not None}
    without = {name for name, value in values.items() if not list(completion._values(value, ""))}
    assert without <= UNKNOWN_TO_SHELLS | {"SIZE|PERCENT"}


def test_actions_exclude_each_other_and_command() -> None:
    names = [f"--{action.value}" for action in Action if action is not Action.PREFETCH]
    for flag in FLAGS:
        if flag.name in names:
            assert {*names, COMMAND} - {flag.name} <= set(rivals(flag))


def test_no_two_flags_share_a_name() -> None:
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("flag", FLAGS, ids=NAMES)
def test_a_record_is_sound(flag: Flag) -> None:
    assert flag.group in GROUPS
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*[0-9]?", flag.name)
    assert flag.help.endswith(".")
    assert flag.details.endswith(".") or not flag.details
    assert flag.repeatable == ("repeatable" in flag.help)
    assert not (flag.default and (flag.value is None or flag.repeatable))
    others = {*NAMES, COMMAND} - {flag.name}
    assert {*flag.excludes, *flag.needs} <= others
    if flag.implied_by:
        assert flag.implied_by[0] in others


@pytest.mark.parametrize("flag", SETTABLE, ids=lambda flag: flag.name)
def test_a_flag_is_set_on_the_command_line_or_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, flag: Flag
) -> None:
    assert parsed()[flag.parameter] == flag.unset
    if flag.value is None:
        words, text = [flag.name], "1"
    else:
        words = [word for word in flag.value.words if word != flag.default]
        text = words[-1] if words else EXAMPLES.get(flag.metavar, "text")
        words = [flag.name, text]
    typed = parsed(*words)[flag.parameter]
    assert typed != flag.unset
    monkeypatch.setenv(flag.variable, text)
    assert parsed()[flag.parameter] == typed


class Watched(dict[str, Any]):
    """Values that know which of them were looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def test_every_flag_is_acted_upon() -> None:
    values = Watched(parsed("--package", "x"))
    options = meaning.to_options(values, (), {})
    meaning.to_terms(values, ("x",))
    meaning.to_display(values)
    meaning.to_record(values, options)
    assert values.seen >= {flag.parameter for flag in SETTABLE}


@pytest.mark.parametrize(
    ("parameter", "kind"),
    [
        ("load_format", LoadFormat),
        ("hub", Hub),
        ("split", Split),
        ("engine", Engine),
        ("progress", ProgressMode),
    ],
)
def test_words_are_those_of_the_enum(parameter: str, kind: type[enum.Enum]) -> None:
    (flag,) = (flag for flag in FLAGS if flag.parameter == parameter)
    assert flag.value is not None
    assert list(flag.value.words) == [member.value for member in kind]
    assert listed(kind) in f"{flag.help} {flag.details}"
    for member in kind:
        assert parsed(flag.name, str(member.value))[parameter] is member


@pytest.mark.parametrize("name", ["--load-format", "--split", "--engine"])
def test_the_man_page_explains_each_word(name: str) -> None:
    (flag,) = (flag for flag in FLAGS if flag.name == name)
    assert flag.value is not None
    assert [word for word in flag.value.words if f"`{word}`" not in flag.details] == []
