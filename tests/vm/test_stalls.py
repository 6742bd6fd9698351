"""A server that goes away, for a while or for good: what the command says, and how it ends.

The sender of a signal, in the machine, measures the time from the signal to the exit.
"""

import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.helpers.command import ROOT
from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import nfs
from tests.vm.machine import Done, Machine, Process
from tests.vm.rows import MODEL

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
END_SECONDS = 1.0  # from a signal to the exit
SAY_SECONDS = 30.0  # from a stall to the line that reports it
LEAVE_SECONDS = 60.0  # from the server's return until no process is left
# 24 MiB take 12 s, which leaves time to act in the middle.
SLOW = ("--max-rate", "2M")
SAYING = "nothing has arrived for"
# By then every thread that is going to hang hangs.
HANG_SECONDS = 3
SOFT_SECONDS = 180  # until every call has failed
MODULE = (sys.executable, "-m", "prefetch_cli")

# An emulated machine beside others is occasionally late by a few tenths of a second. A defect would
# take longer: a call that holds the process lasts until the server is back.
pytestmark = pytest.mark.flaky(reruns=2, only_rerun=[r"the end came 1\.\d+ s after the signal"])

# Sends signal $1 to process $2; prints the time of sending and the time when process $3 is gone.
_END = """
[ -p /run/never ] || mkfifo /run/never
exec 3<> /run/never
began=$EPOCHREALTIME
kill -s "$1" "$2"
while [ -e "/proc/$3" ] && [ "$SECONDS" -lt 90 ]; do read -r -t 0.01 -u 3; done
echo "$began $EPOCHREALTIME"
"""


