"""The options of vLLM's and SGLang's command lines, by their own wheels in build/peers.

Nothing of the wheels is imported: names are read from their source, and vLLM's parser, which is one
file, runs with stand-ins for what it imports.
"""

import argparse
import ast
import contextlib
import functools
import glob
import io
import logging
import os
import random
import re
import sys
import types
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from prefetch_cli.commands.arguments import read
from prefetch_cli.commands.infer import infer
from prefetch_cli.commands.syntaxes import STARTS, Meaning, Syntax, Takes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@functools.cache
def source(package: str, path: str) -> str:
    """Return the text of a module in the wheel of a package."""
    found = glob.glob(os.path.join(ROOT, "build", "peers", f"{package}-*.whl"))
    if not found:
        pytest.skip(f"needs the wheel of {package} in build/peers: make test-peers")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(f"{package}/{path}").decode()


@functools.cache
def members(package: str, folder: str) -> tuple[str, ...]:
    """Return the paths of the modules in a folder of a wheel."""
    source(package, "version.py")
    (path,) = glob.glob(os.path.join(ROOT, "build", "peers", f"{package}-*.whl"))
    with zipfile.ZipFile(path) as wheel:
        names = [name.removeprefix(f"{package}/") for name in wheel.namelist()]
    return tuple(name for name in names if name.startswith(folder) and name.endswith(".py"))


def fields(text: str, *names: str) -> dict[str, str]:
    """Return the fields of the classes of these names, or of all, with their annotations."""
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and (not names or node.name in names)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def added(text: str) -> Iterator[list[str]]:
    """Yield the option strings of each `add_argument` call."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            yield [
                str(argument.value)
                for argument in node.args
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("-")
            ]


@functools.cache
def vllm_options() -> dict[str, str]:
    """Return the options of `vllm serve` with the annotations of their fields."""
    engine = source("vllm", "engine/arg_utils.py")
    server = source("vllm", "entrypoints/common/cli_args.py")
    annotations = {
        **fields(engine, "EngineArgs", "AsyncEngineArgs"),
        **fields(server, "BaseFrontendArgs", "FrontendArgs"),
    }
    options = {f"--{name.replace('_', '-')}": text for name, text in annotations.items()}
    for names in (*added(engine), *added(server)):
        long = next((name for name in names if name.startswith("--")), "")
        options |= {name: options.get(long, "") for name in names}
    return options


@functools.cache
def sglang_options() -> dict[str, str]:
    """Return the options of SGLang's server with the annotations of their fields."""
    options: dict[str, str] = {}
    for path in members("sglang", "srt/arg_groups/fields/"):
        text = source("sglang", path)
        for name, annotation in fields(text).items():
            names = [f"--{name.replace('_', '-')}"]
            for found in re.findall(r"(?:aliases|cli_name)=(\[[^]]*\]|'[^']*')", annotation):
                names += re.findall(r"'(-[^']*)'", found)
            options |= dict.fromkeys(names, annotation)
    for names in added(source("sglang", "srt/server_args.py")):
        options |= dict.fromkeys(names, "")
    return options


def syntax_of(program: str) -> Syntax:
    return next(start.syntax for start in STARTS if program in start.programs)


PEERS = (("vllm", vllm_options), ("sglang", sglang_options))


@pytest.mark.parametrize(("program", "options"), PEERS)
def test_every_option_that_we_know_is_one_of_the_server(program: str, options: Any) -> None:
    syntax, theirs = syntax_of(program), options()
    assert len(theirs) > 200
    ours = [name for option in syntax.options for name in option.names]
    ours += [*syntax.switches, *syntax.valued]
    positive = [name.replace("--no-", "--", 1) for name in ours]
    assert [name for name in positive if name not in theirs] == []


@pytest.mark.parametrize(("program", "options"), PEERS)
def test_no_other_option_of_the_server_is_taken_for_the_beginning_of_ours(
    program: str, options: Any
) -> None:
    ours = {name for option in syntax_of(program).options for name in option.names}
    mistaken = [
        (name, one) for name in options().keys() - ours for one in ours if one.startswith(name)
    ]
    known = {*syntax_of(program).switches, *syntax_of(program).valued}
    assert [pair for pair in mistaken if pair[0] not in known] == []


def test_switches_of_vllm_take_no_value_and_the_others_one() -> None:
    syntax, theirs = syntax_of("vllm"), vllm_options()
    for name in syntax.switches:
        annotation = theirs[name.replace("--no-", "--", 1)]
        assert re.fullmatch(r"bool( \| None)?", annotation) or name == "--headless", name
    for name in syntax.valued:
        annotation = theirs[name]
        assert annotation, name
        assert not re.search(r"\blist\b|\bbool\b", annotation), name


