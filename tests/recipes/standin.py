"""Stands in for `vllm serve MODEL`: notes how it was started and what is warm, then loads.

It runs in its own interpreter, so it imports nothing of the tool or the tests. It writes one file
per process to the folder STANDIN_NOTES and exits with STANDIN_EXIT.
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
    """Return the bytes of the files that are in the page cache, by util-linux's fincore."""
    words = ["fincore", "--bytes", "--raw", "--noheadings", "--output=RES", *paths]
    return sum(map(int, subprocess.check_output(words).split()))


def below(folder: str, ending: str) -> list[str]:
    """Return the files in a folder with this ending."""
    return [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if name.endswith(ending)]


def main() -> int:
    """Return the exit code in STANDIN_EXIT."""
    model = sys.argv[2]
    weights = below(model, ".safetensors")
    # What a server would import, found by the folder of this interpreter.
    library = below(os.path.join(sys.prefix, "lib", "vllm"), ".so")
    total = sum(map(os.path.getsize, weights))
    started = time.time()
    found = resident_bytes(weights)
    # A server's imports outlast the read here; stop waiting as soon as everything is warm.
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
