"""Our words of a simple command are those of a real shell."""

import random
import shutil
import subprocess

import pytest

from prefetch_cli.commands.shell import NotSimpleError, split

ENVIRON = {"A": "org/name", "EMPTY": "", "TWO": "a b", "GLOB": "/*", "PATH": "/usr/bin:/bin"}
PIECES = (
    *("a", "org/m", "-x", "--a=b", " ", "  ", "\t", "'", '"', "\\", "$A", "${A}", "$EMPTY", "$TWO"),
    *("$GLOB", "$UNSET", "é", "\udcff", "'$A'", '"$A"', "'a b'", '"a b"', "\\\n", "\\$", '\\"'),
    *("'", '"', "=", ",", ":", "@", "%", "+", "^", ".", "{}", "$", "%s", "-", "--"),
)


def words_of(shell: str, text: str) -> list[str]:
    """Return the words that a shell makes of a text without operators or substitutions."""
    done = subprocess.run(
        [shell, "-c", f"printf '%s\\0' x {text}"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=ENVIRON,
        timeout=10,
    )
    return done.stdout.split("\0")[1:-1]


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_a_shell_makes_the_same_words_of_each_text(shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    chooser = random.Random(7)
    compared = 0
    while compared < 400:
        text = "".join(chooser.choices(PIECES, k=chooser.randint(1, 8)))
        try:
            # Only these are given to a shell: they have no operators and no substitutions.
            ours = split(text, ENVIRON)
        except NotSimpleError:
            continue
        assert words_of(path, text) == ours, text
        compared += 1
