"""Which files real processes use: mapped, open, by children, under other names."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.linux import procfs, uses
from prefetch_cli.linux.uses import Place, Tree

# Does what each line says, and answers each with a line.
PROCESS = """
import mmap, os, subprocess, sys
held = {}
for line in sys.stdin:
    word, path = line.rstrip("\\n").split(" /", 1)
    path = "/" + path
    if word == "open":
        held[path] = open(path, "rb", buffering=0)
    elif word == "open again":
        held[word] = open(path, "rb")
    elif word.startswith("read"):
        held[path].read(int(word.split()[1]))
    elif word == "also map":
        held[word] = mmap.mmap(held[path].fileno(), 0, prot=mmap.PROT_READ)
    elif word == "map":
        with open(path, "rb") as file:
            held[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    elif word == "close":
        held.pop(path).close()
    elif word == "fork":
        child = os.fork()
        if child == 0:
            os.execvp("sleep", ["sleep", "100"])
        print(child, flush=True)
        continue
    print("done", flush=True)
"""


class Process:
    """A process that opens and maps what it is told to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self._process = process

    def __call__(self, word: str, path: Path) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word} {path}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def started() -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("a", "b", "with a space")]
    for path in found:
        path.write_bytes(b"x" * 5000)
    return found


@pytest.fixture(autouse=True)
def _every_look_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "_LIST_SECONDS", 0.0)


def place(path: Path) -> Place:
    status = path.stat()
    return Place(os.path.realpath(path), (status.st_dev, status.st_ino))


def tree(process: Process, paths: list[Path], **how: int) -> Tree:
    return Tree(process.pid, [place(path) for path in paths], **{"without": os.getpid(), **how})


def found(seen: Tree) -> tuple[int, set[int]]:
    """Return how many processes are seen at a look, and all files that these use."""
    uses = seen.look()
    return uses.processes, set(uses.files)


def test_files_are_used_while_they_are_open_or_mapped(paths: list[Path]) -> None:
    with started() as process:
        seen = tree(process, paths)
        assert found(seen) == (1, set())
        process("open", paths[0])
        process("map", paths[2])  # its descriptor is closed
        assert found(seen) == (1, {0, 2})
        process("close", paths[0])
        process("map", paths[1])
        assert found(seen) == (1, {1, 2})
        process("close", paths[1])
        process("close", paths[2])
        assert found(seen) == (1, set())


def test_it_is_told_which_process_uses_which_file_and_how_far_it_has_read(
    paths: list[Path],
) -> None:
    with started() as process:
        child = int(process("fork", paths[0]))
        try:
            seen = tree(process, paths)
            process("open", paths[0])
            process("read 1234", paths[0])
            process("map", paths[2])
            held = seen.look().held
            assert {pid: dict(files) for (pid, _), files in held.items()} == {
                process.pid: {0: 1234, 2: 0},
                child: {},
            }
            process("also map", paths[0])  # nobody sees how far a mapping is read
            assert next(dict(files) for files in seen.look().held.values()) == {0: 0, 2: 0}
        finally:
            os.kill(child, signal.SIGKILL)


def test_of_a_file_that_is_open_twice_the_one_that_is_behind_counts(paths: list[Path]) -> None:
    with started() as process:
        seen = tree(process, paths)
        process("open", paths[1])
        process("read 3000", paths[1])
        process("open again", paths[1])
        (files,) = seen.look().held.values()
        assert files == {1: 0}


def test_a_file_is_known_by_any_name(paths: list[Path], tmp_path: Path) -> None:
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(paths[0])
    os.link(paths[1], hard)
    with started() as process:
        process("map", link)
        process("open", hard)
        assert tree(process, paths).look().files == {0, 1}
        # And still where its name is gone, or leads to another file.
        expected = tree(process, paths)
        paths[0].unlink()
        os.rename(paths[2], paths[1])
        assert expected.look().files == {0, 1}


