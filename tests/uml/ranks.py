"""Four ranks of a tensor-parallel server, each of which loads its slices of every tensor lazily.

    python -m tests.uml.ranks DIRECTORY

Runs in the machine. Prints a JSON object for each rank as it ends: the bytes that it has copied,
and its own seconds. All start at once, with everything imported.
"""

import glob
import json
import os
import sys
import time

import safetensors.numpy  # noqa: F401 - else the first slice would pay for the import
from safetensors import safe_open

RANKS = 4


def main() -> int:
    """Return 0 if every rank has loaded."""
    ranks = []
    for rank in range(RANKS):
        if (pid := os.fork()) == 0:
            os.write(1, load(sys.argv[1], rank).encode())
            os._exit(0)
        ranks.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)


def load(directory: str, rank: int) -> str:
    """Load one rank's slices, and return the line about it."""
    began = time.monotonic()
    loaded = 0
    for path in sorted(glob.glob(f"{directory}/*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                rows = part.get_shape()[0]
                loaded += part[rows * rank // RANKS : rows * (rank + 1) // RANKS].nbytes
    seconds = time.monotonic() - began
    return json.dumps({"rank": rank, "loaded_bytes": loaded, "seconds": seconds}) + "\n"


if __name__ == "__main__":
    sys.exit(main())
