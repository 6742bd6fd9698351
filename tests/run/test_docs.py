"""Options, exit codes, decisions and messages: the documents say what the program does."""

import ast
import errno
import glob
import os
import re
import shutil
import signal
import subprocess

import click
import pytest

from man import content, generate
from prefetch_cli import __version__
from prefetch_cli.base.errors import ExitCode, interrupted_exit_code
from prefetch_cli.base.words import Overrule
from prefetch_cli.cli.flags import FLAGS
from prefetch_cli.cli.main import command
from prefetch_cli.commands.syntaxes import STARTS
from prefetch_cli.plan import ranks
from prefetch_cli.plan.budget import budget
from prefetch_cli.plan.decision import (
    Facts,
    Forecast,
    Reason,
    Sample,
    Storage,
    Verdict,
    decide,
)
from prefetch_cli.plan.window import Ahead, Wish
from tests.helpers.command import ROOT
from tests.helpers.documents import PAGES, page, plain, read, section
from tests.run import examples
from tests.run import test_json_contract as contract

GIB = 1 << 30

BENCH = "tests/bench/README.md"
FLAG = re.compile(r"(?<![\w-])--?[a-z](?:[a-z0-9-]*[a-z0-9])?")


@pytest.fixture(scope="module")
def readme() -> str:
    return read("README.md")


@pytest.fixture(scope="module")
def man_page() -> str:
    return page("prefetch-cli.1")


# What is generated


def test_man_page_is_what_the_command_says(man_page: str) -> None:
    assert man_page == generate.man_page(), "run `make man`"


def test_table_of_options_is_what_the_command_says() -> None:
    assert read("man", "options.md") == generate.option_table(), "run `make man`"


def test_tables_of_readme_are_what_the_command_says(readme: str) -> None:
    assert readme == generate.readme(readme), "run `make man`"


def test_writing_again_changes_nothing(readme: str) -> None:
    assert generate.man_page() == generate.man_page()
    assert generate.option_table() == generate.option_table()
    assert generate.readme(generate.readme(readme)) == generate.readme(readme)


def test_a_lost_marker_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="options"):
        generate.readme(readme.replace("<!-- end of options -->", ""))


# Options


def flags_of_command() -> set[str]:
    context = click.Context(command, **command.context_settings)
    return {flag for param in command.get_params(context) for flag in param.opts if flag[0] == "-"}


def flags_of_help() -> set[str]:
    text = command.get_help(click.Context(command, **command.context_settings))
    entries = re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)
    return {flag for entry in entries for flag in FLAG.findall(entry)}


def flags_of_man_page(man_page: str) -> set[str]:
    options = section(man_page, "OPTIONS", ".SH ")
    entries = re.findall(r"^\.TP\n(.*)$", options, re.MULTILINE)
    bold = (name for entry in entries for name in re.findall(r"\\fB(.*?)\\fR", entry))
    return set(map(plain, bold))


def flags_of_table() -> set[str]:
    rows = re.findall(r"^\| (`-.*?`) \|", read("man", "options.md"), re.MULTILINE)
    return {flag for row in rows for flag in FLAG.findall(row)}


def flags_of_readme(readme: str) -> set[str]:
    rows = re.findall(r"^\| [A-Z][a-z]+ \| (`-.*`) \|$", section(readme, "Options"), re.MULTILINE)
    return {flag for row in rows for flag in FLAG.findall(row)}


def test_help_and_documents_have_the_same_options(readme: str, man_page: str) -> None:
    expected = flags_of_command()
    assert len(expected) > 30
    assert flags_of_help() == expected
    assert flags_of_man_page(man_page) == expected
    assert flags_of_table() == expected
    assert flags_of_readme(readme) == {flag for flag in expected if flag.startswith("--")}


