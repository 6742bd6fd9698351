"""Mutants of the pure modules, and which of them no test kills: `make mutants`.

cosmic-ray makes each in a copy of the tree, and the module's own tests run there. A survivor is a
line that could be wrong without any test knowing, or a change that nobody could notice.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.helpers.command import ROOT

_FOLDER = os.path.join(ROOT, "build", "mutants")
# Module -> its tests, where those are not tests/unit/PACKAGE/test_MODULE.py.
MODULES = {
    "base/amounts": None,
    "checkpoint/selection": None,
    "linux/advice": None,
    "linux/blockdev": None,
    "linux/cgroups": "tests/alone/own/test_memory.py",
    "linux/lustre": "tests/unit/linux/test_advice.py",
    "linux/memory": "tests/alone/own/test_memory.py",
    "linux/unified": None,
    "plan/decision": None,
    "plan/extents": "tests/unit/plan/test_share.py",
    "plan/ranks": None,
    "plan/share": None,
}
_TIMEOUT_SECONDS = 40  # of one mutant's tests; those that never end count as killed
# `|` between types, which never run, and between flags, where any way to join them is the same.
_LEFT_OUT = (r"core/ReplaceBinaryOperator_BitOr_.*",)


@dataclass(frozen=True)
class Mutant:
    """One change, and whether a test noticed it."""

    module: str
    operator: str
    line_number: int
    survived: bool
    diff: str


def main(arguments: Sequence[str] | None = None) -> int:
    """List the survivors of each module, and count them."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutants", description=__doc__)
    parser.add_argument("--only", action="append", choices=MODULES, help="this module; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="modules at a time")
    given = parser.parse_args(arguments)
    modules = [module for module in MODULES if module in (given.only or MODULES)]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        mutants = [one for each in pool.map(_mutants, modules) for one in each]
    for one in mutants:
        if one.survived:
            print(f"\n{one.module}.py:{one.line_number}: {one.operator}\n{one.diff}")
    print("\nmodule                mutants  survived")
    for module in modules:
        survived = [one.survived for one in mutants if one.module == module]
        print(f"{module:20}  {len(survived):7,}  {sum(survived):8,}")
    return 0


def _mutants(module: str) -> list[Mutant]:
    folder = copied(module)
    package, _, name = module.partition("/")
    tests = MODULES[module] or f"tests/unit/{package}/test_{name}.py"
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -n0 {tests}"
    config = f"""
[cosmic-ray]
module-path = "prefetch_cli/{module}.py"
timeout = {_TIMEOUT_SECONDS}.0
excluded-modules = []
test-command = "{command}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {json.dumps(list(_LEFT_OUT))}
"""
    with open(os.path.join(folder, "mutants.toml"), "w", encoding="utf-8") as file:
        file.write(config)
    scripts = os.path.dirname(sys.executable)
    # First the tests alone: if they failed without a mutant, they would kill every mutant.
    for words in (
        (*command.split(),),
        (f"{scripts}/cosmic-ray", "init", "mutants.toml", "session.sqlite", "--force"),
        (f"{scripts}/cr-filter-operators", "session.sqlite", "mutants.toml"),
        (f"{scripts}/cosmic-ray", "exec", "mutants.toml", "session.sqlite"),
    ):
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    dumped = subprocess.run(
        (f"{scripts}/cosmic-ray", "dump", "session.sqlite"),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mutants = list(_read(module, dumped))
    print(f"{module}: {len(mutants):,} mutants", flush=True)
    return mutants


def _read(module: str, dumped: str) -> Iterator[Mutant]:
    for entry in dumped.splitlines():
        item, result = json.loads(entry)
        if result is None or result.get("worker_outcome") == "skipped":
            continue
        (mutation,) = item["mutations"]
        yield Mutant(
            module=module,
            operator=mutation["operator_name"],
            line_number=mutation["start_pos"][0],
            survived=result["test_outcome"] == "survived",
            diff="\n".join(
                line
                for line in (result.get("diff") or "").splitlines()
                if re.match(r"[-+](?![-+])", line)
            ),
        )


def copied(module: str) -> str:
    """Return a copy of the tree for one module, since cosmic-ray changes files in place."""
    folder = os.path.join(_FOLDER, module)
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if os.path.exists(os.path.join(ROOT, name)):
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            shutil.copy2(os.path.join(ROOT, name), os.path.join(folder, name))
    return folder


if __name__ == "__main__":
    sys.exit(main())
