"""Which paths are one file, and which names stay below their folder."""

import pytest

from prefetch_cli.base.text import stays_below
from prefetch_cli.checkpoint.files import File, Found, Range, each_once


def file(path: str, inode: int, device: int = 1) -> File:
    return File(path, path, 100, weight=True, device=device, inode=inode)


def test_a_physical_file_counts_once_under_its_first_path() -> None:
    files = [file("a", 1), file("b", 2), file("c", 1), file("d", 1, device=2)]
    assert [one.path for one in each_once(files)] == ["a", "b", "d"]
    assert [one.path for one in each_once(files, known=[file("x", 2)])] == ["a", "d"]
    assert Found(each_once(files), (), (), ()).size_bytes == 300


def test_what_either_path_needs_of_a_file_is_needed() -> None:
    some = (Range(0, 10), Range(20, 10))
    for parts, others, expected in (
        (None, some, None),
        (some, None, None),
        (some, some, some),
        (some, (Range(5, 10), Range(40, 1)), (Range(0, 15), Range(20, 10), Range(40, 1))),
        ((Range(0, 30),), some, (Range(0, 30),)),
    ):
        one, other = file("a", 1)._replace(parts=parts), file("b", 1)._replace(parts=others)
        [found] = each_once([one, other])
        assert (found.path, found.parts) == ("a", expected)
        assert Found((found,), (), (), ()).size_bytes == found.needed_bytes


@pytest.mark.parametrize("name", ["a", "a/b", "./a", "a//b", "...", "a..b", "\udcff"])
def test_names_below(name: str) -> None:
    assert stays_below(name)


@pytest.mark.parametrize("name", ["", ".", "./", "..", "a/../b", "/a", "\0", "a\0", "\ud800"])
def test_names_elsewhere(name: str) -> None:
    assert not stays_below(name)
