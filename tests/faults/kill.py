"""Run a command whose threads end without a word, each at its first call of this name.

python -m tests.faults.kill CALL COMMAND [ARGUMENT]...
python -m tests.faults.kill CALL@MODULE:FUNCTION [ARGUMENT]...

The second form runs prefetch-cli, and only the thread that enters this function of it is killed.
"""

import functools
import importlib
import os
import sys

from prefetch_cli.__main__ import main
from tests.faults import inject


def kill_in(place: str, number: int) -> None:
    """Have whoever enters a function end at its next call of this number."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)

    @functools.wraps(function)
    def entered(*given: object, **named: object) -> object:
        inject.answer([number], inject.KILL_THREAD)  # a filter is of one thread
        return function(*given, **named)

    setattr(owner, name, entered)


if __name__ == "__main__":
    _, what, *command = sys.argv
    call, _, where = what.partition("@")
    if where:
        kill_in(where, inject.CALLS[call])
        sys.argv[1:] = command
        main()
    inject.answer([inject.CALLS[call]], inject.KILL_THREAD)
    os.execvp(command[0], command)
