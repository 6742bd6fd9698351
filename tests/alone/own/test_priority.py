"""--background: which threads get the lowest priority, and which keep theirs."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults import refuse
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import Running, run

SLOW = ("--force", "--max-rate", "4M")
IDLE = psutil.IOPRIO_CLASS_IDLE
NONE = psutil.IOPRIO_CLASS_NONE


def priorities(pid: int) -> dict[str, list[tuple[int, int]]]:
    """Return the nice value and I/O class of each thread of a process, by thread name."""
    found: dict[str, list[tuple[int, int]]] = {}
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        name = Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
        one = psutil.Process(thread)
        found.setdefault(name, []).append((one.nice(), one.ionice().ioclass))
    return found


def test_threads_that_touch_the_storage_have_the_lowest_priority(cold: str) -> None:
    with Running.start(*SLOW, "--background", "--threads", "3", cold) as running:
        running.await_line("10%")
        found = [one for each in priorities(running.process.pid).values() for one in each]
    own = (os.getpriority(os.PRIO_PROCESS, 0), NONE)
    # All but the main thread, which renders, and the signal thread.
    assert found.count(own) == 2
    # The pipeline and those that read: one begins on a disk, and more join where that pays.
    low = found.count((19, IDLE))
    assert 2 <= low <= 4
    assert len(found) == 2 + low


def test_without_the_flag_all_keep_their_priority(cold: str) -> None:
    with Running.start(*SLOW, cold) as running:
        running.await_line("10%")
        found = [one for each in priorities(running.process.pid).values() for one in each]
    assert set(found) == {(os.getpriority(os.PRIO_PROCESS, 0), NONE)}


def test_command_keeps_its_priority(cold: str) -> None:
    tell = "import os, psutil; print(os.getpriority(0, 0), int(psutil.Process().ionice().ioclass))"
    done = run(*SLOW[:1], "--background", cold, "--", sys.executable, "-c", tell)
    assert done.code == 0
    assert done.output.split() == [str(os.getpriority(os.PRIO_PROCESS, 0)), str(int(NONE))]


def test_at_the_lowest_priority_already_there_is_no_warning(cold: str) -> None:
    words = ["nice", "-n", "19", sys.executable, "-m", "prefetch_cli", "--force", "--background"]
    done = subprocess.run([*words, cold], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr.count("warning")) == (0, 0)


@pytest.mark.skipif(refuse.CALLS is None, reason="needs a machine whose system calls are numbered")
def test_a_refusal_is_a_warning_and_the_run_goes_on(built: BuiltCheckpoint, cold: str) -> None:
    command = (sys.executable, "-m", "tests.faults.refuse", "ioprio_set=EPERM", "--")
    done = run(
        "--force", "--background", cold, command=(*command, sys.executable, "-m", "prefetch_cli")
    )
    assert done.code == 0
    assert "--background: expected the lowest priority, found it refused" in done.errors
    assert done.resident_percent > 99
