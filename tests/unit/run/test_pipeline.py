"""The stages together, where one affects another: what is waited for, and what is doubted."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Action, Engine, Overrule, Split
from prefetch_cli.libraries import gather
from prefetch_cli.linux import lustre, memory, mounts
from prefetch_cli.linux.blockdev import BlockDevice, Kind
from prefetch_cli.linux.filesystem import UNKNOWN, FileSystem
from prefetch_cli.linux.memory import Memory
from prefetch_cli.plan.decision import Reason
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading import job, trial
from prefetch_cli.reading.plan import Plan, ReadResult, Threads
from prefetch_cli.reading.trial import Trial
from prefetch_cli.run import parts, pipeline, stages
from prefetch_cli.run.document import document
from prefetch_cli.run.options import Options, Window
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.run.parts import CHECKPOINT, LIBRARIES
from prefetch_cli.run.states import Decided, Looked, Proven, Read, State, Tried, Warned
from prefetch_cli.run.states import Wanted as WantedState
from prefetch_cli.show.lines import facts
from tests.helpers import checkpoints, oracle
from tests.helpers.requests import request
from tests.run.third_part import DRAFT, asked_with_draft

MIB = 1024 * 1024
CIFS = UNKNOWN._replace(type="cifs", options=frozenset({"closetimeo=2"}))
NFS = UNKNOWN._replace(type="nfs4")


class Pauses(Stop):
    """A stop that records each pause instead of waiting."""

    def __init__(self, *, interrupted_in_it: bool = False) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._interrupted_in_it = interrupted_in_it

    def pause(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if self._interrupted_in_it:
            self.request()


def run(path: str | Path, stop: Stop | None = None, **given: object) -> Outcome:
    """Return the outcome of a run."""
    options = Options(
        action=Action.PREFETCH,
        request=request(path),
        from_file=None,
        libraries=None,
        rank=0,
        world_size=1,
        split=Split.AUTO,
        overrule=Overrule.FORCE,
        ram_threshold_percent=90,
        max_bytes=None,
        threads=Threads.fixed(2),
        block_size_bytes=MIB,
        engine=Engine.READ,
        trial=False,
        max_bytes_per_second=None,
        background=False,
        beside_command=False,
        time_limit_seconds=None,
        min_resident_percent=None,
        keep=None,
    )
    events: list[State | Warned] = []
    options = options._replace(**given)  # type: ignore[arg-type]
    pipeline.run(options, {}, Monitor(), stop or Stop(), events.append)
    return folded(Outcome(options.action), events)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the files on these file systems, in turn."""

    def lie(*found: FileSystem) -> None:
        def inspect(
            paths: Sequence[str], monitor: Monitor, devices: Sequence[int] | None = None
        ) -> tuple[FileSystem, ...]:
            return tuple(found[number % len(found)] for number in range(len(paths)))

        monkeypatch.setattr(mounts, "inspect", inspect)

    return lie