def test_no_document_names_a_flag_that_is_not_there(readme: str) -> None:
    known = flags_of_command() | {"--"}
    others = {  # of pip, make test-peers, bench-vm, sbatch, srun, docker, numactl and the servers
        "--directories",
        "--entrypoint",
        "--exclusive",
        "--first-seed",
        "--gpus",
        "--headless",
        "--init",
        "--interleave",
        "--ipc",
        "--master-addr",
        "--mem",
        "--memory",
        "--nnodes",
        "--no-cache-dir",
        "--only",
        "--node-rank",
        "--ntasks",
        "--pipeline-parallel-size",
        "--publish",
        "--read-ahead",
        "--rm",
        "--rounds",
        "--safetensors-load-strategy",
        "--size",
        "--volume",
        "--weight-loader-drop-cache-after-load",
        "--weight-loader-prefetch-checkpoints",
        "--lasting",
        "--window-size",
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--tensor-parallel-size",
        "--port",
        *(name for start in STARTS for one in start.syntax.options for name in one.names),
    }
    pages = [plain(page(name)) for name in PAGES]
    for text in (readme, *pages, *map(read, ("CHANGELOG.md", "tests/README.md", BENCH))):
        named = re.findall(r"(?<![\w|-])--[a-z][a-z0-9-]*", re.sub(r"<!--.*?-->", "", text))
        assert set(named) - others <= known


def test_each_variable_of_an_option_is_the_one_that_click_reads(man_page: str) -> None:
    text = plain(section(man_page, "ENVIRONMENT", ".SH "))
    context = click.Context(command, **command.context_settings)
    params = {flag: param for param in command.get_params(context) for flag in param.opts}
    for flag in FLAGS:
        if flag.variable:
            assert re.search(rf"^{flag.variable}\n{flag.name}\.?$", text, re.MULTILINE)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(flag.variable, "42")
                assert params[flag.name].resolve_envvar_value(context) == "42"
    without = {flag.name for flag in FLAGS if not flag.variable}
    assert without == {"--version", "--help"}


# Other variables


def names_in_source(pattern: str) -> set[str]:
    paths = glob.glob(os.path.join(ROOT, "prefetch_cli", "*", "*.py"))
    return {name for path in paths for name in re.findall(pattern, read(path))}


def test_man_page_names_each_variable_that_is_read(man_page: str) -> None:
    named = {name for names in content.ENVIRONMENT for name in names.split(", ")}
    read_by_name = names_in_source(r'environ(?:\.get\(|\[)"([A-Z_]+)"')
    assert {"HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE"} <= read_by_name
    assert read_by_name <= named
    assert set(ranks._NAMES) <= named
    text = plain(section(man_page, "ENVIRONMENT", ".SH "))
    assert all(name in text for name in named)


def test_man_page_names_the_files_of_the_kernel_that_are_read() -> None:
    named = ", ".join(content.FILES)
    for path in ("/proc/self/mountinfo", "/proc/meminfo", "/proc/self/cgroup"):
        assert path in named
        assert path in names_in_source(r'"(/proc/[a-z/]+)"')


# Exit codes


def exit_codes() -> set[str]:
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    return {str(int(code)) for code in (*ExitCode, *map(interrupted_exit_code, signals))}


def test_man_page_and_readme_have_each_exit_code(readme: str, man_page: str) -> None:
    rows = re.findall(r"^\| `(\d+)` \|", section(readme, "Exit codes"), re.MULTILINE)
    status = section(man_page, "EXIT STATUS", ".SH ")
    entries = re.findall(r"^\.TP\n\\fB(\d+)\\fR$", status, re.MULTILINE)
    assert set(rows) == set(entries) == exit_codes()
    assert len(rows) == len(entries) == len(exit_codes())


# Decision


def facts(found: str) -> Facts:
    """Return the facts that a row of the table describes, for a share of 60 GiB."""
    return Facts(
        total_bytes=(200 if "does not fit" in found else 60) * GIB,
        share_bytes=0 if "nothing in" in found else 60 * GIB,
        resident_bytes=60 * GIB if "exact" in found or "next four" in found else 0,
        sample=Sample(60 * GIB, 1024) if "sample" in found else None,
        in_memory="in memory" in found,
        bypasses_cache="bypass" in found,
        storage=Storage.NETWORK if "network" in found else Storage.LOCAL,
        cold_bytes=0,
        forecast=Forecast(60 * GIB, GIB, GIB / 11) if "slow" in found else None,
    )


