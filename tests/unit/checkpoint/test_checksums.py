"""Lists of checksums: those that sha256sum itself writes, and broken ones."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefetch_cli.base.errors import ExitCode, UsageError
from prefetch_cli.checkpoint import checksums
from prefetch_cli.checkpoint.digests import Algorithm
from prefetch_cli.checkpoint.files import File

NAMES = ("a.bin", "sub/b.bin", "two words.bin", "line\nend.bin", "back\\slash.bin", "cr\rx.bin")
DIGITS = "0123456789abcdef" * 4


def file(path: Path) -> File:
    status = path.stat()
    real = os.path.realpath(path)
    return File(str(path), real, status.st_size, True, status.st_dev, status.st_ino)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with files of all kinds of names."""
    top = tmp_path / "model"
    for name in NAMES:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return top


def written(folder: Path, *flags: str, names: Sequence[str] = NAMES) -> str:
    """Return the path of the list that sha256sum writes in the folder."""
    if not shutil.which("sha256sum"):
        pytest.skip("needs sha256sum (coreutils)")
    path = folder / "SHA256SUMS"
    path.write_bytes(subprocess.check_output(["sha256sum", *flags, *names], cwd=folder))
    return str(path)


@pytest.mark.parametrize("flags", [(), ("--binary",), ("--text",), ("--tag",), ("--zero",)])
def test_what_sha256sum_writes_is_read(folder: Path, flags: Sequence[str]) -> None:
    files = [file(folder / name) for name in NAMES]
    digests, strays = checksums.read(written(folder, *flags)).match(files, [])
    assert strays == 0
    assert {number: digest.hexdigits for number, digest in digests.items()} == {
        number: hashlib.sha256(name.encode()).hexdigest() for number, name in enumerate(NAMES)
    }
    assert {digest.algorithm for digest in digests.values()} == {Algorithm.SHA256}
    assert digests[0].source == "line 1 of SHA256SUMS"


def test_comments_blank_lines_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(f"# by hand\r\n\r\n{DIGITS.upper()} *a\r\n#\n{DIGITS}  #b".encode())
    lines = checksums.read(str(path)).lines
    assert [(line.number, line.name, line.hexdigits) for line in lines] == [
        (3, "a", DIGITS),
        (5, "#b", DIGITS),
    ]


def test_names_are_looked_up_below_the_list_then_below_the_checkpoint(folder: Path) -> None:
    files = [file(folder / "a.bin"), file(folder / "sub/b.bin")]
    listed = folder / "sub" / "list"  # its own folder has b.bin, the checkpoint has both
    lines = f"{DIGITS}  ./b.bin\n{DIGITS}  ../a.bin\n{DIGITS}  nowhere.bin\n"
    listed.write_text(lines)
    digests, strays = checksums.read(str(listed)).match(files, [])
    assert (set(digests), strays) == ({0, 1}, 1)
    elsewhere = folder.parent / "list"
    elsewhere.write_text(f"{DIGITS}  sub/b.bin\n{DIGITS}  {folder}/a.bin\n")
    assert checksums.read(str(elsewhere)).match(files, [])[1] == 1
    digests, strays = checksums.read(str(elsewhere)).match(files, [str(folder)])
    assert (set(digests), strays) == ({0, 1}, 0)


def test_a_link_to_the_folder_changes_nothing(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "list").write_text(f"{DIGITS}  a.bin\n")
    for seen, listed in ((link, folder), (folder, link)):
        digests, strays = checksums.read(str(listed / "list")).match([file(seen / "a.bin")], [])
        assert (set(digests), strays) == ({0}, 0)


def test_lines_may_repeat_but_not_disagree(folder: Path) -> None:
    listed = folder / "list"
    listed.write_text(f"{DIGITS}  a.bin\n{DIGITS}  ./a.bin\n")
    files = [file(folder / "a.bin")]
    assert checksums.read(str(listed)).match(files, [])[1] == 0
    listed.write_text(f"{DIGITS}  a.bin\n{DIGITS[::-1]}  ./a.bin\n")
    with pytest.raises(
        UsageError, match=r"line 2: .* another checksum of '\./a\.bin' than in line 1"
    ):
        checksums.read(str(listed)).match(files, [])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"{DIGITS[1:]}  a", "found '1234"),
        (f"{DIGITS} a", "found '0123"),
        (f"{DIGITS}  ", "found '0123"),
        (f"{DIGITS[:-1]}g  a", "found '0123"),
        ("not a line at all", "'not a line at all'"),
        (f"MD5 (a) = {DIGITS[:32]}", "'MD5 (a) = "),
        (f"\\{DIGITS}  a\\tb", r"an escape that sha256sum has not"),
        (f"\\{DIGITS}  a\\", r"an escape that sha256sum has not"),
        ("\x1b[31m" + "x" * 500, r"\x1b[31mxx"),
    ],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "list"
    path.write_text(f"{DIGITS}  good\n{line}\n")
    with pytest.raises(UsageError) as raised:
        checksums.read(str(path))
    error = raised.value
    assert error.exit_code is ExitCode.USAGE
    assert f"{path}, line 2: expected 64 hex digits" in error.message
    assert found in error.message
    assert len(error.message) < 400
    assert error.message.isprintable()


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    os.mkfifo(tmp_path / "fifo")
    for name, found in (
        ("empty", "expected checksums, found none"),
        ("gone", "No such file or directory"),
        ("fifo", "found a FIFO"),
        (".", "found a directory"),
        ("nul\0", "null (byte|character)"),
    ):
        with pytest.raises(UsageError, match=found):
            checksums.read(f"{tmp_path}/{name}")


def test_a_list_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_MOST_BYTES", 1000)
    path = tmp_path / "list"
    path.write_text(f"{DIGITS}  a\n" * 20)
    with pytest.raises(UsageError, match="more than"):
        checksums.read(str(path))
