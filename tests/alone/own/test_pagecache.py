"""The page cache for real: known-cold files, page-edge sizes, fincore as the oracle."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prefetch_cli.linux import cachestat, pagecache
from prefetch_cli.linux.pagecache import PAGE_BYTES, Counter
from tests.helpers import oracle
from tests.helpers.command import ROOT
from tests.helpers.counter import by_mincore
from tests.helpers.passthrough import answered, mounted

SIZES = [1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 7 * PAGE_BYTES, 3_000_001]

PAGES = [range(-(-3_000_001 // PAGE_BYTES))]

needs_fincore = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A file of 3 MB with no resident page, and a descriptor of it."""
    path = tmp_path / "cold"
    path.write_bytes(os.urandom(3_000_001))
    oracle.evict([str(path)])
    descriptor = os.open(path, os.O_RDONLY)
    yield str(path), descriptor
    os.close(descriptor)


def written(path: Path, size: int) -> int:
    path.write_bytes(os.urandom(size))
    oracle.evict([str(path)])
    return os.open(path, os.O_RDONLY)


def counted(descriptor: int, size: int) -> list[int]:
    """Return what each exact method says of a file."""
    counters = [Counter(descriptor), Counter(descriptor, reads_in_flight=True)]
    found = [counter.count(0, size) for counter in counters]
    return [one.resident_bytes for one in found if one is not None]


