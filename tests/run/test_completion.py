"""Completion in real shells: we type keys, and the shell shows what became of the line."""

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from prefetch_cli.cli.completion import answer
from prefetch_cli.cli.flags import FLAGS, Flag
from tests.helpers.command import COMMAND, environment, refused, run

VARIABLE = "_PREFETCH_CLI_COMPLETE"
SECONDS = 30
# Ctrl-O prints the line and empties it; Alt-a replaces the last word with all its completions.
BASH = r"""
PS1=; HISTFILE=; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'
bind -x '"\C-o": printf "<%s>\n" "$READLINE_LINE"; READLINE_LINE='
bind '"\ea": insert-completions'
complete -W alpha serve-tool
"""
BASH_COMPLETION = "/usr/share/bash-completion/bash_completion"
ZSH = r"""
PS1=; HISTFILE=; unsetopt zle_bracketed_paste beep; autoload -Uz compinit; compinit -D -u
show() { print -r -- "<$BUFFER>"; BUFFER= }; zle -N show; bindkey '^O' show
zle -C all complete-word _generic; bindkey '^[a' all; bindkey '^I' complete-word
zstyle ':completion:all::::' completer _all_matches _complete
zstyle ':completion:all:*' insert true
_serve_tool() { compadd alpha }; compdef _serve_tool serve-tool
"""
FISH = "complete -c serve-tool -f -a alpha; source ./script; complete -C $argv[1]"

Complete = Callable[[str], list[str]]
"""Returns what the last word of a line can become."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the command, a broken one, COMMAND, a folder of models, and a file."""
    place = tmp_path_factory.mktemp("place")
    for path, line in (
        ("bin/prefetch-cli", f'exec {" ".join(COMMAND)} "$@"'),
        ("broken/prefetch-cli", "echo noise >&2; exit 1"),
        ("bin/serve-tool", "exit 0"),
    ):
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_text(f"#!/bin/sh\n{line}\n")
        (place / path).chmod(0o755)
    (place / "models" / "llama three").mkdir(parents=True)
    (place / "models.gguf").touch()
    return place


def settings(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return environment(PATH=path, HOME=str(place), XDG_CONFIG_HOME=str(place), TERM="dumb")


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


class Typist:
    """An interactive shell and who types into it."""

    def __init__(self, command: str, start: str, place: Path) -> None:
        program, *arguments = command.split()
        (place / "start").write_text(start)
        self.child = pexpect.spawn(
            shell(program),
            arguments,
            env=settings(place),
            cwd=place,
            encoding="utf-8",
            dimensions=(50, 400),
            timeout=SECONDS,
        )
        self.child.delaybeforesend = None
        self.child.sendline(". ./start; echo rea''dy")
        self.child.expect("ready\r\n")

    def line(self, keys: str) -> str:
        """Return the line after these keys."""
        self.child.send(f"{keys}\x0f")
        self.child.expect(r"<[^>\r\n]*>\r+\n")
        assert "noise" not in str(self.child.before)
        return str(self.child.after).strip("<>\r\n")

    def complete(self, line: str) -> list[str]:
        """Return what the last word can become."""
        before, _, word = line.rpartition(" ")
        found = self.line(f"{line}\x1ba").removeprefix(f"{before} ")
        return [] if found == word else re.split(r"(?<!\\) ", found.rstrip(" "))


def source(name: str) -> str:
    return f'eval "$({VARIABLE}={name}_source prefetch-cli)"\n'


@pytest.fixture(scope="module")
def bash(place: Path) -> Iterator[Typist]:
    typist = Typist("bash --norc --noprofile -i", BASH + source("bash"), place)
    yield typist
    typist.child.close(force=True)


@pytest.fixture(scope="module")
def bash_completion(place: Path) -> Iterator[Typist]:
    if not os.path.exists(BASH_COMPLETION):
        pytest.skip("needs bash-completion")
    start = f". {BASH_COMPLETION}\n{BASH}{source('bash')}"
    typist = Typist("bash --norc --noprofile -i", start, place)
    yield typist
    typist.child.close(force=True)


@pytest.fixture(scope="module")
def zsh(place: Path) -> Iterator[Typist]:
    typist = Typist("zsh -f -i", ZSH + source("zsh"), place)
    yield typist
    typist.child.close(force=True)


@pytest.fixture(scope="module")
def fish(place: Path) -> Complete:
    program = shell("fish")
    script = run(env={VARIABLE: "fish_source"}).output
    (place / "script").write_text(script)

    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [program, "--no-config", "--command", FISH, line],
            env=settings(place),
            cwd=place,
            capture_output=True,
            check=True,
            text=True,
            timeout=SECONDS,
        )
        assert not done.stderr
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    return complete


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest) -> Complete:
    found: Typist | Complete = request.getfixturevalue(request.param)
    return found.complete if isinstance(found, Typist) else found


