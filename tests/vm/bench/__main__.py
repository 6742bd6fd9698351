"""Measure the command on the machine's mounts: `python -m tests.vm.bench --help`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.helpers.command import ROOT
from tests.vm import kernels
from tests.vm.bench import choice, everywhere, latency, libraries, loading
from tests.vm.bench.output import say, show
from tests.vm.bench.place import place
from tests.vm.kernels import NoMachineError
from tests.vm.machine import MIB
from tests.vm.test_matrix import ROWS

PARTS = ("latency", "loading", "libraries", "everywhere", "choice", "here")
_MODEL_BYTES = 640 * MIB  # the checkpoint on the matrix's mounts


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every requested part ran; a missed goal is a finding, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--kernel", choices=kernels.SERIES, default="6.1")
    parser.add_argument(
        "--mount", action="append", metavar="NAME", help="of everywhere, this row; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--quick", action="store_true", help="a little of each part, to try it")
    parser.add_argument(
        "--json", default=os.path.join(ROOT, "build", "bench-vm.json"), metavar="PATH"
    )
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    if missing := kernels.missing_packages():
        raise NoMachineError(f"needs Debian's {', '.join(missing)}: apt-get install them")
    unknown = set(given.mount or ()) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"--mount: expected a row of the matrix, found {', '.join(sorted(unknown))}")
    parts = given.only or list(PARTS)
    found: dict[str, Any] = {}
    how = {"rounds": given.rounds, "quick": given.quick, "say": say}
    for part in parts:
        say(part)
        began = time.monotonic()
        if part == "here":
            cells = choice.measure_here(**how)
            show(part, choice.table(cells))
            found[part] = choice.document(cells)
        else:
            module: Any = {
                "latency": latency,
                "loading": loading,
                "libraries": libraries,
                "everywhere": everywhere,
                "choice": choice,
            }[part]
            with place(given.kernel, _MODEL_BYTES) as there:
                release, accelerator = there.machine.kernel.release, there.machine.accelerator
                rows = {"mounts": given.mount or ()} if part == "everywhere" else {}
                results = module.measure(there, **how, **rows)
            show(f"{part}, Linux {release}, {accelerator}", module.table(results))
            if module is everywhere:
                show("the state of the cache behind it", everywhere.state_table(results))
            found[part] = module.document(results)
        say(f"{part} took {time.monotonic() - began:.0f} s")
        os.makedirs(os.path.dirname(given.json) or ".", exist_ok=True)
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"kernel": given.kernel, "rounds": given.rounds, **found}, file, indent=2)
    print(f"as JSON: {given.json}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoMachineError as reason:
        sys.exit(f"bench-vm: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)
