"""The watch on a real process that loads, with shorter times."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.uses import Tree, Uses
from prefetch_cli.run.loading import Tunables, Watch

TUNABLES = Tunables(look_seconds=0.02, settle_seconds=0.5, unused_seconds=0.5)
# Maps each file in turn, in a child of its own as a server's worker does, until a line comes.
LOADER = """
import mmap, os, sys
child = os.fork()
if child:
    os.waitpid(child, 0)
    sys.stdin.read()
    sys.exit()
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.write(1, b"mapped\\n")
    os.read(0, 1)
    mapped.close()
os.write(1, b"loaded\\n")
"""


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    found = []
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(b"x" * 5000)
        status = path.stat()
        found.append(File(str(path), str(path), 5000, True, status.st_dev, status.st_ino))
    return found


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.request()


def until(said: object) -> None:
    """Wait for what a function says."""
    assert callable(said)
    while not said():
        time.sleep(0.02)


def test_loading_is_over_when_each_file_was_mapped_and_none_is(
    files: list[File], stop: Stop
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADER, *(file.path for file in files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as loader:
        assert loader.stdin is not None
        assert loader.stdout is not None
        watch = Watch(loader.pid, files, stop, TUNABLES)
        watch.start()
        for unused in ({1}, set()):
            assert loader.stdout.readline() == b"mapped\n"
            until(lambda unused=unused: watch._loading.unused == unused)
            assert not watch.is_over
            time.sleep(2 * TUNABLES.settle_seconds)
            assert not watch.is_over  # this one is still mapped
            loader.stdin.write(b".")
            loader.stdin.flush()
        assert loader.stdout.readline() == b"loaded\n"
        until(lambda: watch.is_over)
        assert watch.doubt is None
        loader.kill()


def test_a_command_that_opens_nothing_is_noticed(files: list[File], stop: Stop) -> None:
    with subprocess.Popen(["sleep", "100"]) as command:
        watch = Watch(command.pid, files, stop, TUNABLES)
        assert watch.doubt is None
        watch.start()
        until(lambda: watch.doubt is not None)
        assert not watch.is_over
        assert watch.doubt == (
            "COMMAND has opened none of 2 weight files so far: it is kept until COMMAND has loaded "
            "them or ends"
        )
        command.kill()


def test_a_command_that_cannot_be_looked_into_is_noticed(files: list[File], stop: Stop) -> None:
    """A process that is gone shows as little as another user's; test_uses has one of those."""
    with subprocess.Popen(["true"]) as command:
        command.wait()
        watch = Watch(command.pid, files, stop, Tunables(look_seconds=0.02))
        watch.start()
        until(lambda: watch.doubt is not None)
        assert "is hidden from this user" in (watch.doubt or "")
        assert not watch.is_over


def test_own_use_does_not_count(files: list[File], stop: Stop) -> None:
    with open(files[0].path, "rb"):
        watch = Watch(os.getpid(), files, stop, TUNABLES)
        watch.start()
        time.sleep(0.3)
        assert watch._loading.unused == {0, 1}


def test_a_watch_that_finds_no_memory_claims_nothing(
    files: list[File], stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that it saw is that COMMAND had all files, some time ago."""
    looks = iter([Uses({(1, 1): {0: 0, 1: 0}}), Uses({(1, 1): {}})])

    def look(_: Tree) -> Uses:
        if (found := next(looks, None)) is None:
            raise MemoryError
        return found

    monkeypatch.setattr(Tree, "look", look)
    watch = Watch(os.getpid(), files, stop, TUNABLES._replace(settle_seconds=0))
    watch.start()
    until(lambda: watch.doubt is not None)
    assert "had no memory for it: it is kept until COMMAND ends" in (watch.doubt or "")
    assert not watch._loading.unused
    assert not watch.is_over


def test_a_defect_of_a_look_is_not_passed_over(
    files: list[File], stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: Tree) -> Uses:
        raise ZeroDivisionError

    monkeypatch.setattr(Tree, "look", look)
    watch = Watch(os.getpid(), files, stop, TUNABLES)
    watch.start()
    with pytest.raises(ZeroDivisionError):
        until(lambda: watch.doubt is not None)
