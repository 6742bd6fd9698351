"""Run a command whose threads end without a word, each at its first call of this name.

python -m tests.faults.kill CALL COMMAND [ARGUMENT]...
"""

import os
import sys

from tests.faults import inject

if __name__ == "__main__":
    _, call, *command = sys.argv
    inject.answer([inject.CALLS[call]], inject.KILL_THREAD)
    os.execvp(command[0], command)
