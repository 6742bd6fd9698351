"""Which files a process and its children open, as strace sees it."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence

from tests.servers.load import MARK

# `-D` keeps the process a child of ours. `--seccomp-bpf` stops it for these calls only. `-y` prints
# where a descriptor leads.
_STRACE = (
    "strace",
    "-D",
    "-f",
    "-qq",
    "--seccomp-bpf",
    "-y",
    "-s4096",
    "-e",
    "trace=open,openat,openat2",
)
_OPENED = re.compile(r" = \d+<(/[^>]*)>$")
_MARKED = re.compile(rf'"{MARK}([^"]*)"')


def traced(command: Sequence[str], log: str) -> list[str]:
    """Return the command that runs `command` and writes what it opens to `log`."""
    return [*_STRACE, "-o", log, *command]


def opened_below(log: str, root: str) -> dict[str, set[str]]:
    """Return the real paths of the regular files below `root` that were opened, by mark.

    What is opened before the first mark has the mark "". Failed opens do not count.
    """
    found: dict[str, set[str]] = defaultdict(set)
    mark = ""
    below = os.path.join(os.path.realpath(root), "")
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            if marked := _MARKED.search(line):
                mark = marked[1]
            elif (opened := _OPENED.search(line.rstrip())) and opened[1].startswith(below):
                found[mark].add(opened[1])
    return {mark: {path for path in paths if os.path.isfile(path)} for mark, paths in found.items()}
