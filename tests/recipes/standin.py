"""Stands in for `vllm serve MODEL`: notes how it was started and what is warm, then loads.

It imports nothing of the tool or of the tests: its interpreter is one of its own. The notes
go to the folder STANDIN_NOTES, one file for each process; it ends with STANDIN_EXIT.
"""

import json
import mmap
import os
import subprocess
import sys
import time

_LONGEST_SECONDS = 30
_PAUSE_SECONDS = 0.02


def resident_bytes(paths: list[str]) -> int:
    """Return how much of the files is in the page cache, by util-linux."""
    words = ["fincore", "--bytes", "--raw", "--noheadings", "--output=RES", *paths]
    return sum(map(int, subprocess.check_output(words).split()))


def below(folder: str, ending: str) -> list[str]:
    """Return the files of this ending in a folder."""
    return [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if name.endswith(ending)]


def main() -> int:
    """Return the exit code that is asked for."""
    model = sys.argv[2]
    weights = below(model, ".safetensors")
    # What it would import, by the folder of this interpreter.
    library = below(os.path.join(sys.prefix, "lib", "vllm"), ".so")
    total = sum(map(os.path.getsize, weights))
    started = time.time()
    found = resident_bytes(weights)
    # Importing takes a server longer than the reading takes here; it ends as soon as all is warm.
    until = time.monotonic() + _LONGEST_SECONDS
    at_load = found
    while at_load < 0.99 * total and time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)
        at_load = resident_bytes(weights)
    for path in weights:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            sum(pages[:: mmap.PAGESIZE])
    notes = {
        "words": sys.argv[1:],
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "started": started,
        "total_bytes": total,
        "resident_at_start": found,
        "resident_at_load": at_load,
        "library_bytes": sum(map(os.path.getsize, library)),
        "library_resident": resident_bytes(library),
    }
    path = os.path.join(os.environ["STANDIN_NOTES"], f"{os.getpid()}.json")
    with open(path, "w", encoding="utf-8") as out:
        json.dump(notes, out)
    return int(os.environ.get("STANDIN_EXIT", "0"))


if __name__ == "__main__":
    sys.exit(main())
