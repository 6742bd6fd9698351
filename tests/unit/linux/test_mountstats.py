"""What the NFS client counts, from a recorded table."""

import os
from pathlib import Path

import pytest

from prefetch_cli.linux.mountstats import lines_of, server_read_bytes

# fs1:/b is mounted twice, as 0:41; /a holds other counts.
MOUNTSTATS = """\
device /dev/sda1 mounted on / with fstype ext4
device fs1:/a mounted on /a with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2
\tbytes:\t1 2 3 4 5 6 7 8
device fs1:/b mounted on /with\\040space with fstype nfs statvers=1.1
\tbytes:\t0 0 0 0 81920 0 20 0
device tmpfs mounted on /tmp with fstype tmpfs
"""
MOUNTINFO = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:40 / /a rw - nfs4 fs1:/a rw
22 20 0:41 / /with\\040space rw - nfs fs1:/b rw
23 20 0:42 / /tmp rw - tmpfs tmpfs rw
"""


@pytest.fixture
def root(tmp_path: Path) -> str:
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True)
    (folder / "mountstats").write_text(MOUNTSTATS)
    (folder / "mountinfo").write_text(MOUNTINFO)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("device", "expected"), [((0, 40), 5), ((0, 41), 81920), ((0, 42), None), ((8, 1), None)]
)
def test_what_was_read_from_the_server(
    root: str, device: tuple[int, int], expected: int | None
) -> None:
    assert server_read_bytes(os.makedev(*device), root) == expected


def test_where_there_is_no_table(tmp_path: Path) -> None:
    assert server_read_bytes(os.makedev(0, 40), str(tmp_path)) is None
    assert list(lines_of("/a", str(tmp_path))) == []
