"""Locked pages: counted by the kernel, kept against a drop, and refused by its limit."""

import errno
import mmap
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prefetch_cli.linux import locking
from prefetch_cli.linux.locking import Locks, Range
from tests.helpers import oracle

MIB = 1024 * 1024


def locked_bytes() -> int:
    """Return how much of this process is locked, as the kernel counts."""
    found = re.search(r"^VmLck:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB + 5))
    return path


def whole(path: Path) -> Range:
    status = path.stat()
    return Range(str(path), (status.st_dev, status.st_ino), 0, status.st_size)


def test_what_is_locked_is_read_and_stays(path: Path) -> None:
    oracle.make_cold([str(path)])
    before = locked_bytes()
    with Locks() as locks:
        assert sum(locks.add(whole(path))) == 3 * MIB + 5
        assert locked_bytes() - before == 3 * MIB + mmap.PAGESIZE
        oracle.evict([str(path)])
        assert oracle.resident_bytes([str(path)]) >= 3 * MIB + 5
    assert locked_bytes() == before
    oracle.make_cold([str(path)])


def test_a_range_need_not_begin_at_a_page(path: Path) -> None:
    before = locked_bytes()
    with Locks() as locks:
        assert sum(locks.add(whole(path)._replace(offset=MIB + 7, length=100))) == 100
        assert locked_bytes() - before == mmap.PAGESIZE
        locks.release()
        assert locked_bytes() == before


def test_only_the_file_that_is_meant_is_locked(path: Path, tmp_path: Path) -> None:
    meant = whole(path)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    os.rename(other, path)
    before = locked_bytes()
    with Locks() as locks:
        with pytest.raises(OSError, match="replaced") as raised:
            list(locks.add(meant))
        assert raised.value.errno == errno.ESTALE
        with pytest.raises(OSError, match="cut short"):
            list(locks.add(whole(path)._replace(length=4 * MIB)))
    assert locked_bytes() == before


def test_the_kernel_is_asked_whether_so_much_may_be_locked() -> None:
    """Under a limit, without the capability, in a process of its own."""
    script = (
        "import resource; from prefetch_cli.linux import locking;"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20));"
        "print(locking.limit_bytes(), locking.refusal(0), locking.refusal(1 << 20),"
        "      bool(locking.refusal((1 << 20) + 1)), bool(locking.refusal(1 << 40)))"
    )
    limited = ["setpriv", "--bounding-set=-ipc_lock"] if os.geteuid() == 0 else []
    shown = subprocess.check_output([*limited, sys.executable, "-c", script], text=True)
    assert shown == f"{MIB} None None True True\n"


def test_a_process_without_limit_may_lock_what_it_has_no_memory_for() -> None:
    """The question itself takes no memory."""
    limit = locking.limit_bytes()
    if os.geteuid() != 0 and limit is not None:
        pytest.skip("needs root, or no limit on locked memory (ulimit -l unlimited)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert locking.refusal(1 << 40) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024  # KiB
