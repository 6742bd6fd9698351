"""Populating a file through a mapping: what it brings in, what it leaves, how it fails."""

import errno
import mmap
import os
import re
from pathlib import Path

import pytest

from prefetch_cli.base.words import Engine
from prefetch_cli.linux import mapping, mounts, pagecache
from prefetch_cli.linux.mapping import HUGE_PAGE_BYTES
from prefetch_cli.linux.pagecache import PAGE_BYTES
from tests.helpers.reading import MIB, cold_files, read

pytestmark = pytest.mark.skipif(
    not mapping.populates(), reason="needs a kernel that reads huge pages for a fault"
)
# Which keep huge pages of files, and since which kernel.
_LARGE_FOLIOS = {"xfs": (5, 18), "ext4": (6, 16)}


@pytest.fixture
def cold(tmp_path: Path) -> str:
    return cold_files(tmp_path, [12 * MIB + 5])[0]


def test_a_range_is_resident_and_the_two_huge_pages_around_it_at_most(cold: str) -> None:
    descriptor = os.open(cold, os.O_RDONLY)
    mapping.populate(descriptor, 4 * MIB + 100, MIB)
    missing = list(pagecache.missing(descriptor, 0, 12 * MIB))
    os.close(descriptor)
    assert (0, 4 * MIB) in missing
    assert all(start + size <= 4 * MIB or start >= 6 * MIB for start, size in missing)


def test_the_end_of_a_file_is_no_error_and_behind_it_is_one(cold: str) -> None:
    descriptor = os.open(cold, os.O_RDONLY)
    mapping.populate(descriptor, 12 * MIB, 5)
    mapping.populate(descriptor, 12 * MIB, PAGE_BYTES)
    for offset, length in ((12 * MIB, PAGE_BYTES + 1), (14 * MIB, MIB)):
        with pytest.raises(OSError, match="Bad address") as failed:  # and no SIGBUS
            mapping.populate(descriptor, offset, length)
        assert failed.value.errno == errno.EFAULT
    assert cold not in Path("/proc/self/maps").read_text()
    os.close(descriptor)


def test_what_cannot_be_mapped_says_so() -> None:
    with open("/proc/self/maps", "rb") as file, pytest.raises(OSError, match=r"error|device"):
        mapping.populate(file.fileno(), 0, PAGE_BYTES)


def test_a_loader_maps_huge_pages_afterwards(tmp_path: Path) -> None:
    """Whatever the setting of transparent huge pages is."""
    (found,) = mounts.inspect([str(tmp_path)])
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    if release < _LARGE_FOLIOS.get(found.type, (1 << 30,)):
        pytest.skip(f"needs a file system that keeps huge pages of files, not {found.type}")
    size = 64 * MIB
    (path,) = cold_files(tmp_path, [size])
    assert read([path], threads=1, block=16 * MIB, engine=Engine.POPULATE).complete
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        for offset in range(0, size, HUGE_PAGE_BYTES):
            assert mapped[offset : offset + 1]
        mine = Path("/proc/self/smaps").read_text().partition(path)[2]
        kib = re.search(r"^FilePmdMapped: +(\d+) kB", mine, re.MULTILINE)
    assert kib is not None
    # All of it, unless memory is in small pieces.
    assert int(kib[1]) * 1024 >= size // 2
