"""Storage that fails during a run: what is reported, and what is read nevertheless."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import Done, Running, run
from tests.helpers.passthrough import mounted

# Reads one shard after the other, so that the last one is not open yet at 10 %.
FLAGS = ("--force", "--json", "--threads", "1", "--block-size", "1M", "--engine", "splice")
SIZES = (6 * MIB, 11 * MIB, 3 * MIB)


@pytest.fixture
def model(tmp_path: Path) -> BuiltCheckpoint:
    """A cold checkpoint that a test may damage."""
    built = checkpoints.write_sharded(str(tmp_path / "model"), shard_bytes=SIZES)
    oracle.evict(built.files)
    return built


@contextmanager
def passed_through(model: BuiltCheckpoint, *options: str) -> Iterator[str]:
    """Yield the checkpoint's folder on a FUSE mount."""
    point = f"{os.path.dirname(model.directory)}/mount"
    os.mkdir(point)
    try:
        with mounted(model.directory, point, "--keep-cache", *options) as root:
            yield root
    except OSError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")


def spoiled(folder: str, spoil: Callable[[], object], *flags: str) -> Done:
    """Return a run in which `spoil` is called once a tenth is read."""
    with Running.start(*FLAGS, "--max-rate", "10M", *flags, folder) as running:
        running.await_line("10%")
        # Halt the run until the fault is in place, however slow this machine is.
        running.send(signal.SIGSTOP)
        spoil()
        running.send(signal.SIGCONT)
        return running.end()


def failures(done: Done) -> dict[str, str]:
    """Return the error of each file that failed, by name."""
    return {
        os.path.basename(one["path"]): one["error"] for one in done.document["result"]["failed"]
    }


def assert_failed(done: Done, *messages: tuple[str, str]) -> None:
    """Assert that only these files failed, with these errors, each reported on one line."""
    assert done.code == 1, done
    assert failures(done) == dict(messages)
    assert done.document["result"]["complete"] is False
    for name, message in messages:
        said = [
            line for line in done.errors.splitlines() if f"/{name}: " in line and "error:" in line
        ]
        assert len(said) == 1, done.errors
        assert said[0].endswith(message)


def assert_all_read(done: Done, total_bytes: int) -> None:
    """Assert that nothing failed and `total_bytes` were read."""
    assert done.code == 0, done
    assert failures(done) == {}
    result = done.document["result"]
    assert result["complete"] is True
    assert result["bytes_read"] + result["bytes_already_resident"] == total_bytes


def total_bytes(model: BuiltCheckpoint) -> int:
    """Return the size of all files."""
    return sum(map(os.path.getsize, model.files))


def resident(*paths: str) -> int:
    """Return how many bytes of the files are resident."""
    return oracle.resident_bytes(paths)


def test_eio_in_the_middle(model: BuiltCheckpoint) -> None:
    first, second, third = map(os.path.basename, model.weight_files)
    with passed_through(model, "--fail-read", str(8 * MIB)) as root:
        done = run("--force", "--json", "-t", "2", "-b", "1M", root)
        assert_failed(done, (second, "Input/output error"))
        read = done.document["result"]["bytes_read"]
    # Only bytes in the same kernel request as the bad one may be lost with it.
    lost = total_bytes(model) - read - done.document["result"]["bytes_already_resident"]
    assert 0 < lost <= 2 * MIB
    assert first not in done.errors
    assert third not in done.errors


def test_eio_on_open(model: BuiltCheckpoint) -> None:
    name = os.path.basename(model.weight_files[0])
    with passed_through(model, "--fail-open") as root:
        done = run("--force", "--json", f"{root}/{name}")
    assert_failed(done, (name, "Input/output error"))
    assert done.document["result"]["bytes_read"] == 0


def test_a_shard_that_vanishes(model: BuiltCheckpoint) -> None:
    *others, last = model.weight_files
    done = spoiled(model.directory, lambda: os.unlink(last))
    assert_failed(done, (os.path.basename(last), "No such file or directory"))
    assert resident(*others) == oracle.about(sum(map(os.path.getsize, others)))


def test_a_directory_that_vanishes(model: BuiltCheckpoint) -> None:
    first, *_ = model.weight_files
    away = f"{model.directory}-away"
    done = spoiled(model.directory, lambda: os.rename(model.directory, away))
    # A server would find none of the files, not even those that were read.
    names = map(os.path.basename, model.files)
    assert_failed(done, *((name, "No such file or directory") for name in names))
    assert done.document["residency"]["after_bytes"] == 0
    # The file being read was open, so it was read to its end.
    moved = f"{away}/{os.path.basename(first)}"
    assert resident(moved) == oracle.about(os.path.getsize(moved))
    assert done.document["result"]["bytes_read"] >= SIZES[0]


def test_a_shard_cut_short(model: BuiltCheckpoint) -> None:
    first, second, third = model.weight_files

    def cut() -> None:
        os.truncate(first, 4 * MIB)
        os.truncate(third, MIB)

    done = spoiled(model.directory, cut)
    sizes = {first: SIZES[0], third: SIZES[2]}
    found = failures(done)
    assert found.keys() == {os.path.basename(path) for path in sizes}
    assert done.code == 1
    for path in sizes:
        assert found[os.path.basename(path)] == (
            "it was cut short while it was read: expected bytes at "
            f"{os.path.getsize(path):,}, found its end at {os.path.getsize(path):,}"
        )
    assert resident(second) == oracle.about(os.path.getsize(second))
    assert resident(third) == oracle.about(MIB)


def test_a_shard_that_grows(model: BuiltCheckpoint) -> None:
    planned = total_bytes(model)
    *_, last = model.weight_files

    def grow() -> None:
        with open(last, "ab") as file:
            file.write(os.urandom(2 * MIB))

    assert_all_read(spoiled(model.directory, grow), planned)


