"""`prefetch-cli CHECKPOINT -- COMMAND` on a terminal: keys and hangup are for COMMAND."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from tests.alone.machine.test_command import gone_within_a_second, waiting, warmers, within
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, environment
from tests.helpers.oracle import resident_bytes

MIB = 1024 * 1024
SLOW = ("--force", "--max-rate", "2M")  # 20 MiB take 10 s: a busy machine stops for several
BRISK = ("--force", "--max-rate", "20M")  # one
_LONGEST_SECONDS = 30


def spawned(*line: str) -> "pexpect.spawn[str]":
    """Start a session leader on a new terminal, whose other end is ours."""
    return pexpect.spawn(
        line[0],
        list(line[1:]),
        encoding="utf-8",
        dimensions=(24, 200),
        env=environment(TERM="dumb", PS1="", INPUTRC="/dev/null"),
        timeout=_LONGEST_SECONDS,
        echo=False,
    )


def beside(*arguments: str) -> "pexpect.spawn[str]":
    """Start the tool with a COMMAND as a session leader."""
    return spawned(*COMMAND, *arguments)


@contextmanager
def shell() -> Iterator["pexpect.spawn[str]"]:
    """Yield an interactive shell with job control."""
    child = spawned("bash", "--norc", "--noprofile", "--noediting", "-i")
    try:
        yield child
    finally:
        child.close(force=True)


def typed(child: "pexpect.spawn[str]", *arguments: str) -> None:
    child.sendline(" ".join([*COMMAND, *arguments]))


def ended(child: "pexpect.spawn[str]") -> str:
    """Return the rest of the output."""
    child.expect(pexpect.EOF)
    text = child.before or ""
    child.close()
    return text


def await_both(child: "pexpect.spawn[str]", one: str, other: str) -> None:
    """Wait for the output of two processes, in any order."""
    child.expect([f"{one}.*{other}", f"{other}.*{one}"])


def hang_up(child: "pexpect.spawn[str]") -> None:
    """Close our end of the terminal: the kernel sends SIGHUP to the session leader.

    pexpect's `close` would send more signals.
    """
    terminal = child.ptyproc  # type: ignore[attr-defined]  # types-pexpect does not know it
    terminal.fileobj.close()
    terminal.closed = child.closed = True


def pid(child: "pexpect.spawn[str]") -> int:
    assert child.pid is not None
    return child.pid


def test_an_interrupt_after_the_start_is_for_command_alone(cold: str) -> None:
    script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done"
    child = beside(*SLOW, cold, "--", "bash", "-c", script)
    await_both(child, "ready", "prefetch-cli: 10%")
    child.sendintr()
    child.expect("caught")
    child.expect("prefetch-cli: [0-9]+%")
    assert warmers(cold)
    child.kill(signal.SIGKILL)
    assert "interrupted" not in ended(child)
    assert gone_within_a_second(cold)


def test_an_interrupt_that_ends_command_ends_the_warmer(cold: str) -> None:
    child = beside(*SLOW, cold, "--", "sleep", "60")
    child.expect("prefetch-cli: 10%")
    child.sendintr()
    text = ended(child)
    assert gone_within_a_second(cold)
    assert child.signalstatus == signal.SIGINT
    assert "interrupted" not in text


def test_an_interrupt_before_the_start_ends_both(cold: str) -> None:
    child = beside(*SLOW, "--lead", "100%", cold, "--", "echo", "hi")
    child.expect("prefetch-cli: 10%")
    child.sendintr()
    text = ended(child)
    assert child.exitstatus == 130
    assert "; interrupted by SIGINT" in text
    assert not re.search("^hi", text, re.MULTILINE)
    assert not warmers(cold)


@pytest.mark.parametrize("lead", [(), ("--lead", "50%")], ids=["after", "before"])
def test_a_stopped_job_leaves_the_warmer_at_work(cold: str, lead: tuple[str, ...]) -> None:
    with shell() as child:
        typed(child, "--force", "--max-rate", "8M", *lead, cold, "--", "cat")
        child.expect("prefetch-cli: 10%")
        child.send("\x1a")  # Ctrl-Z
        child.expect("Stopped")
        child.expect("prefetch-cli: [0-9]+%")
        child.sendline("fg")
        child.expect("cat")
        child.sendline("hello")
        child.expect("hello")
        child.sendeof()
        child.sendline("echo code=$?")
        child.expect("code=0")
        assert gone_within_a_second(cold)


@pytest.mark.parametrize("place", ["foreground", "background"])
def test_a_terminal_that_stops_writers_in_the_background(cold: str, place: str) -> None:
    with shell() as child:
        child.sendline("stty tostop")
        if place == "foreground":
            typed(child, *BRISK, cold, "--", "cat")
        else:
            # COMMAND itself writes nothing; all output is the warmer's.
            typed(child, *BRISK, cold, "--", "sleep", "60", "&")
        for number in range(1, 11):
            child.expect(f"prefetch-cli: {10 * number}%")
        child.expect("prefetch-cli: resident ")
        assert gone_within_a_second(cold)
        if place == "foreground":
            child.sendline("hello")
            child.expect("hello")
            child.sendeof()
            child.sendline("echo code=$?")
            child.expect("code=0")
        else:
            child.sendline("jobs")
            child.expect("Running")
            child.sendline("kill %1")


def test_a_terminal_that_is_closed_ends_both(cold: str) -> None:
    child = beside(*SLOW, cold, "--", "sleep", "60")
    child.expect("prefetch-cli: 10%")
    assert warmers(cold)
    hang_up(child)
    assert within(5, lambda: waiting(pid(child)) <= {"Z", "X"})
    assert gone_within_a_second(cold)
    os.waitpid(pid(child), 0)


def test_a_warmer_outlives_the_terminal_beside_a_command_that_does(
    built: BuiltCheckpoint, cold: str
) -> None:
    child = beside(*BRISK, cold, "--", "sh", "-c", "trap '' HUP; echo ready; exec sleep 60")
    await_both(child, "ready", "prefetch-cli: 10%")
    try:
        hang_up(child)
        assert within(10, lambda: not warmers(cold))
        assert waiting(pid(child)) <= {"S", "R", "D"}
        assert resident_bytes(built.files) >= 10 * MIB  # a tenth was before
    finally:
        os.kill(pid(child), signal.SIGKILL)
        os.waitpid(pid(child), 0)


@pytest.mark.parametrize("how", ["auto", "bar"])
def test_a_bar_is_never_drawn_over_what_command_says(cold: str, how: str) -> None:
    script = "read line; sleep 0"
    child = beside(*BRISK, "--progress", how, cold, "--", "sh", "-c", script)
    child.expect("prefetch-cli: read .*\r\n.*prefetch-cli: resident .*\r\n")
    text = (child.before or "") + str(child.after)
    child.sendline("go on")
    ended(child)
    assert child.exitstatus == 0
    assert "\x1b" not in text
    lines = text.split("\r\n")[:-1]
    assert [line for line in lines if not line.startswith("prefetch-cli: ")] == []
    steps = [step for line in lines for step in re.findall(r"^prefetch-cli: (\d+%)", line)]
    assert steps == [f"{10 * number}%" for number in range(1, 11)]


def test_nohup_keeps_command_from_the_end_of_the_terminal(cold: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = ["nohup", *COMMAND, *SLOW, cold, "--", "sleep", "60"]
    child = spawned("sh", "-c", f"exec {' '.join(line)} >{log} 2>&1")
    assert within(20, lambda: log.exists() and " 10%" in log.read_text())
    try:
        hang_up(child)
        assert within(10, lambda: " 20%" in log.read_text())
        assert waiting(pid(child)) <= {"S", "R", "D"}
    finally:
        os.kill(pid(child), signal.SIGKILL)
        os.waitpid(pid(child), 0)
    assert gone_within_a_second(cold)
