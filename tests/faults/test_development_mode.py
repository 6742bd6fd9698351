"""Python's development mode complains of what is left open: nothing is."""

import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import run

# Flags, and what follows the checkpoint.
RUNS = {
    "prefetch": (("--force",), ()),
    "check": (("--check", "--json"), ()),
    "evict": (("--evict",), ()),
    "verify": (("--force", "--verify", "--keep", "1s"), ()),
    "rank": (("--force", "--rank", "0", "--world-size", "2"), ()),
    "command": (("--force",), ("--", "true")),
    "command that is not there": (("--force",), ("--", "/nothing/there")),
    "verified before command": (("--force", "--verify"), ("--", "true")),
}


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_left_open(built: BuiltCheckpoint, name: str) -> None:
    before, behind = RUNS[name]
    done = run(*before, built.directory, *behind, env={"PYTHONDEVMODE": "1"})
    assert "Warning" not in done.errors, done.errors


def test_a_checkpoint_that_is_not_there() -> None:
    done = run("/nothing/there", "--", "true", env={"PYTHONDEVMODE": "1"})
    assert done.code == 3
    assert "Warning" not in done.errors, done.errors
