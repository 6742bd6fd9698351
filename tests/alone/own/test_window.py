"""`--window`: real loaders, followed from outside, in a cgroup that holds half of a checkpoint."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import MIB
from tests.helpers import checkpoints, oracle
from tests.helpers.cgroups import real_cgroups
from tests.helpers.checkpoints import BuiltCheckpoint, Fill
from tests.helpers.command import COMMAND, Running, environment
from tests.helpers.passthrough import mounted, reads
from tests.run.test_json_contract import COUNT, WINDOW_KEYS, record, words

SHARD = 64 * MIB
SHARDS = 16
WINDOW = 4  # shards
LIMIT = 512 * MIB
ENTER = ("sh", "-ec", 'echo $$ > "$0/cgroup.procs"; exec "$@"')
HANG_SECONDS = 50

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)

# Does what each line says in one of its processes, each of which is forked when it is first named:
# the process, a word, and a path. It says so when that is done.
LOADER = """
import ctypes, mmap, os, sys
def act(held, word, path):
    if word == "map":
        with open(path, "rb") as file:
            held[path] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        sum(held[path][start] for start in range(0, len(held[path]), mmap.PAGESIZE))
    elif word == "open":
        held[path] = open(path, "rb", buffering=0)
    elif word == "read":  # half of it
        held[path].read(os.path.getsize(path) // 2)
    elif word == "close":
        held.pop(path).close()
    elif word == "hide":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    elif word == "exit":
        os._exit(int(path))
workers, own = {}, {}
for number, line in enumerate(sys.stdin):
    name, word, path = line.rstrip("\\n").split(" ", 2)
    if name == "main":
        act(own, word, path)
    else:
        if name not in workers:
            (to, ours), (theirs, fro) = os.pipe(), os.pipe()
            if os.fork() == 0:
                os.close(ours)
                held = {}
                for line in os.fdopen(to):
                    act(held, *line.rstrip("\\n").split(" ", 1))
                    os.write(fro, b".")
                os._exit(0)
            os.close(to), os.close(fro)
            workers[name] = ours, theirs
        ours, theirs = workers[name]
        os.write(ours, f"{word} {path}\\n".encode())
        if not os.read(theirs, 1):
            os.wait()
            del workers[name]
    print(f"done {number}", file=sys.stderr, flush=True)
"""


class Loader:
    """COMMAND, which loads what it is told to, and the warmer beside it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self._said = 0

    def __call__(self, word: str, path: str = "-", *, by: str = "main", waits: bool = True) -> None:
        assert self.running.process.stdin is not None
        self.running.process.stdin.write(f"{by} {word} {path}\n")
        self.running.process.stdin.flush()
        if waits:
            self.running.await_match(f"^done {self._said}$")
        self._said += 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BuiltCheckpoint:
    """A checkpoint of 1 GiB in 16 shards, each of which is a hole: only its pages count here."""
    folder = tmp_path_factory.mktemp("window") / "model"
    return checkpoints.write_streamed(str(folder), shard_bytes=[SHARD] * SHARDS, fill=Fill.HOLE)


@contextmanager
def loading(
    *arguments: str, limit: int | None = LIMIT, prefix: tuple[str, ...] = ()
) -> Iterator[Loader]:
    """Warm beside a loader, with memory for half of the checkpoint, until the window moves."""
    with real_cgroups(limit) as (group,):
        flags = ("--force", *arguments, "--", sys.executable, "-c", LOADER)
        command = (*ENTER, str(group), *prefix, *COMMAND)
        try:
            with Running.start(*flags, command=command, stdin=subprocess.PIPE) as running:
                running.await_match("a window of [0-9.]+ MiB moves with")
                yield Loader(running)
                assert peak_bytes(group) <= (limit or sys.maxsize)
        finally:
            await_empty(group)


def await_empty(group: Path) -> None:
    until(lambda: not (group / "cgroup.procs").read_text())


def peak_bytes(group: Path) -> int:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (group / name).exists():
            return int((group / name).read_text())
    return 0


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.05)


def warm(model: BuiltCheckpoint) -> list[float]:
    """Return the resident share of each shard."""
    return [oracle.resident_bytes([path]) / SHARD for path in model.weight_files]


def await_warm(model: BuiltCheckpoint, first: int, size: int = WINDOW) -> list[float]:
    """Return the resident shares once so many shards from this one on are warm."""
    until(lambda: min(warm(model)[first : first + size]) >= 0.99)
    time.sleep(0.3)  # whatever else it would read, it has begun to
    return warm(model)


@pytest.fixture(autouse=True)
def _cold(model: BuiltCheckpoint) -> None:
    oracle.make_cold(model.files)


WINDOW_FLAGS = ("--window", "256M", "--block-size", "4M")


