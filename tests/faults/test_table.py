"""The table of faults names tests that exist, and every test of a fault has its row."""

import ast
from pathlib import Path

from tests import faults
from tests.helpers.command import ROOT

_FOLDER = Path(ROOT) / "tests"
# Their tests may not run beside others, so that they lie elsewhere.
_OTHERS = (
    ("alone.own", "test_limits"),
    ("alone.own", "test_surroundings"),
    ("alone.machine", "test_crowd"),
)


def rows() -> list[tuple[str, str]]:
    """Return module and test of each row."""
    lines = (faults.__doc__ or "").splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("fault  "))
    named = [line.split()[-1] for line in lines[head + 1 :] if line.strip()]
    return [(module, test) for module, _, test in (name.partition("::") for name in named)]


def file_of(module: str) -> Path:
    """Return the file that a row means by a module."""
    here = _FOLDER / "faults" / f"{module}.py"
    return here if here.exists() else _FOLDER / f"{module.replace('.', '/')}.py"


def names_in(path: Path) -> set[str]:
    """Return the names of a module's tests, without their `test_`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {name.removeprefix("test_") for name in functions if name.startswith("test_")}


def test_each_row_names_a_test() -> None:
    for module, test in rows():
        assert test in names_in(file_of(module)), (module, test)


def test_each_test_has_its_row() -> None:
    named = set(rows())
    for path in sorted((_FOLDER / "faults").glob("test_*.py")):
        if path != Path(__file__):
            assert {(path.stem, test) for test in names_in(path)} <= named
    for folder, module in _OTHERS:
        path = _FOLDER / folder.replace(".", "/") / f"{module}.py"
        assert {(f"{folder}.{module}", test) for test in names_in(path)} <= named
