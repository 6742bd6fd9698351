"""The examples of the documents: command lines that can be given, outputs beside real ones."""

import glob
import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

from prefetch_cli.base.words import PROGRAM
from prefetch_cli.cli.main import command
from tests.helpers import command as process
from tests.helpers import oracle
from tests.helpers.documents import blocks, page


def command_lines(text: str) -> Iterator[str]:
    """Yield what stands behind the name of the program on each line that calls it."""
    for line in text.splitlines():
        before, found, arguments = line.partition(f"{PROGRAM} ")
        if found and re.fullmatch(r"(?:\$ )?(?:[A-Z_]+=\S* )*(?:srun (?:-\S+ )*)?", before):
            yield re.split(r" &(?:&|$)|; |\s+#| \| ", arguments)[0].strip()


def assert_can_be_given(line: str) -> None:
    """Assert that the program takes these arguments, a checkpoint among them."""
    arguments = shlex.split(line)
    with command.make_context(PROGRAM, arguments) as context:
        assert context.params["checkpoints"]


def json_example() -> Any:
    """Return the whole document that prefetch-cli-json(5) shows."""
    example, _ = blocks(page("prefetch-cli-json.5"))
    return json.loads(example.text.partition("\n")[2])


def run(*arguments: str, code: int = 0) -> str:
    """Return what the program prints on standard output."""
    done = process.run(*arguments)
    assert done.code == code, done
    return done.output


def labels(output: str) -> list[str]:
    """Return the label of each line, without the rank that lines of a log begin with."""
    label = re.compile(r"(?:rank \d+/\d+  )?([a-z]+(?: [a-z]+)?)  +\S")
    found = map(label.match, output.splitlines())
    return [match[1] for match in found if match]


def assert_has_the_lines_of_a_real_one(shown: str, checkpoint: str) -> None:
    """Assert that an output has the labels of a run with the same options."""
    oracle.watch(glob.glob(os.path.join(checkpoint, "*")))
    line, _, output = shown.partition("\n")
    (arguments,) = command_lines(line)
    options = [word for word in shlex.split(arguments) if not word.startswith("/")]
    if "auto" in options:
        options = ["--force", "--rank", "1", "--world-size", "4"]
    if "--max-bytes" in options:
        options[options.index("--max-bytes") + 1] = "2MiB"
    run("--force", checkpoint)
    if "--check" not in options:
        run("--evict", checkpoint)
    assert labels(output)
    assert labels(run(*options, checkpoint)) == labels(output), line
