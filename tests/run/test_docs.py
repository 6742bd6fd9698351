"""Documents against the program: what they say is what it does."""

import ast
import errno
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest

from man import generate
from prefetch_cli import __version__
from prefetch_cli.base.errors import ExitCode, interrupted_exit_code
from prefetch_cli.base.words import Overrule
from prefetch_cli.cli.flags import PROGRAM
from prefetch_cli.cli.main import command
from prefetch_cli.linux import filesystem, mounts
from prefetch_cli.plan import ranks
from prefetch_cli.plan.decision import Facts, Reason, Verdict, budget, decide
from tests.helpers import oracle
from tests.helpers.checkpoints import write_sharded
from tests.helpers.command import ROOT

GIB = 1 << 30

FLAG = re.compile(r"(?<![\w-])--?[a-z](?:[a-z-]*[a-z])?")


def read(*parts: str) -> str:
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="module")
def readme() -> str:
    return read("README.md")


@pytest.fixture(scope="module")
def man_page() -> str:
    return read("man", "prefetch-cli.1")


def section(text: str, heading: str, marker: str = "## ") -> str:
    """Return what stands under a heading."""
    _, found, rest = text.partition(f"{marker}{heading}\n")
    assert found, f"no section {heading}"
    return rest.partition(f"\n{marker}")[0]


