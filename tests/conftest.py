"""Fixtures and hooks that several test modules share."""

import fcntl
import re
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint

MIB = 1024 * 1024

# A child process inherits ignored signals (nohup, a background job of sh), but not handlers: with
# handlers here, the runs under test react to these signals.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda _signal, _frame: None)


class PagesTakenError(AssertionError):
    """A test failed while the kernel took pages out of the cache."""


# Many tests look at this machine's page cache. A kernel that reclaims idle memory (on some virtual
# machines DAMON does so within seconds) occasionally takes more than the 1 % that they allow. Tests
# that fail while the kernel reports reclaim must fail three times in a row, as a defect does. No
# other failure is retried, since that would hide races; nor are tests in a machine of their own.
_SHADOWS = pytest.StashKey[int]()


def _shadows() -> int:
    """Return how many nodes of the page cache hold only shadow entries of reclaimed pages.

    The count covers all files, including those that only the tool opens, but a few pages taken from
    the middle of a file leave no such node.
    """
    with open("/proc/vmstat", encoding="ascii") as file:
        fields = dict(line.split() for line in file)
    return int(fields.get("workingset_nodes", 0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the count before the fixtures fill the page cache."""
    oracle.forget()
    item.stash[_SHADOWS] = _shadows()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Raise PagesTakenError if pages were taken from a failing test."""
    try:
        yield
    except (AssertionError, subprocess.CalledProcessError) as error:
        if oracle.reclaimed_pages() > 0 or _shadows() != item.stash[_SHADOWS]:
            raise PagesTakenError(str(error)) from error
        raise


# Each folder below tests/alone/ runs its tests one after the other, whatever `--numprocesses` says:
# they look at terminals, clocks, limits, mounts, other processes, or page cache beyond their own
# files. There are two, so that two processes share the work: `own` has its own mounts, disks and
# limits, and `machine` looks at the whole machine. All other modules may run beside any, each in
# one process, which sets up its fixtures once.
_ALONE = "tests/alone/"


def _group(nodeid: str) -> str:
    """Return the name of the group of tests that share a process with this one."""
    path, _, test = nodeid.partition("::")
    if path.startswith("tests/vm/"):  # by machine: every process would boot its own
        series = re.search(r"\[(6\.\d+)[]-]", test)
        return nodeid if series is None else series[1]
    return path.removeprefix(_ALONE).partition("/")[0] if path.startswith(_ALONE) else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole groups.

    Groups go by the test's name, not by marks: those are silently ignored from pytest 9.2 on
    (pytest-dev/pytest-xdist#1386).
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - not there with -p no:xdist

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # no types
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_other_of_its_group(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail if another process runs a test of the same group."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    group = _group(request.node.nodeid).replace("/", ".")[-200:]
    with (tmp_path_factory.getbasetemp().parent / f"{group}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Retry the tests on this machine's page cache."""
    for item in items:
        if not item.nodeid.startswith("tests/vm/"):  # those have machines of their own
            # Before a module's own mark: the first one counts.
            again = pytest.mark.flaky(reruns=2, only_rerun=PagesTakenError.__name__)
            item.add_marker(again, append=False)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltCheckpoint:
    """A checkpoint of three unequal shards, 20 MiB, on a disk: local, so skipped by default."""
    folder = tmp_path_factory.mktemp("built") / "model"
    shown = subprocess.run(
        ["stat", "--file-system", "--format=%T", folder.parent],
        capture_output=True,
        check=True,
        text=True,
    )
    if shown.stdout.strip() in {"tmpfs", "ramfs"}:
        pytest.skip("needs a temporary directory on a disk: pytest --basetemp=DIR")
    return checkpoints.write_sharded(str(folder), shard_bytes=[6 * MIB, 11 * MIB, 3 * MIB])


@pytest.fixture
def cold(built: BuiltCheckpoint) -> str:
    """The path of the checkpoint, dropped from the page cache."""
    oracle.evict(built.files)
    return built.directory


@pytest.fixture
def warm(built: BuiltCheckpoint) -> str:
    """The path of the checkpoint, all of it in the page cache."""
    oracle.watch(built.files)
    for path in built.files:
        Path(path).read_bytes()
    return built.directory


@pytest.fixture
def small(tmp_path: Path, built: BuiltCheckpoint) -> Path:
    """A cold checkpoint of three shards for a test that damages it."""
    folder = tmp_path / "small"
    shards = checkpoints.write_sharded(str(folder), shard_bytes=[300_000, 500_000, 200_000])
    oracle.evict(shards.files)
    return folder
