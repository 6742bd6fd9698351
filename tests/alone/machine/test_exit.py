"""Leaving: the process is gone at once, and what cannot be closed is closed behind it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Running, environment
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
LEAVE = (sys.executable, "-W", "error", "-c")
OPEN_AND_LEAVE = "import os, sys\nfrom prefetch_cli.linux import exit\nos.open(sys.argv[1], 0)\n"


def left_behind(mark: Path) -> list[int]:
    """Return the processes left behind by commands that were given this path."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            process = Path("/proc", name)
            if (process / "comm").read_text() == "prefetch-leave\n":
                line = (process / "cmdline").read_bytes().split(b"\0")
                if any(os.fsencode(mark) in word for word in line):
                    found.append(int(name))
    return found


def held_by(pid: int) -> set[str]:
    """Return what a process has open."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return {os.readlink(link) for link in links} - {os.devnull}


def is_there(pid: int) -> bool:
    """Whether a process lives: not one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pid: int, seconds: float) -> None:
    """Wait until a process is gone."""
    deadline = time.monotonic() + seconds
    while is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file to open; what still holds it is ended."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    yield path
    for pid in left_behind(tmp_path):
        os.kill(pid, signal.SIGKILL)


def leave(script: str, file: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Return the run of a script, which has ended at once for whoever reads its output too."""
    began = time.monotonic()
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*LEAVE, script, file],
        check=False,
        cwd=file.parent,
        env=environment(),
        text=True,
        timeout=20,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
    )
    assert time.monotonic() - began < 2
    assert not done.stderr
    return done


@pytest.mark.parametrize("code", [0, 3, 143])
def test_without_open_files_nothing_is_left_behind(file: Path, code: int) -> None:
    script = f"from prefetch_cli.linux.exit import leave\nprint('word', flush=True)\nleave({code})"
    done = leave(script, file)
    assert (done.returncode, done.stdout) == (code, "word\n")
    assert left_behind(file) == []


def test_files_of_the_launcher_are_no_reason(file: Path) -> None:
    with file.open("rb") as lock, file.with_name("log").open("wb") as log:
        done = leave(
            "from prefetch_cli.linux.exit import leave\nleave(0)",
            file,
            pass_fds=[lock.fileno()],
            stdout=log,
        )
    assert done.returncode == 0
    assert left_behind(file) == []


def test_a_run_that_ends_by_itself_leaves_nothing_behind(tmp_path: Path, cold: str) -> None:
    log = tmp_path / "log"
    before = left_behind(Path(cold))  # of other tests whose reads hang
    with log.open("wb") as output:
        subprocess.run(
            [*COMMAND, "--force", cold], check=True, env=environment(), stdout=output, timeout=60
        )
    assert "resident" in log.read_text()
    assert set(left_behind(Path(cold))) <= set(before)


@pytest.mark.parametrize("code", [0, 143])
def test_an_open_file_is_left_to_a_process_that_has_nothing_else(file: Path, code: int) -> None:
    script = OPEN_AND_LEAVE + f"print('word', flush=True)\nexit.leave({code})"
    done = leave(script, file)
    assert (done.returncode, done.stdout) == (code, "word\n")
    (pid,) = left_behind(file)
    process = Path(f"/proc/{pid}")
    assert held_by(pid) == {str(file)}
    assert os.getpgid(pid) == pid
    status = dict(
        line.split(":\t", 1)
        for line in (process / "status").read_text().splitlines()
        if "\t" in line
    )
    assert status["Threads"] == "1"
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        assert int(status["SigBlk"], 16) >> (number - 1) & 1
    if os.geteuid() == 0:  # a sandbox may refuse unshare(2) to others
        assert os.readlink(process / "cwd") == "/"
    os.kill(pid, signal.SIGKILL)
    await_end(pid, 1)


def test_it_is_gone_some_time_later(file: Path) -> None:
    leave(OPEN_AND_LEAVE + "exit._SLEEP_SECONDS = 1\nexit.leave(0)", file)
    (pid,) = left_behind(file)
    await_end(pid, 3)


def test_a_terminal_and_a_fifo_are_not_held(file: Path) -> None:
    fifo = file.with_name("fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    ours, theirs = os.openpty()
    with fifo.open("wb") as output:
        leave(OPEN_AND_LEAVE + "exit.leave(0)", file, stdin=theirs, stdout=output)
    os.close(theirs)
    assert os.read(reader, 1) == b""  # BlockingIOError while somebody holds the other end
    with pytest.raises(OSError, match="Input/output error"):  # nobody holds the terminal
        os.read(ours, 1)
    (pid,) = left_behind(file)
    assert held_by(pid) == {str(file)}
    os.close(ours)
    os.close(reader)


def test_any_thread_may_leave_while_the_others_are_busy(file: Path) -> None:
    script = OPEN_AND_LEAVE + (
        "import signal, threading, time\n"
        "def spin():\n"
        "    while True:\n"
        "        pass\n"
        "for target in [spin, spin, lambda: os.read(os.pipe()[0], 1)]:\n"
        "    threading.Thread(target=target).start()\n"
        "threading.Thread(target=lambda: exit.leave(143)).start()\n"
        "signal.sigwait({signal.SIGUSR1})\n"
    )
    assert leave(script, file).returncode == 143
    assert len(left_behind(file)) == 1


def test_threads_that_leave_at_the_same_time_do_not_hold_each_other(file: Path) -> None:
    script = OPEN_AND_LEAVE + (
        "import threading\n"
        "barrier = threading.Barrier(8)\n"
        "def work():\n"
        "    barrier.wait()\n"
        "    exit.leave(143)\n"
        "threads = [threading.Thread(target=work) for _ in range(7)]\n"
        "[thread.start() for thread in threads]\n"
        "work()\n"
    )
    for _ in range(5):
        assert leave(script, file).returncode == 143


@pytest.mark.parametrize(
    "spoiled",
    [
        "exit._FLAGS = 0x10000",  # CLONE_THREAD alone is refused
        "exit.os.listdir = None",  # whatever it raises
        "exit._targets = lambda: {}",  # no /proc
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))",
    ],
)
def test_what_fails_on_the_way_out_does_not_hold_the_process(file: Path, spoiled: str) -> None:
    done = leave(OPEN_AND_LEAVE + f"{spoiled}\nexit.leave(143)", file)
    assert (done.returncode, done.stdout) == (143, "")
    assert left_behind(file) == []


@dataclass(frozen=True)
class Hanging:
    """A shard whose reads hang from an offset on, and the process that serves it."""

    path: Path
    server: psutil.Process

    def stop_server_in_read(self, running: Running) -> None:
        """Let nothing be answered any more: nor the FLUSH with which a file is closed.

        Not before the run hangs in a read: to close a file in a system call would hang as well,
        and FUSE lets nobody end that either.
        """
        running.await_line(" 10%")
        running.await_match(r" at offset [3-9],\d{3},\d{3}$")
        self.server.suspend()

    def unmount(self) -> None:
        """End whatever waits."""
        subprocess.run(["umount", "--force", "--lazy", self.path.parent], check=True)


@pytest.fixture
def hanging(tmp_path: Path, built: BuiltCheckpoint) -> Iterator[Hanging]:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    shard = built.weight_files[1]
    options = ("--hang-from", str(4 * MIB))
    with ExitStack() as stack:
        try:
            stack.enter_context(mounted(os.path.dirname(shard), str(mountpoint), *options))
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        yield Hanging(mountpoint / os.path.basename(shard), server_of(mountpoint))


def server_of(mountpoint: Path) -> psutil.Process:
    """Return the process that serves what is mounted there."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # a run that nobody has waited for
            if str(mountpoint) in child.cmdline():
                return child
    raise AssertionError(mountpoint)


# Of two threads: with nine requests under way FUSE reads on by the page (fuse_readahead), and what
# waits for a page that its server has been asked for cannot be killed (request_wait_answer).
ARGUMENTS = ("--force", "--engine", "splice", "-b", "1M", "-t", "2")
QUICK_TO_TELL = (
    "from prefetch_cli.cli import main\nfrom prefetch_cli.linux import exit\n"
    "from prefetch_cli.show import display\n"
    "display._HEARTBEAT_SECONDS = 0.2\n"
    "exit._SLEEP_SECONDS = 1\n"
)
COMMAND_THAT_TELLS = (sys.executable, "-c", f"{QUICK_TO_TELL}main.main()")
# Nothing is left behind.
ALONE = (
    sys.executable,
    "-c",
    f"{QUICK_TO_TELL}exit._share_descriptors = lambda: None\nmain.main()",
)


def signalled(running: Running) -> float:
    """Return the seconds after which the process is gone that gets a SIGTERM."""
    began = time.monotonic()
    running.send(signal.SIGTERM)
    running.process.wait(20)
    return time.monotonic() - began


def test_a_signal_ends_a_run_whose_file_cannot_be_closed(hanging: Hanging) -> None:
    with Running.start(*ARGUMENTS, str(hanging.path), command=COMMAND_THAT_TELLS) as running:
        hanging.stop_server_in_read(running)
        assert signalled(running) < 1.0
        done = running.end()
    assert done.code == 143
    assert re.match(r"[1-4](\.\d+)? MiB of 11 MiB in ", done.lines["read"])
    (pid,) = left_behind(hanging.path)
    assert str(hanging.path) in held_by(pid)
    time.sleep(1.5)
    assert is_there(pid)  # it waits in its end
    hanging.unmount()
    await_end(pid, 1)


def test_so_does_the_time_limit(hanging: Hanging) -> None:
    arguments = (*ARGUMENTS, "--time-limit", "2s", str(hanging.path))
    began = time.monotonic()
    with Running.start(*arguments, command=COMMAND_THAT_TELLS) as running:
        hanging.stop_server_in_read(running)
        assert running.end().code == 0
    assert time.monotonic() - began < 5


def test_and_a_signal_whose_summary_nobody_reads(hanging: Hanging) -> None:
    # The main thread hangs in its output, so that another one leaves.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)
    arguments = (*ARGUMENTS, "--json", str(hanging.path))
    with Running.start(*arguments, command=COMMAND_THAT_TELLS, stdout=writer) as running:
        hanging.stop_server_in_read(running)
        assert signalled(running) < 1.0
        assert running.process.returncode == 143
    assert len(left_behind(hanging.path)) == 1
    os.close(reader)
    os.close(writer)


def test_alone_the_process_would_wait_for_the_storage(hanging: Hanging) -> None:
    # Else the tests above would show nothing.
    with Running.start(*ARGUMENTS, str(hanging.path), command=ALONE) as running:
        hanging.stop_server_in_read(running)
        unmounting = threading.Timer(2.5, hanging.unmount)
        unmounting.start()
        assert signalled(running) > 2
        unmounting.join()