def fenced(text: str, language: str) -> list[str]:
    """Return the contents of the code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def plain(roff: str) -> str:
    """Return man(7) source without its escapes."""
    return re.sub(r"\\f.", "", roff).replace(r"\-", "-").replace(r"\&", "")


# What is generated


def test_man_page_is_what_the_command_says(man_page: str) -> None:
    assert man_page == generate.man_page(), "run `make man`"


def test_tables_of_readme_are_what_the_command_says(readme: str) -> None:
    assert readme == generate.readme(readme), "run `make man`"


def test_writing_again_changes_nothing(readme: str) -> None:
    assert generate.man_page() == generate.man_page()
    assert generate.readme(generate.readme(readme)) == generate.readme(readme)


def test_a_lost_marker_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="options"):
        generate.readme(readme.replace("<!-- end of options -->", ""))


@pytest.mark.parametrize(
    "command_line", ["mandoc -T lint", "groff -man -Tutf8 -ww -z"], ids=["mandoc", "groff"]
)
def test_man_page_is_well_formed(command_line: str) -> None:
    words = command_line.split()
    if not shutil.which(words[0]):
        pytest.skip(f"needs {words[0]}")
    page = os.path.join(ROOT, "man", "prefetch-cli.1")
    done = subprocess.run([*words, page], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


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


def flags_of_readme(readme: str) -> set[str]:
    rows = re.findall(r"^\| (`-.*?`) \|", section(readme, "Options"), re.MULTILINE)
    return {flag for row in rows for flag in FLAG.findall(row)}


def test_help_man_page_and_readme_have_the_same_options(readme: str, man_page: str) -> None:
    expected = flags_of_command()
    assert len(expected) > 30
    assert flags_of_help() == expected
    assert flags_of_man_page(man_page) == expected
    assert flags_of_readme(readme) == expected


def test_each_detail_belongs_to_an_option() -> None:
    assert generate.DETAILS.keys() <= flags_of_command()


def test_no_document_names_a_flag_that_is_not_there(readme: str, man_page: str) -> None:
    known = flags_of_command() | {"--"}
    others = {  # of pip, make bench-vm, sbatch, srun, docker, numactl and the servers
        "--entrypoint",
        "--exclusive",
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
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--tensor-parallel-size",
        "--port",
    }
    for text in (readme, plain(man_page), read("CHANGELOG.md")):
        named = re.findall(r"(?<![\w|-])--[a-z][a-z-]*", re.sub(r"<!--.*?-->", "", text))
        assert set(named) - others <= known


def test_each_variable_of_an_option_is_the_one_that_click_reads(man_page: str) -> None:
    text = plain(section(man_page, "ENVIRONMENT", ".SH "))
    context = click.Context(command, **command.context_settings)
    params = {flag: param for param in command.get_params(context) for flag in param.opts}
    for option in generate.options():
        if option.variable:
            assert re.search(rf"^{option.variable}\n{option.flags[-1]}\.?$", text, re.MULTILINE)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(option.variable, "42")
                assert params[option.flags[-1]].resolve_envvar_value(context) == "42"
    without = {option.flags[-1] for option in generate.options() if not option.variable}
    assert without == {"--version", "--help"}


# Other variables


def names_in_source(pattern: str) -> set[str]:
    paths = glob.glob(os.path.join(ROOT, "prefetch_cli", "*", "*.py"))
    return {name for path in paths for name in re.findall(pattern, read(path))}


def test_man_page_names_each_variable_that_is_read(man_page: str) -> None:
    named = {name for names in generate.ENVIRONMENT for name in names.split(", ")}
    read_by_name = names_in_source(r'environ(?:\.get\(|\[)"([A-Z_]+)"')
    assert {"HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE"} <= read_by_name
    assert read_by_name <= named
    assert set(ranks._NAMES) <= named
    text = plain(section(man_page, "ENVIRONMENT", ".SH "))
    assert all(name in text for name in named)


def test_man_page_names_the_files_of_the_kernel_that_are_read() -> None:
    named = ", ".join(generate.FILES)
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
    """Return the facts that a row of the table describes, of a share of 60 GiB."""
    return Facts(
        total_bytes=(200 if "does not fit" in found else 60) * GIB,
        share_bytes=0 if "nothing in" in found else 60 * GIB,
        resident_bytes=60 * GIB if "resident" in found else 0,
        in_memory="in memory" in found,
        bypasses_cache="bypass" in found,
        network="network" in found,
    )


def overrules(given: str) -> list[Overrule]:
    either = [Overrule.NONE, Overrule.FORCE, Overrule.PARTIAL, Overrule.FORCE | Overrule.PARTIAL]
    if given == generate.NOTHING_TO_GAIN:
        return either
    forced = Overrule.FORCE if "--force" in given else Overrule.NONE
    return [forced | (Overrule.PARTIAL if "--partial" in given else Overrule.NONE)]


@pytest.mark.parametrize("row", generate.DECISIONS, ids=lambda row: f"{row.found}, {row.given}")
def test_the_decision_table_is_what_is_decided(row: generate.Row) -> None:
    for overrule in overrules(row.given):
        found = decide(facts(row.found), budget(100 * GIB, "host", 90, None), overrule)
        assert (found.action, found.reason, found.warning) == (row.action, row.reason, row.warns)


def test_the_decision_table_has_each_reason() -> None:
    assert {row.reason for row in generate.DECISIONS} == set(Reason)
    assert {row.action for row in generate.DECISIONS} == set(Verdict)


# Examples


def command_lines(text: str) -> Iterator[str]:
    """Yield what stands behind the name of the program on each line that calls it."""
    for line in text.splitlines():
        before, found, arguments = line.partition(f"{PROGRAM} ")
        if found and re.fullmatch(r"(?:\$ )?(?:[A-Z_]+=\S* )*(?:srun (?:-\S+ )*)?", before):
            yield re.split(r" &(?:&|$)|; |\s+#| \| ", arguments)[0].strip()


def assert_can_be_given(line: str) -> None:
    arguments = shlex.split(line)
    with command.make_context(PROGRAM, arguments) as context:
        assert context.params["checkpoints"]


def test_commands_of_the_man_page_can_be_given() -> None:
    lines = [line for _, example in generate.examples() for line in command_lines(example)]
    assert len(lines) == len(generate.examples())
    for line in lines:
        assert_can_be_given(line)


def test_commands_of_readme_can_be_given(readme: str) -> None:
    blocks = [*fenced(readme, "console"), *fenced(readme, "bash")]
    lines = [line for block in blocks for line in command_lines(block)]
    assert len(lines) >= 7
    for line in lines:
        assert_can_be_given(line)


# README


def test_readme_opens_with_sentence_install_command_and_its_output(readme: str) -> None:
    opening = "\n".join(readme.splitlines()[:25]) + "\n"
    title, sentence, *_ = [line for line in opening.splitlines() if line]
    assert title == f"# {PROGRAM}"
    assert re.fullmatch(r"[A-Z][^.]*\.", sentence)
    assert "pipx install" in fenced(opening, "sh")[0]
    output = fenced(opening, "console")[0].splitlines()
    assert output[0].startswith(f"$ {PROGRAM} ")
    assert output[-1].startswith("resident ")


def test_links_of_the_documents_lead_somewhere(readme: str) -> None:
    headings = re.findall(r"^#+ (.*)$", readme, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", readme):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif "://" not in target:
            assert os.path.exists(os.path.join(ROOT, target))


def test_readme_lists_its_sections_in_order(readme: str) -> None:
    listed = re.findall(r"^- \[(.*)\]\(#", readme, re.MULTILINE)
    assert listed == re.findall(r"^## (.*)$", readme, re.MULTILINE)


def test_readme_names_each_type_of_file_system(readme: str) -> None:
    network, memory = re.findall(
        r"^\| (?:Network|In memory): .*? \| (.*) \|$", section(readme, "File systems"), re.MULTILINE
    )
    in_network = set(re.findall(r"`([^`]*)`", network)) - {"fuse"}
    assert in_network == filesystem.NETWORK_TYPES | filesystem.NETWORK_FUSE_SOURCES
    assert set(re.findall(r"`([^`]*)`", memory)) - {"dax"} == filesystem.IN_MEMORY_TYPES


# Outputs: of a run here, and as README shows them


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefetch_cli", *arguments],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
        env={key: value for key, value in os.environ.items() if "PREFETCH_CLI" not in key},
    )
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("docs") / "model")
    os.mkdir(directory)
    if mounts.inspect([directory])[0].in_memory:
        pytest.skip("needs a temporary directory on a disk, found one in memory")
    return write_sharded(directory, shard_bytes=[3 << 20, 1 << 20]).directory


def shape(value: Any) -> Any:
    """Return the keys of a JSON value, down to its leaves."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


