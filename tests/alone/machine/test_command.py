"""`prefetch-cli CHECKPOINT -- COMMAND`: what COMMAND gets, and what the warmer leaves."""

import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Running, environment, run
from tests.helpers.oracle import evict, resident_bytes
from tests.helpers.passthrough import mounted

MIB = 1024 * 1024
SLOW = ("--force", "--max-rate", "2M")  # 20 MiB take 10 s: a busy machine stops for several
SELF = (
    "import json, os, signal, sys; print(json.dumps([os.getpid(), sys.argv[1:], "
    "{k: v for k, v in os.environ.items() if k != 'LC_CTYPE'}, sorted(os.listdir('/proc/self/fd')),"
    "os.getcwd(), os.getpgrp()]))"
)
# Closes a descriptor, then runs until its standard input ends.
CLOSES = "import os, sys; os.write(1, b'out'); os.close(int(sys.argv[1])); sys.stdin.read()"
AWAITS = ("sh", "-c", "read line; exit 5")
# The state a program starts with, as the kernel reports it: a program could only report its own.
INHERITED = tuple(f"/proc/self/{name}" for name in ("status", "limits", "oom_score_adj", "environ"))
# Executes a command line in an unusual state, with environment variables that are not text.
STARTER = """
import ctypes, os, resource, signal, sys
ignored, *line = sys.argv[1:]
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
for name in ignored.split():
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH})
os.kill(os.getpid(), signal.SIGUSR1)
os.umask(0o137)
os.nice(3)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("17")
libc = ctypes.CDLL(None)
words = [os.fsencode(word) for word in line]
variables = [b"ONE=1", b"EMPTY=", b"\\xff\\xfe=\\x80\\n", b"a b=c=d"]
variables += [os.fsencode(f"{name}={os.environ[name]}") for name in ("PATH", "PYTHONPATH")]
if "SIGPIPE" in ignored.split():
    variables.append(b"SYSTEMD_EXEC_PID=%d" % os.getpid())
array = lambda texts: (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
libc.execve(words[0], array(words), array(variables))
"""
# Executes a command line without pidfd_open(2), 434 on every architecture: a seccomp filter answers
# ENOSYS, as kernels before 5.3 do.
WITHOUT_PIDFD = """
import ctypes, errno, os, struct, sys
code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 434,
                   6, 0, 0, 0x50000 | errno.ENOSYS, 6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HL", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"""
FILTERED = (sys.executable, "-I", "-S", "-c", WITHOUT_PIDFD)
# Like a Python built against older headers.
UNKNOWING = (
    *(sys.executable, "-c"),
    "import os; del os.pidfd_open; from prefetch_cli.cli import main; main.main()",
)
QUICK_TO_TELL = (
    *(sys.executable, "-c"),
    "from prefetch_cli.cli import main; from prefetch_cli.base import limits; "
    "limits.HEARTBEAT_SECONDS = 0.2; main.main()",
)


def warmers(checkpoint: str) -> list[int]:
    """Return the processes that have this checkpoint among their arguments, zombies included.

    Not counted: the process that `linux.exit` leaves behind to close files.
    """
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(checkpoint) not in words:
                continue
            called = Path(f"/proc/{name}/comm").read_text()
        except OSError:
            continue
        if b"--" in words and called != "prefetch-leave\n":
            found.append(int(name))
    return found


def gone_within_a_second(checkpoint: str) -> bool:
    return within(1, lambda: not warmers(checkpoint))


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether something becomes true within some seconds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def warmer_of(running: Running, checkpoint: str) -> int:
    """Return the warmer of this COMMAND."""
    [warmer] = set(warmers(checkpoint)) - {running.process.pid}
    return warmer


def command_runs(running: Running) -> bool:
    """Whether the process has become COMMAND."""
    return b"prefetch_cli" not in Path(f"/proc/{running.process.pid}/cmdline").read_bytes()


def tell(running: Running) -> None:
    """Write a line to COMMAND."""
    assert running.process.stdin is not None
    running.process.stdin.write("go on\n")
    running.process.stdin.flush()


