"""Measure over NFS where the processor is native: `python -m tests.uml --help`."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict

from tests.helpers.command import ROOT
from tests.uml import contest, kernel, rows
from tests.uml.contest import Result
from tests.uml.machine import UserMode
from tests.vm.bench.output import say, show
from tests.vm.bench.place import Place
from tests.vm.kernels import NoMachineError

ROUNDS, QUICK_ROUNDS = 5, 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `rows` are those to measure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.uml",
        description=f"{__doc__} Without a choice of rows: those that show each value once.",
    )
    rows.add_options(parser)
    parser.add_argument("--all", action="store_true", help="every combination: days")
    parser.add_argument("--rounds", type=int, help=f"runs of each contender ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="a little of two rows, to try it")
    parser.add_argument(
        "--json", default=os.path.join(ROOT, "build", "bench-uml.json"), metavar="PATH"
    )
    given = parser.parse_args(arguments)
    if given.rounds is None:
        given.rounds = QUICK_ROUNDS if given.quick else ROUNDS
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    given.rows = rows.chosen(given)
    if given.quick:
        given.rows = rows.quick(given.rows)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every requested row was measured."""
    given = parsed(arguments)
    if missing := kernel.missing_packages():
        raise NoMachineError(f"needs Debian's {', '.join(missing)}: apt-get install them")
    say("building user-mode Linux, unless it is there")
    release = kernel.built().release
    results: list[Result] = []
    folder = tempfile.mkdtemp(prefix="model-", dir=kernel.BUILD)
    try:
        with UserMode(memory_bytes=rows.memory_bytes(given.rows)) as machine:
            place = Place(machine, folder)
            for number, row in enumerate(given.rows, start=1):
                say(f"{number}/{len(given.rows)} {row}")
                began = time.monotonic()
                results.append(contest.measure(place, machine, row, rounds=given.rounds, say=say))
                say(f"  took {time.monotonic() - began:.0f} s")
                write(given.json, release, given.rounds, results)
    finally:
        shutil.rmtree(folder)
    show(f"user-mode Linux {release}, medians of {given.rounds}", contest.table(results))
    print(f"as JSON: {given.json}")
    return 0


def write(path: str, release: str, rounds: int, results: Sequence[Result]) -> None:
    """Write what there is so far."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    document = {"release": release, "rounds": rounds, "rows": [asdict(one) for one in results]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoMachineError as reason:
        sys.exit(f"bench-uml: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)
