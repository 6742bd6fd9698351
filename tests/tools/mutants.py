"""Mutants of the pure stages, and which of them no test kills: `make mutants`.

Each is made by cosmic-ray in a copy of the tree, and the tests of its stage run there. A survivor
is a line that could be wrong without any test knowing; those that change nothing that anyone could
see are explained below, all others fail.
"""

import argparse
import collections
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
STAGES = ("sizes", "decision", "launcher", "partition", "memory", "selection")
_SECONDS = 40  # of the tests of one mutant: those that never end count as killed
# Of types, which are not run, and of flags that are never given twice: the same as any other way
# to join them.
_LEFT_OUT = (r"core/ReplaceBinaryOperator_BitOr_.*",)

# Module (or any), the line, the end of the operator's name -> why nobody could see a difference.
_ANY = "*"
_ONE_OBJECT = "CPython has one object for this word"
_ENUM = "a member of an enumeration is equal to itself alone"
_PADDED = 'padded = any(number.startswith("0") and number != "0" for number in written)'
_PROMISED = "return next((family for family in families if folder.index(family)), families[0])"
_BUDGET = "size = int(available_bytes * threshold_percent / 100)"
_SKIP = "def _skip(reason: Reason, message: str, *, warning: bool = False) -> Decision:"
_NUMBER = 'return int(text) if text and re.fullmatch("[0-9]{1,10}", text) else -1'
_MOST = 'most = "that" if budget.limited_by == "max-bytes" else sizes.format_size(budget.max_bytes)'
_WHOLE_FILES = "if split is Split.FILES or world_size == 1:"
_CUT = "elif extent.file == cut.file and extent.offset < cut.length:"
_WHOLE = "return (Extent(file, 0, sizes[file]) for file in files if sizes[file] > 0)"
_LOADS = (
    "loads = [(0, rank) for rank in range(world_size)]  # a heap: fewest bytes, then lowest rank"
)
EXPLAINED: dict[tuple[str, str, str], str] = {
    (_ANY, "@dataclass(frozen=True)", "ReplaceTrueWithFalse"): "mypy refuses to assign to it",
    (_ANY, "*,", "Mul_Div"): "only how it may be called",
    ("sizes", 'if text == "0":', "Eq_Is"): "CPython has one object for each Latin-1 character",
    ("sizes", "size = 0", "NumberReplacer"): "what is below 1 is refused like 0",
    ("sizes", "if not 0 < seconds < math.inf:", "Lt_NotEq"): "no form has a sign, no sum is a NaN",
    ("decision", _SKIP, "Mul_Div"): "only how it may be called",
    ("decision", _BUDGET, "Div_FloorDiv"): "int() cuts off what // cuts off",
    ("decision", "if facts.share_bytes == 0:", "Eq_LtE"): "no share is less than nothing",
    ("decision", 'if budget.limited_by == "max-bytes":', "Eq_Is"): _ONE_OBJECT,
    ("decision", _MOST, "Eq_Is"): _ONE_OBJECT,
    ("partition", _WHOLE_FILES, "Is_Eq"): _ENUM,
    ("partition", _WHOLE_FILES, "Eq_LtE"): "no world has less than one rank",
    ("partition", "if split is Split.AUTO:", "Is_Eq"): _ENUM,
    ("partition", _LOADS, "NumberReplacer"): "only compared with each other",
    ("partition", _CUT, "Eq_LtE"): "those of the files before have gone the other way",
    ("partition", _WHOLE, "Gt_NotEq"): "no size is below 0",
    ("partition", "while offset < extent.end:", "Lt_NotEq"): "the last end is that of the extent",
    (
        "memory",
        'places = places or [(0, mount.mount_point, "") for mount in mounted[-1:]]',
        "NumberReplacer",
    ): "of one place only, its depth is compared with none",
    ("memory", 'if root == "/":', "Eq_LtE"): "no absolute path comes before it",
    **dict.fromkeys(
        [("memory", "if up < mounted_up:", operator) for operator in ("Lt_IsNot", "Lt_NotEq")],
        "one that is above has returned before",
    ),
    ("memory", 'if root == "/":', "Eq_Is"): "CPython has one object for each Latin-1 character",
    ("memory", "if controller is _V2:", "Is_Eq"): "the two versions differ in every field",
    (
        "memory",
        '(-inside.count("/"), mount.mount_point, inside)',
        "USub_Invert",
    ): "one less each: the order is the same",
    ("memory", "if searched > _MOST_SEARCHED:", "Gt_GtE"): "a bound: one more or less is as good",
    ("memory", "searched = 0", "NumberReplacer"): "a bound: one more or less is as good",
    (
        "memory",
        "_MOST_SEARCHED = 10_000  # cgroups that are looked through for the one of this process",
        "NumberReplacer",
    ): "a bound: one more or less is as good",
    ("selection", "if component and load_format is not LoadFormat.ALL:", "IsNot_NotEq"): _ENUM,
    ("selection", "if load_format is LoadFormat.ALL:", "Is_Eq"): _ENUM,
    ("selection", "if load_format is not LoadFormat.AUTO:", "IsNot_NotEq"): _ENUM,
    ("selection", _PADDED, "NotEq_Gt"): "what begins with 0 and is longer comes behind it",
    ("selection", _PADDED, "NotEq_IsNot"): "CPython has one object for each Latin-1 character",
    (
        "selection",
        "return found[0] if len(found) == 1 else None",
        "NumberReplacer",
    ): "the first is the last",
    ("selection", _PROMISED, "NumberReplacer"): "no family has a file or an index then",
    (
        "selection",
        "width = max(map(len, written)) if padded else 1",
        "NumberReplacer",
    ): "to no width, as to one of 1, nothing is added",
    ("launcher", "if pair and pair[1] > 1:", "Gt_NotEq"): "a rank is below its size, which is 1",
    **dict.fromkeys(
        [
            ("launcher", line, operator)
            for line in ("return -1", _NUMBER)
            for operator in (
                "USub_UAdd",
                "USub_Invert",
                "USub_Not",
                "Delete_USub",
                "NumberReplacer",
            )
        ],
        "what is no number, or the number of one task, is no rank either way",
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change, and whether a test noticed it."""

    stage: str
    operator: str
    line_number: int
    line: str
    survived: bool
    diff: str

    @property
    def explanation(self) -> str | None:
        """Why it may survive, None where nothing says so."""
        for (stage, line, operator), why in EXPLAINED.items():
            here = stage in {self.stage, _ANY} and line == self.line
            if here and self.operator.endswith(operator):
                return why
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where every survivor is explained."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutants", description=__doc__)
    parser.add_argument("--only", action="append", choices=STAGES, help="this stage; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="stages at a time")
    given = parser.parse_args(arguments)
    os.makedirs(_FOLDER, exist_ok=True)
    stages = [stage for stage in STAGES if stage in (given.only or STAGES)]
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        found = [one for each in pool.map(_mutants, stages) for one in each]
    counts = collections.Counter(one.stage for one in found)
    left = collections.Counter(one.stage for one in found if one.survived)
    unexplained = [one for one in found if one.survived and one.explanation is None]
    for one in unexplained:
        print(f"\n{one.stage}.py:{one.line_number}: {one.operator}\n{one.diff}")
    print("\nstage       mutants  survived  unexplained")
    for stage in stages:
        unknown = sum(one.stage == stage for one in unexplained)
        print(f"{stage:10}  {counts[stage]:7,}  {left[stage]:8,}  {unknown:11,}")
    return 1 if unexplained else 0


def _mutants(stage: str) -> list[Mutant]:
    folder = copied(stage)
    module = f"prefetch_cli/{stage}.py"
    tests = f"tests/test_{stage}.py"
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -n0 {tests}"
    config = f"""
[cosmic-ray]
module-path = "{module}"
timeout = {_SECONDS}.0
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
    # Of the tests as they are, first: those that fail by themselves would kill every mutant.
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
    with open(os.path.join(ROOT, module), encoding="utf-8") as file:
        lines = file.read().splitlines()
    found = list(_read(stage, dumped, lines))
    print(f"{stage}: {len(found):,} mutants", flush=True)
    return found


def _read(stage: str, dumped: str, lines: Sequence[str]) -> Iterator[Mutant]:
    for entry in dumped.splitlines():
        item, result = json.loads(entry)
        if result is None or result.get("worker_outcome") == "skipped":
            continue
        (mutation,) = item["mutations"]
        number = mutation["start_pos"][0]
        yield Mutant(
            stage=stage,
            operator=mutation["operator_name"],
            line_number=number,
            line=lines[number - 1].strip(),
            survived=result["test_outcome"] == "survived",
            diff="\n".join(
                line
                for line in (result.get("diff") or "").splitlines()
                if re.match(r"[-+](?![-+])", line)
            ),
        )


def copied(stage: str) -> str:
    """Return a copy of what git knows, for one stage: cosmic-ray changes files in their place."""
    folder = os.path.join(_FOLDER, stage)
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