def test_json_of_readme_has_the_keys_of_a_real_document(readme: str, checkpoint: str) -> None:
    run("--evict", checkpoint)
    found = json.loads(run("--force", "--json", checkpoint))
    (shown,) = map(json.loads, fenced(section(readme, "JSON"), "json"))
    assert shape(shown) == shape(found)
    assert shown["version"] == __version__
    assert shown["decision"]["reason"] == "forced"
    assert shown["residency"]["after_bytes"] == shown["checkpoint"]["total_bytes"]


def labels(output: str) -> list[str]:
    """Return the words that the lines of an output begin with, behind the rank in a log."""
    label = re.compile(r"(?:rank \d+/\d+  )?([a-z]+(?: [a-z]+)?)  +\S")
    found = map(label.match, output.splitlines())
    return [match[1] for match in found if match]


def test_outputs_of_readme_have_the_lines_of_real_ones(readme: str, checkpoint: str) -> None:
    shown = {block.partition("\n")[0]: labels(block) for block in fenced(readme, "console")}
    assert len(shown) == 4
    oracle.watch(glob.glob(os.path.join(checkpoint, "*")))
    for line, expected in shown.items():
        (arguments,) = command_lines(line)
        options = [word for word in shlex.split(arguments) if not word.startswith("/")]
        if "auto" in options:
            options = ["--force", "--rank", "1", "--world-size", "4"]
        if "--max-bytes" in options:
            options[options.index("--max-bytes") + 1] = "2MiB"
        if "--check" not in options:
            run("--evict", checkpoint)
        assert labels(run(*options, checkpoint)) == expected, line
        run("--force", checkpoint)


# Diagnostics


def texts_of_source() -> str:
    """Return all texts in the source, with a mark between what is not one text."""
    return "\0".join(
        node.value
        for path in glob.glob(os.path.join(ROOT, "prefetch_cli", "*", "*.py"))
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_each_diagnostic_is_one_that_the_program_gives() -> None:
    source = texts_of_source()
    errors = {os.strerror(number) for number in (errno.EIO, errno.ENOENT)}  # the system's words
    for one in generate.DIAGNOSTICS:
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