@needs_fincore
@pytest.mark.parametrize("size", SIZES)
def test_a_cold_file_is_not_resident_and_a_read_one_is(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    descriptor = written(path, size)
    assert oracle.resident_bytes([str(path)]) == 0
    assert counted(descriptor, size) == [0, 0]
    path.read_bytes()
    assert oracle.resident_bytes([str(path)]) == -(-size // PAGE_BYTES) * PAGE_BYTES
    assert counted(descriptor, size) == [size, size]
    os.close(descriptor)


def test_each_missing_run_is_found(cold: tuple[str, int]) -> None:
    _, descriptor = cold
    pagecache.read_only_what_is_asked(descriptor)
    for page in (1, 2, 5, 700):
        os.pread(descriptor, 1, page * PAGE_BYTES)
    missing = list(pagecache.missing(descriptor, 0, 3_000_001))
    pages = [(0, 1), (3, 5), (6, 700), (701, -(-3_000_001 // PAGE_BYTES))]
    assert missing[:-1] == [
        (first * PAGE_BYTES, (behind - first) * PAGE_BYTES) for first, behind in pages[:-1]
    ]
    assert missing[-1] == (701 * PAGE_BYTES, 3_000_001 - 701 * PAGE_BYTES)
    assert by_mincore(descriptor, 0, 3_000_001) == 4 * PAGE_BYTES


def test_missing_runs_of_a_range_lie_in_the_range(cold: tuple[str, int]) -> None:
    _, descriptor = cold
    assert list(pagecache.missing(descriptor, 100, 5000)) == [(100, 5000)]


def test_advice_reads_the_range_and_nothing_else(cold: tuple[str, int]) -> None:
    _, descriptor = cold
    offset, length = 64 * PAGE_BYTES, 200 * PAGE_BYTES
    pagecache.advise(descriptor, offset, length, 32 * PAGE_BYTES)
    for page in range(64, 264):
        os.pread(descriptor, 1, page * PAGE_BYTES)  # waits for the read in flight
    assert by_mincore(descriptor, offset, length) == length
    assert by_mincore(descriptor, 0, 3_000_001) == length


def test_dropping_a_range_leaves_the_rest(cold: tuple[str, int]) -> None:
    path, descriptor = cold
    Path(path).read_bytes()
    pagecache.drop(descriptor, 0, 100 * PAGE_BYTES)
    assert list(pagecache.missing(descriptor, 0, 3_000_001)) == [(0, 100 * PAGE_BYTES)]


def test_dirty_pages_are_told_from_clean_ones(tmp_path: Path) -> None:
    path = tmp_path / "dirty"
    path.write_bytes(os.urandom(10 * PAGE_BYTES))
    with path.open("rb") as file:
        state = cachestat.ask(file.fileno(), 0, 10 * PAGE_BYTES)
        if state is None:
            pytest.skip("this kernel has no cachestat (Linux 6.5)")
        assert state.resident_bytes == 10 * PAGE_BYTES
        assert state.dirty_bytes == 10 * PAGE_BYTES
        os.fsync(file.fileno())
        clean = cachestat.ask(file.fileno(), 0, 10 * PAGE_BYTES)
        assert clean is not None
        assert clean.dirty_bytes == 0


def test_a_sample_estimates_what_is_resident(cold: tuple[str, int]) -> None:
    path, descriptor = cold
    before = pagecache.sample(descriptor, PAGES, 64)
    if before is None:
        pytest.skip("RWF_NOWAIT is not supported by the file system of the tests")
    hits, asked = before
    assert hits == 0
    assert 60 < asked <= 64
    Path(path).read_bytes()
    hits, asked = pagecache.sample(descriptor, PAGES, 64) or (0, 0)
    assert hits == asked > 60
    pages = -(-3_000_001 // PAGE_BYTES)
    assert pagecache.sample(descriptor, PAGES, 10**6) == (pages, pages)


def test_a_sample_looks_at_no_page_outside_its_ranges(cold: tuple[str, int]) -> None:
    path, descriptor = cold
    asked = [range(3, 40), range(40, 41), range(300, 410)]
    if pagecache.sample(descriptor, asked, 10**6) is None:
        pytest.skip("RWF_NOWAIT is not supported by the file system of the tests")
    pages = sum(map(len, asked))
    for one in asked:
        os.pread(descriptor, len(one) * PAGE_BYTES, one.start * PAGE_BYTES)
    assert pagecache.sample(descriptor, asked, 10**6) == (pages, pages)
    hits, looked_at = pagecache.sample(descriptor, asked, 20) or (0, 0)
    assert hits == looked_at > 15
    oracle.make_cold([path])
    os.pread(descriptor, 37 * PAGE_BYTES, 3 * PAGE_BYTES)
    assert pagecache.sample(descriptor, asked, 10**6) == (37, pages)


def test_a_page_that_the_sample_itself_read_is_a_miss(
    cold: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a very fast disk: each page is there when the call returns."""
    path, descriptor = cold
    asked_by_kernel = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, offset, flags: asked_by_kernel(file, buffers, offset, 0)
    )
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
    hits, asked = pagecache.sample(descriptor, PAGES, 64) or (0, 0)
    if resource.getrusage(resource.RUSAGE_THREAD).ru_inblock == before:
        pytest.skip("the file system of the tests, or this kernel, counts no block input")
    assert (hits, asked > 60) == (0, True)
    Path(path).read_bytes()
    hits, asked = pagecache.sample(descriptor, PAGES, 64) or (0, 0)
    assert hits == asked > 60


@contextlib.contextmanager
def instant_disk(folder: Path) -> Iterator[None]:
    """Mount ext4 on a new zram, which finishes a read before the call returns."""
    control = Path("/sys/class/zram-control")
    if os.geteuid() != 0 or not control.exists() or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, zram and mkfs.ext4, for a disk that answers at once")
    number = (control / "hot_add").read_text(encoding="ascii").strip()
    device = f"/dev/zram{number}"
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text("64M", encoding="ascii")
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", "-t", "ext4", device, folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", folder], check=True)
    finally:
        Path(f"/sys/block/zram{number}/reset").write_text("1", encoding="ascii")
        (control / "hot_remove").write_text(number, encoding="ascii")


def test_a_cold_file_on_a_disk_that_answers_at_once_is_sampled_as_cold(tmp_path: Path) -> None:
    folder = tmp_path / "instant"
    folder.mkdir()
    with instant_disk(folder):
        descriptor = written(folder / "file", 8 * 1024 * 1024)
        try:
            assert by_mincore(descriptor, 0, 8 << 20) == 0
            assert pagecache.sample(descriptor, [range(2048)], 512) == (0, 512)
            (folder / "file").read_bytes()
            hits, _ = pagecache.sample(descriptor, [range(2048)], 512) or (0, 0)
            assert hits == oracle.about(512)
            pagecache.drop(descriptor, 0, 4 << 20)
            hits, _ = pagecache.sample(descriptor, [range(2048)], 512) or (0, 0)
            assert hits == oracle.about(256)
        finally:
            os.close(descriptor)


AS_NOBODY = textwrap.dedent(
    """
    import os, sys
    from prefetch_cli.linux import pagecache
    path = sys.argv[1]
    descriptor = os.open(path, os.O_RDONLY)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    size = os.fstat(descriptor).st_size
    counter = pagecache.Counter(descriptor)
    counter.count(0, size)
    print(counter.method.value, pagecache.surest_method(descriptor).value,
          sum(length for _, length in pagecache.missing(descriptor, 0, size)))
    """
)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who owns nothing")
def test_the_lie_of_mincore_is_never_believed(cold: tuple[str, int]) -> None:
    path, _ = cold
    os.chmod(path, 0o444)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, path],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    exact, surest, missing = done.stdout.split()
    # mincore itself claims that nothing of this cold file is missing.
    assert (surest, missing) == ("unknown", "0")
    # Kernels without the cachestat fix tell everyone the truth; later ones refuse.
    assert exact in {"unknown", "cachestat"}


# What this user learns of the file after opening it, reading it, and opening it again.
LOOK = """
    import os, sys
    from prefetch_cli.linux import pagecache
    folder, user = sys.argv[1], int(sys.argv[2])
    os.chdir(folder)  # others may not search the directories above
    if user:
        os.setgroups([]); os.setgid(user); os.setuid(user)
    descriptor = os.open("file", os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    def look():
        counters = [
            pagecache.Counter(descriptor), pagecache.Counter(descriptor, reads_in_flight=True)
        ]
        found = [counter.count(0, size) for counter in counters]
        figures = ["?" if one is None else str(one.resident_bytes) for one in found]
        print(*figures, pagecache.sample(descriptor, [range(-(-size // pagecache.PAGE_BYTES))], 64))
    look()
    while os.read(descriptor, 1 << 20):
        pass
    look()
    os.close(os.open("file", os.O_RDONLY))
    look()
"""
SUPERUSER, OWNER, STRANGER = 0, 4321, 65534
SIZE = 3_000_001


@pytest.mark.parametrize("user", [SUPERUSER, OWNER, STRANGER])
@pytest.mark.parametrize(
    ("options", "truth"),
    [
        ([], [0, SIZE, 0]),  # each open drops the cache, even of a file that is open
        (["--keep-cache"], [0, SIZE, SIZE]),
        (["--direct-io"], [0, 0, 0]),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount and to become other users")
def test_on_fuse_the_figure_is_true_or_unknown(
    tmp_path: Path, options: Sequence[str], truth: Sequence[int], user: int
) -> None:
    source, folder = tmp_path / "source", tmp_path / "mount"
    source.mkdir()
    folder.mkdir()
    (source / "file").write_bytes(os.urandom(SIZE))
    os.chown(source / "file", OWNER, OWNER)
    script = textwrap.dedent(LOOK)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(mounted(str(source), str(folder), "--allow-other", *options))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        found = answered(sys.executable, "-c", script, str(folder), str(user)).splitlines()
    if user == STRANGER:
        assert found == ["? ? None"] * 3
        return
    resident_bytes = [tuple(map(int, line.split()[:2])) for line in found]
    assert resident_bytes == [(oracle.about(one), oracle.about(one)) for one in truth]
    assert all(line.endswith(" None") for line in found)  # no sample on FUSE
