"""Signals, and storage that never answers: how a run ends, and what it says then."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from prefetch_cli.base.words import Engine
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Done, Running, environment, run
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
SLOW = ("--force", "--max-rate", "2M")  # 20 MiB take 10 s: a busy machine stops for several
CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
# As if a read into the second half of a shard never came back.
HANGING = (
    sys.executable,
    "-c",
    "import os, threading\n"
    "real = os.sendfile\n"
    "def sendfile(out, descriptor, offset, count):\n"
    "    if offset >= 3 * 1024 * 1024:\n"
    "        threading.Event().wait()\n"
    "    return real(out, descriptor, offset, count)\n"
    "os.sendfile = sendfile\n"
    "from prefetch_cli.cli import main\nfrom prefetch_cli.base import limits\n"
    "limits.HEARTBEAT_SECONDS = 0.2\n"
    "main.main()",
)


def ended(running: Running, number: signal.Signals) -> Done:
    """Return the run after a signal, by which it has ended within a second."""
    began = time.monotonic()
    running.send(number)
    done = running.end()
    assert time.monotonic() - began < 1.0
    assert done.code == CODES[number]
    return done


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_ends_with_its_code_and_what_was_read(cold: str, number: signal.Signals) -> None:
    with Running.start(*SLOW, cold) as running:
        running.await_line("10%")
        done = ended(running, number)
    read = done.lines["read"]
    assert read.endswith(f"; interrupted by {number.name}")
    assert re.match(r"[\d.]+ MiB of [\d.]+ MiB in ", read)
    assert "error" not in done.errors


def test_a_read_that_hangs_does_not_hold_the_summary(cold: str) -> None:
    arguments = ("--force", "--engine", "splice", "--threads", "2", "-b", "1M", cold)
    with Running.start(*arguments, command=HANGING) as running:
        running.await_line(" 10%")  # a busy machine may wait for the first byte, too
        running.await_line("nothing has arrived for")
        done = ended(running, signal.SIGTERM)
    read = done.lines["read"]
    assert read.endswith("; interrupted by SIGTERM")
    assert re.match(r"[2-9](\.\d+)? MiB of ", read)


def test_a_read_that_hangs_is_named_with_its_offset_again_and_again(cold: str) -> None:
    arguments = ("--force", "--engine", "splice", "--threads", "1", "-b", "1M", cold)
    with Running.start(*arguments, command=HANGING) as running:
        line = re.escape(f"{cold}/model-00001-of-00003.safetensors at offset 3,145,728")
        running.await_match(rf"nothing has arrived for \d s: waiting \d s for {line}", times=3)
        running.send(signal.SIGTERM)
        running.end()


def test_the_time_limit_ends_a_read_that_hangs(cold: str) -> None:
    arguments = (
        "--force",
        "--engine",
        "splice",
        "-b",
        "1M",
        "--time-limit",
        "0.4s",
        "--json",
        cold,
    )
    began = time.monotonic()
    done = run(*arguments, command=HANGING)
    assert done.code == 0
    assert done.document["result"]["complete"] is False
    assert done.document["result"]["bytes_read"] >= 3 * MIB
    assert time.monotonic() - began < 3


def test_a_second_interrupt_ends_at_once(cold: str) -> None:
    arguments = ("--force", "--engine", "splice", "-b", "1M", cold)
    with Running.start(*arguments, command=HANGING) as running:
        running.await_line("nothing has arrived for")
        running.send(signal.SIGINT)
        time.sleep(0.15)  # as fast as fingers are; by itself it would end after 0.5 s
        running.send(signal.SIGINT)
        done = running.end()
    assert done.code == 130
    assert "interrupted" not in done.output


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs timeout (coreutils)")
def test_timeout_signals_twice_and_the_summary_comes_all_the_same(cold: str) -> None:
    # It signals its child, and then the group in which the child is too.
    line = ["timeout", "--preserve-status", "--signal=INT", "3s", *COMMAND, *SLOW, cold]
    done = subprocess.run(line, capture_output=True, check=False, text=True, env=environment())
    assert done.returncode == 130
    assert "; interrupted by SIGINT" in done.stdout


@pytest.mark.parametrize(
    ("ignoring", "number"),
    [
        (["nohup"], signal.SIGHUP),
        (["sh", "-c", "trap '' INT; exec \"$@\"", "sh"], signal.SIGINT),
    ],
)
def test_what_the_parent_ignores_stays_ignored(
    cold: str, ignoring: Sequence[str], number: signal.Signals
) -> None:
    with Running.start(
        "--force", "--max-rate", "40M", cold, command=[*ignoring, *COMMAND]
    ) as running:
        running.await_line("10%")
        running.send(number)
        done = running.end()
    assert done.code == 0
    assert "100%" in done.errors
    assert "interrupted" not in done.output


def test_a_run_that_is_stopped_goes_on(cold: str) -> None:
    with Running.start("--force", "--max-rate", "40M", cold) as running:
        running.await_line("10%")
        running.send(signal.SIGSTOP)
        await_state(running, "T")
        running.send(signal.SIGCONT)
        done = running.end()
    assert done.code == 0
    assert "100%" in done.errors


def test_an_output_that_nobody_reads_does_not_hold_it(cold: str) -> None:
    with full_pipe() as pipe, Running.start(*SLOW, cold, stdout=pipe) as running:
        await_state(running, "S", in_call="pipe_write")
        done = ended(running, signal.SIGINT)
    assert done.errors == ""


def test_a_signal_before_the_run_has_begun_leaves_no_trace() -> None:
    script = (
        "import os, signal; from prefetch_cli import __main__; from prefetch_cli.cli import main; "
        "main.run = lambda _: os.kill(os.getpid(), signal.SIGINT); __main__.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@contextmanager
def hanging_file(folder: Path, built: BuiltCheckpoint, hang_from: int) -> Iterator[str]:
    """Yield the path of a shard on a file system whose reads hang from an offset on.

    However many hang, those before the offset are answered: by default FUSE lets twelve reads ahead
    wait, and all others behind them.
    """
    source = folder / "source"
    mountpoint = folder / "mount"
    source.mkdir(parents=True)
    mountpoint.mkdir()
    shutil.copy(built.weight_files[1], source / "model.safetensors")
    options = ("--keep-cache", "--max-background", "100", "--hang-from", str(hang_from))
    with ExitStack() as stack:
        try:
            root = stack.enter_context(mounted(str(source), str(mountpoint), *options))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        yield f"{root}/model.safetensors"


def test_a_mount_that_hangs_while_reading(tmp_path: Path, built: BuiltCheckpoint) -> None:
    with hanging_file(tmp_path / "fuse", built, 4 * MIB) as path:
        arguments = ("--force", "-t", "2", "-b", "1M", path)
        with Running.start(*arguments, command=QUICK_TO_TELL) as running:
            running.await_line(" 10%")
            line = running.await_line("nothing has arrived for")
            assert re.search(rf"waiting \d s for {re.escape(path)} at offset [\d,]+$", line)
            done = ended(running, signal.SIGTERM)
        assert re.match(r"[1-4](\.\d+)? MiB of 11 MiB in ", done.lines["read"])


@pytest.mark.parametrize("address_space", ["unlimited", "2000000"])
@pytest.mark.parametrize("engine", Engine.fixed(), ids=lambda engine: engine.value)
def test_four_threads_that_hang_in_a_mount_do_not_hold_the_end(
    tmp_path: Path, built: BuiltCheckpoint, engine: Engine, address_space: str
) -> None:
    """Not even in faults, for which the kernel locks the address space."""
    shell = ("bash", "-c", f'ulimit -v {address_space}; exec "$@"', "bash")
    with hanging_file(tmp_path / "fuse", built, MIB) as path:
        arguments = ("--force", "-t", "4", "-b", "1M", "--engine", engine.value, path)
        with Running.start(*arguments, command=(*shell, *QUICK_TO_TELL)) as running:
            running.await_line("nothing has arrived for")
            done = ended(running, signal.SIGTERM)
    assert done.lines["read"].endswith("; interrupted by SIGTERM")


def test_a_mount_that_hangs_until_the_time_limit(tmp_path: Path, built: BuiltCheckpoint) -> None:
    with hanging_file(tmp_path / "fuse", built, 4 * MIB) as path:
        done = run("--force", "-t", "2", "-b", "1M", "--time-limit", "1s", path)
    assert done.code == 0, done
    assert done.lines["read"].endswith("; ended by --time-limit")
    # The proof is not given up with the thread that hangs.
    assert re.fullmatch(r"[1-4](\.\d+)? MiB of 11 MiB \([\d.]+ %, \w+\)", done.lines["resident"])


def test_a_mount_that_hangs_before_anything_is_known(
    tmp_path: Path, built: BuiltCheckpoint
) -> None:
    with hanging_file(tmp_path / "fuse", built, 0) as path:
        with Running.start("--force", path, command=QUICK_TO_TELL) as running:
            line = running.await_line("nothing has arrived for")
            assert f" for {path}" in line
            done = ended(running, signal.SIGINT)
        assert done.output == "prefetch     nothing read; interrupted by SIGINT\n"
        with Running.start("--json", path, command=QUICK_TO_TELL) as running:
            running.await_line("nothing has arrived for")
            done = ended(running, signal.SIGTERM)
        assert done.document["exit_code"] == 143
        message = done.document["error"]["message"]
        assert message == "interrupted by SIGTERM before anything was read"
        done = run("--time-limit", "0.2s", path)
        assert done.code == 1
        assert done.errors == (
            f"prefetch-cli: error: expected an answer within --time-limit, found none from {path}; "
            "check the mount\n"
        )


@pytest.mark.parametrize("hangs", ["weights", "libraries", "libraries alone"])
def test_a_reader_that_does_not_come_back(
    tmp_path: Path, built: BuiltCheckpoint, hangs: str
) -> None:
    """As if its grace were longer than the supervisor's: a busy machine may make it so."""
    with hanging_file(tmp_path / "fuse", built, 6 * MIB) as path:
        if hangs == "weights":
            sources = ["--force", path]
        elif hangs == "libraries":
            oracle.evict(built.files)
            sources = ["--force", "--also", path, built.directory]
        else:  # a local disk is left alone without --force
            sources = ["--also", path, built.directory]
        arguments = ("--json", "-t", "2", "-b", "1M", *sources)
        with Running.start(*arguments, command=PATIENT) as running:
            running.await_line(" 10%")
            running.await_line("nothing has arrived for")
            done = ended(running, signal.SIGTERM)
    parts = done.document if hangs == "weights" else done.document["libraries"]
    assert MIB <= parts["result"]["bytes_read"] <= 6 * MIB
    assert parts["result"]["complete"] is False
    if hangs == "libraries":
        assert done.document["result"]["bytes_read"] == 0


PATIENT = (
    sys.executable,
    "-c",
    "import functools\n"
    "from prefetch_cli.cli import main\nfrom prefetch_cli.reading import job, worker\n"
    "from prefetch_cli.base import limits\n"
    "limits.HEARTBEAT_SECONDS = 0.2\n"
    "patience = worker.Tunables(grace_seconds=9)\n"
    "job.read = functools.partial(job.read, tunables=patience)\n"
    "main.main()",
)
QUICK_TO_TELL = (
    sys.executable,
    "-c",
    "from prefetch_cli.cli import main\nfrom prefetch_cli.base import limits\n"
    "limits.HEARTBEAT_SECONDS = 0.2\nmain.main()",
)


@contextmanager
def full_pipe() -> Iterator[int]:
    """Yield the writing end of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def await_state(running: Running, state: str, in_call: str = "") -> None:
    """Wait until the main thread is in a state, and in a call of the kernel."""
    pid = running.process.pid
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat").read_text()
        call = Path(f"/proc/{pid}/wchan").read_text()
        if stat.rpartition(")")[2].split()[0] == state and in_call in call:
            return
        time.sleep(0.01)
    raise AssertionError((stat, call))
