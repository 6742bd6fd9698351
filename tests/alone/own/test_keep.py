"""`--keep` and `--lock`: real pages, real drops, real limits, and a real lack of memory."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MIB
from tests.helpers import checkpoints, oracle
from tests.helpers.cgroups import real_cgroups
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Done, Running, environment, run

HANG_SECONDS = 50
ENTER = ("sh", "-ec", 'echo $$ > "$0/cgroup.procs"; exec "$@"')
KEEP = ("--force", "--keep")

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


def mib(size: int) -> str:
    """Return a pattern for about so many MiB, with the small files or without."""
    return rf"{size}(\.\d+)? MiB"


def kept(size: int) -> str:
    """Return a pattern for the line that says that so much is being kept."""
    return f"keeping {mib(size)}"


def resident(built: BuiltCheckpoint) -> float:
    """Return the resident share of the weights."""
    total_bytes = sum(map(os.path.getsize, built.weight_files))
    return oracle.resident_bytes(built.weight_files) / total_bytes


def await_share(built: BuiltCheckpoint, least: float) -> None:
    until(lambda: resident(built) >= least)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.1)


def drop(built: BuiltCheckpoint) -> None:
    """Let another process drop the weights: it asks for nothing but to read them."""
    script = "import os, sys; [os.posix_fadvise(os.open(p, 0), 0, 0, 4) for p in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", script, *built.weight_files], check=True)


def test_what_another_process_drops_comes_back(built: BuiltCheckpoint, cold: str) -> None:
    with Running.start(*KEEP, "1h", cold) as running:
        running.await_match(kept(20))
        assert resident(built) >= 0.99
        drop(built)
        assert resident(built) < 0.01
        line = running.await_line("read again so far")
        assert line.startswith("prefetch-cli: 20")
        assert resident(built) >= 0.99
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    assert re.search(
        rf"^{mib(20)} for [\d.]+ s, {mib(20)} read again; interrupted by SIGTERM$",
        done.lines["kept"],
    )
    assert "interrupted" not in done.lines["read"]  # it was not


def test_what_is_dropped_for_the_third_time_is_given_up(built: BuiltCheckpoint, cold: str) -> None:
    with Running.start(*KEEP, "1h", "--json", cold) as running:
        running.await_match(kept(20))
        for _ in range(2):
            drop(built)
            await_share(built, 0.99)
        drop(built)
        running.await_match(rf"warning: {mib(20)} were dropped three times and are not read again")
        time.sleep(5)  # two looks
        assert resident(built) < 0.01
        # Nobody has dropped the small files.
        assert running.process.poll() is None
        running.send(signal.SIGINT)
        done = running.end()
    found = done.document["keep"]
    assert done.code == 130
    assert found["reason_ended"] == "interrupted"
    assert found["bytes_given_up"] == oracle.about(20 * MIB)
    assert found["bytes_read_again"] == oracle.about(40 * MIB)


def test_keeping_ends_when_all_is_given_up(built: BuiltCheckpoint, cold: str) -> None:
    flags = (*KEEP, "1h", "--weights-only", cold)
    with Running.start(*flags) as running:
        running.await_match(kept(20))
        for _ in range(2):
            drop(built)
            await_share(built, 0.99)
        drop(built)
        done = running.end()
    assert done.code == 0
    assert done.lines["kept"].endswith("; given up")


def test_a_duration_ends_it(built: BuiltCheckpoint, cold: str) -> None:
    done = run(*KEEP, "1s", "--time-limit", "5m", cold)
    assert done.code == 0
    assert re.search(
        rf"^{mib(20)} for 1\.\d s, 0 bytes read again; (100|99\.\d) % resident", done.lines["kept"]
    )
    # The result is shown when keeping begins.
    labels = [line[:13].strip() for line in done.output.splitlines()]
    assert labels[-3:] == ["read", "resident", "kept"]


def test_a_time_limit_is_one_of_reading(cold: str) -> None:
    """What was not read by then is not read by keeping either."""
    flags = ("--max-rate", "8M", "--time-limit", "1s", "--keep", "5s", "--json")
    document = run("--force", *flags, cold).document
    found, result = document["keep"], document["result"]
    assert not result["complete"]
    assert found["reason_ended"] == "duration"
    assert found["looks"] >= 1
    assert found["bytes_read_again"] <= 0.01 * 20 * MIB
    assert found["held_bytes"] < 0.9 * 20 * MIB
    assert found["held_bytes"] >= 0.9 * result["bytes_read"]


def test_behind_a_skip_what_is_resident_is_kept_and_nothing_else(
    built: BuiltCheckpoint, cold: str
) -> None:
    Path(built.weight_files[0]).read_bytes()  # 6 of 20 MiB
    with Running.start("--keep", "1h", cold) as running:
        line = running.await_line("keeping ")
        assert re.search(rf"{kept(6)} of {mib(20)} for 1h 00m", line), line
        drop(built)
        await_share(built, 0.99 * 6 / 20)
        time.sleep(3)
        assert resident(built) <= 1.01 * 6 / 20
        running.send(signal.SIGTERM)
        running.end()


def test_where_nothing_is_resident_nothing_is_kept(built: BuiltCheckpoint, cold: str) -> None:
    done = run("--keep", "1h", "--weights-only", cold)
    assert done.code == 0
    assert "prefetch-cli: warning: nothing of it is resident: nothing is kept" in done.errors
    assert "kept" not in done.lines


def test_quiet_is_silent_and_progress_none_says_only_results(built: BuiltCheckpoint) -> None:
    done = run(*KEEP, "1s", "--quiet", built.directory)
    assert (done.code, done.output, done.errors) == (0, "", "")
    done = run(*KEEP, "1s", "--progress", "none", built.directory)
    assert done.errors == ""
    assert "kept" in done.lines


def test_a_file_that_vanishes_or_is_replaced_is_kept_no_more(small: Path) -> None:
    first, second, third = (small / f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
    with Running.start(*KEEP, "1h", str(small)) as running:
        running.await_line("keeping ")
        new = small / "new"
        new.write_bytes(second.read_bytes())
        oracle.evict([str(new), *map(str, (first, third))])
        first.unlink()
        new.rename(second)
        for path in (first, second):
            running.await_line(f"warning: {path} was removed, replaced or cut short: it is not")
        until(lambda: oracle.resident_bytes([str(third)]) > 0)
        assert oracle.resident_bytes([str(second)]) == 0
        running.send(signal.SIGTERM)
        assert running.end().code == 143


def test_each_rank_keeps_its_share(built: BuiltCheckpoint, cold: str) -> None:
    share = ("--rank", "1", "--world-size", "3", "--split", "files")
    with Running.start(*KEEP, "1h", *share, cold) as running:
        running.await_match(kept(11))
        drop(built)
        await_share(built, 0.99 * 11 / 20)
        time.sleep(3)
        assert resident(built) <= 1.01 * 11 / 20
        running.send(signal.SIGTERM)
        running.end()


# Locked


def test_locked_pages_stay_and_are_released(built: BuiltCheckpoint, cold: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to lock without a limit")
    with Running.start(*KEEP, "1h", "--lock", cold) as running:
        running.await_match(kept(20) + " locked")
        drop(built)
        assert resident(built) >= 0.99
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    assert re.search(f"{mib(20)} locked", done.lines["kept"])
    drop(built)
    assert resident(built) < 0.01


# Root without the capability: another user may not read every Python here.
LIMITED = ("prlimit", "--memlock=1048576", "setpriv", "--bounding-set=-ipc_lock", *COMMAND)
REFUSAL = (
    r"--lock: expected to be allowed to lock 20(\.\d+)? MiB of memory, found a limit of 1 MiB "
    r"\(RLIMIT_MEMLOCK\); raise it \(ulimit -l, .*\), grant CAP_IPC_LOCK, or leave out --lock"
)


@pytest.fixture
def readable(built: BuiltCheckpoint, cold: str, tmp_path: Path) -> str:
    """The checkpoint, for another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    folder: Path = tmp_path
    while folder != Path("/"):
        folder.chmod(folder.stat().st_mode | 0o005)
        folder = folder.parent
    target = tmp_path / "model"
    subprocess.run(["cp", "-r", cold, target], check=True)
    subprocess.run(["chown", "-R", "65534:65534", target], check=True)
    oracle.make_cold([str(path) for path in target.iterdir()])
    return str(target)