def test_it_stays_ahead_and_drops_what_was_passed(model: BuiltCheckpoint) -> None:
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        for number, path in enumerate(model.weight_files):
            loader("map", path)
            found = await_warm(model, number)
            assert max(found[number + WINDOW :], default=0) <= 0.02, found
            # Whatever it reads ahead: as long as it has not been passed it stays.
            assert min(found[number : number + WINDOW]) >= 0.99, found
            assert sum(found) * SHARD < LIMIT
            loader("close", path)
        line = loader.running.await_line("COMMAND has loaded it")
        found = warm(model)
        loader("exit", "7", waits=False)
        done = loader.running.end()
    assert done.code == 7
    assert max(found[:8]) <= 0.02, found
    match = re.search(r"window +768.* MiB more read, at most 256 MiB ahead, (\d+)[.\d]* MiB", line)
    assert match is not None, line
    assert int(match[1]) >= SHARDS // 2 * 64
    assert "a window of 256 MiB moves ahead of COMMAND's loader" in done.errors
    assert "warning" not in done.errors


def test_nothing_is_dropped_where_all_fits(model: BuiltCheckpoint) -> None:
    with loading(*WINDOW_FLAGS, model.directory, limit=None) as loader:
        for number, path in enumerate(model.weight_files[:8]):
            loader("map", path)
            found = await_warm(model, number)
            assert max(found[number + WINDOW :], default=0) <= 0.02, found
            loader("close", path)
        assert min(warm(model)[:8]) >= 0.99


def test_a_loader_that_copies_is_followed_within_a_file(model: BuiltCheckpoint) -> None:
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        first = model.weight_files[0]
        loader("open", first)
        assert await_warm(model, 0)[WINDOW] <= 0.02
        loader("read", first)
        until(lambda: warm(model)[WINDOW] >= 0.49)
        time.sleep(0.3)
        assert warm(model)[WINDOW] <= 0.52
        loader("read", first)
        until(lambda: warm(model)[WINDOW] >= 0.99)
        assert warm(model)[WINDOW + 1] <= 0.02


def test_what_a_loader_leaves_out_does_not_hold_it_up(model: BuiltCheckpoint) -> None:
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        loader("map", model.weight_files[0])
        await_warm(model, 0)
        loader("close", model.weight_files[0])
        loader("map", model.weight_files[6])
        found = await_warm(model, 6)
        assert max(found[6 + WINDOW :]) <= 0.02, found
        # There is no room for both.
        assert sum(found[:6]) <= 3, found


def test_a_loader_in_reverse_order_gets_the_head(model: BuiltCheckpoint) -> None:
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        before = warm(model)
        for path in model.weight_files[:-3:-1]:
            loader("map", path)
            time.sleep(0.5)
            loader("close", path)
        line = loader.running.await_line("warning: COMMAND does not read the weight files in the")
        assert line.endswith("order in which they are warmed: only the head is read")
        loader.running.await_line("then the head")
        found = warm(model)
        loader("exit", "0", waits=False)
        assert loader.running.end().code == 0
    assert min(found[:3]) >= 0.99, found
    assert sum(found) >= sum(before) + 2, (before, found)


def test_a_server_that_crashes_and_starts_again_is_followed_anew(model: BuiltCheckpoint) -> None:
    """COMMAND itself loads nothing, but forks who does."""
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        for number, path in enumerate(model.weight_files[:9]):
            loader("map", path, by="first")
            if number == 0:
                time.sleep(2.5)  # new processes are looked for once a second
            await_warm(model, number)
            if number < 8:
                loader("close", path, by="first")
        assert warm(model)[0] <= 0.02
        loader("exit", "1", by="first")
        # What it will come to stays; behind that the window goes on.
        for path in model.weight_files[:9]:
            loader("map", path, by="second")
            time.sleep(0.3)
            assert warm(model)[12] <= 0.02
            loader("close", path, by="second")
        loader("map", model.weight_files[9], by="second")
        until(lambda: warm(model)[12] >= 0.99)
        assert warm(model)[13] <= 0.02
        assert "warning" not in "\n".join(loader.running.errors)


def test_the_slowest_rank_counts(model: BuiltCheckpoint) -> None:
    """Two ranks drift apart by 5 shards: nothing goes that the slow one will come to."""
    with loading(*WINDOW_FLAGS, model.directory) as loader:
        loader("map", model.weight_files[0], by="slow")
        loader("map", model.weight_files[0], by="fast")
        time.sleep(2.5)  # new processes are looked for once a second
        for before, path in zip(model.weight_files, model.weight_files[1:6], strict=False):
            loader("map", path, by="fast")
            loader("close", before, by="fast")
            time.sleep(0.2)
        found = await_warm(model, 0, 6)
        assert min(found[:6]) >= 0.99, found
        assert max(found[6:]) <= 0.02, found
        loader("map", model.weight_files[1], by="slow")
        loader("close", model.weight_files[0], by="slow")
        loader("map", model.weight_files[2], by="slow")
        loader("close", model.weight_files[1], by="slow")
        # 2 to 5 are there already.
        assert await_warm(model, 2)[6] <= 0.02
        loader("map", model.weight_files[3], by="slow")
        loader("close", model.weight_files[2], by="slow")
        await_warm(model, 3)


