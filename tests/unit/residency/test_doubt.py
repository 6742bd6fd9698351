"""If less stayed than was read, a warning says so and names the likely cause."""

from dataclasses import replace

import pytest

from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.memory import Memory
from prefetch_cli.residency.doubt import doubt

GIB = 1024**3
HOST = Memory(100 * GIB, 100 * GIB, None, "host")
SMALL_HOST = Memory(GIB, GIB, None, "host")
CGROUP = Memory(GIB, 100 * GIB, GIB, "/sys/fs/cgroup/memory/job")
ROOMY_CGROUP = Memory(50 * GIB, 100 * GIB, 50 * GIB, "/sys/fs/cgroup/job")


def doubted(
    *,
    read: int = 10 * GIB,
    before: int | None = 0,
    after: int | None = 0,
    share: int = 10 * GIB,
    type_: str = "ext4",
    memory: Memory = HOST,
) -> str | None:
    return doubt(
        read_bytes=read,
        before_bytes=before,
        after_bytes=after,
        share_bytes=share,
        filesystems=[replace(UNKNOWN, type=type_)],
        memory=memory,
    )


@pytest.mark.parametrize(
    ("read", "before", "after"),
    [
        (10 * GIB, 0, 10 * GIB),
        (10_000, 0, 9_900),  # others may take 1 %
        (10 * GIB, 0, None),  # the summary says "unknown"
        (0, 0, 0),
        (5 * GIB, 5 * GIB, 10 * GIB),
        (10 * GIB, None, 10 * GIB),
    ],
)
def test_there_is_no_doubt(read: int, before: int | None, after: int | None) -> None:
    assert doubted(read=read, before=before, after=after) is None


def test_less_than_99_percent_is_doubted_with_the_figures() -> None:
    text = doubted(read=10_000, after=9_899)
    assert text is not None
    assert "9.67 KB" in text or "9.67 KiB" in text
    assert "99.0 %" in text


def test_what_was_resident_before_should_still_be() -> None:
    assert doubted(read=GIB, before=9 * GIB, after=2 * GIB) is not None


@pytest.mark.parametrize(
    ("type_", "memory", "words"),
    [
        ("ext4", CGROUP, ["memory limit of the cgroup /sys/fs/cgroup/memory/job", "--partial"]),
        ("cifs", CGROUP, ["memory limit of the cgroup"]),
        ("ext4", ROOMY_CGROUP, ["other processes", "memory of the cgroup /sys/fs/cgroup/job"]),
        ("cifs", HOST, ["SMB", "closetimeo", "lease", "cache=loose"]),
        ("smb3", HOST, ["SMB"]),
        ("fuse.sshfs", HOST, ["FUSE", "opened again", "direct I/O"]),
        ("virtiofs", HOST, ["FUSE"]),
        ("gpfs", HOST, ["gpfs", "outside the page cache"]),
        ("9p", HOST, ["9p", "direct I/O"]),
        ("ext4", HOST, ["other processes", "memory of the host"]),
        ("nfs4", SMALL_HOST, ["memory limit of the host"]),
    ],
)
def test_the_likely_cause_is_named(type_: str, memory: Memory, words: list[str]) -> None:
    text = doubted(type_=type_, memory=memory)
    assert text is not None
    assert [word for word in words if word not in text] == []