class Faulty:
    """A shard on a faulty file system, once that is mounted."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def mount(self, *options: str) -> str:
        """Return the path of the shard."""
        try:
            root = self._stack.enter_context(
                mounted(f"{self._folder}/source", f"{self._folder}/mount", *options)
            )
        except OSError as error:
            pytest.skip(f"needs the right to mount FUSE: {error}")
        return f"{root}/model.safetensors"

    def unmount(self) -> None:
        """Unmount it, which ends all waits."""
        self._stack.close()


@pytest.fixture
def faulty(tmp_path: Path, built: BuiltCheckpoint) -> Iterator[Faulty]:
    """A shard of 11 MiB on a faulty file system, unmounted at the end."""
    for name in ("source", "mount"):
        (tmp_path / name).mkdir()
    shutil.copy(built.weight_files[1], tmp_path / "source" / "model.safetensors")
    with contextlib.ExitStack() as stack:
        yield Faulty(tmp_path, stack)


# What COMMAND gets


@pytest.mark.parametrize("odd", [["", "a b", "$(x)`y`*", "\n\x1b", "--", "--json", "é", "\udcff"]])
def test_command_gets_what_it_would_get_without_the_tool(cold: str, odd: list[str]) -> None:
    line = [sys.executable, "-I", "-S", "-c", SELF, *odd]
    plain = subprocess.run(line, capture_output=True, check=True, env=environment())
    beside = [*COMMAND, *SLOW, cold, "--", *line]
    with subprocess.Popen(
        beside, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        output = process.communicate(timeout=60)[0]
    pid, *found = json.loads(output)
    assert process.returncode == 0
    assert pid == process.pid
    assert found == json.loads(plain.stdout)[1:]
    assert gone_within_a_second(cold)


@pytest.mark.parametrize(
    "ignored",
    # Python ignores SIGPIPE itself: only for a systemd service can we tell what it was before.
    ["SIGHUP SIGUSR2", "SIGHUP SIGINT SIGTERM SIGCHLD SIGTTOU", "SIGPIPE"],
)
def test_command_inherits_what_it_would_without_the_tool(cold: str, ignored: str) -> None:
    starter = [sys.executable, "-I", "-S", "-c", STARTER, ignored]
    cat = [shutil.which("cat") or "", *INHERITED]
    plain = subprocess.run([*starter, *cat], capture_output=True, check=True, env=environment())
    beside = subprocess.run(
        [*starter, *COMMAND, *SLOW, cold, "--", *cat],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        env=environment(),
    )
    found, expected = inherited(beside.stdout), inherited(plain.stdout)
    assert found == expected
    # The starter did what it was meant to do.
    text = b"\n".join(found)
    assert b"ONE=1\0EMPTY=\0\xff\xfe=\x80\n\0a b=c=d\0" in text
    assert b"LC_CTYPE" not in text
    assert b"\n17\n" in text
    assert b"Umask:\t0137" in text
    masks = dict(line.split(b":\t") for line in found if re.match(b"(Sig|Shd)", line))
    assert int(masks[b"ShdPnd"], 16) == 1 << signal.SIGUSR1 - 1
    for name in ignored.split():
        assert int(masks[b"SigIgn"], 16) >> signal.Signals[name] - 1 & 1
    assert gone_within_a_second(cold)


def inherited(output: bytes) -> list[bytes]:
    """Return the lines that do not differ between processes."""
    own = rb"(Name|State|T?gid|Pid|PPid|NS\w+|Ngid|Vm\w+|Rss\w+|Hugetlb\w+|\w*ctxt_switches|SigQ|"
    own += rb"untag_mask|SYSTEMD_EXEC_PID|CoreDumping|Tgid|Threads|FDSize)\b"
    found = [line for line in output.split(b"\n") if not re.match(own, line)]
    return [re.sub(rb"SYSTEMD_EXEC_PID=\d+", b"SYSTEMD_EXEC_PID=", line) for line in found]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", "2>&- 7<."])
def test_command_has_the_same_descriptors_closed(cold: str, tmp_path: Path, closed: str) -> None:
    told = tmp_path / "told"
    tells = (
        "import os, sys\n"
        "def target(name):\n"
        "    try: return os.readlink('/proc/self/fd/' + name)\n"
        "    except OSError: return None\n"  # the listing's own
        "found = {name: target(name) for name in os.listdir('/proc/self/fd')}\n"
        "open(sys.argv[1], 'w').write(repr(sorted(found.items())))"
    )
    line = [sys.executable, "-I", "-S", "-c", tells, str(told)]
    found = []
    for before in ([], [*COMMAND, *SLOW, cold, "--"]):
        subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *before, *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            env=environment(),
        )
        found.append(told.read_text())
        told.unlink()
    assert found[0] == found[1]
    assert found[0].count("/dev/null") == 3 - closed.count("&-")
    assert gone_within_a_second(cold)


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_command_waits_although_streams_are_closed(
    built: BuiltCheckpoint, cold: str, tmp_path: Path, closed: str
) -> None:
    told = tmp_path / "told"
    count = f'fincore --bytes --raw -n -o RES "$@" >{told}'
    line = [*COMMAND, "--force", "--max-rate", "40M", "--lead", "100%", cold]
    line += ["--", "sh", "-c", count, "sh", *built.files]
    script = f'exec "$@" {closed}'
    done = subprocess.run(["sh", "-c", script, "sh", *line], check=False, env=environment())
    assert done.returncode == 0
    resident = sum(map(int, told.read_text().split()))
    assert resident >= 19 * MIB
    assert gone_within_a_second(cold)


def test_standard_input_is_that_of_command(cold: str) -> None:
    with subprocess.Popen(
        [*COMMAND, *SLOW, cold, "--", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        # The warmer reads none of it, and does not hold it open.
        assert (
            process.communicate(b"\0before the start\n", timeout=60)[0] == b"\0before the start\n"
        )
    assert process.returncode == 0


@pytest.mark.parametrize("descriptor", [0, 1, 9])
def test_the_warmer_holds_no_end_of_a_pipe(cold: str, descriptor: int) -> None:
    ours, theirs = os.pipe()
    if descriptor == 0:
        ours, theirs = theirs, ours
    script = f"exec {descriptor}<&3 3<&- 2>/dev/null; " + 'exec "$@"'
    if descriptor:
        script = f"exec {descriptor}>&3 3>&- 2>/dev/null; " + 'exec "$@"'
    closes = f"import os, time; os.close({descriptor}); time.sleep(60)"
    line = [*COMMAND, *SLOW, cold, "--", sys.executable, "-I", "-S", "-c", closes]
    # A number that the shell can name: dash knows one digit only.
    moved = ["bash", "-c", f"exec 3<&{theirs}; exec {theirs}<&-; {script}", "bash", *line]
    with subprocess.Popen(
        moved, pass_fds=[theirs], stdout=subprocess.DEVNULL, env=environment()
    ) as process:
        os.close(theirs)
        try:
            poll = select.poll()
            poll.register(ours, 0)  # the other end is gone: POLLHUP, or POLLERR for a writer
            assert poll.poll(20_000)
            assert warmers(cold)
            assert process.poll() is None
        finally:
            os.close(ours)
            process.kill()
    assert gone_within_a_second(cold)


def test_a_pipe_on_standard_error_ends_soon_after_command(cold: str) -> None:
    line = " ".join([*COMMAND, *SLOW, cold, "--", "sh -c 'echo out; date +%s.%N' 2>&1 | cat"])
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, check=True, text=True, env=environment()
    )
    ended = time.time()
    assert "\nout\n" in done.stdout
    stamp = re.findall(r"^\d+\.\d+$", done.stdout, re.MULTILINE)
    assert ended - float(stamp[0]) < 1


def test_ranks_warm_their_shares_beside_commands_of_their_own(
    built: BuiltCheckpoint, cold: str
) -> None:
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                Running.start(
                    *("--force", "--rank", "auto", cold, "--", "sh", "-c"),
                    "echo $LOCAL_RANK; read line",
                    env={"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
                    stdin=subprocess.PIPE,
                )
            )
            for rank in range(2)
        ]
        for rank, running in enumerate(ranks):
            running.await_line(f"prefetch-cli rank {rank}/2: share        rank {rank} of 2")
            running.await_line(f"prefetch-cli rank {rank}/2: resident", times=2)
            tell(running)
        done = [running.end() for running in ranks]
    assert [(one.code, one.output) for one in done] == [(0, "0\n"), (0, "1\n")]
    assert resident_bytes(built.files) >= 19 * MIB


# The exit code


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", -9)])
def test_the_exit_code_is_that_of_command(cold: str, script: str, code: int) -> None:
    done = run(*SLOW, cold, "--", "sh", "-c", f"echo out; {script}")
    assert (done.code, done.output) == (code, "out\n")
    assert all(line.startswith("prefetch-cli: ") for line in done.errors.splitlines())
    assert gone_within_a_second(cold)


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("no-such", 127, "none in PATH"),
        ("", 127, "none in PATH"),
        ("x" * 300, 127, "none in PATH"),
        ("/no/such", 127, "nothing there"),
        ("./dangling", 127, "nothing there"),
        ("./no-interpreter", 127, "a file whose interpreter is missing"),
        ("./" + "x" * 300, 126, "File name too long"),
        ("./loop", 126, "Too many levels of symbolic links"),
        ("./plain/below", 126, "Not a directory"),
        ("./", 126, "a directory"),
        ("./plain", 126, "a file without permission to execute it"),
        ("plain", 126, "a file without permission to execute it"),
        ("./folder-as-interpreter", 126, "Permission denied"),
        ("./other-machine", 126, "Exec format error"),
        ("./busy", 126, "Text file busy"),
    ],
)
def test_what_cannot_be_run_has_the_codes_of_bash(
    cold: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    Path("plain").touch()
    # An ELF file for a machine that does not exist.
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xff\xfe\x01\0\0\0" + bytes(40)
    texts = {
        "no-interpreter": b"#!/no/such\n",
        "folder-as-interpreter": os.fsencode(f"#!{tmp_path}\n"),
        "other-machine": header,
        "busy": Path(shutil.which("true") or "").read_bytes(),
    }
    for file, text in texts.items():
        Path(file).write_bytes(text)
        os.chmod(file, 0o755)
    path = {"PATH": f"{os.environ['PATH']}:{tmp_path}"}
    with open("busy", "ab"):
        bash = subprocess.run(
            ["bash", "-c", '"$@"', "bash", name],
            capture_output=True,
            check=False,
            env=environment(**path),
        )
        if name == "./busy" and bash.returncode == 0:
            pytest.skip("needs a kernel by which a file that is written cannot be run (not 6.11)")
        done = run("--force", cold, "--", name, env=path)
    assert bash.returncode == code
    assert (done.code, done.output, done.errors.count("error: ")) == (code, "", 1), done
    assert f"{found}; " in done.errors
    assert gone_within_a_second(cold)


def test_a_script_without_an_interpreter_is_not_run(cold: str, tmp_path: Path) -> None:
    # A shell would interpret it; we use none.
    script = tmp_path / "script"
    script.write_text("echo hi\n")
    script.chmod(0o755)
    done = run(cold, "--", str(script))
    assert (done.code, done.output) == (126, "")
    assert "Exec format error" in done.errors
    assert gone_within_a_second(cold)


def test_a_refused_start_after_the_warmer_has_ended(cold: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.touch(0o755)
    rate = ("--force", "--max-rate", "20M", "--lead", "50%")
    with Running.start(*rate, cold, "--", str(script)) as running:
        running.await_line("10%")
        running.send(signal.SIGSTOP)  # so that it execs after the warmer has exited
        assert within(20, lambda: warmers(cold) == [running.process.pid])
        running.send(signal.SIGCONT)
        done = running.end()
    assert done.code == 126
    assert "Exec format error" in done.errors


def test_arguments_that_are_too_long_when_it_starts(cold: str) -> None:
    # They fit when the tool started; then we lower the limit, a quarter of the stack's.
    words = ["x" * 100_000] * 3
    rate = ("--force", "--max-rate", "10M", "-b", "1M", "--lead", "50%")
    with Running.start(*rate, cold, "--", "true", *words) as running:
        running.await_line("10%")
        resource.prlimit(running.process.pid, resource.RLIMIT_STACK, (MIB, MIB))
        done = running.end()
    assert done.code == 126
    assert "Argument list too long" in done.errors
    assert gone_within_a_second(cold)


# The exit of either


@pytest.mark.parametrize(
    "command", [COMMAND, (*FILTERED, *COMMAND), UNKNOWING], ids=["pidfd", "enosys", "no-function"]
)
@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_the_end_of_command_ends_the_warmer(
    cold: str, command: Sequence[str], killed: bool
) -> None:
    line = (*SLOW, cold, "--", *AWAITS)
    with Running.start(*line, command=command, stdin=subprocess.PIPE) as running:
        running.await_line("10%")
        assert warmer_of(running, cold)
        if killed:
            running.send(signal.SIGKILL)
        else:
            tell(running)
        assert running.process.wait(10) == (-signal.SIGKILL if killed else 5)
        assert gone_within_a_second(cold)


def test_the_filter_leaves_no_pidfd() -> None:
    look = "import os; os.pidfd_open(os.getpid())"
    done = subprocess.run(
        [*FILTERED, sys.executable, "-c", look], capture_output=True, check=False, text=True
    )
    assert "Errno 38" in done.stderr


@pytest.mark.parametrize("command", [COMMAND, (*FILTERED, *COMMAND)], ids=["pidfd", "enosys"])
def test_a_command_whose_first_thread_has_ended_still_runs(
    cold: str, command: Sequence[str]
) -> None:
    # exit(2), for one thread only: 60 on x86-64, 93 on all newer architectures.
    script = (
        "import ctypes, os, sys, threading\n"
        "def wait():\n    sys.stdin.read()\n    os._exit(5)\n"
        "threading.Thread(target=wait).start()\n"
        "ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)"
    )
    line = (*SLOW, cold, "--", sys.executable, "-I", "-S", "-c", script)
    with Running.start(*line, command=command, stdin=subprocess.PIPE) as running:
        stat = Path(f"/proc/{running.process.pid}/stat")
        assert within(20, lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        warmer = warmer_of(running, cold)
        said = len(running.errors)
        running.await_line("%", times=sum("%" in one for one in running.errors[:said]) + 2)
        assert warmers(cold) == [warmer]
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(10) == 5
        assert gone_within_a_second(cold)


@pytest.mark.parametrize("code", [0, 7])
def test_as_the_first_process_of_a_container(cold: str, code: int) -> None:
    script = (
        "import os, re, sys, time\n"
        "def states():\n"
        "    for name in filter(str.isdecimal, os.listdir('/proc')):\n"
        "        if name != '1':\n"
        "            yield open(f'/proc/{name}/stat').read().rpartition(')')[2].split()[0]\n"
        "assert os.getpid() == 1\n"
        "code = int(sys.argv[1])\n"
        "until = time.monotonic() + 20\n"
        "while not code and set(states()) - {'Z'} and time.monotonic() < until:\n"
        "    time.sleep(0.02)\n"
        "print(*states())\n"
        "sys.exit(code)"
    )
    pace = SLOW if code else ("--force",)
    line = (*pace, cold, "--", sys.executable, "-I", "-S", "-c", script, str(code))
    done = run(*line, command=(*contained(), *COMMAND))
    assert done.code == code, done
    # With code 0 COMMAND waits for the warmer to exit; with 7 it exits while the warmer runs.
    assert done.output in (("S\n", "R\n", "D\n") if code else ("\n", "Z\n"))
    assert gone_within_a_second(cold)


def contained() -> list[str]:
    """Return a prefix that makes a command the first process of a PID namespace."""
    line = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    done = subprocess.run([*line, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to make a PID namespace: {done.stderr.decode().strip()}")
    return line


def test_another_process_of_the_same_number_is_not_command(cold: str, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "log, checkpoint, *line = sys.argv[1:]\n"
        "with open(log, 'wb') as errors:\n"
        "    tool = subprocess.Popen(line, stderr=errors)\n"
        "def within(seconds, holds):\n"
        "    until = time.monotonic() + seconds\n"
        "    while not holds():\n"
        "        if time.monotonic() > until: return False\n"
        "        time.sleep(0.01)\n"
        "    return True\n"
        "def gone():\n"
        "    for name in filter(str.isdecimal, os.listdir('/proc')):\n"
        "        if name != '1' and checkpoint in open(f'/proc/{name}/cmdline').read():\n"
        "            return False\n"
        "    return True\n"
        "assert within(20, lambda: ' 10%' in open(log).read())\n"
        "tool.kill()\n"
        "tool.wait()\n"
        "with open('/proc/sys/kernel/ns_last_pid', 'w') as last:\n"
        "    last.write(str(tool.pid - 1))\n"
        "other = subprocess.Popen(['sleep', '60'])\n"
        "print(other.pid == tool.pid, within(1, gone))"
    )
    line = (*FILTERED, *COMMAND, *SLOW, cold, "--", "sleep", "60")
    done = run(
        *(str(tmp_path / "log"), cold, *line),
        command=(*contained(), sys.executable, "-I", "-S", "-c", script),
    )
    assert (done.code, done.output) == (0, "True True\n"), done


def test_starts_in_a_row_leave_nothing(cold: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # pytest shows it if the test fails
    chance = random.Random(seed)

    def start(*command: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*COMMAND, *SLOW, cold, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environment(TMPDIR=str(tmp_path), HOME=str(tmp_path)),
        )

    for number in range(25):
        ends, killed = start("true"), start("sleep", "60")
        time.sleep(chance.uniform(0, 0.4))  # before the decision, or while reading
        killed.kill()
        assert killed.wait(20) == -signal.SIGKILL
        assert ends.wait(20) == 0
        assert gone_within_a_second(cold), number
    assert os.listdir(tmp_path) == []


def test_command_has_no_child_that_it_does_not_know(cold: str) -> None:
    script = "import os\ntry: os.wait()\nexcept ChildProcessError: print('none')"
    done = run(*SLOW, cold, "--", sys.executable, "-c", script)
    assert (done.code, done.output) == (0, "none\n")


def test_the_warmer_ends_by_itself_and_all_is_warm(built: BuiltCheckpoint, cold: str) -> None:
    with Running.start("--force", cold, "--", "sleep", "60") as running:
        running.await_line("prefetch-cli: resident", times=2)
        assert gone_within_a_second(cold)
        assert running.process.poll() is None
        assert resident_bytes(built.files) >= 19 * MIB


def test_a_warmer_that_is_killed_before_the_start(cold: str) -> None:
    line = (*SLOW, "--lead", "100%", cold, "--", "sh", "-c", "echo hi; exit 4")
    with Running.start(*line) as running:
        running.await_line("10%")
        os.kill(warmer_of(running, cold), signal.SIGKILL)
        done = running.end()
    assert (done.code, done.output) == (4, "hi\n")
    assert done.errors.splitlines()[-1] == (
        "prefetch-cli: warning: the warmer exited early; starting COMMAND anyway"
    )


def test_a_warmer_that_is_killed_after_the_start(cold: str) -> None:
    with Running.start(*SLOW, cold, "--", *AWAITS, stdin=subprocess.PIPE) as running:
        running.await_line("10%")
        os.kill(warmer_of(running, cold), signal.SIGKILL)
        assert within(10, lambda: warmers(cold) == [])
        assert running.process.poll() is None
        tell(running)
        done = running.end()
    assert done.code == 5
    assert "warning" not in done.errors


# When it starts


def test_lead_waits_for_so_much(built: BuiltCheckpoint, cold: str) -> None:
    line = ("--", "fincore", "--bytes", "--raw", "-n", "-o", "RES", *built.files)
    rate = ("--force", "--max-rate", "10M", "-b", "1M")
    # Read-ahead makes pages resident before they count as read.
    at_once = sum(map(int, run(*rate, cold, *line).output.split()))
    assert gone_within_a_second(cold)
    evict(built.files)
    led = sum(map(int, run(*rate, "--lead", "50%", cold, *line).output.split()))
    assert at_once < 9 * MIB < 10 * MIB <= led < 20 * MIB


@pytest.mark.parametrize(
    ("flags", "least", "most"),
    [
        (("--max-rate", "10M", "--lead", "6M"), 6, 17),
        (("--lead", "1TiB"), 19, 21),  # more than there is: everything
        # A percentage of what will be read, here half.
        (("--max-rate", "10M", "--partial", "--max-bytes", "8M", "--lead", "100%"), 8, 12),
        (("--max-rate", "10M", "--partial", "--max-bytes", "8M", "--lead", "50%"), 4, 8),
    ],
)
def test_lead_is_a_part_of_what_is_meant(
    built: BuiltCheckpoint, cold: str, flags: Sequence[str], least: int, most: int
) -> None:
    count = ("fincore", "--bytes", "--raw", "-n", "-o", "RES", *built.files)
    done = run("--force", "-b", "1M", *flags, cold, "--", *count)
    resident = sum(map(int, done.output.split()))
    assert 0.99 * least * MIB <= resident < most * MIB
    assert "warning" not in done.errors
    assert gone_within_a_second(cold)


def test_what_is_resident_already_is_part_of_the_lead(built: BuiltCheckpoint, warm: str) -> None:
    evict([built.weight_files[2]])  # 3 of 20 MiB
    rate = ("--force", "--max-rate", "64K", "-b", "64K")
    began = time.monotonic()
    assert run(*rate, "--lead", "80%", warm, "--", "echo", "hi").output == "hi\n"
    assert time.monotonic() - began < 10  # the rest would take 48 s
    assert gone_within_a_second(warm)


def test_a_skip_and_a_time_limit_start_command(cold: str) -> None:
    assert run("--lead", "100%", cold, "--", "echo", "hi").output == "hi\n"
    done = run(*SLOW, "--lead", "100%", "--time-limit", "0.3s", cold, "--", "echo", "hi")
    assert (done.code, done.output) == (0, "hi\n")
    assert re.search(
        r"warning: expected 20[.\d]* MiB warm \(--lead\), found [\d.]+ [KM]iB; starting COMMAND",
        done.errors,
    )


def test_a_missing_checkpoint_starts_it_only_by_best_effort(tmp_path: Path) -> None:
    done = run(f"{tmp_path}/none", "--", "echo", "hi")
    assert (done.code, done.output, done.errors.count("\n")) == (3, "", 1)
    done = run("--best-effort", f"{tmp_path}/none", "--", "echo", "hi")
    assert (done.code, done.output) == (0, "hi\n")
    assert done.errors.startswith("prefetch-cli: warning: ")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_before_the_start_ends_both(cold: str, number: signal.Signals, code: int) -> None:
    with Running.start(*SLOW, "--lead", "100%", cold, "--", "echo", "hi") as running:
        running.await_line("10%")
        began = time.monotonic()
        running.send(number)
        done = running.end()
    assert time.monotonic() - began < 1
    assert (done.code, done.output) == (code, "")
    assert f"interrupted by {number.name}" in done.errors
    assert not warmers(cold)


# Storage with faults


@pytest.mark.parametrize("killed", [False, True], ids=["ends", "killed"])
def test_a_read_that_hangs_holds_neither_the_start_nor_the_end(
    faulty: Faulty, killed: bool
) -> None:
    path = faulty.mount("--keep-cache", "--hang-from", str(4 * MIB))
    line = ("--force", "-t", "2", "-b", "1M", path, "--", *AWAITS)
    with Running.start(*line, command=QUICK_TO_TELL, stdin=subprocess.PIPE) as running:
        running.await_line("nothing has arrived for")
        assert within(5, lambda: command_runs(running))
        warmer = warmer_of(running, path)
        began = time.monotonic()
        if killed:
            running.send(signal.SIGKILL)
        else:
            tell(running)
        assert running.process.wait(10) == (-signal.SIGKILL if killed else 5)
        assert time.monotonic() - began < 0.5
        running.end()  # nobody holds standard error open
        assert time.monotonic() - began < 1
        # The kernel cannot kill a thread that waits for a FUSE server; the others are gone.
        assert within(1, lambda: waiting(warmer) <= {"D", "Z", "X"})
    faulty.unmount()
    assert gone_within_a_second(path)


def waiting(pid: int) -> set[str]:
    """Return the states of a process's threads, none if there is no such process."""
    found = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
                found.add(stat.rpartition(")")[2].split()[0])
    return found


