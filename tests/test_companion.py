"""`prefetch-cli CHECKPOINT -- COMMAND`: what COMMAND gets, and what the warmer leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkpoints import BuiltCheckpoint
from tests.command import COMMAND, Running, environment, run
from tests.oracle import evict, resident_bytes

MIB = 1024 * 1024
SLOW = ("--force", "--max-rate", "4M")  # 20 MiB take five seconds
SELF = (
    "import json, os, signal, sys; print(json.dumps([os.getpid(), sys.argv[1:], "
    "{k: v for k, v in os.environ.items() if k != 'LC_CTYPE'}, sorted(os.listdir('/proc/self/fd')),"
    "[line for line in open('/proc/self/status') if line.startswith(('Sig', 'Umask'))],"
    "os.getcwd(), os.getpgrp()]))"
)


def warmers(checkpoint: str) -> list[int]:
    """Return the processes, running or not, that have this checkpoint among their arguments."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(checkpoint) in words and b"prefetch_cli" in words:
            found.append(int(name))
    return found


def gone_within_a_second(checkpoint: str) -> bool:
    until = time.monotonic() + 1
    while warmers(checkpoint) and time.monotonic() < until:
        time.sleep(0.02)
    return not warmers(checkpoint)


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


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", -9)])
def test_the_exit_code_is_that_of_command(cold: str, script: str, code: int) -> None:
    done = run(*SLOW, cold, "--", "sh", "-c", f"echo out; {script}")
    assert (done.code, done.output) == (code, "out\n")
    assert all(line.startswith("prefetch-cli: ") for line in done.errors.splitlines())
    assert gone_within_a_second(cold)


def test_a_killed_command_stops_the_warmer(cold: str) -> None:
    with Running.start(*SLOW, cold, "--", "sleep", "60") as running:
        running.await_line("10%")
        assert warmers(cold)
        running.send(signal.SIGKILL)
        assert running.process.wait(10) == -signal.SIGKILL
        assert gone_within_a_second(cold)


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


def test_lead_waits_for_so_much(built: BuiltCheckpoint, cold: str) -> None:
    line = ("--", "fincore", "--bytes", "--raw", "-n", "-o", "RES", *built.files)
    rate = ("--force", "--max-rate", "10M", "-b", "1M")
    # What the kernel reads ahead is resident before it counts as read.
    at_once = sum(map(int, run(*rate, cold, *line).output.split()))
    assert gone_within_a_second(cold)
    evict(built.files)
    led = sum(map(int, run(*rate, "--lead", "50%", cold, *line).output.split()))
    assert at_once < 9 * MIB < 10 * MIB <= led < 20 * MIB


def test_a_skip_and_a_time_limit_start_command(cold: str) -> None:
    assert run("--lead", "100%", cold, "--", "echo", "hi").output == "hi\n"
    done = run(*SLOW, "--lead", "100%", "--time-limit", "0.3s", cold, "--", "echo", "hi")
    assert (done.code, done.output) == (0, "hi\n")


def test_a_missing_checkpoint_starts_it_only_by_best_effort(tmp_path: Path) -> None:
    done = run(f"{tmp_path}/none", "--", "echo", "hi")
    assert (done.code, done.output, done.errors.count("\n")) == (3, "", 1)
    done = run("--best-effort", f"{tmp_path}/none", "--", "echo", "hi")
    assert (done.code, done.output) == (0, "hi\n")
    assert done.errors.startswith("prefetch-cli: warning: ")


def test_what_cannot_be_run(cold: str, tmp_path: Path) -> None:
    for name, code in (("no-such", 127), ("/no/such", 127), ("", 127), (str(tmp_path), 126)):
        done = run("--force", cold, "--", name)
        assert (done.code, done.output, done.errors.count("\n")) == (code, "", 1)
    script = tmp_path / "script"
    script.write_text("echo hi\n")
    assert run(cold, "--", str(script)).code == 126
    script.chmod(0o755)
    assert run(cold, "--", str(script)).code == 126  # no shell reads it
    assert gone_within_a_second(cold)


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
