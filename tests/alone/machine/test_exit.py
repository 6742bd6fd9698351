"""Exit: the process is gone at once, and another closes what it could not close."""

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
    """Return the processes left behind by commands with this path among their arguments."""
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
    """Whether a process runs; a zombie does not."""
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
    """A file to open; at the end, whatever still holds it is killed."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    yield path
    for pid in left_behind(tmp_path):
        os.kill(pid, signal.SIGKILL)


def leave(script: str, file: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Return a finished script; its process and its output both ended at once."""
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
    before = left_behind(Path(cold))  # from other tests whose reads hang
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
    if os.geteuid() == 0:  # a sandbox may refuse unshare(2) to other users
        assert os.readlink(process / "cwd") == "/"
    os.kill(pid, signal.SIGKILL)
    await_end(pid, 1)


def test_the_second_process_exits_after_some_seconds(file: Path) -> None:
    leave(OPEN_AND_LEAVE + "exit.limits.DESCRIPTORS_KEPT_SECONDS = 1\nexit.leave(0)", file)
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
        """Stop the server, so that it does not answer the FLUSH of a close either.

        But only once the run hangs in a read: a close that we wait for would hang too, and
        nobody can kill that in FUSE.
        """
        running.await_line(" 10%")
        running.await_match(r" at offset [3-9],\d{3},\d{3}$")
        self.server.suspend()

    def unmount(self) -> None:
        """End all waits."""
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
    """Return the FUSE server of a mount point."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # a zombie
            if str(mountpoint) in child.cmdline():
                return child
    raise AssertionError(mountpoint)


# Two threads: with nine requests in flight FUSE reads on page by page (fuse_readahead()), and
# a wait for a page that was asked for cannot be killed (request_wait_answer()).
ARGUMENTS = ("--force", "--engine", "splice", "-b", "1M", "-t", "2")
QUICK_TO_TELL = (
    "from prefetch_cli.cli import main\nfrom prefetch_cli.linux import exit\n"
    "from prefetch_cli.base import limits\n"
    "limits.HEARTBEAT_SECONDS = 0.2\n"
    "limits.DESCRIPTORS_KEPT_SECONDS = 1\n"
)
COMMAND_THAT_TELLS = (sys.executable, "-c", f"{QUICK_TO_TELL}main.main()")
# Without the second process.
WITHOUT_SECOND_PROCESS = (
    sys.executable,
    "-c",
    f"{QUICK_TO_TELL}exit._share_descriptors = lambda: None\nmain.main()",
)


def signalled(running: Running) -> float:
    """Send SIGTERM, and return how many seconds later the process is gone."""
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
    assert is_there(pid)  # it waits for the server
    hanging.unmount()
    await_end(pid, 1)


def test_the_time_limit_ends_it_too(hanging: Hanging) -> None:
    arguments = (*ARGUMENTS, "--time-limit", "2s", str(hanging.path))
    began = time.monotonic()
    with Running.start(*arguments, command=COMMAND_THAT_TELLS) as running:
        hanging.stop_server_in_read(running)
        assert running.end().code == 0
    assert time.monotonic() - began < 5


def test_a_signal_ends_it_even_if_nobody_reads_the_summary(hanging: Hanging) -> None:
    # The main thread hangs in its output, so another thread exits.
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


def test_without_the_second_process_it_would_wait_for_the_storage(hanging: Hanging) -> None:
    # Otherwise the tests above would prove nothing.
    with Running.start(*ARGUMENTS, str(hanging.path), command=WITHOUT_SECOND_PROCESS) as running:
        hanging.stop_server_in_read(running)
        unmounting = threading.Timer(2.5, hanging.unmount)
        unmounting.start()
        assert signalled(running) > 2
        unmounting.join()
