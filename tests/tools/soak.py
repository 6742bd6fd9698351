"""Many runs on one checkpoint at once, for a long time: `make soak`.

Up to 16 processes warm, check, evict and are interrupted at random, some of them in a cgroup too
small for them and the checkpoint, while a squeezer drops random pages. Throughout: only known exit
codes, no traceback, and a document wherever one is due. At the end: no process, file or shared
memory is left; a process that has run all stages many times holds no more descriptors, threads or
memory than at first; and the reported residency is what fincore reports.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefetch_cli.base.words import Engine
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, environment

_MIB = 1024 * 1024
_MOST_PROCESSES = 16
_SHARDS = (24 * _MIB, 40 * _MIB, 1 * _MIB, 63 * _MIB, 30 * _MIB, 2 * _MIB)
_CGROUP_BYTES = 400 * _MIB  # for seven processes of 25 to 50 MiB each
_MOST_MEMORY_BYTES = 100 * _MIB
_PACKAGE = "/prefetch_cli/"
_RUN_SECONDS = 120  # per process: it ends far earlier, or hangs
_LEAVE_SECONDS = 20
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
_CODES = {0, *(128 + number for number in _ENDINGS), *(-number for number in _ENDINGS)}
_ALONE_RUNS = 40  # before the process that runs all stages is first measured
_ALONE = """
import gc, json, os, resource, sys, threading
from prefetch_cli.cli import meaning
from prefetch_cli.run import pipeline
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.cli.main import command
from prefetch_cli.cli.rules import Given
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
def look():
    gc.collect()
    resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    return [len(os.listdir("/proc/self/fd")), threading.active_count(), resident]
for line in sys.stdin:
    words = json.loads(line)
    context = command.make_context("soak", words)
    typed = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    values = Given(context.params, typed).effective().values
    options = meaning.to_options(values, (), os.environ)
    events = []
    stop = Stop(options.time_limit_seconds)
    pipeline.run(options, os.environ, Monitor(), stop, events.append)
    failed = [list(one) for one in folded(Outcome(options.action), events).failed]
    del events
    print(json.dumps([failed, *look()]), flush=True)
