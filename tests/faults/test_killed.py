"""A seccomp filter that ends the thread which makes a call: nothing waits for that one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import MIB
from tests.faults import inject
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, ROOT, Done, Running, run

KILLED = "the system killed the thread that was at work on it, as a seccomp filter may"
MOST_SECONDS = 20.0


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


def test_other_numbers_in_proc_are_no_sign_of_it(model: BuiltCheckpoint) -> None:
    """/proc may have been mounted for another PID namespace."""
    unshare = ("unshare", "--pid", "--fork")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to make a PID namespace")
    oracle.make_cold(model.files)
    flags = ("--force", "--progress", "none", "--max-rate", "10M", model.directory)
    done = run(*flags, command=(*unshare, *COMMAND))  # the run must take longer than a look
    assert (done.code, done.errors) == (0, ""), done
