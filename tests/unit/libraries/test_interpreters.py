"""What the system says of an interpreter, and of what lies on its search path."""

import errno
import os
import select
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import pytest

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.libraries import distributions, interpreters
from prefetch_cli.libraries.gather import Located, Request, gather, locate
from prefetch_cli.libraries.interpreters import Interpreter, OutOfReachError, find_interpreter

OF_THE_PATH = ("EACCES", "ENOENT", "ENOTDIR", "ELOOP", "ENOEXEC", "EPERM")
OF_THE_SYSTEM = ("EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "E2BIG", "EIO", "ESTALE", "ETIMEDOUT")


def failing(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


def install(folder: Path, name: str) -> Path:
    """Return the metadata of a distribution of one module, which requires `more`."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text("a = 1\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nRequires-Dist: more\n")
    (info / "RECORD").write_text(f"{name}.py,,\n")
    return info


@pytest.mark.parametrize("name", [*OF_THE_PATH, *OF_THE_SYSTEM])
def test_an_interpreter_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise failing(name)

    monkeypatch.setattr(subprocess, "Popen", fail)
    kind = CheckpointError if name in OF_THE_PATH else OutOfReachError
    with pytest.raises(kind) as raised:
        find_interpreter(sys.executable, (), os.environ, Stop())
    assert raised.value.message == (
        f"{sys.executable}: expected the search path of a Python interpreter, found: "
        f"{failing(name).strerror}"
    )


@pytest.mark.parametrize("name", [one for one in OF_THE_SYSTEM if one != "E2BIG"])
@pytest.mark.parametrize("call", ["poll", "read"])
def test_an_answer_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise failing(name)

    def listen(process: "subprocess.Popen[bytes]", stop: Stop) -> object:
        monkeypatch.setattr(*{"poll": (select, "poll"), "read": (os, "read")}[call], fail)
        return before(process, stop)

    before = interpreters._listen
    monkeypatch.setattr(interpreters, "_listen", listen)
    with pytest.raises(OutOfReachError, match=str(failing(name).strerror)):
        find_interpreter(sys.executable, (), os.environ, Stop())


def test_an_answer_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 300\n")
    python.chmod(0o755)
    monkeypatch.setattr(interpreters, "_ANSWER_SECONDS", 0.5)
    with pytest.raises(OutOfReachError, match="found: no answer within 0 s"):
        find_interpreter(str(python), (), os.environ, Stop())


@pytest.mark.parametrize("name", [*OF_THE_PATH, *OF_THE_SYSTEM])
@pytest.mark.parametrize("installed", [True, False])
def test_packages_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, installed: bool
) -> None:
    """Where the name is found elsewhere, the failing folder may hold what it requires."""
    install(tmp_path / "good", "lib")
    bad = str(tmp_path / "bad")
    found = Interpreter("/x/python3", "cpython-311", (str(tmp_path / "good"), bad))
    before = os.listdir

    def listdir(path: str = ".") -> list[str]:
        if path == bad:
            raise failing(name)
        return before(path)

    monkeypatch.setattr(os, "listdir", listdir)
    wrong_path = name in OF_THE_PATH
    if installed:
        assert distributions.canonical("lib", found) == "lib"
        gathered = gather(Located((), ("lib",), found), Monitor(), 2)
        expected = [] if wrong_path else [(bad, failing(name).strerror)]
        assert [(one.path, one.reason) for one in gathered.failed] == expected
        assert [file.path for file in gathered.files] == [str(tmp_path / "good" / "lib.py")]
    elif name in ("ENOENT", "ENOTDIR"):  # a search path may name what does not exist
        with pytest.raises(CheckpointError, match="found none of that name"):
            distributions.canonical("other", found)
    else:
        with pytest.raises(CheckpointError if wrong_path else OutOfReachError) as raised:
            distributions.canonical("other", found)
        assert raised.value.message == (
            f"{bad}: expected the packages of /x/python3, found: {failing(name).strerror}"
        )


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOMEM", "EMFILE", "ELOOP"])
@pytest.mark.parametrize("file", ["RECORD", "METADATA"])
def test_metadata_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    install(tmp_path, "lib")
    found = Interpreter("/x/python3", "cpython-311", (str(tmp_path),))
    before = metadata.PathDistribution.read_text

    def read_text(self: metadata.PathDistribution, filename: str) -> str | None:
        if filename == file:
            raise failing(name)
        return before(self, filename)

    monkeypatch.setattr(metadata.PathDistribution, "read_text", read_text)
    gathered = gather(Located((), ("lib",), found), Monitor(), 2)
    (failed,) = gathered.failed
    assert (failed.path, failed.reason, failed.failed) == (
        f"{tmp_path}/lib-*.dist-info/{file}",
        failing(name).strerror,
        True,
    )
    assert gathered.warnings == ()
    assert bool(gathered.files) is (file == "METADATA")


@pytest.mark.parametrize("name", [*OF_THE_PATH, *OF_THE_SYSTEM])
def test_a_path_that_the_system_does_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def stat(*_: object, **__: object) -> NoReturn:
        raise failing(name)

    path = str(tmp_path)
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(CheckpointError if name in OF_THE_PATH else OutOfReachError) as raised:
        locate(Request((path,), (), None, (), of_command=False), os.environ, Monitor(), Stop())
    assert path in raised.value.message
    assert str(failing(name).strerror) in raised.value.message
