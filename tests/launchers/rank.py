"""Runs a command as one rank of a launcher, and leaves a report in a folder.

A launcher's own standard output mixes the ranks. Usage: rank.py FOLDER COMMAND [ARG]...
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

BLOCK_BYTES = 512  # the unit of ru_inblock, whatever the file system
_LAUNCHERS = re.compile("SLURM|OMPI|PMI|MPI|LOCAL|MV2|PALS|JSM")


def main() -> int:
    """Return the command's exit code, after writing the report."""
    folder, *words = sys.argv[1:]
    # Survive the SIGTERM that ends the command, which would inherit an ignored signal.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    before = _asked_bytes()
    start = time.monotonic()
    done = subprocess.run(
        words, check=False, capture_output=True, encoding="utf-8", errors="surrogateescape"
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {
        "code": done.returncode,
        "output": done.stdout,
        "errors": done.stderr,
        "seconds": time.monotonic() - start,
        # What the kernel fetched from storage for the command: it counts by process.
        "storage_bytes": used.ru_inblock * BLOCK_BYTES,
        # What the command read, cached or not, including its interpreter's modules.
        "asked_bytes": _asked_bytes() - before,
        "environment": {key: word for key, word in os.environ.items() if _LAUNCHERS.match(key)},
    }
    path = os.path.join(folder, f"{os.getpid()}")
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(report, file)
    os.rename(f"{path}.part", f"{path}.json")
    return done.returncode


def _asked_bytes() -> int:
    """Return the bytes that this process and its ended children have read (read, sendfile etc.)."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("rchar:")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
