"""The words of COMMAND -> the program that it starts in the end: pure.

Before a server stand programs that change how it runs (`env`, `nice`, `numactl`, `timeout`), that
find it (`uv run`, `python -m`) or a shell with one simple command. Their options are in a table:
read in the manual pages of coreutils 9, util-linux 2.41 and numactl 2, and in uv's help.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.commands import shell

_MOST_LAUNCHERS = 16  # in front of one server
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=", re.ASCII)
_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*t?")
_MODULE = ("-m", "--module")
_SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "ash"))


class Launch(NamedTuple):
    """A program as it is started in the end."""

    program: str  # without its folder; of `python -m`, the module
    module: bool
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    moved: bool = False  # to another working directory


class _Launcher(NamedTuple):
    """A program that starts another one."""

    names: tuple[str, ...]
    valued: tuple[str, ...] = ()  # options that take the next word, or `=VALUE`
    moves: tuple[str, ...] = ()  # those of them that change the working directory
    operands: int = 0  # words between the options and the command
    subcommands: tuple[tuple[str, ...], ...] = ((),)  # words that must come first
    runs_modules: bool = False  # with `-m`, and versions as in `vllm@0.33`


_UV = (
    *("-p", "--python", "--project", "--directory", "--with", "--with-editable"),
    *("--with-requirements", "--env-file", "--extra", "--no-extra", "--group", "--no-group"),
    *("--only-group", "--package", "--from", "-c", "--constraints", "--overrides"),
    *("-i", "--index", "--default-index", "--index-url", "--extra-index-url", "-f"),
    *("--find-links", "--index-strategy", "--keyring-provider", "--resolution", "--prerelease"),
    *("--exclude-newer", "--link-mode", "-C", "--config-setting", "--cache-dir", "--config-file"),
    *("--color", "--python-platform", "-P", "--upgrade-package", "--reinstall-package", "-w"),
    *("--refresh-package", "--no-build-package", "--no-binary-package", "--allow-insecure-host"),
)
_LAUNCHERS = (
    _Launcher(("nice",), ("-n", "--adjustment")),
    _Launcher(("ionice",), ("-c", "--class", "-n", "--classdata")),
    _Launcher(("chrt",), ("-T", "--sched-runtime", "-P", "--sched-period", "-D"), operands=1),
    _Launcher(("taskset",), operands=1),
    _Launcher(
        ("numactl",),
        (
            *("-i", "--interleave", "-w", "--weighted-interleave", "-N", "--cpunodebind"),
            *("-C", "--physcpubind", "-m", "--membind", "-p", "--preferred", "-P"),
            "--preferred-many",
        ),
    ),
    _Launcher(("stdbuf",), ("-i", "--input", "-o", "--output", "-e", "--error")),
    _Launcher(("time",), ("-f", "--format", "-o", "--output")),
    _Launcher(("timeout",), ("-k", "--kill-after", "-s", "--signal"), operands=1),
    _Launcher(("nohup", "setsid", "command", "trtllm-llmapi-launch", "dumb-init")),
    _Launcher(("exec",), ("-a",)),
    _Launcher(("tini",), ("-p", "-e")),
    _Launcher(
        ("uv",),
        _UV,
        moves=("--directory",),
        subcommands=(("run",), ("tool", "run")),
        runs_modules=True,
    ),
    _Launcher(("uvx",), _UV, moves=("--directory",), runs_modules=True),
    _Launcher(
        ("poetry",),
        ("-P", "--project", "-C", "--directory"),
        moves=("-C", "--directory"),
        subcommands=(("run",),),
    ),
    _Launcher(
        ("conda", "mamba", "micromamba"),
        ("-n", "--name", "-p", "--prefix", "--cwd"),
        moves=("--cwd",),
        subcommands=(("run",),),
    ),
)
_BY_NAME = {name: launcher for launcher in _LAUNCHERS for name in launcher.names}
_ENV = _Launcher(
    ("env",),
    ("-u", "--unset", "-C", "--chdir", "-S", "--split-string", "-a", "--argv0"),
    moves=("-C", "--chdir"),
)
_PYTHON_OPTIONS = _Launcher((), ("-W", "-X", "-m", "-c", "--check-hash-based-pycs"))
_SHELL_OPTIONS = _Launcher((), ("-o", "+o", "-O", "+O", "--rcfile", "--init-file"))


def unwrap(words: Sequence[str], environ: Mapping[str, str]) -> Launch | None:
    """Return the program that a command starts in the end, and its environment.

    None where that cannot be told: a script of a shell, a program with options that this module
    does not know, words that are missing.
    """
    state = Launch("", module=False, arguments=tuple(words), environ=dict(environ))
    for _ in range(_MOST_LAUNCHERS):
        if not state.arguments:
            return None
        program, *rest = state.arguments
        state = state._replace(program=os.path.basename(program), arguments=tuple(rest))
        following = _step(state)
        if following is None:
            return None
        if following is state or following.module:
            return following
        state = following
    return None


def _step(state: Launch) -> Launch | None:
    """Return the launch less its first program, the launch itself if that is the last one."""
    name = state.program
    if name == "env":
        return _after_env(state)
    if name in _SHELLS:
        return _after_shell(state)
    if _PYTHON.fullmatch(name):
        return _after_python(state)
    if name in _BY_NAME:
        return _after_launcher(state, _BY_NAME[name])
    return state


class _Options(NamedTuple):
    """The options at the front of some words."""

    found: tuple[tuple[str, str | None], ...]  # names with values
    rest: tuple[str, ...]

    def has(self, *names: str) -> bool:
        return any(name in names for name, _ in self.found)


def _options(words: Sequence[str], launcher: _Launcher, stop: Sequence[str] = ()) -> _Options:
    """Return the options in front, up to the first other word, or behind one of `stop`."""
    found: list[tuple[str, str | None]] = []
    rest = list(words)
    while rest and rest[0].startswith(("-", "+")) and len(rest[0]) > 1:
        word = rest.pop(0)
        if word == "--":
            break
        for name, value in _apart(word, launcher):
            if value is None and name in launcher.valued:
                value = rest.pop(0) if rest else None  # noqa: PLW2901
            found.append((name, value))
        if found and found[-1][0] in stop:
            break
    return _Options(tuple(found), tuple(rest))


def _apart(word: str, launcher: _Launcher) -> list[tuple[str, str | None]]:
    """Return the options in one word: `--name=value`, or letters of which the last has a value."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return [(name, value if equals else None)]
    found: list[tuple[str, str | None]] = []
    for at, letter in enumerate(word[1:], 2):
        name = word[0] + letter
        if name in launcher.valued and word[at:]:
            return [*found, (name, word[at:].removeprefix("="))]
        found.append((name, None))
    return found