def test_the_lead_waits_for_a_read_that_hangs_until_a_signal(faulty: Faulty) -> None:
    path = faulty.mount("--keep-cache", "--hang-from", str(4 * MIB))
    line = ("--force", "-t", "2", "-b", "1M", "--lead", "100%", path, "--", "echo", "hi")
    with Running.start(*line, command=QUICK_TO_TELL) as running:
        said = running.await_line("nothing has arrived for", times=2)
        assert said.startswith("prefetch-cli: ")
        assert not command_runs(running)
        began = time.monotonic()
        running.send(signal.SIGTERM)
        done = running.end()
    assert time.monotonic() - began < 1
    assert (done.code, done.output) == (143, "")


@pytest.mark.parametrize("quiet", [False, True], ids=["normal", "quiet"])
def test_reads_that_fail_before_the_lead(faulty: Faulty, quiet: bool) -> None:
    path = faulty.mount("--keep-cache", "--fail-read", str(8 * MIB))
    flags = ("--force", "-t", "1", "-b", "1M", "--lead", "100%", *(("--quiet",) if quiet else ()))
    line = (*flags, path, "--", "sh", "-c", "echo hi; read line; exit 5")
    with Running.start(*line, stdin=subprocess.PIPE) as running:
        running.await_line(f"prefetch-cli: error: {path}: Input/output error")
        assert within(5, lambda: command_runs(running))
        tell(running)
        done = running.end()
    assert (done.code, done.output) == (5, "hi\n")
    warning = "prefetch-cli: warning: expected 11 MiB warm (--lead), found "
    assert (warning in done.errors) is not quiet
    if quiet:
        assert done.errors.count("\n") == 0