def plain(found: list[str]) -> list[str]:
    """Return the completions as all shells agree on them.

    Some write `/` after a directory, some escape a space, and some repeat `--option=`.
    """
    return sorted(each.replace("\\", "").rpartition("=")[2].rstrip("/") for each in found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prefetch-cli --sp", ["--split"]),
        ("./bin/prefetch-cli --max", ["--max-bytes", "--max-rate"]),
        ("prefetch-cli --split ", ["auto", "bytes", "files"]),
        ("prefetch-cli --split=b", ["bytes"]),
        ("prefetch-cli --threads ", ["auto"]),
        ("prefetch-cli --force mod", ["models", "models.gguf"]),
        ("prefetch-cli models/", ["models/llama three"]),
        ("prefetch-cli --cache-dir mod", ["models"]),
        ("prefetch-cli --also=mod", ["models", "models.gguf"]),
        ("prefetch-cli models -- serve-t", ["serve-tool"]),
        ("broken/prefetch-cli --sp", []),
    ],
)
def test_completions(complete: Complete, line: str, expected: list[str]) -> None:
    assert plain(complete(line)) == expected


def test_command_has_its_own_completion(
    bash_completion: Typist, zsh: Typist, fish: Complete
) -> None:
    line = "prefetch-cli models -- serve-tool al"
    assert bash_completion.complete(line) == zsh.complete(line) == fish(line) == ["alpha"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("~/bin/prefetch-cli --sp\t", "~/bin/prefetch-cli --split "),
        ("prefetch-cli --split=b\t", "prefetch-cli --split=bytes "),
        ("prefetch-cli --cache-dir=mod\t", "prefetch-cli --cache-dir=models/"),
        ("prefetch-cli models/l\t", r"prefetch-cli models/llama\ three/"),
    ],
)
def test_tab(bash: Typist, zsh: Typist, keys: str, line: str) -> None:
    assert bash.line(keys) == zsh.line(keys) == line


def asked(*words: str) -> list[list[str]]:
    """Return the fields of the lines that a shell reads."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert answer("bash_complete", words) == 0
    return [line.split("\t") for line in output.getvalue().splitlines()]


def test_all_options_are_offered_with_their_help() -> None:
    offered = asked("-")
    names = [name for flag in FLAGS for name in flag.names]
    assert [name for _, name, _ in offered] == names
    assert all(kind == "word" and text for kind, _, text in offered)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--json --js", []),
        ("-q --qui", []),
        ("--include * --incl", ["--include"]),
        ("--unknown --spl", ["--split"]),
        ("--rank ", ["auto"]),
        ("--split = f", ["files"]),  # as bash parts it
        ("--split =", ["auto", "files", "bytes"]),
        ("--json=", []),
        ("-x", []),
    ],
)
def test_words(line: str, expected: list[str]) -> None:
    assert [word for _, word, *_ in asked(*line.split(" "))] == expected


# What no shell can list: numbers, patterns, and names that only their owner knows.
FREE = ("DURATION", "GLOB", "N", "NAME", "PERCENT", "REV", "SIZE", "SIZE|PERCENT")


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.value], ids=lambda flag: flag.name)
def test_a_value_is_completed_unless_nobody_can_list_what_it_may_be(flag: Flag) -> None:
    """A path is one by its metavar: a new one takes its place in the module, or here."""
    assert bool(asked(flag.name, "")) is (flag.metavar not in FREE)


def test_without_a_word_files_are_offered() -> None:
    assert asked() == [["file"]]


def test_completion_imports_no_more_than_help() -> None:
    def imported(*words: str, **env: str) -> set[str]:
        python, *module = COMMAND
        done = run(*words, command=[python, "-X", "importtime", *module], env=env)
        return set(re.findall(r"\| +(\S+)$", done.errors, re.MULTILINE))

    more = imported("--split", "", **{VARIABLE: "bash_complete"}) - imported("--help")
    assert more == {"prefetch_cli.cli.completion"}


def test_an_unknown_shell_is_refused() -> None:
    assert refused(env={VARIABLE: "tcsh_source"}) == (
        "_PREFETCH_CLI_COMPLETE: expected bash_source, zsh_source or fish_source, "
        "found 'tcsh_source'"
    )