@dataclass(frozen=True)
class Away:
    """A mount whose server comes and goes."""

    machine: Machine
    mount_point: str
    served: str = MODEL  # the checkpoint's path on the server

    @property
    def model(self) -> str:
        """The checkpoint's path on the mount."""
        return self.mount_point + self.served.removeprefix(nfs.EXPORT)

    def files(self) -> dict[str, int]:
        """Return the files' sizes; call it only while the server is up."""
        lines = self.machine.run("find", self.model, "-type", "f", "-printf", r"%s %p\n").out
        return {
            path: int(size)
            for size, _, path in (one.partition(" ") for one in lines.split("\n")[:-1])
        }

    def resident_bytes(self) -> int:
        """Return the resident bytes by fincore, as root; call it only while the server is up."""
        return sum(self.machine.resident_bytes(list(self.files())))

    @contextmanager
    def reading(self, *arguments: str) -> Iterator[Process]:
        """Yield a run that is in the middle of reading."""
        with self.running(*SLOW, *arguments) as process:
            process.await_text("20%")
            yield process

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Process]:
        """Yield a started run; kill it at the end if it still runs."""
        process = self.machine.start_tool(*arguments, self.model)
        try:
            yield process
        finally:
            if process.running:
                process.send(signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def _server(machine: Machine) -> Iterator[None]:
    with nfs.serving(machine):
        yield


@pytest.fixture(params=["4.2", "3"], ids=["nfs4.2", "nfs3"])
def either(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Away]:
    """A hard mount of each NFS version, with nothing cached."""
    with nfs.mounted(machine, version=request.param) as mount_point:
        yield Away(machine, mount_point)


@pytest.fixture
def away(machine: Machine) -> Iterator[Away]:
    """A hard mount of NFSv4.2, with nothing cached."""
    with nfs.mounted(machine) as mount_point:
        yield Away(machine, mount_point)


@pytest.fixture(params=["4.2", "3"], ids=["nfs4.2", "nfs3"])
def soft(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Away]:
    """A mount whose calls fail a few seconds after the server is gone."""
    options = ("soft", "timeo=10", "retrans=1")
    with nfs.mounted(machine, version=request.param, options=options) as mount_point:
        yield Away(machine, mount_point)


def test_a_stall_is_named_and_a_signal_ends_it(either: Away) -> None:
    sizes = either.files()
    with either.reading() as process:
        nfs.stop_server(either.machine)
        path, offset = said_within(process, SAY_SECONDS)
        assert path in sizes
        assert offset is not None
        assert 0 <= offset < sizes[path]
        done = ended_by(either.machine, process, signal.SIGTERM)
        assert "; interrupted by SIGTERM" in done.out
        nfs.start_server(either.machine)
        nothing_stays(either.machine, process)


def test_nobody_keeps_the_pipe_of_its_output(away: Away) -> None:
    machine = away.machine
    line = f"set -o pipefail; {shlex.join((*MODULE, *SLOW, away.model))} 2>&1 | tee /run/said"
    shell = machine.start_process("bash", "-c", line, folder=ROOT)
    try:
        shell.await_text("20%", seconds=120)
        nfs.stop_server(machine)
        time.sleep(HANG_SECONDS)
        words = ("pgrep", "-s", str(shell.pid), "-f", shlex.join(MODULE))
        (command,) = {int(pid) for pid in machine.run(*words).out.split()} - {shell.pid}
        # The shell waits for tee, and tee for the end of the pipe.
        done = ended_by(machine, shell, signal.SIGINT, to=command)
        assert "; interrupted by SIGINT" in done.out
        nfs.start_server(machine)
        nothing_stays(machine, shell)
    finally:
        machine.run("pkill", "-KILL", "-s", str(shell.pid), check=False)


def test_with_the_server_back_it_goes_on_to_the_end(either: Away) -> None:
    total_bytes = sum(either.files().values())
    with either.reading("--json") as process:
        nfs.stop_server(either.machine)
        time.sleep(HANG_SECONDS)
        assert process.running
        nfs.start_server(either.machine)
        done = process.end(seconds=300)
    assert done.code == 0, done
    assert done.document["result"]["complete"], done
    assert done.document["result"]["failed"] == []
    assert either.resident_bytes() >= (1 - ALLOWED_WARM) * total_bytes


def test_the_time_limit_ends_a_stall(either: Away) -> None:
    limit_seconds = 10
    with either.reading("--json", "--time-limit", f"{limit_seconds}s") as process:
        nfs.stop_server(either.machine)
        done = process.end()
    assert done.code == 0, done
    assert done.document["result"]["complete"] is False
    assert done.document["result"]["bytes_read"] > 0
    assert limit_seconds <= done.seconds < limit_seconds + 2


@pytest.mark.parametrize("lose", [nfs.stop_server, nfs.cut], ids=["stopped", "cut"])
def test_a_server_that_is_gone_at_the_start(away: Away, lose: Callable[[Machine], None]) -> None:
    away.machine.drop_caches()
    lose(away.machine)
    with away.running() as process:
        path, _ = said_within(process, SAY_SECONDS)
        assert path.startswith(away.mount_point)
        ended_by(away.machine, process, signal.SIGTERM)


def test_every_action_can_be_interrupted_while_the_server_is_gone(away: Away) -> None:
    away.machine.drop_caches()
    nfs.stop_server(away.machine)
    with (
        away.running("--check") as check,
        away.running("--evict") as evict,
        away.running("--dry-run") as dry_run,
    ):
        for process in (check, evict, dry_run):
            process.await_text(SAYING)
        for process in (check, evict, dry_run):
            ended_by(away.machine, process, signal.SIGTERM)
        nfs.start_server(away.machine)
        for process in (check, evict, dry_run):
            nothing_stays(away.machine, process)


def test_a_soft_mount_that_fails_in_the_middle_is_a_failure_of_its_files(soft: Away) -> None:
    sizes = soft.files()
    with soft.reading("--json") as process:
        nfs.stop_server(soft.machine)
        done = process.end(seconds=SOFT_SECONDS)
    failed_in_the_middle(done, sizes)


def test_a_soft_mount_whose_server_is_gone_at_the_start_is_an_error(soft: Away) -> None:
    soft.machine.drop_caches()
    nfs.stop_server(soft.machine)
    with soft.running("--json") as process:
        done = process.end(seconds=SOFT_SECONDS)
    assert done.code == 1, done  # the checkpoint is not to blame
    assert soft.model in done.document["error"]["message"]


def test_an_export_that_is_withdrawn_is_a_failure_of_its_files(either: Away) -> None:
    sizes = either.files()
    with either.reading("--json") as process:
        nfs.withdraw(either.machine)
        try:
            done = process.end()
        finally:
            nfs.export(either.machine)
    failed_in_the_middle(done, sizes)
    errors = {one["error"] for one in done.document["result"]["failed"]}
    assert errors == {"Permission denied"}  # nfsd's answer for an export that is not this client's


def test_files_that_are_removed_are_failures(machine: Machine) -> None:
    # NFSv3 only: with NFSv4 the server knows which files are open, and would keep them.
    removed = f"{nfs.EXPORT}/removed"
    with nfs.mounted(machine, version="3") as mount_point:
        try:
            machine.run("cp", "-r", MODEL, removed)
            away = Away(machine, mount_point, removed)
            sizes = away.files()
            with away.reading("--json") as process:
                machine.sh(f"rm {removed}/*.safetensors")
                done = process.end()
        finally:
            machine.run("rm", "-rf", removed)
    failed_in_the_middle(done, sizes)
    errors = {one["error"] for one in done.document["result"]["failed"]}
    # From files that were already open, and from files that were not.
    assert "Stale file handle" in errors
    assert errors <= {"Stale file handle", "No such file or directory"}


def said_within(process: Process, seconds: float) -> tuple[str, int | None]:
    """Return the path and offset in the first line that reports a stall."""
    process.await_text(SAYING, seconds=seconds)
    _, errors = process.shown()
    found = re.search(rf"{SAYING} .+?: waiting .+? for (\S+)(?: at offset ([\d,]+))?\n", errors)
    assert found is not None, errors
    return found[1], int(found[2].replace(",", "")) if found[2] else None


def ended_by(
    machine: Machine, process: Process, number: signal.Signals, *, to: int | None = None
) -> Done:
    """Return the result after a signal, to it or to its child `to`, ended it in time."""
    words = (number.name.removeprefix("SIG"), str(to or process.pid), str(process.pid))
    began, ended = map(float, machine.run("bash", "-c", _END, "end", *words).out.split())
    done = process.end()
    assert done.code == CODES[number], done
    seconds = ended - began
    assert seconds <= END_SECONDS, f"the end came {seconds:.2f} s after the signal: {done}"
    return done


def nothing_stays(machine: Machine, process: Process) -> None:
    """Soon no process is left of the session that this one started."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while left := machine.run("pgrep", "-l", "-s", str(process.pid), check=False).out:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def failed_in_the_middle(done: Done, sizes: dict[str, int]) -> None:
    """Part was read, and the files of the rest are listed, each once, with an error."""
    assert done.code == 1, done
    result = done.document["result"]
    assert result["complete"] is False
    assert 0 < result["bytes_read"] < sum(sizes.values())
    failed = [one["path"] for one in result["failed"]]
    assert failed
    assert len(set(failed)) == len(failed)
    assert set(failed) <= set(sizes)
    assert all(one["error"] for one in result["failed"])
