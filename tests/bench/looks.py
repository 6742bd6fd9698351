"""What a look at COMMAND's processes costs: `python -m tests.bench.looks [PROCESSES]`.

Each has some 1,850 mappings and 100 open files. Prints the CPU time of a look, in ms: while the
memory of each process has changed since the last one, and while none has.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

from prefetch_cli.linux import uses
from prefetch_cli.linux.uses import Place, Tree

_LOOKS = 21
_FILES, _WEIGHTS = 100, 64
_PROCESS = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
files = [open(path, "rb") for path in sys.argv[1:]]
for turn in range(9):
    for number, file in enumerate(files):
        libc.mmap(None, 4096, 1, 2, file.fileno(), 0)
        # Equal neighbours would become one mapping.
        libc.mmap(None, 4096, 3 if number % 2 else 1, 0x22, -1, 0)
print(len(open("/proc/self/maps").readlines()), flush=True)
sys.stdin.read()
"""


def main() -> None:
    """Measure, and print a line for each case."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        paths = [os.path.join(folder, f"file-{number}") for number in range(_FILES + _WEIGHTS)]
        for path in paths:
            with open(path, "wb") as file:
                file.write(bytes(4096))
        command = [sys.executable, "-c", _PROCESS, *paths[:_FILES]]
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            undo.enter_context(process)
            undo.callback(process.kill)
            assert process.stdout is not None
            mappings = int(process.stdout.readline())
        places = []
        for path in paths[_FILES:]:
            status = os.stat(path)
            places.append(Place(os.path.realpath(path), (status.st_dev, status.st_ino)))
        for name, seconds in (("all have changed", -1.0), ("none has changed", 60.0)):
            uses._SAME_SECONDS = seconds
            took = look_seconds(Tree(os.getpid(), places, without=0))
            print(f"{count} processes of {mappings:,} mappings, {name}: {1000 * took:.1f} ms")


def look_seconds(tree: Tree) -> float:
    """Return the median CPU time of a look."""
    tree.look()
    took = []
    for _ in range(_LOOKS):
        began = time.thread_time()
        tree.look()
        took.append(time.thread_time() - began)
    return statistics.median(took)


if __name__ == "__main__":
    main()
