"""The house rules: packages import only those above them, and each library has one home."""

import ast
import sys
from pathlib import Path

import pytest

from prefetch_cli import __doc__ as package_map
from prefetch_cli import __name__ as package

# Each imports only those that stand before it. A new package takes its place here.
ORDER = (
    "base",
    "linux",
    "hubs",
    "checkpoint",
    "commands",
    "libraries",
    "plan",
    "reading",
    "residency",
    "run",
    "show",
    "process",
    "cli",
)
MOST_LINES = 330  # a newcomer holds that much in the head
DATA = {"cli/flags.py"}  # records, one for each flag
FOLDER = Path(sys.modules[package].__path__[0])
MODULES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.py"))


def imported(module: str) -> set[str]:
    """Return what a module imports, wherever in it: `click`, `prefetch_cli.base.errors`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((FOLDER / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def users(library: str) -> set[str]:
    """Return the packages that import a library."""
    return {
        module.partition("/")[0]
        for module in MODULES
        if any(name.partition(".")[0] == library for name in imported(module))
    }


def importers(name: str) -> set[str]:
    """Return the modules that import one of this package's modules."""
    return {module for module in MODULES if f"{package}.{name}" in imported(module)}


def test_every_package_has_its_place() -> None:
    assert sorted(ORDER) == sorted({module.partition("/")[0] for module in MODULES})
    assert sorted(path.name for path in FOLDER.glob("*.py")) == ["__init__.py", "__main__.py"]
    assert not list(FOLDER.glob("*/*/*.py"))


def test_the_map_names_the_packages_in_their_order() -> None:
    lines = [line.split() for line in (package_map or "").splitlines()]
    assert tuple(words[0] for words in lines if words and words[0] in ORDER) == ORDER


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    own = module.partition("/")[0]
    above = set(ORDER[: ORDER.index(own) + 1])
    found = {name.split(".")[1] for name in imported(module) if name.startswith(f"{package}.")} - {
        "__version__"
    }
    assert found <= above


@pytest.mark.parametrize("name", ORDER)
def test_no_two_modules_of_a_package_import_each_other(name: str) -> None:
    modules = [module for module in MODULES if module.startswith(f"{name}/")]
    needs = {
        module: {
            other
            for other in modules
            if f"{package}.{other.removesuffix('.py').replace('/', '.')}" in imported(module)
        }
        for module in modules
    }
    while ready := {module for module in needs if not needs[module] & needs.keys()}:
        needs = {module: needs[module] for module in needs.keys() - ready}
    assert not needs


@pytest.mark.parametrize("module", MODULES)
def test_no_module_takes_a_private_name_of_another(module: str) -> None:
    private = [
        name
        for name in imported(module)
        if name.startswith(f"{package}.") and name.rpartition(".")[2].startswith("_")
    ]
    assert set(private) <= {f"{package}.__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short(module: str) -> None:
    lines = (FOLDER / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES or module in DATA


@pytest.mark.parametrize("name", ORDER)
def test_a_package_says_what_it_is_for(name: str) -> None:
    tree = ast.parse((FOLDER / name / "__init__.py").read_text(encoding="utf-8"))
    (docstring,) = tree.body  # and nothing is passed on
    assert isinstance(docstring, ast.Expr)
    assert (ast.get_docstring(tree) or "").count("\n") == 2


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("click", "cli"),
        ("rich", "show"),
        ("ctypes", "linux"),
        ("psutil", "linux"),
        ("humanfriendly", "base"),
    ],
)
def test_a_library_has_one_home(library: str, only: str) -> None:
    assert users(library) == {only}


@pytest.mark.parametrize("module", MODULES)
def test_the_kernel_is_asked_in_one_package(module: str) -> None:
    tree = ast.parse((FOLDER / module).read_text(encoding="utf-8"))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    asked = [text for text in texts if text.startswith(("/proc/", "/sys/"))]
    assert not asked or module.startswith("linux/")


def test_the_sequence_of_stages_is_known_to_the_supervisor_only() -> None:
    assert importers("run.pipeline") == {"process/supervisor.py"}


@pytest.mark.parametrize("module", [one for one in MODULES if one.startswith("plan/")])
def test_a_plan_has_no_means_of_its_own(module: str) -> None:
    assert not imported(module) & {"os", "subprocess", "threading", "time", "psutil", "mmap"}
    assert not any(name.startswith(f"{package}.linux") for name in imported(module))


@pytest.mark.flaky(reruns=9, only_rerun=["anything"])
def test_no_test_has_a_rule_of_its_own_for_trying_again(request: pytest.FixtureRequest) -> None:
    first = request.node.get_closest_marker("flaky")
    assert first.kwargs == {"reruns": 2, "only_rerun": "PagesTakenError"}
