"""The fault table of tests/README.md names tests that exist, and every fault test has its row."""

import ast
from pathlib import Path

from tests.helpers import documents
from tests.helpers.command import ROOT

_FOLDER = Path(ROOT) / "tests"
# Fault tests that may not run beside others lie elsewhere.
_OTHERS = (
    ("alone.own", "test_limits"),
    ("alone.own", "test_surroundings"),
    ("alone.machine", "test_crowd"),
)


def rows() -> list[tuple[str, str]]:
    """Return module and test of each row."""
    text = documents.section(documents.read("tests", "README.md"), "Faults")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, _, *body = cells
    assert {len(row) for row in body} == {len(head)}
    named = (row[-1].strip("`") for row in body)
    return [(module, test) for module, _, test in (name.partition("::") for name in named)]


def file_of(module: str) -> Path:
    """Return the file that a row names by its module."""
    here = _FOLDER / "faults" / f"{module}.py"
    return here if here.exists() else _FOLDER / f"{module.replace('.', '/')}.py"


def names_in(path: Path) -> set[str]:
    """Return the names of a module's tests, without their `test_`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {name.removeprefix("test_") for name in functions if name.startswith("test_")}


def test_each_row_names_a_test() -> None:
    assert len(rows()) > 40
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