def test_a_limit_is_told_before_anything_is_read(readable: str) -> None:
    done = run(*KEEP, "1h", "--lock", readable, command=LIMITED)
    assert done.code == 2
    assert re.search(f"^prefetch-cli: error: {REFUSAL}$", done.errors, re.MULTILINE), done.errors
    files = [str(path) for path in Path(readable).glob("*.safetensors")]
    assert oracle.resident_bytes(files) < 0.01 * 20 * MIB


def test_a_limit_lets_command_start_only_at_best_effort(readable: str) -> None:
    flags = (*KEEP, "load", "--lock")
    behind = (readable, "--", "echo", "started")
    done = run(*flags, *behind, command=LIMITED)
    assert (done.code, done.output) == (2, "")
    assert re.search(REFUSAL, done.errors)
    done = run(*flags, "--best-effort", *behind, command=LIMITED)
    assert (done.code, done.output) == (0, "started\n")
    assert "RLIMIT_MEMLOCK); what is dropped is read again instead" in done.errors


def test_what_the_limit_allows_is_locked(readable: str) -> None:
    command = tuple(word.replace("1048576", str(5 * MIB)) for word in LIMITED)
    share = ("--rank", "2", "--world-size", "3", "--split", "files")
    done = run(*KEEP, "1s", "--lock", *share, readable, command=command)
    assert done.code == 0
    assert re.search(f"{mib(3)} locked", done.errors)