def overrules(given: str) -> list[Overrule]:
    if given == "--verify":
        return [Overrule.VERIFY]
    either = [Overrule.NONE, Overrule.FORCE, Overrule.PARTIAL, Overrule.FORCE | Overrule.PARTIAL]
    if given == content.NOTHING_TO_GAIN:
        return either
    forced = Overrule.FORCE if "--force" in given else Overrule.NONE
    return [forced | (Overrule.PARTIAL if "--partial" in given else Overrule.NONE)]


@pytest.mark.parametrize("row", content.DECISIONS, ids=lambda row: f"{row.found}, {row.given}")
def test_the_decision_table_is_what_is_decided(row: content.Row) -> None:
    for overrule in overrules(row.given):
        ahead = Ahead(GIB, Wish.GIVEN) if "--window" in row.given else None
        found = decide(facts(row.found), budget(100 * GIB, "host", 90, None), overrule, ahead)
        assert (found.action, found.reason, found.warning) == (row.action, row.reason, row.warns)


def test_the_decision_table_has_each_reason() -> None:
    assert {row.reason for row in content.DECISIONS} == set(Reason)
    assert {row.action for row in content.DECISIONS} == set(Verdict)


def test_the_contract_of_json_has_each_reason_beside_its_action() -> None:
    skips = {row.reason.value for row in content.DECISIONS if row.action is Verdict.SKIP}
    reads = {row.reason.value for row in content.DECISIONS if row.action is not Verdict.SKIP}
    assert (set(contract.SKIP_REASONS), set(contract.READ_REASONS)) == (skips, reads)


def test_no_row_of_the_decision_table_hides_one_below_it() -> None:
    """The first row that matches decides, and what is found is narrowed down word by word."""

    def hides(first: content.Row, second: content.Row) -> bool:
        found = (second.found + ",").startswith(first.found + ",")
        if first.given == content.NOTHING_TO_GAIN:
            return found
        narrower = set(first.given.split()) <= set(second.given.split())
        return found and narrower

    rows = content.DECISIONS
    assert [
        (first, second)
        for number, first in enumerate(rows)
        for second in rows[number + 1 :]
        if hides(first, second)
    ] == []


# Examples


def test_commands_of_the_man_page_can_be_given() -> None:
    lines = [line for _, example in generate.examples() for line in examples.command_lines(example)]
    assert len(lines) == len(generate.examples())
    for line in lines:
        examples.assert_can_be_given(line)


# Diagnostics


def texts_of_source() -> str:
    """Return all string literals in the source, separated by NUL."""
    return "\0".join(
        node.value
        for path in glob.glob(os.path.join(ROOT, "prefetch_cli", "*", "*.py"))
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_each_diagnostic_is_one_that_the_program_gives() -> None:
    source = texts_of_source()
    errors = {os.strerror(number) for number in (errno.EIO, errno.ENOENT)}  # the system's words
    for one in content.DIAGNOSTICS:
        for piece in re.split(r"\{[A-Z]+\}|: ", one.said):
            assert piece.strip() in source or piece in errors, f"{piece!r} of {one.said!r}"


# The rest


def test_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.*?)\] - (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert versions[0][0] == __version__
    assert re.fullmatch(r"Unreleased|\d{4}-\d{2}-\d{2}", versions[0][1])


def test_make_alone_prints_each_target() -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    printed = subprocess.check_output(["make"], cwd=ROOT, text=True, env=environment)
    targets = re.findall(r"^  make (\S+) +\S", printed, re.MULTILINE)
    expected = ["demo", "test", "test-pythons", "bench", "man", "install", "dist"]
    expected += ["zipapp", "clean"]
    assert set(expected) <= set(targets)


def test_license_is_the_whole_apache_license() -> None:
    text = read("LICENSE")
    assert text.lstrip().startswith("Apache License\n")
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.splitlines()) > 200