def parser_of_vllm() -> Any:
    """Return vLLM's own parser, with those options of `vllm serve` that our table has."""
    text = source("vllm", "utils/argparse_utils.py")
    logger = types.ModuleType("vllm.logger")
    logger.init_logger = lambda name: logging.getLogger(f"peer.{name}")  # type: ignore[attr-defined]
    stand_ins = {
        "regex": re,  # only patterns that both have
        "yaml": types.ModuleType("yaml"),
        "vllm": types.ModuleType("vllm"),
        "vllm.logger": logger,
    }
    before = {name: sys.modules.get(name) for name in stand_ins}
    namespace: dict[str, Any] = {"__name__": "peer"}
    try:
        sys.modules.update(stand_ins)
        exec(compile(text, "argparse_utils.py", "exec"), namespace)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    top = namespace["FlexibleArgumentParser"](prog="vllm")
    serve = top.add_subparsers(dest="subparser").add_parser("serve")
    serve.add_argument("model_tag", nargs="?")
    syntax = syntax_of("vllm")
    for option in syntax.options:
        how: dict[str, Any] = {"nargs": "*"} if option.takes is Takes.MANY else {}
        if option.takes is Takes.NOTHING:
            how = {"action": argparse.BooleanOptionalAction}
        if option.gives:  # else it is the other half of a switch
            serve.add_argument(*option.names, dest=option.meaning.name, **how)
    for name in syntax.switches:
        if not name.startswith("--no-"):
            serve.add_argument(name, action=argparse.BooleanOptionalAction)
    for name in syntax.valued:
        serve.add_argument(name)
    # Some of those that our table does not have.
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--swap", type=int)
    serve.add_argument("--lora-dtype")
    serve.add_argument("--compilation-config", "-cc")
    return top


PIECES: Sequence[Sequence[str]] = (
    *(["org/a"], ["org/a"], ["--model", "org/b"], ["--model=org/c"], ["--", "org/d"]),
    *(["--load-format", "pt"], ["--load_format=hf"], ["--load-f", "pt"], ["--revision", "v1"]),
    *(["--rev", "v2"], ["--download_dir", "/d"], ["--tokenizer", "t"], ["--tokenizer-rev=v3"]),
    *(["--lora-modules", "x=/y"], ["--lora_modules", "x=/y", "z=/w"], ["--lora-modules"]),
    *(["-sc", '{"model": "e"}'], ["-sc.model", "f"], ["--speculative_config.model=g"]),
    *(["-sc.draft_load_config.load_format", "pt"], ["--spec-model", "h"], ["-cc.mode", "3"]),
    *(["--port", "80"], ["--port=80"], ["--enforce-eager"], ["--no-enable-prefix-caching"]),
    *(["-tp", "8"], ["-tp=8"], ["--served-model-name", "n"], ["--swap", "4"], ["-q", "fp8"]),
    *(["--enable-expert-parallel"], ["--no-enable-expert-parallel"], ["--enable-eplb"]),
    *(["--nnodes", "2"], ["-n", "3"], ["--node-rank=1"], ["-r", "0"], ["--node", "2"]),
    *(["--pipeline-par", "2"], ["-pp", "4"], ["-dp=2"], ["--data_parallel_size", "1"]),
    *(["--lora-dtype", "x"], ["--enforce_eager"], ["-ep"], ["--seed", "1"], ["--config=c.yaml"]),
)


def test_vllms_own_parser_finds_the_same_in_thousands_of_command_lines() -> None:
    parser = parser_of_vllm()
    syntax = syntax_of("vllm")
    logging.getLogger("peer").setLevel(logging.ERROR)
    chooser = random.Random(13)
    compared = models = 0
    for _ in range(6000):
        pieces = chooser.sample(PIECES, chooser.randint(1, 6))
        words = [word for piece in pieces for word in piece]
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                theirs = vars(parser.parse_args(["serve", *words]))
        except (SystemExit, ValueError, AssertionError, IndexError):
            continue  # a command line that vLLM refuses
        compared += 1
        ours = read(words, {}, syntax)
        model = theirs["model_tag"] or theirs["MODEL"]
        if model is not None and not ours.unclear:
            models += 1
            assert ours.one(Meaning.MODEL) == model, words
        elif ours.one(Meaning.MODEL) is not None:
            assert ours.one(Meaning.MODEL) == model, words
        for option in syntax.options:
            if option.meaning in (Meaning.MODEL, Meaning.DRAFT_CONFIG):
                continue
            value = theirs[option.meaning.name]
            if option.takes is Takes.NOTHING:
                assert (ours.one(option.meaning) is not None) is bool(value), words
            elif option.takes is Takes.MANY:
                assert ours.all(option.meaning) == (value or []), words
            else:
                assert ours.one(option.meaning) == value, words
        config = theirs["DRAFT_CONFIG"]
        assert (ours.one(Meaning.DRAFT_CONFIG) or None) == config, words
    assert compared > 1000
    assert models > 500


def test_the_ways_to_start_the_servers_are_in_their_wheels() -> None:
    for start in STARTS:
        for module in start.modules:
            package, _, path = module.partition(".")
            if package in ("vllm", "sglang"):
                path = f"{path.replace('.', '/')}.py"
                if module == "vllm.entrypoints.api_server":
                    continue  # until vLLM 0.14
                assert "__main__" in source(package, path), module
    assert infer(["vllm", "serve", "m"], {}).model is not None
