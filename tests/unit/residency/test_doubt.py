"""If less stayed than was read, a warning says so, and why: a fact where the kernel counts it."""

import pytest

from prefetch_cli.linux.cachestat import Reclaimed
from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.memory import Memory
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.residency.doubt import doubt, reclaimed_since
from prefetch_cli.residency.survey import Survey

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
    reclaimed: int | None = None,
    pages: int | None = None,
    share: int = 10 * GIB,
    type_: str = "ext4",
    memory: Memory = HOST,
) -> str | None:
    return doubt(
        read_bytes=read,
        before_bytes=before,
        after_bytes=after,
        reclaimed_bytes=reclaimed,
        sampled_pages=pages,
        share_bytes=share,
        filesystems=[UNKNOWN._replace(type=type_)],
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


def test_of_a_sample_the_upper_bound_counts_and_the_words_say_so() -> None:
    assert doubted(read=10_000, after=9_900, pages=1024) is None
    text = doubted(read=10_000, after=9_899, pages=1024)
    assert text is not None
    assert text.startswith("at most 9.67 ")
    assert "(99.0 %, by a sample of 1,024 pages)" in text


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


@pytest.mark.parametrize(
    ("type_", "memory", "words"),
    [
        ("ext4", CGROUP, "likely because of the memory limit of the cgroup /sys/fs/"),
        ("ext4", HOST, "likely because other processes needed the memory of the host, or its"),
        # The kernel says so: whatever the file system is known for.
        ("cifs", HOST, "likely because other processes needed the memory of the host, or its"),
        ("gpfs", SMALL_HOST, "likely because of the memory limit of the host; --partial keeps"),
    ],
)
def test_what_was_dropped_to_free_memory_is_a_fact(type_: str, memory: Memory, words: str) -> None:
    text = doubted(after=2 * GIB, reclaimed=7 * GIB, type_=type_, memory=memory)
    assert text is not None
    assert f": 7 GiB were dropped again to free memory, {words}" in text


@pytest.mark.parametrize(
    ("type_", "memory", "words"),
    [
        ("cifs", CGROUP, "likely the SMB client"),
        ("9p", CGROUP, "likely 9p keeps"),
        # Some traces may be lost where so much more was read than fits.
        ("ext4", CGROUP, "likely because of the memory limit of the cgroup"),
        ("ext4", HOST, "likely a program dropped the rest (drop_caches, posix_fadvise)"),
    ],
)
def test_a_little_that_was_dropped_to_free_memory_explains_nothing(
    type_: str, memory: Memory, words: str
) -> None:
    for little in (0, 3 * GIB):
        text = doubted(after=2 * GIB, reclaimed=little, type_=type_, memory=memory)
        assert text is not None
        assert f"(20.0 %): {words}" in text


def found(*reclaimed: int | None) -> Survey:
    return Survey(
        resident_bytes=0,
        total_bytes=0,
        method=Method.CACHESTAT,
        missing=(),
        resident_by_file={},
        failed=(),
        reclaimed_by_file={
            number: None if one is None else Reclaimed(one, 0)
            for number, one in enumerate(reclaimed)
        },
    )


@pytest.mark.parametrize(
    ("before", "after", "whole", "since"),
    [
        (found(0, 0), found(3, 4), True, 7),
        (found(3, 4), found(3, 4), True, 7),  # reading has removed the earlier traces
        (found(None), found(3, 4), True, 7),
        (found(3, 4), found(3, 6), False, 2),
        (found(3, 4), found(1, 2), False, 0),
        (found(3, None), found(3, 6), False, None),
        (found(0, 0), found(0, None), True, None),
        (found(0, 0), found(), True, None),
    ],
)
def test_what_was_dropped_since(
    before: Survey, after: Survey, whole: bool, since: int | None
) -> None:
    assert reclaimed_since(before, after, failed=(), whole=whole) == since


def test_a_file_that_failed_does_not_count() -> None:
    assert reclaimed_since(found(0, 9), found(3, None), failed={1}, whole=True) == 3
    assert reclaimed_since(found(1, 9), found(3, 50), failed={1}, whole=False) == 2
