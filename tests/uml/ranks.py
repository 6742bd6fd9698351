"""Four ranks of a tensor-parallel server, each of which loads its slices of every tensor lazily.

    python -m tests.uml.ranks DIRECTORY

Runs in the machine. Prints a JSON object for each rank as it ends: the bytes that it has copied,
and its own seconds. All start at once, with everything imported.
"""

import json
import os
import sys
import time

from tests.vm.bench import loader

RANKS = 4


def main() -> int:
    """Return 0 if every rank has loaded."""
    ranks = []
    for rank in range(RANKS):
        if (pid := os.fork()) == 0:
            os.write(1, said(sys.argv[1], rank).encode())
            os._exit(0)
        ranks.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)


def said(directory: str, rank: int) -> str:
    """Load one rank's slices, and return the line about it."""
    began = time.monotonic()
    loaded = loader.load(directory, rank, RANKS)
    seconds = time.monotonic() - began
    return json.dumps({"rank": rank, "loaded_bytes": loaded, "seconds": seconds}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
