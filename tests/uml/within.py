"""Run a command in user-mode Linux, beside a mount over NFS or 9p whose path is $MOUNT.

    python -m tests.uml.within --round-trip 10 'python -m tests.tools.truth 20 --here $MOUNT'

The server's own files are in /srv, in memory. `python` is this one, and the command starts in this
checkout's folder.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tests.helpers.command import ROOT
from tests.uml import kernel, link, rows
from tests.uml.machine import UserMode
from tests.uml.rows import Row
from tests.vm.kernels import NoMachineError
from tests.vm.machine import MachineError, Process


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the command's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.uml.within",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--over", choices=("nfs", "9p"), default="nfs")
    parser.add_argument("--round-trip", type=int, default=0, metavar="MS")
    parser.add_argument("--version", choices=rows.VERSIONS, default=Row.version)
    parser.add_argument("--nconnect", type=int, default=Row.nconnect)
    parser.add_argument("--rate", type=int, metavar="MB/S", help="the server sends no faster")
    parser.add_argument("--memory", type=int, default=6, metavar="GIB")
    parser.add_argument("command")
    given = parser.parse_args(arguments)
    of_nfs = (given.version, given.nconnect, given.rate)
    if given.over == "9p" and of_nfs != (Row.version, Row.nconnect, None):
        parser.error("--version, --nconnect and --rate are for --over nfs")
    if missing := kernel.missing_packages():
        raise NoMachineError(f"needs Debian's {', '.join(missing)}: apt-get install them")
    row = Row(given.round_trip, nconnect=given.nconnect, version=given.version)
    rate = None if given.rate is None else given.rate * 1_000_000
    with (
        UserMode(memory_bytes=given.memory * rows.GIB) as machine,
        link.plan9(machine, given.round_trip)
        if given.over == "9p"
        else link.mounted(machine, row, rate) as point,
    ):
        folder = os.path.dirname(sys.executable)
        words = f'PATH="{folder}:$PATH"; {given.command}'
        env = {"MOUNT": point, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ROOT}
        return follow(machine.start_process("sh", "-c", words, folder=ROOT, env=env))


def follow(process: Process) -> int:
    """Print what a process prints, as it does, and return its exit code."""
    seen = ["", ""]
    while True:
        running = process.running
        for at, (text, stream) in enumerate(
            zip(process.shown(), (sys.stdout, sys.stderr), strict=True)
        ):
            stream.write(text[len(seen[at]) :])
            stream.flush()
            seen[at] = text
        if not running:
            return process.end(0).code
        time.sleep(0.5)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (MachineError, NoMachineError) as reason:
        sys.exit(f"within: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)