def _after_launcher(state: Launch, launcher: _Launcher) -> Launch | None:
    words: Sequence[str] = state.arguments
    before = _Options((), ())
    if launcher.subcommands != ((),):
        before = _options(words, launcher)
        subcommand = next(
            (one for one in launcher.subcommands if before.rest[: len(one)] == one), None
        )
        if subcommand is None:
            return None
        words = before.rest[len(subcommand) :]
    options = _options(words, launcher, stop=_MODULE if launcher.runs_modules else ())
    moved = state.moved or before.has(*launcher.moves) or options.has(*launcher.moves)
    rest = options.rest[launcher.operands :]
    if launcher.runs_modules and options.has(*_MODULE):
        return _module(state, rest, moved=moved)
    if launcher.runs_modules and rest:
        rest = (rest[0].partition("@")[0], *rest[1:])
    return state._replace(arguments=rest, moved=moved)


def _after_env(state: Launch) -> Launch | None:
    environ = dict(state.environ)
    words: tuple[str, ...] = state.arguments
    moved = state.moved
    options = _options(words, _ENV, stop=("-S", "--split-string"))
    while True:
        if options.has("-i", "--ignore-environment"):
            environ.clear()
        for name, value in options.found:
            if name in ("-u", "--unset"):
                environ.pop(value or "", None)
        moved = moved or options.has(*_ENV.moves)
        words = options.rest
        if not options.has("-S", "--split-string"):
            break
        try:
            words = (*shell.split(options.found[-1][1] or "", state.environ), *words)
        except shell.NotSimpleError:
            return None
        options = _options(words, _ENV, stop=("-S", "--split-string"))
    if words[:1] == ("-",):
        environ.clear()
        words = words[1:]
    words = _assign(words, environ)
    return state._replace(arguments=words, environ=environ, moved=moved)


def _assign(words: tuple[str, ...], environ: dict[str, str]) -> tuple[str, ...]:
    """Put the assignments in front into the environment; return the words behind them."""
    while words and "=" in words[0]:
        name, _, value = words[0].partition("=")
        environ[name] = value
        words = words[1:]
    return words


def _after_shell(state: Launch) -> Launch | None:
    options = _options(state.arguments, _SHELL_OPTIONS)
    if not options.has("-c") or not options.rest:
        return None
    try:
        words = shell.split(options.rest[0], state.environ)
    except shell.NotSimpleError:
        return None
    environ = dict(state.environ)
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    return state._replace(arguments=tuple(words), environ=environ)


def _after_python(state: Launch) -> Launch | None:
    options = _options(state.arguments, _PYTHON_OPTIONS, stop=("-m", "-c"))
    last, value = options.found[-1] if options.found else ("", None)
    if last == "-c":
        return None
    if last == "-m":
        return _module(state, (value or "", *options.rest), moved=state.moved)
    return state._replace(arguments=options.rest)  # a script, by its path


def _module(state: Launch, words: Sequence[str], *, moved: bool) -> Launch | None:
    if not words:
        return None
    return state._replace(program=words[0], module=True, arguments=tuple(words[1:]), moved=moved)
