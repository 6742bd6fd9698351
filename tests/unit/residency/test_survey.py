"""A survey, against files whose residency is known."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import cachestat, pagecache
from prefetch_cli.linux.cachestat import Reclaimed
from prefetch_cli.linux.pagecache import PAGE_BYTES, Counter, Method, Sample
from prefetch_cli.plan.extents import Extent, needed
from prefetch_cli.residency import timed
from prefetch_cli.residency.samples import SAMPLERS
from prefetch_cli.residency.survey import Survey, survey
from tests.helpers import oracle
from tests.helpers.command import ROOT
from tests.helpers.oracle import about
from tests.helpers.reading import whole

MIB = 1024 * 1024


def cold(folder: Path, sizes: Sequence[int]) -> list[File]:
    files = []
    for number, size in enumerate(sizes):
        path = folder / f"file-{number}.bin"
        path.write_bytes(os.urandom(size))
        found = examine(str(path), weight=True)
        assert isinstance(found, File)
        files.append(found)
    oracle.make_cold([file.path for file in files])
    return files


def warm(file: File, offset: int, length: int) -> None:
    descriptor = os.open(file.path, os.O_RDONLY)
    pagecache.read_only_what_is_asked(descriptor)
    os.pread(descriptor, length, offset)
    os.close(descriptor)


def look(files: Sequence[File], *, reads_in_flight: bool = False) -> Survey:
    extents = list(needed(files))
    return survey(files, extents, threads=4, monitor=Monitor(), reads_in_flight=reads_in_flight)


def sampled_by(monkeypatch: pytest.MonkeyPatch, samples: Mapping[Method, Sample | None]) -> None:
    """Let each method return this sample for every file; None: nothing can tell."""
    samplers = {method: lambda *_, found=found: found for method, found in samples.items()}
    monkeypatch.setattr("prefetch_cli.residency.samples.SAMPLERS", samplers)
    monkeypatch.setattr(timed, "estimate", lambda *_, **__: None)


@pytest.mark.parametrize("reads_in_flight", [False, True])
def test_cold_then_partly_then_wholly_resident(tmp_path: Path, reads_in_flight: bool) -> None:
    files = cold(tmp_path, [40 * MIB, MIB + 1, 1])
    nothing = look(files, reads_in_flight=reads_in_flight)
    assert nothing.resident_bytes == 0
    assert nothing.missing == tuple(whole([40 * MIB, MIB + 1, 1]))

    warm(files[0], 3 * MIB, 2 * MIB)
    warm(files[1], MIB, 1)
    partly = look(files, reads_in_flight=reads_in_flight)
    # cachestat counts pages: it cannot tell how much of the last page is file.
    resident = partly.resident_bytes
    assert resident is not None
    assert 2 * MIB + 1 <= resident <= 2 * MIB + PAGE_BYTES
    assert sum(extent.length for extent in partly.missing) == partly.total_bytes - 2 * MIB - 1
    assert [extent for extent in partly.missing if extent.file] == [
        Extent(1, 0, MIB),
        Extent(2, 0, 1),
    ]
    assert min(extent.offset for extent in partly.missing if extent.offset > 3 * MIB) == 5 * MIB
    assert partly.resident_by_file == {0: 2 * MIB, 1: resident - 2 * MIB, 2: 0}

    for file in files:
        Path(file.path).read_bytes()
    wholly = look(files, reads_in_flight=reads_in_flight)
    assert (wholly.resident_bytes, wholly.missing) == (wholly.total_bytes, ())
    assert wholly.exact_bytes == wholly.resident_bytes
    if reads_in_flight:
        assert wholly.method is Method.MINCORE


def test_only_the_extents_count(tmp_path: Path) -> None:
    files = cold(tmp_path, [4 * MIB])
    warm(files[0], 0, 2 * MIB)
    extents = [Extent(0, MIB, MIB), Extent(0, 3 * MIB, PAGE_BYTES)]
    found = survey(files, extents, threads=1, monitor=Monitor())
    assert (found.resident_bytes, found.total_bytes) == (about(MIB), MIB + PAGE_BYTES)
    assert found.missing == (extents[1],)


def test_a_file_that_is_gone_is_named_and_counts_as_missing(tmp_path: Path) -> None:
    files = cold(tmp_path, [MIB, MIB])
    os.unlink(files[0].path)
    Path(files[1].path).read_bytes()
    found = look(files)
    assert found.failed == ((files[0].path, "No such file or directory"),)
    assert (found.resident_bytes, found.missing) == (MIB, (Extent(0, 0, MIB),))


def test_where_no_file_can_be_opened_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cold(tmp_path, [MIB, MIB])

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    found = look(files)
    assert (found.method, found.resident_bytes) == (Method.UNKNOWN, None)
    assert [error for _, error in found.failed] == ["Permission denied"] * 2


@pytest.mark.parametrize("tells", [True, False])
def test_a_file_that_goes_between_two_looks_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """Each file to be sampled is opened a second time."""
    files = cold(tmp_path, [MIB, MIB])

    def cannot_tell(*_: object) -> None:
        # From here on the file is gone.
        Path(files[0].path).unlink(missing_ok=True)

    monkeypatch.setattr(Counter, "count", cannot_tell)
    sampled_by(monkeypatch, {Method.NOWAIT: Sample(1, 2) if tells else None})
    found = look(files)
    assert found.failed == ((files[0].path, "No such file or directory"),)
    assert found.missing == (Extent(0, 0, MIB), Extent(1, 0, MIB))
    if tells:
        assert (found.method, found.resident_bytes) == (Method.NOWAIT, MIB // 2)
        assert found.resident_by_file == {0: 0, 1: MIB // 2}
    else:
        assert (found.method, found.resident_bytes) == (Method.UNKNOWN, None)
        assert found.resident_by_file == {0: 0, 1: None}


def test_the_first_method_that_can_tell_gives_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cold(tmp_path, [4 * MIB])
    monkeypatch.setattr(Counter, "count", lambda *_: None)
    # The order is that of Method, not that of the table.
    sampled_by(monkeypatch, {Method.NOWAIT: Sample(1, 4), Method.CACHESTAT: None})
    found = look(files)
    assert (found.method, found.resident_bytes) == (Method.NOWAIT, MIB)
    sampled_by(monkeypatch, {Method.NOWAIT: Sample(1, 4), Method.CACHESTAT: Sample(1, 2)})
    assert look(files).method is Method.CACHESTAT


def test_each_method_is_exact_or_has_a_sampler_and_the_surest_stand_first() -> None:
    exact = [method for method in Method if method.exact]
    estimates = [method for method in Method if method in SAMPLERS]
    assert list(Method) == [*exact, *estimates, Method.TIMED, Method.UNKNOWN]


def test_nothing_stays_mapped(tmp_path: Path) -> None:
    files = cold(tmp_path, [4 * MIB])
    warm(files[0], MIB, MIB)
    look(files, reads_in_flight=True)
    assert files[0].path not in Path("/proc/self/maps").read_text()


def test_an_estimate_is_of_the_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cold(tmp_path, [4 * MIB])
    monkeypatch.setattr(Counter, "count", lambda *_: None)
    sampled_by(monkeypatch, {Method.NOWAIT: Sample(2, 2)})
    found = survey(files, [Extent(0, MIB, MIB)], threads=1, monitor=Monitor())
    assert (found.resident_bytes, found.total_bytes) == (MIB, MIB)


def test_the_resident_bytes_of_some_files(tmp_path: Path) -> None:
    files = cold(tmp_path, [MIB, 2 * MIB])
    for file in files:
        Path(file.path).read_bytes()
    found = look(files)
    assert found.resident_bytes_without({0}) == about(2 * MIB)
    assert found.resident_bytes_without(()) == found.resident_bytes
    assert found._replace(resident_bytes=None).resident_bytes_without({0}) is None


@pytest.mark.parametrize("sampled", [False, True])
def test_a_hang_is_named_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    """Each call into the storage is made in a wait that names the file."""
    files = cold(tmp_path, [MIB, MIB, 1])
    paths = {file.path for file in files}
    waits: dict[int, list[str]] = defaultdict(list)
    waiting = Monitor.waiting

    @contextmanager
    def noted(self: Monitor, path: str, offset: int | None = None) -> Iterator[None]:
        with waiting(self, path, offset):
            waits[threading.get_ident()].append(path)
            yield
            waits[threading.get_ident()].pop()

    calls: list[tuple[str, bool]] = []

    def watched(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def wrapper(file: Any, *more: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
            if path in paths:
                calls.append((name, path in waits[threading.get_ident()]))
            return call(file, *more, **named)

        return wrapper

    monkeypatch.setattr(Monitor, "waiting", noted)
    if sampled:
        monkeypatch.setattr(Counter, "count", lambda *_: None)
    for name in ("open", "stat", "fstat", "pread", "preadv", "posix_fadvise", "close"):
        monkeypatch.setattr(os, name, watched(name))
    look(files)
    assert {name for name, _ in calls} >= {"open", "close"}
    assert ("preadv" in {name for name, _ in calls}) is sampled
    assert [name for name, named in calls if not named] == []


def test_what_was_reclaimed_is_known_where_cachestat_measures_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cold(tmp_path, [MIB, MIB, MIB])
    if look(files).method is not Method.CACHESTAT:
        pytest.skip("this kernel has no cachestat (Linux 6.5)")
    assert look(files).reclaimed == Reclaimed(0, 0)
    assert look(files, reads_in_flight=True).reclaimed is None
    os.unlink(files[0].path)
    assert look(files).reclaimed == Reclaimed(0, 0)
    ask = cachestat.ask
    monkeypatch.setattr(
        cachestat,
        "ask",
        lambda file, *more: None if os.fstat(file).st_ino == files[1].inode else ask(file, *more),
    )
    mixed = look(files)
    assert mixed.method is Method.CACHESTAT
    assert mixed.reclaimed is None
    assert mixed.reclaimed_without({1}) == Reclaimed(0, 0)
    assert mixed.reclaimed_without({0, 1, 2}) is None


def test_many_small_runs_are_read_as_one(tmp_path: Path) -> None:
    pages = 9000
    files = cold(tmp_path, [pages * PAGE_BYTES])
    descriptor = os.open(files[0].path, os.O_RDONLY)
    pagecache.read_only_what_is_asked(descriptor)
    for page in range(0, pages, 2):
        os.pread(descriptor, 1, page * PAGE_BYTES)
    os.close(descriptor)
    found = look(files, reads_in_flight=True)
    assert found.resident_bytes == pages // 2 * PAGE_BYTES
    assert found.missing == (Extent(0, 0, pages * PAGE_BYTES),)


def test_nothing_is_asked_of_an_empty_share() -> None:
    found = survey([], [], threads=8, monitor=Monitor())
    assert (found.resident_bytes, found.total_bytes, found.method) == (0, 0, Method.MINCORE)


AS_NOBODY = textwrap.dedent(
    """
    import os, sys
    from prefetch_cli.checkpoint.examine import examine
    from prefetch_cli.plan.extents import needed
    from prefetch_cli.base.progress import Monitor
    from prefetch_cli.residency.survey import survey
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    files = [examine(path, weight=True) for path in sys.argv[1:]]
    extents = list(needed(files))
    found = survey(files, extents, threads=1, monitor=Monitor())
    print(found.method.value, found.resident_bytes, found.exact_bytes, len(found.missing))
    """
)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who owns nothing")
@pytest.mark.parametrize("resident", [True, False])
def test_what_may_not_be_known_is_an_estimate_that_is_not_false(
    tmp_path: Path, resident: bool
) -> None:
    files = cold(tmp_path, [8 * MIB, 8 * MIB])
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    if resident:
        for file in files:
            Path(file.path).read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *(file.path for file in files)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    method, found, exact, missing = done.stdout.split()
    truth = 16 * MIB if resident else 0
    if method == "unknown":
        assert (found, exact) == ("None", "None")
    elif method == "nowait":
        # An estimate decides nothing: everything is read.
        assert (exact, int(missing)) == ("None", 2)
        # A page may come or go by the kernel's own will: one in a thousand has been seen.
        assert abs(int(found) - truth) <= 0.01 * 16 * MIB
    else:
        assert (int(found), int(exact)) == (truth, truth)
