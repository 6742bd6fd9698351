"""What can be dropped is dropped; for the rest, the error says why it stays."""

import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.extents import Extent, needed
from prefetch_cli.residency.draw import Page
from prefetch_cli.residency.evict import Eviction, concluded, evict, stayed
from prefetch_cli.residency.samples import Sampled
from prefetch_cli.residency.survey import Survey
from tests.helpers import oracle
from tests.helpers.command import ROOT
from tests.helpers.oracle import about

MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


def resident(folder: Path, sizes: Sequence[int]) -> list[File]:
    files = []
    for number, size in enumerate(sizes):
        path = folder / f"file-{number}.bin"
        path.write_bytes(os.urandom(size))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found = examine(str(path), weight=True)
        assert isinstance(found, File)
        files.append(found)
    return files


def run(files: Sequence[File], extents: Sequence[Extent] | None = None) -> Eviction:
    if extents is None:
        extents = list(needed(files))
    return evict(files, extents, threads=4, monitor=Monitor(), stop=Stop())


def test_everything_clean_is_dropped(tmp_path: Path) -> None:
    files = resident(tmp_path, [3 * MIB, 1, MIB])
    done = run(files)
    assert oracle.resident_bytes([file.path for file in files]) == 0
    assert (done.bytes_evicted, done.complete, done.failed) == (about(4 * MIB + 1), True, ())


def test_only_the_extents_are_dropped(tmp_path: Path) -> None:
    # Blocks like those of ranks: the kernel drops only whole folios, of up to 2 MiB.
    files = resident(tmp_path, [48 * MIB])
    done = run(files, [Extent(0, 16 * MIB, 16 * MIB)])
    assert done.bytes_evicted == about(16 * MIB)
    assert oracle.resident_bytes([files[0].path]) == about(32 * MIB)


def test_what_is_mapped_stays_and_the_process_is_named(tmp_path: Path) -> None:
    files = resident(tmp_path, [2 * MIB, MIB])
    with (
        open(files[0].path, "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping,
    ):
        assert sum(mapping[page] for page in range(0, 2 * MIB, mmap.PAGESIZE)) >= 0
        done = run(files)
    assert not done.complete
    [(path, why)] = done.failed
    assert path == files[0].path
    assert "2 MiB stay: mapped by process" in why
    assert str(os.getpid()) in why
    assert oracle.resident_bytes([files[1].path]) == 0


def test_what_is_dirty_is_written_back_and_dropped(tmp_path: Path) -> None:
    path = tmp_path / "dirty.bin"
    path.write_bytes(os.urandom(2 * MIB))
    found = examine(str(path), weight=True)
    assert isinstance(found, File)
    done = run([found])
    left = oracle.resident_bytes([str(path)])
    if done.complete:
        assert left == 0
    else:  # the disk was too slow for our retries
        assert "dirty" in done.failed[0][1]


def test_a_file_that_may_not_be_opened_is_named(tmp_path: Path) -> None:
    files = resident(tmp_path, [MIB, MIB])
    os.unlink(files[0].path)
    done = run(files)
    assert done.failed == ((files[0].path, "No such file or directory"),)
    assert done.bytes_evicted == about(MIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who owns nothing")
def test_read_permission_is_enough_to_evict(tmp_path: Path) -> None:
    files = resident(tmp_path, [MIB])
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    script = (
        "import os, sys\n"
        "from prefetch_cli.residency.evict import evict\n"
        "from prefetch_cli.checkpoint.examine import examine\n"
        "from prefetch_cli.plan.extents import Extent\n"
        "from prefetch_cli.base.progress import Monitor\n"
        "from prefetch_cli.base.stop import Stop\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "file = examine(sys.argv[1], weight=True)\n"
        "extents = [Extent(0, 0, file.size_bytes)]\n"
        "print(evict([file], extents, threads=1, monitor=Monitor(), stop=Stop()).failed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, files[0].path],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "()\n"
    assert oracle.resident_bytes([files[0].path]) == 0


# What only a sample can look at


def seen(
    by_file: dict[int, int | None], low_bytes: int, drawn: Sequence[int] = (0, 1, 2)
) -> Survey:
    """Return a survey with estimates of these files, and a sample of pages of `drawn`."""
    total = sum(size or 0 for size in by_file.values())
    pages = frozenset(Page(file, 0) for file in drawn)
    return Survey(
        resident_bytes=total,
        total_bytes=30 * MIB,
        method=Method.TIMED,
        missing=(),
        resident_by_file=by_file,
        failed=(),
        sampled=Sampled(low_bytes, total, 2 * total, 1024, pages),
    )


DROPPED = Eviction(None, 1.0, None, (), frozenset({0, 1}))


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (seen({0: 0, 1: 0}, 0), {}),
        (seen({0: 0, 1: 5 * MIB}, MIB), {1: 5 * MIB}),
        (seen({0: 3 * MIB, 1: 5 * MIB}, MIB), {0: 3 * MIB, 1: 5 * MIB}),
        # An interval that begins at nothing says nothing.
        (seen({0: 0, 1: 5 * MIB}, 0), {}),
        # File 2 was looked at exactly, and is all that the lower bound consists of.
        (seen({0: 0, 1: MIB, 2: 9 * MIB}, 9 * MIB), {}),
        (seen({0: 0, 1: MIB, 2: 9 * MIB}, 9 * MIB + 1), {1: MIB}),
        # No page of file 0 was looked at.
        (seen({0: 3 * MIB, 1: 5 * MIB}, MIB, drawn=[1]), {1: 5 * MIB}),
        (seen({0: None, 1: None}, 0), {}),
    ],
)
def test_what_a_sample_finds_has_stayed(after: Survey, left: dict[int, int]) -> None:
    assert stayed(DROPPED, after) == left


def test_whatever_stayed_has_failed(tmp_path: Path) -> None:
    files = resident(tmp_path, [1, 1])
    done = concluded(files, DROPPED, seen({0: 0, 1: 5 * MIB}, MIB), 2.0)
    assert (done.bytes_evicted, done.elapsed_seconds, done.complete) == (None, 2.0, False)
    why = "dirty, mapped or locked by a process that this user cannot see"
    assert done.failed == ((files[1].path, f"about 5 MiB stay, by a sample: {why}"),)


def test_what_a_sample_does_not_find_is_gone(tmp_path: Path) -> None:
    done = concluded(resident(tmp_path, [1, 1]), DROPPED, seen({0: 0, 1: 0}, 0), 2.0)
    assert (done.bytes_evicted, done.complete, done.failed) == (None, True, ())


def test_what_nothing_can_look_at_is_not_known(tmp_path: Path) -> None:
    after = seen({0: None, 1: None}, 0)._replace(
        resident_bytes=None, method=Method.UNKNOWN, sampled=None
    )
    done = concluded(resident(tmp_path, [1, 1]), DROPPED, after, 2.0)
    assert (done.bytes_evicted, done.complete, done.failed) == (None, None, ())
