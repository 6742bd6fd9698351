"""The package: what wheel and sdist contain, and that every way to install it works."""

import email
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from prefetch_cli import __version__
from tests.helpers import documents
from tests.helpers.checkpoints import write_sharded
from tests.helpers.command import ROOT

RUNTIME = {"click", "psutil", "rich", "humanfriendly"}
INFO = f"prefetch_cli-{__version__}.dist-info"
# Each page, and where it is installed below a prefix.
MAN_PAGES = {name: f"share/man/man{name[-1]}/{name}" for name in documents.PAGES}

# Builds and installations are slow, and slower side by side.
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Built:
    """The paths of the files that a build made."""

    wheel: str
    sdist: str


def environment(**more: str) -> dict[str, str]:
    """Return an environment without variables that point to another interpreter's modules."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, **more}


def run(command: Sequence[str], *, cwd: str = "/", **more: str) -> str:
    """Return what the command printed; a failure shows all of it."""
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist, and the wheel from the sdist."""
    directory = str(tmp_path_factory.mktemp("dist"))
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT])
    (wheel,) = glob.glob(os.path.join(directory, "*.whl"))
    (sdist,) = glob.glob(os.path.join(directory, "*.tar.gz"))
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def names(built: Built) -> set[str]:
    with zipfile.ZipFile(built.wheel) as wheel:
        return set(wheel.namelist())


def content(built: Built, name: str) -> str:
    with zipfile.ZipFile(built.wheel) as wheel:
        return wheel.read(name).decode()


def in_wheel(path: str) -> str:
    """Return the name of a file that a wheel installs below the prefix."""
    return f"prefetch_cli-{__version__}.data/data/{path}"


def in_tree(*parts: str) -> str:
    return text_of(os.path.join(ROOT, *parts))


def text_of(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def assert_man_pages_below(prefix: str) -> None:
    for name, path in MAN_PAGES.items():
        assert text_of(os.path.join(prefix, path)) == in_tree("man", name)


# What is in them


def test_wheel_has_the_modules_and_nothing_else(names: set[str]) -> None:
    modules = {
        os.path.relpath(path, ROOT)
        for path in glob.glob(os.path.join(ROOT, "prefetch_cli", "**", "*.*"), recursive=True)
        if "__pycache__" not in path
    }
    assert {name for name in names if name.startswith("prefetch_cli/")} == modules
    assert "prefetch_cli/py.typed" in names
    rest = {name for name in names if not name.startswith(("prefetch_cli/", f"{INFO}/"))}
    assert rest == {in_wheel(path) for path in MAN_PAGES.values()}


def test_every_man_page_of_the_tree_is_installed() -> None:
    found = glob.glob("*.[0-9]", root_dir=os.path.join(ROOT, "man"))
    assert set(found) == MAN_PAGES.keys()


def test_wheel_carries_the_man_pages(built: Built) -> None:
    for name, path in MAN_PAGES.items():
        assert content(built, in_wheel(path)) == in_tree("man", name)


def test_wheel_is_for_each_platform(built: Built) -> None:
    assert os.path.basename(built.wheel) == f"prefetch_cli-{__version__}-py3-none-any.whl"


def test_wheel_has_the_command(built: Built) -> None:
    lines = content(built, f"{INFO}/entry_points.txt").split("\n")
    assert [line for line in lines if line] == [
        "[console_scripts]",
        "prefetch-cli = prefetch_cli.__main__:main",
    ]


def runtime_requirements(built: Built) -> list[str]:
    """Return what the wheel requires without extras."""
    metadata = email.message_from_string(content(built, f"{INFO}/METADATA"))
    return [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]


def test_metadata(built: Built) -> None:
    metadata = email.message_from_string(content(built, f"{INFO}/METADATA"))
    required = runtime_requirements(built)
    assert {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in required} == RUNTIME
    assert all(re.fullmatch(r"[a-z]+>=[0-9.]+", line) for line in required)
    assert (metadata["Name"], metadata["Version"]) == ("prefetch-cli", __version__)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload() == in_tree("README.md")
    assert content(built, f"{INFO}/licenses/LICENSE") == in_tree("LICENSE")


def test_nothing_else_is_imported(built: Built) -> None:
    """The package imports only the standard library and its runtime dependencies."""
    allowed = RUNTIME | {"prefetch_cli"} | sys.stdlib_module_names
    imported = set()
    for path in glob.glob(os.path.join(ROOT, "prefetch_cli", "**", "*.py"), recursive=True):
        with open(path, encoding="utf-8") as file:
            imported |= set(re.findall(r"^\s*(?:from|import) (\w+)", file.read(), re.MULTILINE))
    assert {"click", "psutil", "humanfriendly"} <= imported <= allowed


def test_sdist_has_what_it_takes_to_build_and_to_test(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}
    tops = {name.partition("/")[0] for name in found}
    assert tops == {
        *("prefetch_cli", "tests", "man", "pyz", "Makefile", "README.md", "CHANGELOG.md"),
        *("LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"),
    }
    assert {"tests/run/test_package.py", "tests/helpers/checkpoints.py", "man/generate.py"} <= found
    assert not any("__pycache__" in name for name in found)


# What they become


def assert_works(command: str) -> None:
    """Assert that an installed command runs outside the tree."""
    assert run([command, "--version"]) == f"prefetch-cli {__version__}\n"
    assert run([command, "--help"]).startswith("Usage: prefetch-cli ")


def test_wheel_installs_into_a_fresh_environment(built: Built, tmp_path: str) -> None:
    place = os.path.join(tmp_path, "venv")
    venv.create(place, with_pip=False, symlinks=True)
    python = os.path.join(place, "bin", "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", built.wheel])
    (packages,) = glob.glob(os.path.join(place, "lib", "python3*", "site-packages"))
    # Take the dependencies of this environment, but not its editable installs.
    with open(os.path.join(packages, "dependencies.pth"), "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")

    assert_works(os.path.join(place, "bin", "prefetch-cli"))
    found = run([python, "-c", "import prefetch_cli; print(prefetch_cli.__file__)"])
    assert found.startswith(packages)
    assert run([python, "-m", "prefetch_cli", "--version"]).split()[-1] == __version__
    assert_man_pages_below(place)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip without a package index to install dependencies from."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0"),
            *("--dest", str(tmp_path_factory.mktemp("index")), "humanfriendly"),
        ],
        capture_output=True,
        check=False,
        text=True,
        env=environment(),
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word why"])[-1]
        pytest.skip(f"needs a package index: {last}")


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 10), reason="the oldest releases have wheels for the oldest Python"
)
@pytest.mark.usefixtures("index")
def test_the_oldest_releases_that_are_allowed_are_enough(built: Built, tmp_path: str) -> None:
    place = os.path.join(tmp_path, "venv")
    venv.create(place, with_pip=False, symlinks=True)
    python = os.path.join(place, "bin", "python")
    oldest = [line.replace(">=", "==") for line in runtime_requirements(built)]
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", built.wheel, *oldest])
    assert_works(os.path.join(place, "bin", "prefetch-cli"))
    checkpoint = write_sharded(os.path.join(tmp_path, "model"), shard_bytes=[1 << 20]).directory
    report = json.loads(run([python, "-m", "prefetch_cli", "--check", "--json", checkpoint]))
    assert report["exit_code"] == 0