def test_a_shard_that_is_replaced(model: BuiltCheckpoint) -> None:
    *_, last = model.weight_files

    def replace() -> None:
        Path(f"{last}.new").write_bytes(os.urandom(os.path.getsize(last)))
        oracle.make_cold([f"{last}.new"])
        os.replace(f"{last}.new", last)

    done = spoiled(model.directory, replace)
    assert_all_read(done, total_bytes(model))
    assert resident(last) == oracle.about(os.path.getsize(last))  # the new file


def test_a_shard_that_is_replaced_by_a_shorter_one(model: BuiltCheckpoint) -> None:
    """It was read whole before: memory is not to blame for what a server will miss."""
    first = model.weight_files[0]
    name, size_bytes = os.path.basename(first), os.path.getsize(first)

    def replace() -> None:
        Path(f"{first}.new").write_bytes(os.urandom(4 * MIB))
        os.replace(f"{first}.new", first)

    done = spoiled(model.directory, replace)
    found = f"expected {size_bytes:,} bytes, found {4 * MIB:,}"
    assert_failed(done, (name, f"it was cut short or replaced: {found}"))
    assert "stayed in the page cache" not in done.errors


def test_reads_that_return_short(model: BuiltCheckpoint) -> None:
    # The other engines read through the cache, where the kernel takes a FUSE server's short
    # answer for the end of the file.
    name = os.path.basename(model.weight_files[0])
    point = f"{os.path.dirname(model.directory)}/mount"
    os.mkdir(point)
    options = ("--direct-io", "--short", "100000")  # not a multiple of the page size
    try:
        with mounted(model.directory, point, *options) as root:
            done = run("--force", "--json", "--engine", "read", f"{root}/{name}")
    except OSError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")
    assert_all_read(done, os.path.getsize(model.weight_files[0]))


def listed(model: BuiltCheckpoint) -> tuple[str, ...]:
    """Return the flags that verify the checkpoint, wherever it is mounted."""
    lines = [
        f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {os.path.basename(path)}\n"
        for path in model.files
    ]
    path = Path(f"{model.directory}-sums")
    path.write_text("".join(lines))
    oracle.evict(model.files)
    return ("--verify", "--checksums", str(path))


def unchecked(done: Done) -> dict[str, str]:
    """Return why files were not checked, by name."""
    found = done.document["verification"]["unchecked"]
    return {os.path.basename(one["path"]): one["reason"] for one in found}


def test_eio_in_a_file_that_is_verified(model: BuiltCheckpoint) -> None:
    second = os.path.basename(model.weight_files[1])
    flags = listed(model)
    with passed_through(model, "--fail-read", str(8 * MIB)) as root:
        done = run(*flags, "--json", "-b", "1M", root)
        assert_failed(done, (second, "Input/output error"))
        assert unchecked(done) == {second: "it could not be read"}
        assert done.document["verification"]["verified_files"] == len(model.files) - 1
        beside = run(*flags, "-b", "1M", root, "--", "sh", "-c", "echo started")
        assert (beside.code, beside.output) == (1, "")
        beside = run(*flags, "--best-effort", "-b", "1M", root, "--", "sh", "-c", "echo started")
        assert (beside.code, beside.output) == (0, "started\n")


def test_a_read_that_never_returns_is_not_verified(model: BuiltCheckpoint) -> None:
    second = os.path.basename(model.weight_files[1])
    flags = listed(model)
    # By default, what hangs would take all requests that the kernel sends at a time.
    options = ("--hang-from", str(8 * MIB), "--max-background", "200")
    with passed_through(model, *options) as root:
        done = run(*flags, "--json", "--time-limit", "5s", root)
    assert done.code == 0, done
    assert unchecked(done) == {second: "the run ended before it was read to its end"}
    assert done.document["verification"]["verified_files"] == len(model.files) - 1


def test_a_shard_that_grows_while_it_is_verified(model: BuiltCheckpoint) -> None:
    *_, last = model.weight_files
    flags = listed(model)

    def grow() -> None:
        with open(last, "ab") as file:
            file.write(b"\0")

    with Running.start(*flags, "--json", "-t", "1", "--max-rate", "10M", model.directory) as it:
        it.await_line("10%")
        it.send(signal.SIGSTOP)
        grow()
        it.send(signal.SIGCONT)
        done = it.end()
    size = os.path.getsize(last)
    expected = f"expected {size - 1:,} bytes, found {size:,}: it was changed while it was read"
    assert_failed(done, (os.path.basename(last), expected))


def test_a_shard_that_is_replaced_while_it_is_verified(model: BuiltCheckpoint) -> None:
    *_, last = model.weight_files
    flags = listed(model)
    content = bytearray(Path(last).read_bytes())
    content[-1] ^= 1
    with Running.start(*flags, "--json", "-t", "1", "--max-rate", "10M", model.directory) as it:
        it.await_line("10%")
        it.send(signal.SIGSTOP)
        Path(f"{last}.new").write_bytes(content)
        os.replace(f"{last}.new", last)
        it.send(signal.SIGCONT)
        done = it.end()
    digest = hashlib.sha256(content).hexdigest()
    ((name, error),) = failures(done).items()
    assert (done.code, name) == (1, os.path.basename(last))
    assert error.endswith(f"by line 3 of {os.path.basename(flags[-1])}, found {digest}")


def test_reads_that_return_short_are_verified(model: BuiltCheckpoint) -> None:
    flags = listed(model)
    with passed_through(model, "--direct-io", "--short", "100000") as root:
        done = run(*flags, "--json", root)
    assert (done.code, unchecked(done)) == (0, {}), done
    assert done.document["verification"]["verified_files"] == len(model.files)