@pytest.fixture
def afterwards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the files and the result as soon as everything is read."""
    real = job.read

    def let(happen: Callable[[ReadResult], ReadResult]) -> None:
        def read(plan: Plan, targets: object, monitor: Monitor, stop: Stop) -> ReadResult:
            return happen(real(plan, targets, monitor, stop))  # type: ignore[arg-type]

        monkeypatch.setattr(job, "read", read)

    return let


def doubts(outcome: Outcome) -> list[str]:
    return [warning for warning in outcome.warnings if "stayed" in warning]


def shards(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.safetensors")))


# What the files lie on

LOCAL = UNKNOWN._replace(type="ext4")
NBD = LOCAL._replace(block=BlockDevice("nbd0", Kind.NETWORK, rotational=False))
RAM = LOCAL._replace(block=BlockDevice("ram0", Kind.MEMORY, rotational=False))
DISK = LOCAL._replace(block=BlockDevice("sda", Kind.DISK, rotational=True))
LUSTRE = UNKNOWN._replace(type="lustre", source="10.0.0.1@tcp:/m")


def over(below: FileSystem) -> FileSystem:
    return UNKNOWN._replace(type="fuse", below=below)


@pytest.mark.parametrize(
    ("found", "reason", "begins"),
    [
        ([NFS], Reason.NETWORK_FITS, "network file system, and"),
        ([NBD], Reason.NETWORK_FITS, "network block device, and"),
        ([NBD, NFS, LOCAL], Reason.NETWORK_FITS, "network file system, and"),
        ([NBD, LOCAL], Reason.NETWORK_FITS, "network block device, and"),
        ([over(NBD)], Reason.NETWORK_FITS, "network block device"),
        ([over(NFS)], Reason.NETWORK_FITS, "network file system"),
        ([over(LOCAL)], Reason.LOCAL_FITS, "local file system; "),
        ([RAM], Reason.LOCAL_FITS, "local file system; "),
        ([UNKNOWN], Reason.LOCAL_FITS, "unknown file system, so it counts as a local one;"),
        ([UNKNOWN, LOCAL], Reason.LOCAL_FITS, "local file system; "),
    ],
)
def test_the_decision_is_by_the_farthest_of_what_the_files_lie_on(
    small: Path,
    on: Callable[..., None],
    found: list[FileSystem],
    reason: Reason,
    begins: str,
) -> None:
    on(*found)
    decided = run(small, overrule=Overrule.NONE, action=Action.DRY_RUN).checkpoint.get(Decided)
    assert decided is not None
    assert decided.decision.reason is reason
    assert decided.decision.message.startswith(begins)


@pytest.mark.parametrize(
    ("found", "line", "device"),
    [
        (LOCAL, "ext4 (local)", None),
        (NFS, "nfs4 (network)", None),
        (NBD, "ext4 on nbd0 (network block device)", ("nbd0", "network", False)),
        (DISK, "ext4 on sda (local)", ("sda", "disk", True)),
        (RAM, "ext4 on ram0 (block device in memory)", ("ram0", "memory", False)),
        (over(NBD), "fuse over ext4 on nbd0 (network block device)", ("nbd0", "network", False)),
        (over(over(NFS)), "fuse over fuse over nfs4 (network)", None),
        (
            DISK._replace(options=frozenset({"dax"})),
            "ext4 on sda (in memory)",
            ("sda", "disk", True),
        ),
        (DISK._replace(type="ocfs2"), "ocfs2 on sda (network)", ("sda", "disk", True)),
        (UNKNOWN, "unknown (counts as local)", None),
    ],
)
def test_what_the_files_lie_on_is_shown(
    small: Path,
    on: Callable[..., None],
    found: FileSystem,
    line: str,
    device: tuple[str, str, bool] | None,
) -> None:
    on(found)
    outcome = run(small, action=Action.CHECK)
    assert dict(facts(outcome))["file system"] == f"{line} at /"
    [shown] = document(outcome)["filesystems"]
    keys = ("name", "kind", "rotational")
    assert shown["device"] == (None if device is None else dict(zip(keys, device, strict=True)))


@pytest.mark.parametrize(("found", "bound"), [([LUSTRE], True), ([LUSTRE, NFS], False)])
def test_what_lustre_keeps_bounds_the_budget_of_what_lies_on_it(
    small: Path,
    on: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    found: list[FileSystem],
    bound: bool,
) -> None:
    # There is no Lustre to mount.
    monkeypatch.setattr(lustre, "max_cached_bytes", lambda _: MIB)
    on(*found)
    wanted = run(small, action=Action.DRY_RUN).checkpoint.get(WantedState)
    assert wanted is not None
    assert (wanted.budget.limited_by == "lustre") is bound
    assert (wanted.budget.size_bytes == MIB) is bound


@pytest.mark.parametrize(
    ("action", "advised"),
    [
        (Action.PREFETCH, True),
        (Action.DRY_RUN, True),
        (Action.CHECK, False),
        (Action.EVICT, False),
    ],
)
def test_advice_is_for_those_who_read(
    small: Path, on: Callable[..., None], action: Action, advised: bool
) -> None:
    on(NFS._replace(options=frozenset({"rsize=4096"})), LOCAL)
    advice = [one for one in run(small, action=action).warnings if "rsize=1048576" in one]
    assert len(advice) == advised


@pytest.mark.parametrize(("given", "percent"), [(None, 40), (90.0, 90), (12.0, 12)])
def test_the_threshold_is_low_where_the_gpu_uses_the_same_memory(
    small: Path, monkeypatch: pytest.MonkeyPatch, given: float | None, percent: float
) -> None:
    shared = memory.measure()._replace(shared_with_gpu="NVIDIA GB10")
    monkeypatch.setattr(memory, "measure", lambda: shared)  # no such machine was at hand
    outcome = run(small, action=Action.DRY_RUN, ram_threshold_percent=given)
    wanted = outcome.checkpoint.get(WantedState)
    assert wanted is not None
    assert wanted.budget.threshold_percent == percent
    because = f"({percent:g} %, because the GPU of NVIDIA GB10 uses the same memory)"
    assert (because in dict(facts(outcome))["memory"]) is (given is None)


# Libraries


@pytest.mark.parametrize(("found", "threads"), [(NFS, 8), (UNKNOWN._replace(type="ext4"), 2)])
def test_small_files_over_a_network_are_asked_for_by_more_threads(
    small: Path, tmp_path: Path, on: Callable[..., None], found: FileSystem, threads: int
) -> None:
    on(found)
    library = tmp_path / "lib.so"
    library.write_bytes(bytes(MIB))
    wanted = gather.Request((str(library),), packages=(), python=None, command=(), of_command=False)
    last = run(small, libraries=wanted)
    parts = last.of(LIBRARIES).get(Decided), last.checkpoint.get(Decided)
    assert [part.plan.threads.first for part in parts if part is not None] == [threads, 2]


@pytest.fixture
def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A third part, read behind the checkpoint."""
    path = str(tmp_path / "draft")
    oracle.evict(checkpoints.write_sharded(path, shard_bytes=[100_000]).files)
    environ = {"DRAFT": path}
    monkeypatch.setattr(
        parts, "asked", lambda options, _, *more: asked_with_draft(options, environ, *more)
    )
    return path