# Output


def test_every_tenth_is_said_once_as_a_line_of_a_log(cold: str) -> None:
    # Even a requested bar is not drawn: COMMAND writes to the same terminal.
    with Running.start("--force", "--progress", "bar", cold, "--", "sleep", "60") as running:
        running.await_line("prefetch-cli: resident", times=2)
        errors = list(running.errors)
    assert [line for line in errors if not line.startswith("prefetch-cli: ")] == []
    steps = [step for line in errors for step in re.findall(r"^prefetch-cli: (\d+%)", line)]
    assert steps == [f"{10 * number}%" for number in range(1, 11)]
    assert "\x1b" not in "".join(errors)


def test_progress_none_leaves_the_decision_and_the_summary(cold: str) -> None:
    with Running.start("--force", "--progress", "none", cold, "--", "sleep", "60") as running:
        running.await_line("prefetch-cli: resident", times=2)
        errors = "\n".join(running.errors)
    assert "decision" in errors
    assert "%" not in re.sub(r"\d %|\(\d[^)]*%", "", errors)


def test_quiet_says_nothing_but_errors(built: BuiltCheckpoint, cold: str) -> None:
    with Running.start(
        "-q", "--force", cold, "--", "sh", "-c", "echo own >&2; sleep 60"
    ) as running:
        running.await_line("own")
        assert within(20, lambda: resident_bytes(built.files) >= 19 * MIB)
        assert within(20, lambda: len(warmers(cold)) == 0)
        assert running.errors == ["own"]
    done = run("-q", cold, "--", "no-such")
    assert (done.code, done.errors.count("\n")) == (127, 1)


@pytest.mark.parametrize(
    "line",
    [
        "X --",
        "--json X -- true",
        "--check X -- true",
        "--evict X -- true",
        "-n X -- true",
        "--lead 1 X",
        "--best-effort X",
        "--lead 101% X -- true",
        "-- true",
    ],
)
def test_usage(line: str) -> None:
    done = run(*line.split())
    assert (done.code, done.errors.count("\n")) == (2, 1)


def test_what_the_environment_asks_for_gives_way_to_command(cold: str) -> None:
    names = ("JSON", "CHECK", "DRY_RUN", "EVICT")
    done = run(cold, "--", "echo", "hi", env={f"PREFETCH_CLI_{name}": "1" for name in names})
    assert (done.code, done.output) == (0, "hi\n")
    assert "error" not in done.errors


def test_what_the_environment_asks_for_command_means_nothing_without(cold: str) -> None:
    settings = {"PREFETCH_CLI_LEAD": "50%", "PREFETCH_CLI_BEST_EFFORT": "1"}
    assert run(cold, env=settings).code == 0
    done = run(*SLOW, "--time-limit", "0.3s", cold, "--", "echo", "hi", env=settings)
    assert re.search(r"expected 10[.\d]* MiB warm \(--lead\)", done.errors)
