"""The entries of a list, from bytes that anyone may write."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.request import Reference
from prefetch_cli.commands.infer import infer
from prefetch_cli.run.from_file import FromFile, entries, requested, unusable
from tests.helpers.requests import request


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \t\n# /c\n   # /c\n", []),
        (b"/a\n/b", [(1, b"/a"), (2, b"/b")]),
        (b"# x\r\n\r\n  /a b \r\n", [(3, b"/a b")]),
        (b"/a#b\n/a # b\n", [(1, b"/a#b"), (2, b"/a # b")]),
        (b"\xff\xfe/\x80\n", [(1, b"\xff\xfe/\x80")]),
        (b"/a\0/b\0", [(1, b"/a"), (2, b"/b")]),
        (b"/a\0/b", [(1, b"/a"), (2, b"/b")]),
        (b"/a\n\0 /b \0#/c\0", [(1, b"/a\n"), (2, b" /b ")]),
        (b"/a\0\0/b\0\0", [(1, b"/a"), (2, b""), (3, b"/b"), (4, b"")]),
    ],
)
def test_what_the_entries_of_a_list_are(content: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert list(entries(content)) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"", "an empty name"),
        (b"s3://bucket/model", "an object store's URI"),
        (b"hf+x://a", "an object store's URI"),
        (b"--force", "an option; a path begins with ./"),
        (b"/a" * 2047, None),
        (b"/a" * 2048, "a path of 4,096 bytes, where 4,095 are the most"),
        (b"/x/" + b"a" * 255, None),
        (b"/x/" + b"a" * 256 + b"/y", "a name of 256 bytes, where 255 are the most"),
        (b"org/name", None),
        (b"org/name:Q4_K_M", None),
        (b"\xff\x1b\n", None),
        (b"./-x", None),
    ],
)
def test_which_names_can_be_no_checkpoint(name: bytes, reason: str | None) -> None:
    assert unusable(name) == reason


@given(st.binary())
def test_any_bytes_have_entries_in_the_order_of_their_lines(content: bytes) -> None:
    found = list(entries(content))
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    assert all(name in content and not name.startswith(b"#") for _, name in found)
    if b"\0" not in content:
        assert all(name and name == name.strip() for _, name in found)


@given(st.lists(st.binary(min_size=1).filter(lambda one: b"\0" not in one and one[:1] != b"#")))
def test_names_that_nul_ends_are_taken_as_they_are(names: list[bytes]) -> None:
    content = b"".join(name + b"\0" for name in names)
    assert [name for _, name in entries(content)] == names


def taken(path: Path, *command: str, revision: str | None = None) -> tuple[Reference, ...]:
    inferred = infer(command, {}) if command else None
    source = FromFile(str(path), revision, inferred)
    return requested(request("/first"), source, Monitor()).references


def test_the_list_comes_behind_the_arguments(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"/second\n/\xff\n")
    found = taken(path, revision="r")
    assert [one.argument for one in found] == ["/first", "/second", os.fsdecode(b"/\xff")]
    assert [one.revision for one in found[1:]] == ["r", "r"]


def test_a_checkpoint_that_command_names_too_has_its_revision(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("org/a\norg/b\n", encoding="utf-8")
    found = taken(path, "vllm", "serve", "org/b", "--revision", "abc")
    assert [(one.argument, one.revision) for one in found[1:]] == [
        ("org/a", None),
        ("org/b", "abc"),
    ]
    inferred = infer(("vllm", "serve", "org/b"), {})
    source = FromFile(str(path), None, inferred)
    assert requested(request("/first"), source, Monitor()).server is Server.VLLM


def test_all_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"/a\ns3://b/m\n\n--force\n")
    with pytest.raises(UsageError) as raised:
        taken(path)
    assert raised.value.message == (
        f"--from-file {path}: expected a checkpoint on each line, found line 2 (an object store's "
        "URI), line 4 (an option; a path begins with ./)"
    )
    path.write_bytes(b"s3://b/m\n" * 12)
    with pytest.raises(UsageError, match=r"line 10 \(an object store's URI\) and 2 more$"):
        taken(path)


def test_a_list_that_is_far_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list"
    with path.open("wb") as file:
        file.truncate(20 * 1024 * 1024)
    with pytest.raises(UsageError, match="at most 16,777,216 bytes, found more"):
        taken(path)
    with pytest.raises(UsageError, match="at most 16,777,216 bytes, found more"):
        taken(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "found"), [("none", "No such file"), (".", "Is a directory"), ("a\0b", "a path that")]
)
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(UsageError, match=f"expected a list of checkpoints, found: {found}"):
        taken(tmp_path / name)