# Until COMMAND has loaded


# Waits for a line, maps each file in a child of its own, says what is resident then, and stays.
LOADER = """
import mmap, os, sys
sys.stdin.readline()
if os.fork() == 0:
    for path in sys.argv[1:]:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            sys.stdin.readline()
            mapped.close()
    os._exit(0)
os.wait()
print("loaded", flush=True)
sys.stdin.readline()
"""


@contextmanager
def behind(built: BuiltCheckpoint, *flags: str) -> Iterator[Running]:
    """Start a loader behind --, which goes on with each line of its standard input."""
    command = (sys.executable, "-c", LOADER, *built.weight_files)
    how = (*KEEP, "load", *flags, built.directory, "--", *command)
    with Running.start(*how, stdin=subprocess.PIPE) as running:
        yield running


def go_on(running: Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.write("\n")
    running.process.stdin.flush()


def users(path: str) -> bool:
    """Return whether any process maps the file."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if path in maps.read_text():
                return True
        except OSError:
            continue
    return False


def test_load_ends_when_command_has_loaded_each_file(built: BuiltCheckpoint, cold: str) -> None:
    with behind(built) as running:
        running.await_match(kept(20) + " until COMMAND has loaded it or ends$")
        drop(built)
        await_share(built, 0.99)
        go_on(running)
        for path in built.weight_files:
            until(lambda path=path: users(path))  # type: ignore[misc]
            time.sleep(2)  # several looks
            go_on(running)
        line = running.await_line("kept  ")
        assert line.endswith("; COMMAND has loaded it")
        seconds = re.search(r" for ([\d.]+) s,", line)
        assert seconds is not None
        assert float(seconds[1]) >= 30
        go_on(running)
        assert running.end().code == 0


def test_load_ends_with_command_that_opens_nothing(built: BuiltCheckpoint, cold: str) -> None:
    command = ("sh", "-c", "read line; exit 7")
    how = (*KEEP, "load", cold, "--", *command)
    with Running.start(*how, stdin=subprocess.PIPE) as running:
        running.await_line("until COMMAND has loaded it or ends")
        go_on(running)
        done = running.end()  # the warmer holds standard error, so it has ended, too
    assert done.code == 7
    assert "kept" not in done.errors


# Where memory is short

LARGE_BYTES = 120 * MIB
LIMIT_BYTES = 200 * MIB
# Takes memory, gives it back, again and again, as an import and a compiler do.
HUNGRY = """
import mmap, sys, time
while True:
    memory = mmap.mmap(-1, int(sys.argv[1]))
    memory[::4096] = bytes(len(memory) // 4096)
    memory.close()
    print("full", flush=True)
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> BuiltCheckpoint:
    folder = tmp_path_factory.mktemp("kept") / "model"
    return checkpoints.write_sharded(str(folder), shard_bytes=[LARGE_BYTES // 3] * 3)


@pytest.fixture
def cgroup(large: BuiltCheckpoint) -> Iterator[Path]:
    """A cgroup with room for the checkpoint and 60 MiB more, of which nothing is resident."""
    oracle.make_cold(large.files)
    with real_cgroups(LIMIT_BYTES) as (made,):
        yield made


def squeezed(large: BuiltCheckpoint, cgroup: Path, flags: Sequence[str]) -> tuple[float, Done]:
    """Return the resident share at the moment of load, and the run.

    A second process has taken more than is left beside the checkpoint by then, three times.
    """
    enter = (*ENTER, str(cgroup))
    with Running.start("--force", *flags, large.directory, command=(*enter, *COMMAND)) as running:
        running.await_match(kept(120) if flags else "100% ")
        if not flags:
            running.end()
        hungry = (*enter, sys.executable, "-c", HUNGRY, str(130 * MIB))
        with subprocess.Popen(
            hungry, stdout=subprocess.PIPE, text=True, env=environment()
        ) as other:
            try:
                assert other.stdout is not None
                for _ in range(3):
                    assert other.stdout.readline() == "full\n"
            finally:
                other.kill()
        time.sleep(5)  # two looks
        share = resident(large)
        running.send(signal.SIGTERM)
        return share, running.end()


def test_what_is_kept_is_there_after_a_squeeze(large: BuiltCheckpoint, cgroup: Path) -> None:
    without, _ = squeezed(large, cgroup, ())
    share, done = squeezed(large, cgroup, ("--keep", "1h"))
    print(f"resident at the moment of load: {without:.1%} without, {share:.1%} with --keep")
    assert done.code == 143
    assert without < 0.8
    assert share >= 0.97


def test_what_is_locked_is_there_during_a_squeeze(large: BuiltCheckpoint, cgroup: Path) -> None:
    """Nobody is killed for it: the pages are unlocked before memory is used up."""
    flags = ("--force", "--keep", "1h", "--lock")
    enter = (*ENTER, str(cgroup))
    with Running.start(*flags, large.directory, command=(*enter, *COMMAND)) as running:
        running.await_match(kept(120) + " locked")
        hungry = [*enter, sys.executable, "-c", HUNGRY]
        with subprocess.Popen([*hungry, str(30 * MIB)], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"full\n"
            share = resident(large)
            other.kill()
        print(f"resident at the moment of load: {share:.1%} with --lock")
        assert share >= 0.99
        assert running.process.poll() is None
        running.send(signal.SIGTERM)
        assert running.end().code == 143


# Takes memory bit by bit and keeps it.
GREEDY = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * (1 << 20))
    time.sleep(0.05)
print("full", flush=True)
sys.stdin.read()
"""


def test_locked_pages_are_unlocked_before_memory_runs_out(
    large: BuiltCheckpoint, cgroup: Path
) -> None:
    flags = ("--force", "--keep", "1h", "--lock", "--json")
    enter = (*ENTER, str(cgroup))
    with Running.start(*flags, large.directory, command=(*enter, *COMMAND)) as running:
        running.await_match(kept(120) + " locked")
        greedy = [*enter, sys.executable, "-c", GREEDY, "100"]
        with subprocess.Popen(greedy, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"full\n"  # it was not killed
            other.kill()
        done = running.end()
    assert done.code == 0
    found = done.document["keep"]
    assert found["reason_ended"] == "released"
    assert found["elapsed_seconds"] < 3600
    assert "memory became short: 120" in done.errors
