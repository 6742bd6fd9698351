"""Where a real process is in what it loads, seen from outside."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.files import File
from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.loaders import Lost, Patience
from prefetch_cli.plan.window import Position
from prefetch_cli.run.following import Follower

SIZE = 5000
PATIENCE = Patience(settle=0.5, hidden=0.5, unused=0.5, spread=0.5)
# Opens each file that it is told of, reads a half of it, and closes the one before.
LOADER = """
import sys
held = None
for line in sys.stdin:
    if held:
        held.close()
    if line.strip():
        held = open(line.strip(), "rb", buffering=0)
        held.read(2500)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[File]:
    """A file of configuration, and two of weights."""
    found = []
    for name in ("config", "a", "b"):
        path = tmp_path / name
        path.write_bytes(b"x" * SIZE)
        status = path.stat()
        found.append(
            File(str(path), str(path), SIZE, name != "config", status.st_dev, status.st_ino)
        )
    return found


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.request()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)


def follower(pid: int, files: list[File], stop: Stop) -> Follower:
    order = [Extent(1, 0, SIZE), Extent(2, 0, SIZE)]
    found = Follower(pid, files, order, SIZE, stop, PATIENCE)
    found.start()
    return found


@contextmanager
def loader() -> Iterator[tuple[int, Callable[[str], None]]]:
    with subprocess.Popen(
        [sys.executable, "-c", LOADER], stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None

        def say(path: str) -> None:
            assert process.stdin is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()

        yield process.pid, say
        process.kill()


def test_a_loader_is_followed_to_its_end(files: list[File], stop: Stop) -> None:
    with loader() as (pid, say):
        found = follower(pid, files, stop)
        say(files[0].path)  # is none of the window's
        say(files[1].path)
        until(lambda: found.where().at == Position(1, 2500))
        say(files[2].path)
        until(lambda: found.where().at == Position(2, 2500))
        assert found.where().passed == {0, 1}
        assert not found.where().over
        say("")
        until(lambda: found.where().over)
        assert found.lost is None


def test_a_command_that_opens_nothing_is_noticed(files: list[File], stop: Stop) -> None:
    with loader() as (pid, _):
        found = follower(pid, files, stop)
        until(lambda: found.lost is Lost.UNUSED)


def test_a_command_that_cannot_be_looked_into_is_noticed(files: list[File], stop: Stop) -> None:
    """A process that is gone shows as little as another user's; test_uses has one of those."""
    with subprocess.Popen(["true"]) as command:
        command.wait()
        found = follower(command.pid, files, stop)
        until(lambda: found.lost is not None)
        assert found.lost is Lost.HIDDEN


def test_own_use_does_not_count(files: list[File], stop: Stop) -> None:
    with open(files[1].path, "rb"):
        found = follower(os.getpid(), files, stop)
        time.sleep(0.3)
        assert found.where().had == frozenset()
