"""`make zipapp`: one file that any Python here runs, and that leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pexpect
import pytest

from prefetch_cli import __version__
from tests.faults import refuse
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import ROOT, environment, run
from tests.helpers.oracle import about
from tests.tools import pythons

HINT = "; install prefetch-cli with pip on this machine\n"
# Remounts everything read-only in a mount namespace of its own, then becomes the command.
READ_ONLY = """
for place in $(findmnt --raw --noheadings --output TARGET); do
    mount -o remount,bind,ro "$place" 2>/dev/null
done
touch "$1" 2>/dev/null && exit 99
shift; exec "$@"
"""

pytestmark = pytest.mark.timeout(600)  # the build fetches packages


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the only file that it takes."""
    if not shutil.which("make"):
        pytest.skip("needs make")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("prefetch_cli", "pyz", "man"):
        shutil.copytree(Path(ROOT, name), tree / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("Makefile", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(Path(ROOT, name), tree)
    # No STAMP: this environment is the one to build in.
    done = subprocess.run(
        ["make", "zipapp", "STAMP=", f"BIN={os.path.dirname(sys.executable)}"],
        cwd=tree,
        env=environment(PYTHONPATH=None, MAKEFLAGS=None, MAKELEVEL=None, PIP_RETRIES="0"),
        capture_output=True,
        check=False,
        text=True,
    )
    if "No matching distribution found" in done.stderr:
        pytest.skip(f"needs a package index: {done.stderr.splitlines()[-2]}")
    assert done.returncode == 0, done.stdout + done.stderr
    alone = tmp_path_factory.mktemp("alone") / "prefetch-cli.pyz"
    return str(shutil.move(tree / "dist" / "prefetch-cli.pyz", alone))


@pytest.fixture
def started(pyz: str) -> list[str]:
    """The start of a command line with nothing but that file and this Python."""
    return [sys.executable, "-I", "-S", pyz]


def test_it_is_one_executable_for_both_machine_types(pyz: str) -> None:
    assert os.stat(pyz).st_mode & 0o777 == 0o755
    assert Path(pyz).read_bytes().startswith(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(pyz) as file:
        compiled = {os.path.dirname(name) for name in file.namelist() if name.endswith(".so")}
        assert compiled == {"aarch64/psutil", "x86_64/psutil"}
        assert not any("__pycache__" in name for name in file.namelist())


def test_each_python_here_runs_it(pyz: str, warm: str) -> None:
    ran = 0
    for found in pythons.find():
        if found.version == "?" or "no release of CPython" in (found.refusal or ""):
            continue
        command = [found.path, "-I", pyz] if found.version[0] == "3" else [found.path, pyz]
        done = run("--check", warm, command=command)
        if tuple(map(int, found.minor.split("."))) < (3, 10):
            expected = f"expected Python 3.10 or newer, found {found.minor}"
            assert (done.code, done.errors.count("\n")) == (1, 1)
            assert done.errors.startswith(f"prefetch-cli: error: {expected}; ")
        else:
            assert (done.code, done.errors) == (0, ""), found
            assert done.resident_percent == about(100)
            ran += 1
    assert ran > 0


def test_help_is_the_same(started: list[str]) -> None:
    assert run("--version", command=started).output == f"prefetch-cli {__version__}\n"
    assert run("--help", command=started).output == run("--help").output


def test_it_warms_and_leaves_nothing(
    started: list[str], cold: str, built: BuiltCheckpoint, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*started, "--force", "--background", "--json", cold],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert oracle.resident_bytes(built.weight_files) == about(built.weight_bytes)
    assert not list(tmp_path.iterdir())
    assert os.listdir(os.path.dirname(started[-1])) == ["prefetch-cli.pyz"]


def test_it_runs_where_nothing_can_be_written(
    started: list[str], cold: str, built: BuiltCheckpoint, tmp_path: Path
) -> None:
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if not shutil.which("unshare") or subprocess.call([*unshare, "true"], stderr=-3):
        pytest.skip("needs unshare(1) and the right to make a mount namespace")
    space = [*unshare, "sh", "-c", READ_ONLY, "sh", str(tmp_path / "written")]
    done = run("--force", cold, command=[*space, *started], env={"HOME": None})
    if done.code == 99:
        pytest.skip("needs the right to remount read-only")
    assert (done.code, done.resident_percent) == (0, about(100)), done
    assert oracle.resident_bytes(built.weight_files) == about(built.weight_bytes)


def test_command_starts_when_all_is_warm(
    started: list[str], cold: str, built: BuiltCheckpoint
) -> None:
    arguments = ["--force", "--lead", "100%", cold, "--", "sh", "-c", "echo served; exit 7"]
    done = run(*arguments, command=started)
    assert (done.code, done.output) == (7, "served\n")
    assert oracle.resident_bytes(built.weight_files) == about(built.weight_bytes)


def test_a_rank_has_its_share(started: list[str], warm: str) -> None:
    arguments = ["--rank", "1", "--world-size", "2", "--dry-run", "--json", warm]
    share = run(*arguments, command=started).document["share"]
    assert share == run(*arguments).document["share"]
    assert (share["rank"], share["world_size"]) == (1, 2)


def test_it_has_what_a_bar_takes(started: list[str], cold: str) -> None:
    arguments = [*started[1:], "--force", "--progress", "bar", cold]
    with pexpect.spawn(started[0], arguments, env=environment(), encoding="utf-8") as child:
        child.expect(pexpect.EOF)
    assert "Traceback" not in str(child.before)
    assert child.wait() == 0


@pytest.mark.parametrize(
    ("around", "found"),
    [
        (["sh", "-c", 'ulimit -f 0; exec "$@"', "sh"], "File too large"),
        pytest.param(
            [sys.executable, "-m", "tests.faults.refuse", "memfd_create=EPERM", "--"],
            "Operation not permitted",
            marks=pytest.mark.skipif(
                refuse.CALLS is None, reason="needs a machine whose system calls are numbered"
            ),
        ),
    ],
)
def test_no_file_in_memory_is_said_in_one_line(
    started: list[str], warm: str, around: list[str], found: str
) -> None:
    done = run("--check", warm, command=[*around, *started])
    message = f"expected a file in memory for psutil, found {found}"
    assert (done.code, done.errors) == (1, f"prefetch-cli: error: {message}{HINT}")


def test_a_module_that_does_not_load_is_said_in_one_line(pyz: str, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.pyz"
    with zipfile.ZipFile(pyz) as whole, zipfile.ZipFile(spoilt, "w") as copy:
        for name in whole.namelist():
            copy.writestr(name, b"" if name.endswith(".so") else whole.read(name))
    done = run("--check", str(tmp_path), command=[sys.executable, "-I", str(spoilt)])
    assert done.code == 1
    assert done.errors.startswith("prefetch-cli: error: expected psutil to load, found ")
    assert done.errors.endswith(HINT)


def test_another_machine_is_said_in_one_line(started: list[str]) -> None:
    if not shutil.which("setarch") or subprocess.call(["setarch", "linux32", "true"], stderr=-3):
        pytest.skip("needs setarch (util-linux) and a machine that can also be another one")
    done = run("--version", command=["setarch", "linux32", *started])
    message = "expected a machine of type aarch64 or x86_64, found "
    assert done.code == 1
    assert done.errors.startswith(f"prefetch-cli: error: {message}")
    assert done.errors.endswith(HINT)