"""


@dataclass
class Findings:
    """The results of all runs."""

    runs: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    most_bytes: int = 0
    slowest_seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def blame(self, what: str) -> None:
        """Record a violation."""
        with self.lock:
            self.wrong.append(what)
            print(f"soak: {what}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if nothing was violated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="how long (1800)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="to repeat a run")
    parser.add_argument("--dir", default=None, help="where the checkpoint is made")
    given = parser.parse_args(arguments)
    folder = tempfile.mkdtemp(prefix="soak-", dir=given.dir)
    findings = Findings()
    before = _shared_memory()
    try:
        built = checkpoints.write_streamed(f"{folder}/model", shard_bytes=_SHARDS)
        state = _state(built)
        with _small_cgroup() as cgroup:
            print(f"seed {given.seed}, {cgroup or 'no cgroup: needs root'}", flush=True)
            _soak(built, given.seconds, given.seed, cgroup, findings)
        _at_the_end(built, findings)
        if _state(built) != state:
            findings.blame("the checkpoint was changed")
        if left := _shared_memory() - before:
            findings.blame(f"left in /dev/shm: {sorted(left)}")
    finally:
        shutil.rmtree(folder)
    print(f"runs: {dict(findings.runs)}; exit codes: {dict(findings.codes)}")
    print(
        f"most memory {findings.most_bytes / _MIB:.0f} MiB, "
        f"slowest {findings.slowest_seconds:.1f} s; {len(findings.wrong)} wrong"
    )
    return 1 if findings.wrong else 0


def _soak(
    built: BuiltCheckpoint, seconds: float, seed: int, cgroup: str | None, findings: Findings
) -> None:
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while time.monotonic() < until:
            if number == 0:
                _squeeze(built, chance)
            elif number == 1:
                _run_alone(built, chance, until, findings)
            else:
                _run_one(built, chance, cgroup if number % 2 else None, findings)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_MOST_PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _arguments(built: BuiltCheckpoint, chance: random.Random) -> tuple[str, list[str]]:
    """Return the action and options of one run."""
    action = chance.choice(("warm", "warm", "warm", "check", "evict", "dry-run", "ranks"))
    words = ["--json", "--threads", str(chance.choice((1, 2, 8, 64)))]
    if action in {"warm", "ranks"}:
        words += ["--force", "--engine", chance.choice([engine.value for engine in Engine])]
        words += ["--block-size", chance.choice(("64K", "1M", "16M"))]
        words += chance.choice(([], [], ["--max-bytes", "50M"], ["--max-rate", "200M"]))
        words += chance.choice(([], [], ["--time-limit", "0.3s"]))
    if action == "ranks":
        size = chance.choice((2, 5))
        words += ["--rank", str(chance.randrange(size)), "--world-size", str(size)]
    if action in {"check", "evict", "dry-run"}:
        words.append(f"--{action}")
    return action, [*words, built.directory]


def _run_one(
    built: BuiltCheckpoint, chance: random.Random, cgroup: str | None, findings: Findings
) -> None:
    action, words = _arguments(built, chance)
    start = ("sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', cgroup) if cgroup else ()
    began = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*start, *COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(),
        )
        # Not Popen.kill(): it polls first, which would reap the process and lose its usage.
        watchdog = threading.Timer(_RUN_SECONDS, os.kill, (process.pid, signal.SIGKILL))
        watchdog.start()
        sent = None
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.6))
            sent = chance.choice(_ENDINGS)
            os.kill(process.pid, sent)
        _, status, usage = os.wait4(process.pid, 0)
        watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        said, complaints = output.read(), errors.read().decode(errors="replace")
    seconds = time.monotonic() - began
    with findings.lock:
        findings.runs[action] += 1
        findings.codes[process.returncode] += 1
        findings.most_bytes = max(findings.most_bytes, usage.ru_maxrss * 1024)
        findings.slowest_seconds = max(findings.slowest_seconds, seconds)
    line = " ".join(words)
    if seconds > _RUN_SECONDS:
        findings.blame(f"did not end: {line}")
    # While the interpreter starts, before any line of the tool, Python itself handles SIGINT.
    if sent is signal.SIGINT and "KeyboardInterrupt" in complaints and _PACKAGE not in complaints:
        return
    # Pages that another process is reading stay, and the run reports that.
    in_use = action == "evict" and process.returncode == 1 and " stay: " in complaints
    expected = process.returncode in _CODES and (sent is not None or process.returncode == 0)
    if not (expected or in_use):
        findings.blame(f"exit code {process.returncode} of {line}: {complaints}")
    if any(word in complaints for word in ("Traceback", "defect", "Exception ignored")):
        findings.blame(f"{line}: {complaints}")
    if sent is None and process.returncode == 0:
        _judge(action, line, json.loads(said), findings)
    if usage.ru_maxrss * 1024 > _MOST_MEMORY_BYTES:
        findings.blame(f"{usage.ru_maxrss // 1024} MiB of memory: {line}")


def _judge(action: str, line: str, document: dict[str, object], findings: Findings) -> None:
    residency = document["residency"]
    assert isinstance(residency, dict)
    known = residency["before_bytes"], residency["after_bytes"]
    for figure in known:
        if figure is not None and not 0 <= figure <= residency["total_bytes"]:
            findings.blame(f"{line}: {residency}")
    result = document["result"]
    if action in {"warm", "ranks"} and isinstance(result, dict) and result["failed"]:
        findings.blame(f"{line}: {result}")


def _run_alone(
    built: BuiltCheckpoint, chance: random.Random, until: float, findings: Findings
) -> None:
    """Run all stages in one process again and again, and compare what it holds over time."""
    with subprocess.Popen(
        [sys.executable, "-c", _ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first: list[int] = []
        found: list[int] = []
        count = 0
        while time.monotonic() < until:
            _, words = _arguments(built, chance)
            if "--time-limit" in words:
                continue  # a hanging thread would stay until the process exits
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            failed, *found = json.loads(process.stdout.readline())
            count += 1
            if failed and "--evict" not in words:
                findings.blame(f"{failed} of {' '.join(words)}, in one process")
            if count == _ALONE_RUNS:
                first = found
        process.stdin.close()
    if not first:
        return
    print(f"in one process, after {_ALONE_RUNS} runs {first}, after {count:,} {found}", flush=True)
    descriptors, threads, size_bytes = (now - then for now, then in zip(found, first, strict=True))
    if descriptors > 0 or threads > 0 or size_bytes > 8 * _MIB:
        findings.blame(f"one process held {first} after {_ALONE_RUNS} runs, then {found}")


def _squeeze(built: BuiltCheckpoint, chance: random.Random) -> None:
    """Drop a part of a file, as memory pressure would."""
    path = chance.choice(built.files)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        start = chance.randrange(max(1, size))
        os.posix_fadvise(descriptor, start, chance.randrange(size) + 1, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    time.sleep(chance.uniform(0, 0.05))


def _at_the_end(built: BuiltCheckpoint, findings: Findings) -> None:
    deadline = time.monotonic() + _LEAVE_SECONDS
    while (left := _processes(built.directory)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if left:
        findings.blame(f"left running: {left}")
    for words, wanted in (
        (("--check",), None),
        (("--force",), sum(map(os.path.getsize, built.files))),
        (("--check",), None),
        (("--evict",), 0),
    ):
        done = subprocess.run(
            [*COMMAND, *words, "--json", built.directory],
            capture_output=True,
            check=False,
            env=environment(),
        )
        real_bytes = oracle.resident_bytes(built.files)
        said_bytes = json.loads(done.stdout)["residency"]["after_bytes"]
        total_bytes = sum(map(os.path.getsize, built.files))
        if abs(said_bytes - real_bytes) > oracle.ALLOWED_WARM * total_bytes:
            findings.blame(f"{words}: said {said_bytes}, fincore {real_bytes}")
        if wanted is not None and abs(said_bytes - wanted) > oracle.ALLOWED_WARM * total_bytes:
            findings.blame(f"{words}: expected {wanted} resident, found {said_bytes}")


@contextlib.contextmanager
def _small_cgroup() -> Iterator[str | None]:
    """Yield a cgroup too small for its processes and the checkpoint, or None without permission."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = f"{root}/prefetch-soak-{os.getpid()}"
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            Path(group, limit).write_text(str(_CGROUP_BYTES), encoding="ascii")
        except OSError:
            os.rmdir(group)
            continue
        try:
            yield group
        finally:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    os.rmdir(group)
                    break
                time.sleep(0.1)
        return
    yield None


def _processes(directory: str) -> list[str]:
    """Return the processes that name the checkpoint, and those that the tool left behind."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if int(pid) != os.getpid() and (directory in line or name == "prefetch-leave"):
                found.append(f"{pid} {name} {line}")
    return found


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def _state(built: BuiltCheckpoint) -> list[tuple[str, int, int]]:
    paths = [built.directory, *built.files]
    return [(path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
