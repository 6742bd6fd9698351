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
from tests.uml import contest, kernel, parts, rows, window
from tests.uml.contest import Result
from tests.uml.machine import UserMode
from tests.uml.rows import MIB
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
    parser.add_argument(
        "--only", action="append", choices=MEASURES, help="what to measure (rates); repeatable"
    )
    parser.add_argument(
        "--window-size",
        type=int,
        default=window.SIZE_GIB,
        metavar="GIB",
        help=f"of the checkpoint of --only window ({window.SIZE_GIB})",
    )
    parser.add_argument("--all", action="store_true", help="every combination: days")
    parser.add_argument("--rounds", type=int, help=f"runs of each contender ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="little of everything, to try it")
    parser.add_argument(
        "--json", default=os.path.join(ROOT, "build", "bench-uml.json"), metavar="PATH"
    )
    given = parser.parse_args(arguments)
    if given.rounds is None:
        given.rounds = QUICK_ROUNDS if given.quick else ROUNDS
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    given.only = given.only or ["rates"]
    given.rows = rows.chosen(given)
    if given.quick:
        given.rows = rows.quick(given.rows)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all that was asked for was measured."""
    given = parsed(arguments)
    if missing := kernel.missing_packages():
        raise NoMachineError(f"needs Debian's {', '.join(missing)}: apt-get install them")
    say("building user-mode Linux, unless it is there")
    document: dict[str, object] = {"release": kernel.built().release, "rounds": given.rounds}
    for name in given.only:
        MEASURES[name](given, document)
    print(f"as JSON: {given.json}")
    return 0


def measure_rates(given: argparse.Namespace, document: dict[str, object]) -> None:
    """Measure how fast the contenders are on each row."""
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
                write(given.json, {**document, "rows": [asdict(one) for one in results]})
    finally:
        shutil.rmtree(folder)
    document["rows"] = [asdict(one) for one in results]
    show(_title(document), contest.table(results))


def measure_parts(given: argparse.Namespace, document: dict[str, object]) -> None:
    """Measure what stages read, and what is left to their loaders."""
    loaders = parts.loaders(say)
    size = parts.QUICK_BYTES if given.quick else parts.SIZE_BYTES
    with UserMode(memory_bytes=parts.MEMORY_BYTES) as machine:
        result = parts.measure(machine, loaders, size_bytes=size, rounds=given.rounds, say=say)
    document["parts"] = asdict(result)
    write(given.json, document)
    show(f"parts, {_title(document)}", parts.table(result))
    _say_what_missed([*parts.misses(result), *([result.note] if result.note else [])])


def measure_window(given: argparse.Namespace, document: dict[str, object]) -> None:
    """Measure loaders of what does not fit, beside the head and beside a window."""
    size = window.QUICK_BYTES if given.quick else given.window_size * rows.GIB
    with UserMode(memory_bytes=window.memory_bytes(size)) as machine:
        result = window.measure(machine, size_bytes=size, rounds=given.rounds, say=say)
    document["window"] = asdict(result)
    write(given.json, document)
    limit = (
        f"{size // MIB} MiB in {window.SHARDS} shards, {result.limit_bytes // MIB} MiB of memory"
    )
    show(f"window, {limit}, {_title(document)}", window.table(result))
    _say_what_missed(window.misses(result))


MEASURES = {"rates": measure_rates, "parts": measure_parts, "window": measure_window}


def _title(document: dict[str, object]) -> str:
    return f"user-mode Linux {document['release']}, medians of {document['rounds']}"


def _say_what_missed(lines: Sequence[str]) -> None:
    for line in lines or ["all goals are met"]:
        print(f"  {line}")


def write(path: str, document: dict[str, object]) -> None:
    """Write what there is so far."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoMachineError as reason:
        sys.exit(f"bench-uml: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)