def test_only_what_command_does_not_wait_for_gives_way_to_it(
    small: Path, tmp_path: Path, draft: str
) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(bytes(MIB))
    wanted = gather.Request((str(library),), packages=(), python=None, command=(), of_command=False)
    last = run(small, libraries=wanted, beside_command=True)
    kinds = (LIBRARIES, CHECKPOINT, DRAFT)
    decided = [last.of(kind).get(Decided) for kind in kinds]
    assert [one.plan.yielding for one in decided if one is not None] == [False, True, True]


def test_a_part_that_is_skipped_takes_nothing_of_the_limit(
    small: Path, draft: str, on: Callable[..., None]
) -> None:
    on(NFS)
    last = run(small, overrule=Overrule.NONE, max_bytes=500_000)
    skipped, read = last.checkpoint.get(Decided), last.of(DRAFT).get(Read)
    assert skipped is not None
    assert skipped.decision.reason is Reason.NETWORK_TOO_BIG
    assert read is not None
    assert read.result.bytes_read + read.result.bytes_already_resident > 100_000


def test_files_in_memory_take_nothing_of_the_limit(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(bytes(MIB))
    tmpfs = UNKNOWN._replace(type="tmpfs")
    monkeypatch.setattr(
        mounts,
        "inspect",
        lambda paths, *_: tuple(tmpfs if path.endswith("lib.so") else NFS for path in paths),
    )
    wanted = gather.Request((str(library),), packages=(), python=None, command=(), of_command=False)
    decided = run(small, libraries=wanted, max_bytes=1_200_000).checkpoint.get(Decided)
    assert decided is not None
    assert decided.plan.cut is None


# The trial

GIB = 1024 * MIB


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A checkpoint of 1 GiB of holes."""
    folder = str(tmp_path / "large")
    built = checkpoints.write_streamed(
        folder, shard_bytes=[GIB // 2] * 2, fill=checkpoints.Fill.HOLE, durable=False
    )
    oracle.evict(built.files)
    return folder


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a trial find these rates: no disk here is as slow."""

    def lies(found: Trial) -> None:
        monkeypatch.setattr(trial, "measure", lambda *_args, **_options: found)

    return lies


def test_other_parts_leave_room_for_what_a_trial_has_read(
    large: str, tmp_path: Path, slow: Callable[..., None], on: Callable[..., None]
) -> None:
    on(LOCAL)
    library = tmp_path / "lib.so"
    library.write_bytes(bytes(8 * MIB))
    wanted = gather.Request((str(library),), packages=(), python=None, command=(), of_command=False)
    # Of the file that is read last: behind the limit, once the library has its part of that.
    last_file = len(list(Path(large).iterdir())) - 1
    slow(Trial(MIB, 100 * MIB, (Extent(last_file, GIB // 2 - 4 * MIB, 4 * MIB),)))
    limit = GIB + 2 * MIB
    last = run(large, libraries=wanted, overrule=Overrule.NONE, max_bytes=limit)
    decided = last.checkpoint.get(Decided)
    assert decided is not None
    assert decided.decision.reason is Reason.LOCAL_SLOW
    planned = [last.of(kind).get(Decided) for kind in (LIBRARIES, CHECKPOINT)]
    read = sum(one.plan.size_bytes for one in planned if one is not None)
    # The library is resident already: it takes its part of the limit nevertheless.
    assert limit - 2 * MIB < read + 8 * MIB + 4 * MIB <= limit


def test_alone_a_checkpoint_that_was_tried_is_read_whole(
    large: str, slow: Callable[..., None], on: Callable[..., None]
) -> None:
    on(LOCAL)
    slow(Trial(MIB, 100 * MIB, (Extent(7, 0, 4 * MIB),)))
    size = sum(path.stat().st_size for path in Path(large).iterdir())
    last = run(large, overrule=Overrule.NONE, max_bytes=size)
    read = last.checkpoint.get(Read)
    assert read is not None
    assert read.result.complete
    assert read.result.bytes_read + read.result.bytes_already_resident == size


def test_what_is_cold_counts_for_all_ranks(
    large: str, slow: Callable[..., None], on: Callable[..., None]
) -> None:
    on(LOCAL)
    slow(Trial(1e9, 1e9, ()))
    for rank in range(2):
        last = run(large, overrule=Overrule.NONE, rank=rank, world_size=2)
        assert last.checkpoint.get(Tried) is not None


def test_files_that_failed_are_not_cold(large: str, on: Callable[..., None]) -> None:
    on(LOCAL)
    last = run(large, overrule=Overrule.NONE, action=Action.DRY_RUN)
    wanted, looked = last.checkpoint.get(WantedState), last.checkpoint.get(Looked)
    assert wanted is not None
    assert looked is not None
    before = stages.cold(wanted, looked)
    refused = wanted.found.files[before[-1].file]
    survey = looked.survey._replace(failed=((refused.path, "Permission denied"),))
    after = stages.cold(wanted, replace(looked, survey=survey))
    assert after == tuple(one for one in before if one.file != before[-1].file)
    assert len(after) < len(before)


# The late close of SMB


def test_what_was_read_by_smb_is_looked_at_when_its_files_are_closed(
    small: Path, on: Callable[..., None]
) -> None:
    on(CIFS, NFS)
    stop = Pauses()
    last = run(small, stop)
    assert stop.seconds == [3.0]
    assert last.checkpoint.get(Proven) is not None


@pytest.mark.parametrize("found", [NFS, CIFS._replace(options=CIFS.options | {"dax"})])
def test_elsewhere_nothing_is_waited_for(
    small: Path, on: Callable[..., None], found: FileSystem
) -> None:
    on(NFS, found)
    stop = Pauses()
    run(small, stop)
    assert stop.seconds == [0.0]


def test_where_nothing_was_read_nothing_is_waited_for(small: Path, on: Callable[..., None]) -> None:
    on(CIFS)
    stop = Pauses()
    run(small, stop, action=Action.CHECK)
    run(small, stop, action=Action.EVICT)
    run(small, stop, action=Action.DRY_RUN)
    assert stop.seconds == []


def test_who_interrupts_the_wait_gets_no_proof(small: Path, on: Callable[..., None]) -> None:
    on(CIFS)
    last = run(small, Pauses(interrupted_in_it=True))
    assert last.checkpoint.get(Read) is not None
    assert last.checkpoint.get(Proven) is None


# The doubt


def test_what_does_not_stay_is_doubted(small: Path, afterwards: Callable[..., None]) -> None:
    def drop(result: ReadResult) -> ReadResult:
        oracle.evict(shards(small)[:1])
        return result

    afterwards(drop)
    assert doubts(run(small))


def test_a_file_that_failed_is_not_doubted(small: Path, afterwards: Callable[..., None]) -> None:
    def fail(result: ReadResult) -> ReadResult:
        path = shards(small)[0]
        oracle.evict([path])
        return result._replace(failed=((path, "Input/output error"),))

    afterwards(fail)
    last = run(small)
    assert [path for path, _ in last.failed] == shards(small)[:1]
    assert doubts(last) == []


def test_a_file_that_is_gone_is_not_doubted(small: Path, afterwards: Callable[..., None]) -> None:
    gone = shards(small)[0]

    def remove(result: ReadResult) -> ReadResult:
        Path(gone).unlink()
        return result

    afterwards(remove)
    last = run(small)
    assert [path for path, _ in last.failed] == [gone]
    assert doubts(last) == []


def test_beside_a_file_that_failed_the_others_are_doubted(
    small: Path, afterwards: Callable[..., None]
) -> None:
    """The resident bytes of the failed file do not make up for the others."""

    def fail(result: ReadResult) -> ReadResult:
        oracle.evict(shards(small)[2:])
        return result._replace(failed=((shards(small)[0], "Input/output error"),))

    afterwards(fail)
    assert doubts(run(small))


def test_bytes_of_a_file_that_failed_are_not_expected_of_the_others(
    small: Path, afterwards: Callable[..., None]
) -> None:
    def fail(result: ReadResult) -> ReadResult:
        oracle.evict(shards(small)[:1])
        return result._replace(failed=((shards(small)[0], "Input/output error"),))

    afterwards(fail)
    last = run(small, max_bytes=500_000)  # the first shard and part of the second
    decided = last.checkpoint.get(Decided)
    assert decided is not None
    assert decided.plan.cut is not None
    assert doubts(last) == []


def test_cut_short_a_file_that_failed_stands_for_all_that_it_may_have_been(
    small: Path, afterwards: Callable[..., None]
) -> None:
    """Everything that was read may belong to the failed file."""
    stop = Stop(time_limit_seconds=60)

    def fail(result: ReadResult) -> ReadResult:
        first = shards(small)[0]
        oracle.evict(shards(small))
        stop._deadline = 0.0  # the time is up
        failed = ((first, "Input/output error"),)
        return result._replace(bytes_read=Path(first).stat().st_size, failed=failed)

    afterwards(fail)
    last = run(small, stop)
    assert last.checkpoint.get(Proven) is not None
    assert doubts(last) == []


def test_a_limit_of_bytes_does_not_hide_what_bounds_the_memory(
    small: Path, afterwards: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = "/sys/fs/cgroup/job"
    monkeypatch.setattr(memory, "measure", lambda: Memory(200_000, 1 << 40, 200_000, job))
    for path in shards(small):
        Path(path).read_bytes()
    oracle.evict(shards(small)[2:])

    def drop(result: ReadResult) -> ReadResult:
        oracle.evict(shards(small))
        return result

    afterwards(drop)
    last = run(small, max_bytes=150_000)
    wanted, read = last.checkpoint.get(WantedState), last.checkpoint.get(Read)
    assert wanted is not None
    assert wanted.budget.limited_by == "max-bytes"
    assert read is not None
    assert read.result.bytes_read > 0
    [doubt] = doubts(last)
    assert f"the memory limit of the cgroup {job}" in doubt


# The window


@pytest.mark.parametrize(
    ("given_part", "given", "shared", "expected_part"),
    [
        (None, True, None, 0.5),
        (0.25, True, None, 0.25),
        (7, True, None, 1),  # no more than the budget
        (None, False, "NVIDIA GB10", 0.5),
        (None, False, None, None),
    ],
)
def test_how_far_a_window_reaches_and_where_one_is_the_default(
    small: Path,
    on: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    given_part: float | None,
    given: bool,
    shared: str | None,
    expected_part: float | None,
) -> None:
    """By parts of the budget, which is half of the checkpoint."""
    on(NFS)
    budget = sum(os.path.getsize(path) for path in shards(small)) // 2
    here = memory.measure()._replace(available_bytes=budget, shared_with_gpu=shared)
    monkeypatch.setattr(memory, "measure", lambda: here)
    size_bytes = None if given_part is None else int(given_part * budget)
    last = run(
        small,
        action=Action.DRY_RUN,
        overrule=Overrule.NONE,
        ram_threshold_percent=100,
        window=Window(size_bytes, os.getpid(), given=given),
    )
    decided = last.checkpoint.get(Decided)
    assert decided is not None
    if expected_part is None:
        assert decided.decision.reason is Reason.NETWORK_TOO_BIG
    else:
        assert decided.decision.reason is Reason.WINDOW
        assert decided.decision.limit_bytes == int(expected_part * budget)
        assert decided.plan.size_bytes <= int(expected_part * budget)


# Every action


@pytest.mark.parametrize("action", Action)
def test_a_file_that_two_parts_name_belongs_to_the_checkpoint(small: Path, action: Action) -> None:
    shared = shards(small)[-1]
    wanted = gather.Request((shared,), packages=(), python=None, command=(), of_command=False)
    last = run(small, action=action, libraries=wanted)
    states = [last.of(kind).get(WantedState) for kind in (LIBRARIES, CHECKPOINT)]
    paths = [[file.path for file in state.found.files] for state in states if state is not None]
    assert paths[0] == []
    assert shared in paths[1]


@pytest.mark.parametrize("action", Action)
def test_every_action_warns_of_a_rank_that_nobody_told(small: Path, action: Action) -> None:
    last = run(small, action=action, rank=None, world_size=None)
    assert any(warning.startswith("--rank auto found no") for warning in last.warnings)
