"""Real paths: as os.path.realpath where nothing leads into another namespace."""

import os
from pathlib import Path

import pytest

from prefetch_cli.linux.namespaces import current_folder, real_path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "up").symlink_to("a/b")
    (tmp_path / "a/absolute").symlink_to(tmp_path / "a/b")
    (tmp_path / "nothing").symlink_to("gone/x")
    (tmp_path / "a/77").mkdir()
    (tmp_path / "a/77/root").symlink_to("../b")  # looks like a link of /proc
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        ".",
        "/",
        "a/b/file",
        "up/file",
        "up/../b/./file",
        "a//absolute/file",
        "nothing",
        "a/77/root/file",
        "not/there/../x",
        "/../..",
        "/proc/self/fd",
        "/proc/self/cwd/a",
        "/proc/self/root/usr",
    ],
)
def test_a_real_path_is_that_of_the_library(
    tree: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert real_path(path) == os.path.realpath(path)
    assert real_path(str(tree / path)) == os.path.realpath(tree / path)


def test_an_open_file_has_its_path(tree: Path) -> None:
    with (tree / "up/file").open() as file:
        assert real_path(f"/proc/self/fd/{file.fileno()}") == str(tree / "a/b/file")


def test_a_link_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert real_path(str(tmp_path / "loop")) == str(tmp_path / "loop")


def test_the_current_folder_has_its_path(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "up")
    monkeypatch.setenv("PWD", str(tree))  # somebody's, from before
    assert current_folder() == str(tree / "a/b")
