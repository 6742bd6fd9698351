"""A seccomp filter that ends the thread which makes a call: nothing waits for that one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.faults import inject
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, ROOT, Done, Running, run

KILLED = "the system killed the thread that was at work on it, as a seccomp filter may"
MOST_SECONDS = 20.0
LOOKS = "prefetch_cli.linux.uses:Tree.look"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BuiltCheckpoint:
    """A checkpoint of three shards."""
    if reason := inject.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("killed") / "model"
    return checkpoints.write_sharded(str(folder), shard_bytes=[9 * MIB, 5 * MIB, 3 * MIB])


def run_killed(call: str, *arguments: str) -> Done:
    """Return a run, none of whose threads survives the call."""
    command = (sys.executable, "-m", "tests.faults.kill", call, *COMMAND)
    began = time.monotonic()
    done = run(*arguments, command=command, env={"PYTHONPATH": ROOT})
    assert time.monotonic() - began < MOST_SECONDS, done
    return done


@pytest.mark.parametrize(("engine", "call"), [("read", "preadv2"), ("splice", "sendfile")])
@pytest.mark.parametrize("threads", ["1", "2", "auto"])
def test_readers(model: BuiltCheckpoint, engine: str, call: str, threads: str) -> None:
    oracle.make_cold(model.files)
    flags = ("--force", "--json", "--progress", "none", "--engine", engine, "--threads", threads)
    done = run_killed(call, *flags, model.directory)
    assert done.code == 1, done
    result = done.document["result"]
    assert result["complete"] is False
    weights = {os.path.basename(path) for path in model.weight_files}
    failed = {os.path.basename(one["path"]): one["error"] for one in result["failed"]}
    assert weights <= failed.keys()
    assert set(failed.values()) == {KILLED}


def test_command_starts(model: BuiltCheckpoint) -> None:
    oracle.make_cold(model.files)
    flags = ("--force", "--best-effort", "--progress", "none", "--engine", "splice")
    done = run_killed("sendfile", *flags, model.directory, "--", "echo", "started")
    assert (done.code, done.output) == (0, "started\n"), done


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        ("cachestat", ("--check",)),
        ("fadvise64", ("--evict",)),
        ("fadvise64", ("--force", "--engine", "advise")),
        ("madvise", ("--force",)),
    ],
)
def test_all_others(model: BuiltCheckpoint, call: str, flags: tuple[str, ...]) -> None:
    """Nothing is said of what is resident."""
    oracle.make_cold(model.files)
    done = run_killed(call, *flags, "--json", model.directory)
    assert done.code == 1, done
    assert "the system killed " in done.document["error"]["message"]
    assert done.document["error"]["hint"].startswith("the kernel's log")
    assert "residency" not in done.document


def test_a_signal_still_ends_it(model: BuiltCheckpoint) -> None:
    """The thread that waits for signals is killed as it begins to."""
    oracle.make_cold(model.files)
    began = time.monotonic()
    flags = ("--force", "--max-rate", "1M", model.directory)
    words = (sys.executable, "-m", "tests.faults.kill", "rt_sigtimedwait", *COMMAND, *flags)
    with Running.start(command=words, env={"PYTHONPATH": ROOT}) as running:
        running.await_line("10%")
        time.sleep(2)
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == -signal.SIGTERM
    assert time.monotonic() - began < MOST_SECONDS


@pytest.mark.skipif(sys.version_info < (3, 11), reason="time.sleep() calls select(2)")
def test_the_warmer_ends_with_command(model: BuiltCheckpoint) -> None:
    """The thread that follows COMMAND is killed as it sees the end of it."""
    oracle.make_cold(model.files)
    flags = ("--force", "--progress", "none", "--max-rate", "100k", model.directory)
    done = run_killed("pselect6", *flags, "--", "echo", "started")  # ends once its output is closed
    assert (done.code, done.output) == (0, "started\n"), done
    assert "100%" not in done.errors


@pytest.mark.parametrize("call", ["openat", "newfstatat", "readlink"])
@pytest.mark.parametrize(
    ("flags", "words", "end"),
    [
        (("--window", "4M"), ": only the head is read", "then the head"),
        (("--keep", "load"), ": it is kept until COMMAND ends", ""),
    ],
)
def test_whoever_looks_at_command(
    model: BuiltCheckpoint, call: str, flags: tuple[str, ...], words: str, end: str
) -> None:
    """COMMAND reads no more than a line: it ends once it is said what became of the looking."""
    oracle.make_cold(model.files)
    words_before = (sys.executable, "-m", "tests.faults.kill", f"{call}@{LOOKS}")
    line = (*flags, "--force", "--progress", "none", model.directory, "--", "head", "-n", "1")
    began = time.monotonic()
    with Running.start(
        *line, command=words_before, env={"PYTHONPATH": ROOT}, stdin=subprocess.PIPE
    ) as running:
        warned = running.await_line("the thread that looks at COMMAND's processes")
        assert warned.startswith("prefetch-cli: warning: the system killed "), warned
        assert warned.endswith(words), warned
        running.await_line(end)
        assert running.process.stdin is not None
        running.process.stdin.close()
        done = running.end()
    assert done.code == 0, done
    assert time.monotonic() - began < MOST_SECONDS
    assert "COMMAND has loaded it" not in done.errors
    if end:
        assert oracle.resident_bytes(model.weight_files) >= 0.99 * 17 * MIB


def run_killed_in(place: str, call: str, *arguments: str) -> Done:
    """Return a run, of which only the thread that enters a function does not survive the call."""
    command = (sys.executable, "-m", "tests.faults.kill", f"{call}@{place}")
    began = time.monotonic()
    done = run(*arguments, command=command, env={"PYTHONPATH": ROOT})
    assert time.monotonic() - began < MOST_SECONDS, done
    return done


def test_a_trial_is_not_one_of_slow_storage(tmp_path: Path) -> None:
    """What a killed thread has faulted in is no measure of the storage."""
    big = checkpoints.write_sharded(str(tmp_path / "model"), shard_bytes=[40 * MIB, 40 * MIB])
    oracle.make_cold(big.files)
    place = "prefetch_cli.reading.trial:_Loader._run"
    for call in ("openat", "munmap"):
        done = run_killed_in(place, call, "--dry-run", "--trial", "--json", big.directory)
        assert done.code == 0, done
        assert done.document["forecast"] is None, done
        assert done.document["decision"]["reason"] == "local-fits"
        (warning,) = done.document["warnings"]
        assert warning.endswith("a file could not be read, or the system refused to map it")


def test_whoever_writes_the_metrics(model: BuiltCheckpoint, tmp_path: Path) -> None:
    place = "prefetch_cli.process.record:replace_file"
    flags = ("--check", "--json", "--metrics", str(tmp_path / "a.prom"), model.directory)
    done = run_killed_in(place, "openat", *flags)
    assert done.code == 0, done
    (warning,) = done.document["warnings"]
    assert warning.endswith(f"not written: {KILLED}")


def test_other_numbers_in_proc_are_no_sign_of_it(model: BuiltCheckpoint) -> None:
    """/proc may have been mounted for another PID namespace."""
    unshare = ("unshare", "--pid", "--fork")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to make a PID namespace")
    oracle.make_cold(model.files)
    flags = ("--force", "--progress", "none", "--max-rate", "10M", model.directory)
    done = run(*flags, command=(*unshare, *COMMAND))  # the run must take longer than a look
    assert (done.code, done.errors) == (0, ""), done
