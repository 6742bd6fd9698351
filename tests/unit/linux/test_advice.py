"""Advice about mounts, by crafted values: neither a far NFS server nor Lustre was at hand."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.linux import lustre
from prefetch_cli.linux.advice import advise, round_trip_seconds
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.mounts import MountTable

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BLOCK = 16 * MIB

# As Linux 6.1 writes it, shortened; the columns are in Documentation/filesystems/nfs and in
# net/sunrpc/stats.c: calls, transmissions, time-outs, bytes sent and received, then milliseconds
# in the queue, until the answer, and in all.
MOUNTSTATS = """\
device proc mounted on /proc with fstype proc
device near:/x mounted on /near with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,rsize=1048576
\tper-op statistics
\t        NULL: 1 1 0 44 24 10 0 10 0
\t        READ: 900 900 0 176400 943718400 10 90000 90100 0
\t      ACCESS: 4 4 0 892 672 0 2 2 0
\t     GETATTR: 6 6 0 1212 1464 0 3 3 0
device fs1:/models mounted on /with\\040space with fstype nfs4 statvers=1.1
\tper-op statistics
\t        READ: 1 1 0 196 1048576 0 9000 9000 0
\t      ACCESS: 10 10 0 2230 1680 0 120 121 0
\t     GETATTR: 8 10 0 2020 2440 0 130 131 0
\t      LOOKUP: 0 0 0 0 0 0 0 0 0
device fs1:/few mounted on /few with fstype nfs statvers=1.1
\tper-op statistics
\t      ACCESS: 4 4 0 892 672 0 400 402 0
"""


def mounted(line: str) -> FileSystem:
    point = line.split(" ", maxsplit=1)[0]
    text = f"36 0 0:51 / {point} rw,relatime - {line.partition(' ')[2]}"
    return MountTable.parse(text, sys_root="/nowhere").of(point.replace("\\040", " ") + "/x")


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/near nfs4 near:/x rw,rsize=1048576", []),
        ("/near nfs4 near:/x rw,rsize=262144", []),
        ("/near nfs4 near:/x rw,rsize=262143", ["rsize"]),
        ("/near nfs near:/x rw,rsize=32768,wsize=32768", ["rsize"]),
        ("/near nfs4 near:/x rw", []),
        ("/with\\040space nfs4 fs1:/models rw,rsize=1048576,proto=tcp", ["nconnect"]),
        ("/with\\040space nfs4 fs1:/models rw,rsize=1048576,proto=tcp,nconnect=4", []),
        ("/with\\040space nfs4 fs1:/models rw,rsize=1048576,proto=rdma", []),
        ("/with\\040space nfs4 fs1:/models rw,rsize=65536", ["rsize", "nconnect"]),
        ("/few nfs fs1:/few rw,rsize=1048576", []),  # too few calls to tell
        ("/gone nfs4 fs1:/gone rw,rsize=1048576", []),
        ("/near ext4 /dev/sda1 rw,rsize=1", []),
        ("/near cifs //near/x rw,rsize=4096", []),
    ],
)
def test_advice_about_nfs(tmp_path: Path, line: str, words: list[str]) -> None:
    root = write(tmp_path, {"proc/self/mountstats": MOUNTSTATS})
    found = list(advise(mounted(line), [], BLOCK, root))
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert f"{word}=" in text
        assert text.startswith(mounted(line).mount_point)


def test_the_round_trip_is_that_of_short_calls_and_of_each_transmission(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/mountstats": MOUNTSTATS})
    assert round_trip_seconds("/with space", root) == pytest.approx(0.0125)
    assert round_trip_seconds("/near", root) == pytest.approx(0.0005)
    assert round_trip_seconds("/proc", root) is None
    assert round_trip_seconds("/near", str(tmp_path / "none")) is None
    assert "12 ms" in next(
        advise(
            mounted("/with\\040space nfs4 fs1:/models rw"),
            [],
            BLOCK,
            write(tmp_path, {"proc/self/mountstats": MOUNTSTATS}),
        )
    )


# Lustre

LUSTRE = "/scratch lustre 10.0.0.1@tcp,10.0.0.2@tcp:/scratch/team rw,flock,lazystatfs"
CACHED = """\
users: 5
max_cached_mb: 7776
used_mb: 12
unused_mb: 7764
reclaim_count: 0
"""


@pytest.mark.parametrize("place", ["sys/fs/lustre", "proc/fs/lustre", "sys/kernel/debug/lustre"])
@pytest.mark.parametrize(
    ("text", "size"),
    [
        (CACHED, 7776 * MIB),
        ("128\n", 128 * MIB),
        ("", None),
        ("max_cached_mb: 0\n", None),
        ("x", None),
    ],
)
def test_what_the_client_keeps(tmp_path: Path, place: str, text: str, size: int | None) -> None:
    root = write(tmp_path, {f"{place}/llite/scratch-ffff8d1c/max_cached_mb": text})
    assert lustre.max_cached_bytes(mounted(LUSTRE), root) == size


@pytest.mark.parametrize(
    "line",
    [
        LUSTRE.replace(":/scratch", ":/home"),
        LUSTRE.replace(":/scratch/team", ":/"),
        "/scratch lustre x rw",
        "/scratch nfs4 10.0.0.1:/scratch rw",
    ],
)
def test_another_file_system_has_other_values(tmp_path: Path, line: str) -> None:
    root = write(tmp_path, {"sys/fs/lustre/llite/scratch-ffff8d1c/max_cached_mb": CACHED})
    assert lustre.max_cached_bytes(mounted(line), root) is None


@pytest.mark.parametrize(
    ("text", "advised"),
    [
        ("1\n", True),
        ("15.996\n", True),
        ("16\n", False),
        ("64.0\n", False),
        ("", False),
        ("x", False),
        ("inf", False),
    ],
)
def test_advice_about_reading_ahead(tmp_path: Path, text: str, advised: bool) -> None:
    name = "sys/fs/lustre/llite/scratch-ffff8d1c/max_read_ahead_per_file_mb"
    found = list(advise(mounted(LUSTRE), [], BLOCK, write(tmp_path, {name: text})))
    assert [line for line in found if "max_read_ahead_per_file_mb" in line] == found
    assert bool(found) is advised


def plain(count: int, magic: int = 0x0BD10BD0) -> bytes:
    """Return a layout of one part: lov_user_md_v1, or v3 with the name of a pool."""
    pool = b"flash".ljust(16, b"\0") if magic == 0x0BD30BD0 else b""
    return struct.pack("=II16sIHH", magic, 1, b"", MIB, count, 0) + pool + bytes(24 * min(count, 8))


def composite(*parts: tuple[int, int]) -> bytes:
    """Return a progressive layout: of each part its stripe count and its flags."""
    blobs = [plain(count) for count, _ in parts]
    entries, offset = b"", 32 + 48 * len(parts)
    for (_, flags), blob in zip(parts, blobs, strict=True):
        entries += struct.pack("=IIQQIIIQI", 1, flags, 0, GIB, offset, len(blob), 0, 0, 0)
        offset += len(blob)
    head = struct.pack("=IIIHHHBB4xQ", 0x0BD60BD0, offset, 1, 0, len(parts), 0, 0, 0, 0)
    return head + entries + b"".join(blobs)


@pytest.mark.parametrize(
    ("layout", "count"),
    [
        (plain(1), 1),
        (plain(4), 4),
        (plain(0xFFFF), 0xFFFF),
        (plain(2, 0x0BD30BD0), 2),
        (composite((1, 0x10), (4, 0x10), (16, 0)), 4),  # the last part has no data yet
        (composite((1, 0x10)), 1),
        (composite((8, 0)), None),
        (composite(), None),
        (plain(1, 0x12345678), None),
        (b"", None),
        (plain(1)[:20], None),
        (composite((1, 0x10), (2, 0x10))[:60], None),
    ],
)
def test_the_stripe_count_of_a_layout(layout: bytes, count: int | None) -> None:
    assert lustre.parse_layout(layout) == count


@given(st.binary(max_size=200), st.sampled_from([b"\xd0\x0b\xd1\x0b", b"\xd0\x0b\xd6\x0b"]))
def test_no_layout_makes_the_parser_raise(rest: bytes, magic: bytes) -> None:
    lustre.parse_layout(magic + rest)


def test_advice_about_large_files_on_one_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No other file system takes this attribute.
    layouts = {"/scratch/a": plain(1), "/scratch/b": plain(8), "/scratch/c": plain(1)}
    monkeypatch.setattr(os, "getxattr", lambda path, _name: layouts[path])
    files = [("/scratch/a", GIB), ("/scratch/b", GIB), ("/scratch/c", GIB), ("/scratch/small", 5)]
    [line] = advise(mounted(LUSTRE), files, BLOCK, str(tmp_path))
    assert line.startswith("/scratch/a and 1 more: each lies on one Lustre target (stripe_count 1)")
    assert list(advise(mounted(LUSTRE), files[1:2], BLOCK, str(tmp_path))) == []
    assert list(advise(mounted(LUSTRE), files[3:], BLOCK, str(tmp_path))) == []


def test_a_file_that_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert lustre.stripe_count(str(tmp_path / "x")) is None
    assert lustre.stripe_count("/nowhere\0") is None
