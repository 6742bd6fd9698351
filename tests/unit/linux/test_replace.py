"""A file is replaced as a whole, or stays as it was."""

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prefetch_cli.linux.replace import replace_file


@pytest.fixture(params=["a name last", "a name first"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to write; the second as on NFS and FUSE, which refuse O_TMPFILE."""
    if request.param == "a name last":
        return
    real = os.open

    # A mock: this file system has files without a name.
    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode)

    monkeypatch.setattr("os.open", refuse)


def test_a_new_file_is_there_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.prom"
    before = os.umask(0o077)
    try:
        replace_file(str(path), b"one\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["x.prom"]


def test_whoever_has_the_old_one_open_reads_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.prom"
    path.write_bytes(b"the old one")
    with path.open("rb") as old:
        replace_file(str(path), b"new")
        assert old.read() == b"the old one"
    assert path.read_bytes() == b"new"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x.prom", tmp_path / "x.prom"
    target.write_bytes(b"old")
    link.symlink_to(target)
    replace_file(str(link), b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["x.prom"]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, kind in (
            ("fifo", "FIFO"),
            ("folder", "directory"),
            ("socket", "socket"),
            ("null", "character device"),
        ):
            with pytest.raises(OSError, match=kind):
                replace_file(str(tmp_path / name), b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder", "null", "socket"]


def test_nothing_is_left_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.prom"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        replace_file(str(tmp_path / "no" / "x.prom"), b"x")

    # A mock: a disk that fails in fsync cannot be had here.
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.prom"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files (ulimit -f) fails a write as a full disk does."""
    path = tmp_path / "x.prom"
    path.write_bytes(b"old")
    script = (
        "import sys\nfrom prefetch_cli.linux.replace import replace_file\n"
        "try:\n    replace_file(sys.argv[1], bytes(4096))\n"
        "except OSError as error:\n    sys.exit(error.errno)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert done.returncode == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.prom"]


def test_a_long_name_needs_no_longer_one_beside_it(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".prom")
    replace_file(str(path), b"x")
    assert path.read_bytes() == b"x"
