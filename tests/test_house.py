"""The house rules: imports run one way, and click and rich stay in one module each."""

import ast
import sys
from pathlib import Path

import pytest

from prefetch_cli import __name__ as package

# Each imports only what stands before it. A new module takes its place here.
ORDER = (
    # what everyone may use
    "errors",
    "text",
    "sizes",
    "streams",
    "progress",
    "workers",
    "leaving",
    # the system
    "filesystem",
    "memory",
    "pagecache",
    "launcher",
    # a checkpoint
    "scanner",
    "manifest",
    "integrity",
    "selection",
    "folders",
    "hub",
    "checkpoint",
    "distributions",
    "libraries",
    # the stages
    "partition",
    "priority",
    "survey",
    "decision",
    "reader",
    "eviction",
    "proof",
    "report",
    "pipeline",
    # what the user meets
    "display",
    "supervisor",
    "companion",
    "arguments",
    "cli",
    "__main__",
)
FOLDER = Path(sys.modules[package].__path__[0])
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def imported(module: str) -> set[str]:
    """Return what a module imports, wherever in it: `click`, `prefetch_cli.errors`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module]))
            names.add(base)
            if base == package:
                names.update(f"{package}.{alias.name}" for alias in node.names)
    return names


def siblings(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = {name.removeprefix(f"{package}.") for name in imported(module)}
    return names & set(MODULES)


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert siblings(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize(("library", "only"), [("click", "cli"), ("rich", "display")])
def test_a_library_of_the_surface_stays_in_one_module(library: str, only: str) -> None:
    users = [
        module
        for module in MODULES
        if any(name.partition(".")[0] == library for name in imported(module))
    ]
    assert users == [only]


def test_the_sequence_of_stages_is_known_to_the_edge_only() -> None:
    users = [module for module in MODULES if "pipeline" in siblings(module)]
    assert users == ["arguments", "supervisor"]


@pytest.mark.parametrize("module", ["decision", "partition", "proof", "report"])
def test_a_pure_stage_has_no_means_of_its_own(module: str) -> None:
    assert not imported(module) & {"subprocess", "threading", "time", "psutil", "mmap"}


@pytest.mark.flaky(reruns=9, only_rerun=["anything"])
def test_no_test_has_a_rule_of_its_own_for_trying_again(request: pytest.FixtureRequest) -> None:
    first = request.node.get_closest_marker("flaky")
    assert first.kwargs == {"reruns": 2, "only_rerun": "PagesTakenError"}