def test_children_count_and_others_do_not(paths: list[Path]) -> None:
    with started() as process, started() as stranger:
        child = int(process("fork", paths[0]))
        try:
            seen = tree(process, paths)
            stranger("open", paths[1])
            assert found(seen) == (2, set())
            with paths[2].open("rb"):
                assert seen.look().files == frozenset()
            # The warmer is a descendant where COMMAND is the first process of a container.
            assert tree(process, paths, without=child).look().processes == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_descendant_counts_when_its_parents_are_gone(paths: list[Path]) -> None:
    script = 'sleep 100 <"$0" >/dev/null & echo $!; read line'
    with subprocess.Popen(
        ["sh", "-c", script, paths[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            seen = Tree(parent.pid, [place(path) for path in paths], without=os.getpid())
            while found(seen) != (2, {1}):
                time.sleep(0.02)
            parent.stdin.close()
            parent.wait()
            assert found(seen) == (1, {1})
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_process_that_has_ended_uses_nothing(paths: list[Path]) -> None:
    with started() as process:
        process("open", paths[0])
        seen = tree(process, paths)
        assert seen.look().files == {0}
    assert found(seen) == (0, set())


def test_a_process_that_hides_what_it_has_open_is_not_seen(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Linux 6.18 one that is not dumpable (prctl(2)) still shows its maps."""

    def refuse(link: str) -> str:
        raise PermissionError(13, "Permission denied", link)

    with started() as process:
        process("map", paths[0])
        seen = tree(process, paths)
        assert found(seen) == (1, {0})
        monkeypatch.setattr(os, "readlink", refuse)
        assert found(seen) == (0, set())


def test_another_users_processes_are_hidden(paths: list[Path]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    script = (
        "import os, sys; from prefetch_cli.linux.uses import Tree; os.setgroups([]);"
        "os.setgid(65534); os.setuid(65534);"
        "print(Tree(int(sys.argv[1]), [], without=os.getpid()).look().processes)"
    )
    with started() as process:
        process("open", paths[0])
        shown = subprocess.check_output([sys.executable, "-c", script, str(process.pid)], text=True)
    assert shown == "0\n"


def test_a_process_that_ends_during_the_look_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(os.getpid(), [], without=0)
    monkeypatch.setattr(procfs, "read", lambda _: b"")
    assert tree.look().processes == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files in /proc that are read, and the open files that are looked at."""
    found: list[str] = []
    read, stat = procfs.read, os.stat

    def note(path: str) -> bytes:
        found.append(os.path.basename(path))
        return read(path)

    def look(path: Any, **how: Any) -> os.stat_result:
        if "/fd/" in str(path):
            found.append(os.path.basename(os.readlink(path)))
        return stat(path, **how)

    monkeypatch.setattr(procfs, "read", note)
    monkeypatch.setattr(os, "stat", look)
    return found


def test_what_has_not_changed_is_not_read_again(paths: list[Path], asked: list[str]) -> None:
    with started() as process:
        process("open", paths[0])
        seen = tree(process, paths)
        assert seen.look().files == {0}
        assert (asked.count("maps"), asked.count("a")) == (1, 1)
        assert seen.look().files == {0}
        assert (asked.count("maps"), asked.count("a")) == (1, 1)
        assert asked.count("statm") == 2
        process("map", paths[1])
        assert seen.look().files == {0, 1}
        assert (asked.count("maps"), asked.count("a")) == (2, 1)


def test_one_mapping_in_place_of_another_of_its_size_is_seen(paths: list[Path]) -> None:
    with started() as process:
        process("map", paths[0])
        seen = tree(process, paths)
        assert seen.look().files == {0}
        process("close", paths[0])
        process("map", paths[1])
        assert seen.look().files == {1}


def test_maps_count_for_a_while_only(
    paths: list[Path], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much may have been mapped anew as was unmapped."""
    with started() as process:
        seen = tree(process, paths)
        assert seen.look().files == frozenset()
        monkeypatch.setattr(uses, "_SAME_SECONDS", 0.0)
        assert seen.look().files == frozenset()
        assert asked.count("maps") == 2


def test_an_open_file_is_known_when_its_name_is_gone(paths: list[Path]) -> None:
    with started() as process:
        process("open", paths[0])
        seen = tree(process, paths)
        assert seen.look().files == {0}
        paths[0].unlink()
        assert seen.look().files == {0}
        process("close", paths[0])
        assert seen.look().files == frozenset()
