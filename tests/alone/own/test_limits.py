"""Process limits: fewer descriptors, threads or addresses make it slower, not wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, ROOT, Done, environment, run


def limited(limit: str, *arguments: str) -> Done:
    """Return a run under a shell `ulimit`."""
    shell = ("bash", "-c", f'ulimit {limit} && exec "$@"', "bash")
    return run(*arguments, command=(*shell, *COMMAND))


def assert_all_read(done: Done, size_bytes: int) -> None:
    """Assert that everything was read and nothing failed."""
    assert done.code == 0, done
    result = done.document["result"]
    assert result["failed"] == []
    assert result["bytes_read"] + result["bytes_already_resident"] == size_bytes


@pytest.mark.parametrize("descriptors", [16, 12])
def test_few_descriptors(tmp_path: Path, descriptors: int) -> None:
    built = checkpoints.write_streamed(
        str(tmp_path / "model"), shard_bytes=[8192] * 500, durable=False
    )
    os.sync()
    oracle.evict(built.files)
    size_bytes = sum(map(os.path.getsize, built.files))
    flags = ("--force", "--json", "--threads", "64", "--engine", "splice")
    assert_all_read(limited(f"-n {descriptors}", *flags, built.directory), size_bytes)
    done = limited(f"-n {descriptors}", "--evict", "--json", "--threads", "64", built.directory)
    assert done.code == 0, done
    assert done.document["result"]["failed"] == []


# Runs as a user without other processes; imports first what only root may be able to read.
_AS_STRANGER = """
import importlib, os, pkgutil, resource, sys
import concurrent.futures.thread, json.encoder, rich.console, rich.progress, prefetch_cli
for found in pkgutil.walk_packages(prefetch_cli.__path__, "prefetch_cli."):
    if found.name != "prefetch_cli.__main__":
        importlib.import_module(found.name)
threads = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
os.setgroups([]); os.setgid(54321); os.setuid(54321)
sys.argv[0] = "prefetch-cli"
sys.modules["prefetch_cli.cli.main"].main()
"""


def with_threads(threads: int, built: BuiltCheckpoint, *arguments: str) -> Done:
    """Return a run by a user limited to this many threads in total."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user without processes")
    for path in (*built.files, built.directory):
        os.chmod(path, 0o755)
    for folder in Path(built.directory).parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    command = (sys.executable, "-c", _AS_STRANGER, str(threads))
    return run(*arguments, built.directory, command=command)


def test_few_threads(built: BuiltCheckpoint, cold: str) -> None:
    done = with_threads(6, built, "--force", "--json", "--threads", "64", "--block-size", "64K")
    assert_all_read(done, sum(map(os.path.getsize, built.files)))


def test_no_threads(built: BuiltCheckpoint, cold: str) -> None:
    done = with_threads(1, built, "--force")
    assert done.code == 1, done
    assert done.errors.startswith("prefetch-cli: error: expected to start threads, found ")
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize("kib", [400_000, 200_000, 120_000, 100_000])
@pytest.mark.parametrize("engine", ["auto", "read"])  # `read` takes a buffer per thread
def test_little_address_space(built: BuiltCheckpoint, cold: str, kib: int, engine: str) -> None:
    flags = ("--force", "--json", "--threads", "1024", "--block-size", "64K", "--engine", engine)
    done = limited(f"-v {kib}", *flags, cold)
    assert_all_read(done, sum(map(os.path.getsize, built.files)))
    # Too many threads would only fail if they happened to allocate at once: check their number.
    count = "from prefetch_cli.linux.threads import affordable; print(affordable(1024))"
    line = ["sh", "-c", f'ulimit -v {kib}; exec "$@"', "sh", sys.executable, "-c", count]
    said = subprocess.run(line, capture_output=True, check=True, env=environment()).stdout
    assert 1 <= int(said) <= 3


def kib_at_the_start() -> int:
    """Return the address space that Python has taken when our first line runs."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.helpers.peak"],
        capture_output=True,
        check=True,
        env=environment(),
        cwd=ROOT,
    ).stdout
    return int(said)


# Each step is another import, or another place in a run, that finds no memory.
@pytest.mark.skipif(
    sys.version_info >= (3, 13),
    reason="CPython 3.13 ends by SIGSEGV where it finds no memory to load a module (marshal.loads)",
)
@pytest.mark.parametrize("kind", ["--dry-run", "--json", "--check", "COMMAND", "--verify"])
def test_address_space_for_no_more_than_a_part_of_the_start(
    cold: str, tmp_path: Path, kind: str
) -> None:
    started = tmp_path / "started"
    least = kib_at_the_start() + 2048
    refused = 0
    for kib in range(least, least + 26_000, 1300):
        started.unlink(missing_ok=True)
        if kind == "COMMAND":
            done = limited(f"-v {kib}", cold, "--", "touch", str(started))
            assert (done.code, started.exists()) == (0, True), (kib, done)
        elif kind == "--verify":  # COMMAND does not start before the verdict
            done = limited(f"-v {kib}", kind, cold, "--", "touch", str(started))
            assert done.code == (0 if started.exists() else 1), (kib, done)
        else:
            done = limited(f"-v {kib}", kind, cold)
            assert done.code in (0, 1), (kib, done)
        assert "defect" not in done.errors, (kib, done)
        assert done.errors or done.output or done.code == 0, (kib, done)
        if done.output.startswith("{"):
            assert done.document["exit_code"] == done.code
        elif "expected more memory, found none" in done.errors:
            refused += 1
    assert refused > 5