@pytest.fixture
def tree(tmp_path: str) -> str:
    """Return a copy of the tree: installers leave files behind."""
    copy = os.path.join(tmp_path, "tree")
    kept = ("prefetch_cli", "man", "Makefile", "README.md", "LICENSE", "pyproject.toml")
    os.mkdir(copy)
    for name in kept:
        path = os.path.join(ROOT, name)
        copied = shutil.copytree if os.path.isdir(path) else shutil.copy
        copied(path, os.path.join(copy, name))
    return copy


@pytest.mark.usefixtures("index")
def test_pipx_install(tree: str, tmp_path: str) -> None:
    if not shutil.which("pipx"):
        pytest.skip("needs pipx")
    home, bin_, man = (os.path.join(tmp_path, name) for name in ("home", "bin", "man"))
    run(
        ["pipx", "install", "--python", sys.executable, "."],
        cwd=tree,
        PIPX_HOME=home,
        PIPX_BIN_DIR=bin_,
        PIPX_MAN_DIR=man,
    )
    assert_works(os.path.join(bin_, "prefetch-cli"))
    for path in MAN_PAGES.values():
        assert os.path.exists(os.path.join(home, "venvs", "prefetch-cli", path))
        # pipx links man pages from 1.3 on.
        link = os.path.join(man, os.path.relpath(path, "share/man"))
        assert os.path.exists(link) or not os.path.exists(man)


@pytest.mark.usefixtures("index")
def test_uv_tool_install(tree: str, tmp_path: str) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))
    if uv is None:
        pytest.skip("needs uv")
    home, bin_ = (os.path.join(tmp_path, name) for name in ("home", "bin"))
    run(
        [uv, "tool", "install", "--python", sys.executable, "."],
        cwd=tree,
        UV_TOOL_DIR=home,
        UV_TOOL_BIN_DIR=bin_,
        UV_CACHE_DIR=os.path.join(tmp_path, "cache"),
        **uv_as_pip_is_configured(),
    )
    assert_works(os.path.join(bin_, "prefetch-cli"))


def uv_as_pip_is_configured() -> dict[str, str]:
    """Return variables that point uv to pip's index: uv does not read pip's configuration."""
    lines = run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    configured = dict(line.replace("'", "").split("=", 1) for line in lines if "=" in line)
    # Pip takes the best version of all indexes, uv by default the first index that has the name.
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, option in (
        ("UV_DEFAULT_INDEX", "index-url"),
        ("UV_INDEX", "extra-index-url"),
        ("UV_FIND_LINKS", "find-links"),
    ):
        found = [configured.get(f"{scope}.{option}") for scope in (":env:", "global", "user")]
        if name not in os.environ and any(found):
            variables[name] = next(value for value in found if value)
    return variables


@pytest.mark.usefixtures("index")
def test_make_install(tree: str, tmp_path: str) -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    prefix = os.path.join(tmp_path, "a prefix")
    make = ["make", f"PYTHON={sys.executable}", f"PREFIX={prefix}"]
    run([*make, "install"], cwd=tree)
    assert_works(os.path.join(prefix, "bin", "prefetch-cli"))
    assert_man_pages_below(prefix)
    run([*make, "install"], cwd=tree)  # over itself
    run([*make, "uninstall"], cwd=tree)
    assert not any(files for _, _, files in os.walk(prefix))


def test_make_install_refuses_a_relative_prefix(tree: str) -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    done = subprocess.run(
        ["make", "install", "PREFIX=here"], cwd=tree, capture_output=True, check=False, text=True
    )
    assert done.returncode == 2
    assert "expected an absolute path, found 'here'" in done.stderr
    assert not os.path.exists(os.path.join(tree, "here"))