def test_two_models_one_after_the_other(model: BuiltCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    draft = checkpoints.write_streamed(str(folder), shard_bytes=[SHARD] * 2, fill=Fill.HOLE)
    oracle.make_cold(draft.files)
    with loading(*WINDOW_FLAGS, model.directory, draft.directory) as loader:
        for path in (*model.weight_files[:1], *model.weight_files[-2:]):
            loader("map", path, by="target")
            time.sleep(2.5)  # new processes are looked for once a second
            loader("close", path, by="target")
        loader("exit", "0", by="target")
        until(lambda: oracle.resident_bytes(draft.weight_files) >= 0.99 * 2 * SHARD)
        for path in draft.weight_files:
            loader("map", path, by="draft")
        assert "warning" not in "\n".join(loader.running.errors)


def test_processes_that_hide_are_noticed(model: BuiltCheckpoint) -> None:
    if os.geteuid() != 0 or (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("needs root and setpriv (util-linux), to give up the right to look")
    prefix = (setpriv, "--bounding-set=-sys_ptrace")
    with loading(*WINDOW_FLAGS, model.directory, prefix=prefix) as loader:
        loader("hide")
        line = loader.running.await_line("warning: COMMAND's processes are hidden from this user")
        assert line.endswith(": only the head is read")
        loader.running.await_line("then the head")
        found = warm(model)
        assert min(found[:5]) >= 0.99, found


def test_it_ends_within_a_second_of_command(model: BuiltCheckpoint) -> None:
    """And however COMMAND ends: the exit code is its own."""
    with loading("--window", "auto", model.directory) as loader:
        loader("map", model.weight_files[3])
        time.sleep(0.5)
        ended = time.monotonic()
        loader.running.send(signal.SIGKILL)
        done = loader.running.end()  # no process has its standard error any more
        assert time.monotonic() - ended < 1
    assert done.code == -signal.SIGKILL
    assert not [line for line in done.errors.splitlines() if line.startswith("window")]


def test_the_outcome_is_an_event(model: BuiltCheckpoint) -> None:
    """COMMAND that loads only the last file, and at once."""
    flags = (*WINDOW_FLAGS, "--progress", "json")
    with loading(*flags, model.directory) as loader:
        loader("map", model.weight_files[-1], by="worker")
        time.sleep(2.5)  # new processes are looked for once a second
        loader("exit", "0", by="worker")
        event = json.loads(loader.running.await_line('"event": "window"'))
        loader("exit", "0", waits=False)
        loader.running.end()
    schema = record(event=words("window"), rank=COUNT, **WINDOW_KEYS)
    jsonschema.validate(event, schema, jsonschema.Draft202012Validator)
    assert (event["reason_ended"], event["fallback"]) == ("loaded", None)
    assert event["size_bytes"] == 256 * MIB


# Storage that takes 10 ms to answer each read

RANKS = """
import glob, mmap, os, sys
for _ in range(3):
    if os.fork() == 0:
        break
for path in sorted(glob.glob(sys.argv[1] + "/model-*.safetensors")):
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[start] for start in range(0, len(mapped), mmap.PAGESIZE))
    mapped.close()
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def test_four_lazy_loaders_of_more_than_fits(tmp_path: Path) -> None:
    """Alone, with the head, and with a window: each byte comes once, and memory is enough.

    How long each takes is printed: a busy machine must not decide here.
    """
    size = 256 * MIB
    limit = 176 * MIB
    folder, mountpoint = tmp_path / "source", tmp_path / "mount"
    folder.mkdir()
    mountpoint.mkdir()
    far = checkpoints.write_streamed(str(folder / "model"), shard_bytes=[size // 16] * 16)
    for name, flags in (
        ("alone", None),
        ("head", ("--partial",)),
        ("window", ("--window", "auto")),
    ):
        oracle.make_cold(far.files)
        log = str(tmp_path / name)
        options = ("--delay", "0.01", "--keep-cache", "--log", log)
        with ExitStack() as undo:
            try:
                model = undo.enter_context(mounted(str(folder), str(mountpoint), *options))
            except OSError as error:
                pytest.skip(f"needs the right to mount FUSE: {error}")
            (group,) = undo.enter_context(real_cgroups(limit))
            model += "/model"
            ranks = (sys.executable, "-c", RANKS, model)
            command = ranks if flags is None else (*COMMAND, *flags, model, "--", *ranks)
            began = time.monotonic()
            subprocess.run([*ENTER, str(group), *command], check=True, env=environment())
            print(f"{name}: {time.monotonic() - began:.1f} s, {peak_bytes(group) // MIB} MiB")
            await_empty(group)
            assert peak_bytes(group) <= limit
        assert sum(read.size_bytes for read in reads(log)) <= 1.05 * size, name
