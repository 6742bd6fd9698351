"""Found before the weights: which files count, in which order, and how they are warmed.

The environments are real, made by venv; the distributions in them are written as pip writes them.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.files import Found
from prefetch_cli.libraries import distributions, interpreters
from prefetch_cli.libraries.gather import Request, gather, locate
from prefetch_cli.libraries.interpreters import Interpreter
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Running, refused, run, unprivileged
from tests.helpers.oracle import about, evict, resident_bytes

KIB = 1024
TAG = str(sys.implementation.cache_tag)


class Environment:
    """A Python environment for distributions."""

    def __init__(self, folder: Path) -> None:
        venv = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)]
        subprocess.run(venv, check=True)
        self.python = str(folder / "bin" / "python")
        self.bin = folder / "bin"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.site = folder / "lib" / version / "site-packages"

    def install(
        self, name: str, files: dict[str, int], *requires: str, record: str | None = None
    ) -> list[str]:
        """Write a distribution whose files have these sizes, and return their paths."""
        for path, size in files.items():
            written = self.site / path
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(os.urandom(size))
        info = self.site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        rows = [f"{path},sha256=x,{size}" for path, size in files.items()]
        (info / "RECORD").write_text("\n".join(rows) if record is None else record)
        return [str(self.site / path) for path in files]

    def script(self, name: str, line: str | None = None) -> str:
        """Write a script that prints `runs`, and return its path."""
        path = self.bin / name
        path.write_text(f"{line or f'#!{self.python}'}\nprint('runs')\n")
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


def wanted(*packages: str, **changes: Any) -> Request:
    given: dict[str, Any] = {"paths": (), "python": None, "command": (), "of_command": False}
    return Request(packages=packages, **{**given, **changes})


def gathered(asked: Request) -> Found:
    monitor = Monitor()
    located = locate(asked, os.environ, monitor, Stop())
    return gather(located, monitor, 4)


def names(found: Found) -> list[str]:
    return [os.path.basename(file.path) for file in found.files]


def test_the_files_of_a_record_come_by_kind(env: Environment) -> None:
    env.install(
        "Big_Lib",
        {
            "big/__init__.py": 10,
            f"big/__pycache__/__init__.{TAG}.pyc": 20,
            "big/native.cpython-311-x86_64-linux-gnu.so": 30,
            "big.libs/libdep-1a2b.so.12.4": 40,
            "big/include/big.h": 50,
            "big/libstatic.a": 60,
            "big/so.txt": 70,
        },
    )
    found = gathered(wanted("big-lib", python=env.python))
    assert found.names == ("big-lib",)
    assert [file.size_bytes for file in found.files] == [30, 40, 20, 10]
    assert not any(file.weight for file in found.files)
    assert (found.failed, found.warnings) == ((), ())


def test_installed_requirements_count(env: Environment) -> None:
    env.install(
        "top",
        {"top.py": 1},
        "Middle.Name (>=1)",
        'other>=2; python_version < "3"',  # markers are ignored: it is installed
        'extra-only; extra == "test"',
        "absent",
        "[nonsense",
    )
    env.install("middle-name", {"middle.py": 2}, "leaf[fast]~=1.0", "top")
    env.install("other", {"other.py": 3})
    env.install("extra_only", {"extra.py": 4})
    env.install("leaf", {"leaf.py": 5})
    found = gathered(wanted("top", python=env.python))
    assert found.names == ("top", "middle-name", "other", "leaf")
    assert sorted(names(found)) == ["leaf.py", "middle.py", "other.py", "top.py"]


def test_metadata_that_is_no_text_is_done_without(env: Environment) -> None:
    env.install("good", {"good.py": 1}, "spoiled")
    env.install("spoiled", {"spoiled.py": 2}, "good")
    info = env.site / "spoiled-1.0.dist-info"
    (info / "METADATA").write_bytes(b"Name: spoiled\nRequires-Dist: \xed\xa0\x80\n")
    found = gathered(wanted("spoiled", python=env.python))
    assert names(found) == ["spoiled.py"]
    assert found.warnings == (
        "spoiled: its METADATA cannot be read, so what it requires is left out",
    )
    (info / "RECORD").write_bytes(b"spoiled.py,\xff\xfe,2\n")
    [warning, *_] = gathered(wanted("good", python=env.python)).warnings
    assert warning.startswith("spoiled: ")
    with pytest.raises(CheckpointError):
        gathered(wanted(python=env.python, command=(f"{env.bin}/spoiled",), of_command=True))


def test_pyc_files_missing_from_the_record(env: Environment) -> None:
    env.install("lib", {"lib/a.py": 1, "lib/b.py": 1})
    cache = env.site / "lib" / "__pycache__"
    cache.mkdir()
    for name in (f"a.{TAG}.pyc", "a.cpython-27.pyc", f"c.{TAG}.pyc"):
        (cache / name).write_bytes(b"x")
    assert names(gathered(wanted("lib", python=env.python))) == [f"a.{TAG}.pyc", "a.py", "b.py"]


def test_odd_records(env: Environment) -> None:
    rows = 'lib/a.py,,\n"lib/with, comma.py",,\n/etc/passwd.py,,\nlib/gone.so,,\nlib,,\n\n'
    env.install("lib", {"lib/a.py": 1, "lib/with, comma.py": 1}, record=rows)
    (env.site / "lib" / "link.py").symlink_to("nowhere")
    assert names(gathered(wanted("lib", python=env.python))) == ["a.py", "with, comma.py"]
    env.install("empty", {}, record="")
    found = gathered(wanted("empty", python=env.python))
    assert found.files == ()
    assert found.warnings == ("empty: no list of its files was found: give its folder with --also",)


def test_an_editable_installation_says_where_its_files_lie(env: Environment) -> None:
    env.install("here", {"__editable__.here.pth": 0})
    origin = '{"dir_info": {"editable": true}, "url": "file:///src/here"}'
    (env.site / "here-1.0.dist-info" / "direct_url.json").write_text(origin)
    [warning] = gathered(wanted("here", python=env.python)).warnings
    assert warning.endswith("so its files lie elsewhere: give --also /src/here")


def test_a_physical_file_counts_once(env: Environment, tmp_path: Path) -> None:
    (lib,) = env.install("lib", {"lib.py": 1})
    os.link(lib, tmp_path / "same.py")
    found = gathered(wanted("lib", python=env.python, paths=(str(tmp_path / "same.py"), lib)))
    assert [file.path for file in found.files] == [lib]


def test_a_directory_counts_with_everything_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "also"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "b.json").write_bytes(b"1")
    (folder / "deep" / "er" / "a.bin").write_bytes(b"2")
    (folder / "deep" / "up").symlink_to("..")
    (folder / "deep" / "b").symlink_to("../b.json")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    found = gathered(wanted(paths=(str(folder),)))
    assert names(found) == ["b.json", "a.bin"]
    assert found.failed == ()
    assert [file.real_path for file in found.files] == [
        os.path.realpath(f.path) for f in found.files
    ]


def test_unreachable_files_are_reported_and_the_rest_counts(
    env: Environment, tmp_path: Path
) -> None:
    rows = ["lib/a.py,,", "lib/b.py,,", "round/c.py,,", "round/in/side/d.py,,"]
    env.install("lib", {"lib/a.py": 1}, record="\n".join(rows))
    loops = [env.site / "lib" / "b.py", env.site / "round", tmp_path / "also" / "loop"]
    (tmp_path / "also").mkdir()
    (tmp_path / "also" / "d.py").write_bytes(b"1")
    for path in loops:
        path.symlink_to(path.name)  # ELOOP, even for root
    found = gathered(wanted("lib", python=env.python, paths=(str(tmp_path / "also"),)))
    assert names(found) == ["a.py", "d.py"]
    why = os.strerror(errno.ELOOP)
    # The folder once, not each file in it.
    assert sorted((one.path, one.reason, one.failed) for one in found.failed) == sorted(
        (str(path), why, True) for path in loops
    )


def test_a_package_is_warmed_before_the_weights(
    env: Environment, built: BuiltCheckpoint, cold: str
) -> None:
    files = env.install("lib", {"lib/a.so": 900 * KIB, "lib/b.so.1": 700 * KIB, "lib/c.py": 9000})
    env.install("needless", {"needless.so": 50 * KIB})
    evict(files)
    before = run("--json", "--check", "--package", "lib", "--python", env.python, cold).document
    assert before["libraries"]["residency"]["before_bytes"] == 0
    # At this rate the weights take long: what is warm at the end was read first.
    rate = ("--force", "--max-rate", "2MiB", "--time-limit", "1.5s")
    found = run(*rate, "--json", "--package", "lib", "--python", env.python, cold).document
    assert found["libraries"]["result"]["complete"] is True
    assert found["result"]["complete"] is False
    assert found["libraries"]["result"]["bytes_read"] == 1600 * KIB + 9000
    assert resident_bytes(files) == about(1600 * KIB + 9000)


def test_libraries_without_a_checkpoint(env: Environment) -> None:
    files = env.install("lib", {"lib/a.so": 300 * KIB})
    evict(files)
    done = run("--package", "lib", "--python", env.python)
    assert done.code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == [
        "memory",
        "libraries",
        "libraries",
    ]
    assert resident_bytes(files) == about(300 * KIB)
    done = run("--evict", "--package", "lib", "--python", env.python)
    assert (done.code, resident_bytes(files)) == (0, 0)


def test_max_bytes_bounds_both(env: Environment, built: BuiltCheckpoint, cold: str) -> None:
    files = env.install("lib", {"lib/a.so": 1024 * KIB})
    evict(files)
    most = ("--force", "--max-bytes", "5MiB", "--json")
    found = run(*most, "--package", "lib", "--python", env.python, cold).document
    library, rest = found["libraries"]["result"], found["result"]
    total = sum(part["bytes_read"] + part["bytes_already_resident"] for part in (library, rest))
    assert library["bytes_read"] + library["bytes_already_resident"] == 1024 * KIB
    assert 4.9 * KIB * KIB < total <= 5 * KIB * KIB
    assert resident_bytes(built.files) <= 4 * KIB * KIB
    evict([*built.files, *files])
    found = run("--force", "--max-bytes", "512KiB", "--json", "--package", "lib", "--python",
                env.python, cold).document  # fmt: skip
    assert found["libraries"]["decision"]["action"] == "partial"
    evict(files)
    shown = run("--force", "--max-bytes", "512KiB", "--package", "lib", "--python", env.python)
    assert "do not fit into the 512 KiB of --max-bytes" in shown.output
    assert found["result"]["bytes_read"] == 0


def test_ranks_share_the_files(env: Environment, cold: str) -> None:
    env.install("lib", {f"lib/{number}.so": 1000 + number for number in range(7)})
    asked = ("--dry-run", "--json", "--package", "lib", "--python", env.python)
    shares = [
        run(*asked, "--rank", str(rank), "--world-size", "3", cold).document["libraries"]["share"]
        for rank in range(3)
    ]
    assert [share["files"] for share in shares] == [3, 2, 2]
    assert sum(share["bytes"] for share in shares) == sum(range(1000, 1007))


def test_an_unreadable_file_is_reported(env: Environment, cold: str) -> None:
    first, _ = env.install("lib", {"lib/a.so": 10, "lib/b.so": 20})
    os.chmod(first, 0)
    asked = ("--json", "--force", "--package", "lib", "--python", env.python, cold)
    done = run(*asked, command=[*unprivileged(), *COMMAND])
    assert done.code == 1
    assert [one["path"] for one in done.document["libraries"]["result"]["failed"]] == [first]
    assert done.document["result"]["failed"] == []


@pytest.mark.parametrize("form", ["script", "env", "long", "module", "interpreter"])
def test_libraries_are_those_of_command(env: Environment, cold: str, form: str) -> None:
    record = "serve/__init__.py,,\nserve/a.so,,\n../../../bin/serve,,\n"
    contents = {"serve/__init__.py": 0, "serve/a.so": 300 * KIB}
    files = env.install("serve", contents, "dep", record=record)
    (env.site / "serve" / "__main__.py").write_text("print('runs')")
    (dep,) = env.install("dep", {"dep.so": 100 * KIB})
    evict([*files, dep])
    line = {
        "env": "#!/usr/bin/env python",
        "long": f"#!/bin/sh\n'''exec' \"{env.python}\" \"$0\" \"$@\"\n' '''",
    }
    script = env.script("serve", line.get(form))
    command = {"module": [env.python, "-m", "serve"], "interpreter": [env.python, "-u", script]}
    path = f"{env.bin}:{os.environ['PATH']}"
    # First the libraries, then the weights, then COMMAND, whose end stops the warming.
    flags = ("--libraries", "--force", "--lead", "100%")
    done = run(cold, *flags, "--", *command.get(form, ["serve"]), env={"PATH": path})
    assert (done.code, done.output) == (0, "runs\n")
    assert "of serve, dep; " in done.errors
    assert resident_bytes([*files, dep]) == about(400 * KIB)


def test_missing_libraries_take_one_line(env: Environment, cold: str, tmp_path: Path) -> None:
    python = ("--python", env.python)
    assert refused("--package", "no-such", *python, cold, code=3).startswith("--package no-such: ")
    assert refused("--package", "", *python, cold, code=3).startswith("--package '': ")
    assert refused("--package", "../x", *python, cold, code=3).startswith("--package ../x: ")
    assert refused("--also", str(tmp_path / "no"), cold, code=3).endswith("check the path")
    assert "found: a FIFO" in refused_fifo(tmp_path, cold)
    assert "no-python" in refused("--package", "x", "--python", "no-python", cold, code=3)
    assert "exit code" in refused("--package", "x", "--python", "/bin/false", cold, code=3)
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    odd = str(tmp_path / "text")
    assert os.strerror(errno.ENOEXEC) in refused("--package", "x", "--python", odd, cold, code=3)
    assert "found neither" in refused("--python", env.python, cold)
    assert "found none" in refused("--libraries", cold)
    assert refused("--libraries", cold, "--", "sh", "-c", "echo", code=3).startswith(
        "--libraries: "
    )
    assert "runs" in refused("--libraries", cold, "--", env.python, "-c", "1", code=3)
    done = run("--libraries", "--best-effort", cold, "--", "echo", "hi")
    assert (done.code, done.output) == (0, "hi\n")


def refused_fifo(folder: Path, cold: str) -> str:
    os.mkfifo(folder / "fifo")
    return refused("--also", str(folder / "fifo"), cold, code=3)


def test_an_interpreter_that_hangs_can_be_interrupted(cold: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 300\n")
    python.chmod(0o755)
    with Running.start("--package", "x", "--python", str(python), cold) as running:
        until = time.monotonic() + 10
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        running.send(signal.SIGTERM)
        assert running.end().code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_is_imported_or_written(env: Environment) -> None:
    env.install("lib", {"lib/__init__.py": 0, "lib/a.so": 10})
    (env.site / "lib" / "__init__.py").write_text("raise SystemExit('imported')")
    before = sorted(str(path) for path in env.site.rglob("*"))
    assert run("--package", "lib", "--python", env.python).code == 0
    assert sorted(str(path) for path in env.site.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["-m", "a.b", "x"], "a.b"),
        (["-Wignore", "-ma"], "a"),
        (["-X", "dev", "-u", "-m", "a"], "a"),
        (["-c", "1", "-m", "a"], None),
        (["script.py", "-m", "a"], None),
        (["-m"], None),
        ([], None),
    ],
)
def test_the_module_that_an_interpreter_runs(words: list[str], module: str | None) -> None:
    nowhere = Interpreter("/usr/bin/python3", TAG, search_path=())
    with pytest.raises(CheckpointError) as caught:
        distributions.owner(["python3", *words], nowhere)
    named = caught.value.message.partition("the module ")[2].partition(" belongs to")[0]
    assert named == (module or "")


def test_a_fifo_as_command_has_no_interpreter_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "serve")
    found = interpreters.find_interpreter(None, [str(tmp_path / "serve")], os.environ, Stop())
    assert found.path == shutil.which("python3")


def test_the_environment_of_this_process() -> None:
    """The project's own environment, installed by a real pip."""
    found = gathered(wanted("click", "rich", python=sys.executable))
    assert set(found.names) >= {"click", "rich", "pygments", "markdown-it-py", "mdurl"}
    assert any(file.path.endswith("/click/core.py") for file in found.files)
    assert all(os.path.isfile(file.path) for file in found.files)
    with pytest.raises(CheckpointError):
        gathered(wanted("prefetch-cli-of-nowhere", python=sys.executable))


def test_python3_of_path_is_the_default(env: Environment, cold: str) -> None:
    env.install("lib", {"lib.py": 1})
    assert shutil.which("python3", path=str(env.bin))
    path = f"{env.bin}:{os.environ['PATH']}"
    done = run("-n", "--package", "lib", cold, env={"PATH": path})
    assert done.code == 0
