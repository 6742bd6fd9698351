"""How far the storage is, on real devices and mounts: what is found, decided, forecast and read.

A forecast is compared with what a loader that maps the files, and the run itself, then take. The
table at the end of the tests has both. Asserted is only what no busy host can change: that a loader
is slow where each read waits, and the decision about a slow disk.
"""

import contextlib
import functools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.helpers import checkpoints
from tests.helpers.checkpoints import BuiltCheckpoint, Fill
from tests.helpers.command import ROOT
from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import block_mounts, fuse_mounts, kernels, nfs, nfs_mounts
from tests.vm.block_mounts import MODEL
from tests.vm.conftest import FIGURES
from tests.vm.machine import MIB, Done, Machine
from tests.vm.rows import always, without_advice

_SHARD_BYTES = [14 * MIB + 1234, 19 * MIB, 18 * MIB, 13 * MIB - 4321]
_LARGE_SHARD_BYTES = [300 * MIB, 270 * MIB, 280 * MIB, 250 * MIB]  # above 1 GiB
_SLOW_SECONDS = 0.02  # each read of the slow disk
_DELAY_SECONDS = 0.02  # a round trip, where a row is slow
# Four windows of read-ahead: one thread that maps a file has two in flight.
_MOST_BYTES_PER_DELAY = 4 * 128 * 1024

Mounting = Callable[[Machine, float], AbstractContextManager[str]]
Record = Callable[[str, object], None]


@dataclass(frozen=True)
class Storage:
    """A mount, and what must be found of it."""

    name: str
    mounting: Mounting
    type: str
    device: str | None  # a pattern
    kind: str | None
    distance: str  # as the text says it
    source: str | None = None
    rotational: bool = False
    delay_seconds: float = 0.0  # of each read; 0: no forecast
    advice: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    unavailable: Callable[[Machine], str | None] = always  # the skip reason, or None

    def __str__(self) -> str:
        return self.name

    @property
    def network(self) -> bool:
        """Whether it is read without flags."""
        return self.distance.startswith("network")


@contextlib.contextmanager
def fuse(machine: Machine, seconds: float, *, options: tuple[str, ...]) -> Iterator[str]:
    """Yield the checkpoint on FUSE, which answers after so many seconds."""
    words = ("--keep-cache", *options, *(("--delay", str(seconds)) if seconds else ()))
    with fuse_mounts.passthrough(machine, options=words, source=MODEL) as point:
        yield point


@contextlib.contextmanager
def far_nfs(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on NFS that reads 128 KiB at a time, from a server so far away."""
    with nfs.serving(machine):
        nfs.delay(machine, seconds)
        try:
            with nfs.mounted(machine, rsize_bytes=MIB // 8, path=MODEL) as point:
                yield point
        finally:
            nfs.delay(machine, 0)


def once_is_enough(machine: Machine) -> str | None:
    """Return why a row is skipped on one of the two kernels: the time that a row takes."""
    return (
        None if is_measured(machine) else "nothing of this differs from kernel to kernel: on 6.12"
    )


def is_measured(machine: Machine) -> bool:
    """Whether forecasts are compared on this kernel: on one, because they take minutes."""
    return machine.version >= (6, 12)


def _device(
    name: str, mounting: Mounting, device: str, modules: tuple[str, ...], **more: Any
) -> Storage:
    return Storage(
        name, mounting, "ext4", device, "network", "network block device", modules=modules, **more
    )


def _fuse(name: str, source: str, subtype: str = "", delay_seconds: float = 0.0) -> Storage:
    options = ("--source", source, *(("--subtype", subtype) if subtype else ()))
    return Storage(
        name,
        functools.partial(fuse, options=options),
        f"fuse.{subtype}" if subtype else "fuse",
        None,
        None,
        "network",
        source=source,
        delay_seconds=delay_seconds,
        unavailable=once_is_enough,
    )


FAR = (
    _device("nbd", block_mounts.nbd, "nbd0", ("nbd",), delay_seconds=_DELAY_SECONDS),
    _device("partition-of-nbd", block_mounts.nbd_partition, "nbd0", ("nbd",)),
    _device("dm-on-nbd", block_mounts.mapped_nbd, "nbd0", ("nbd", "dm-mod")),
    _device(
        "nvme-over-tcp",
        block_mounts.nvme_over_tcp,
        "nvme[0-9]+n1",
        ("nvmet", "nvmet-tcp", "nvme-tcp"),
    ),
    _device(
        "iscsi",
        block_mounts.iscsi,
        "sd[a-z]",
        ("target_core_file", "iscsi_target_mod", "iscsi_tcp", "sch_netem"),
        delay_seconds=_DELAY_SECONDS,
        rotational=True,  # so LIO's disks say
    ),
    _device(
        "loop-on-nfs",
        block_mounts.loop_on_nfs,
        "loop[0-9]+",
        ("loop",),
        unavailable=nfs_mounts.unavailable,
    ),
    Storage(
        "far-nfs",
        far_nfs,
        "nfs4",
        None,
        None,
        "network",
        delay_seconds=_DELAY_SECONDS,
        advice=("mount it with rsize=", "mount it with nconnect="),
        unavailable=nfs_mounts.unavailable,
    ),
    _fuse("runpod", "mfs#storage.example.net:9421", delay_seconds=_DELAY_SECONDS),
    _fuse("hf-mount", "hf-mount"),
    _fuse("ossfs", "ossfs", "ossfs"),
    _fuse("goosefs", "goosefs-fuse", "goosefs-fuse"),
    _fuse("jindofs", "jindofs-fuse", "jindofs-fuse"),
    _fuse("s3fs", "s3fs", "s3fs"),
)


@pytest.fixture(scope="module")
def storage(machine: Machine) -> Machine:
    """The machine, with this module's checkpoint on its first disk and in an image."""
    with tempfile.TemporaryDirectory(prefix="model-", dir=kernels.BUILD) as folder:
        built = checkpoints.write_streamed(
            f"{folder}/model", shard_bytes=_SHARD_BYTES, durable=False
        )
        block_mounts.fill(machine, built.directory)
    return machine


@pytest.fixture(scope="module")
def large(source: BuiltCheckpoint) -> Iterator[str]:
    """A checkpoint of holes that is large enough for a trial, where the machine can see it."""
    with tempfile.TemporaryDirectory(prefix="model-", dir=kernels.BUILD) as folder:
        yield checkpoints.write_streamed(
            f"{folder}/model", shard_bytes=_LARGE_SHARD_BYTES, fill=Fill.HOLE, durable=False
        ).directory


@pytest.mark.parametrize("row", FAR, ids=str)
def test_far_storage(storage: Machine, row: Storage, record_property: Record) -> None:
    if missing := [one for one in row.modules if not storage.has_module(one)]:
        pytest.skip(f"{storage.kernel.release} has no {', '.join(missing)}")
    if reason := row.unavailable(storage):
        pytest.skip(reason)
    measured = is_measured(storage) and row.delay_seconds > 0
    delay_seconds = row.delay_seconds if measured or row.advice else 0.0
    with row.mounting(storage, delay_seconds) as path:
        named_in_text(row, storage.tool("--dry-run", path).out)
        forecast = lazy_seconds = None
        if measured:
            forecast = forecast_of(storage, path)
            lazy_seconds = load_lazily(storage, path)
        make_cold(storage, path)
        done = storage.tool("--json", path)
        found_as_it_is(row, done)
        read_without_flags(storage, row, path, done)
    if forecast is not None and lazy_seconds is not None:
        warm_seconds = done.document["result"]["elapsed_seconds"]
        record_property(FIGURES, figures(row.name, storage, forecast, lazy_seconds, warm_seconds))
        # Nothing slows a loader less than this delay does. What it says of us is only shown: on an
        # emulated processor the start of the threads takes most of a trial.
        delays = document_bytes(done) / _MOST_BYTES_PER_DELAY
        assert forecast["loader_seconds"] >= delays * row.delay_seconds


def test_a_loop_device_that_spins(storage: Machine) -> None:
    with block_mounts.spinning_loop(storage) as path:
        make_cold(storage, path)
        text = storage.tool("--dry-run", path).out
        done = storage.tool("--json", path)
    assert re.search(r"^ *file system +ext4 on loop[0-9]+ \(local\) at ", text, re.M), text
    [found] = done.document["filesystems"]
    assert found["device"]["rotational"] is True
    assert (found["device"]["kind"], found["network"]) == ("disk", False)
    assert (done.code, done.document["decision"]["reason"]) == (0, "local-fits")


def test_a_network_device_in_another_mount_namespace(storage: Machine) -> None:
    with block_mounts.nbd_device(storage, 0) as device:
        storage.run("mkdir", "-p", "/mnt/elsewhere")
        holder = storage.start_process(
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
            f"mount -o ro {device} /mnt/elsewhere; echo mounted; exec sleep 600",
        )
        try:
            holder.await_text("mounted")
            path = f"/proc/{holder.pid}/root/mnt/elsewhere"
            assert "/mnt/elsewhere" not in storage.read("/proc/self/mountinfo").decode()
            make_cold(storage, path)
            done = storage.tool("--json", path)
            row = next(row for row in FAR if row.name == "nbd")
            found_as_it_is(row, done)
            assert done.document["filesystems"][0]["mount_point"] == path
            read_without_flags(storage, row, path, done)
        finally:
            storage.run("kill", "-KILL", str(holder.pid), check=False)
            holder.end()


def test_a_fast_local_disk_is_measured_and_left_alone(
    machine: Machine, large: str, record_property: Record
) -> None:
    folder = "/srv/fast-disk"
    try:
        block_mounts.fill_large(machine, large, folder)
        make_cold(machine, folder)
        done = machine.tool("--json", folder)
        document = done.document
        assert (done.code, document["decision"]["reason"]) == (0, "local-fits")
        assert "measured: " in document["decision"]["message"]
        assert 0 < document["forecast"]["sampled_bytes"] <= 64 * MIB
        assert document["result"] is None
        assert sum(machine.resident_bytes(files(machine, folder))) <= 128 * MIB
        if not is_measured(machine):
            return
        make_cold(machine, folder)
        warming = machine.tool("--json", "--force", folder).document["result"]["elapsed_seconds"]
        lazy = load_lazily(machine, folder)
        record_property(
            FIGURES, figures("fast local disk", machine, document["forecast"], lazy, warming)
        )
    finally:
        machine.run("rm", "-rf", folder)


def test_a_slow_local_disk_is_warmed(machine: Machine, large: str, record_property: Record) -> None:
    with block_mounts.slow_disk(machine, large, _SLOW_SECONDS) as path:
        make_cold(machine, path)
        done = machine.tool("--json", path, seconds=300)
        document = done.document
        result, total = document["result"], document_bytes(done)
        assert (done.code, document["decision"]["reason"]) == (0, "local-slow")
        assert document["filesystems"][0]["device"]["kind"] == "disk"
        assert result["complete"] and result["failed"] == []  # noqa: PT018
        assert document["residency"]["after_bytes"] >= (1 - ALLOWED_WARM) * total
        assert sum(machine.resident_bytes(files(machine, path))) >= (1 - ALLOWED_WARM) * total
        warm = load_lazily(machine, path, cold=False)
        if not is_measured(machine):
            return
        lazy = load_lazily(machine, path)
    ratio = lazy / (done.seconds + warm)
    record_property(
        FIGURES,
        figures(
            "slow local disk",
            machine,
            document["forecast"],
            lazy,
            result["elapsed_seconds"],
            f"{done.seconds:.1f} s with all, then {warm:.1f} s to load: {ratio:.1f} x faster",
        ),
    )


def found_as_it_is(row: Storage, done: Done) -> None:
    [found] = done.document["filesystems"]
    assert (found["type"], found["network"]) == (row.type, row.network)
    if row.source is not None:
        assert found["source"] == row.source
    if row.device is None:
        assert found["device"] is None
    else:
        device = found["device"]
        assert re.fullmatch(row.device, device["name"])
        assert (device["kind"], device["rotational"]) == (row.kind, row.rotational)


def named_in_text(row: Storage, text: str) -> None:
    on = f" on {row.device}" if row.device else ""
    assert re.search(rf"^ *file system +{row.type}{on} \({row.distance}\) at ", text, re.M), text


def forecast_of(machine: Machine, path: str) -> dict[str, float]:
    """Return what a dry run with a trial says of cold files."""
    make_cold(machine, path)
    done = machine.tool("--dry-run", "--trial", "--json", path)
    assert done.code == 0, done
    forecast: dict[str, float] = done.document["forecast"]
    assert 0 < forecast["sampled_bytes"] <= 64 * MIB
    return forecast


def load_lazily(machine: Machine, path: str, *, cold: bool = True) -> float:
    """Return the seconds that a loader takes which maps the files."""
    if cold:
        make_cold(machine, path)
    done = machine.run(sys.executable, "-m", "tests.vm.lazy_loader", path, folder=ROOT, seconds=400)
    return float(done.out)


def read_without_flags(machine: Machine, row: Storage, path: str, done: Done) -> None:
    assert done.code == 0, done
    document, total = done.document, document_bytes(done)
    result, decision = document["result"], document["decision"]
    assert (decision["action"], decision["reason"]) == ("prefetch", "network-fits")
    assert result["complete"] and result["failed"] == []  # noqa: PT018
    assert (1 - ALLOWED_WARM) * total <= result["bytes_read"] <= total
    assert document["residency"]["after_bytes"] >= (1 - ALLOWED_WARM) * total
    assert sum(machine.resident_bytes(files(machine, path))) >= (1 - ALLOWED_WARM) * total
    told = document["warnings"]
    if not row.advice:
        assert without_advice(told) == []
    else:
        assert len(told) == len(row.advice), told
        for part, line in zip(row.advice, told, strict=True):
            assert part in line


def figures(
    name: str,
    machine: Machine,
    forecast: dict[str, float],
    lazy_seconds: float,
    warm_seconds: float,
    note: str = "",
) -> list[str]:
    """Return a row of the table at the end: seconds, and what was forecast as a part of them."""

    def against(key: str, took: float) -> list[str]:
        return [f"{forecast[key]:.1f} s ({forecast[key] / took:.2f} x)", f"{took:.1f} s"]

    return [
        name,
        ".".join(map(str, machine.version)),
        *against("loader_seconds", lazy_seconds),
        *against("warm_seconds", warm_seconds),
        note,
    ]


def document_bytes(done: Done) -> int:
    total: int = done.document["checkpoint"]["total_bytes"]
    return total


def files(machine: Machine, path: str) -> list[str]:
    return machine.sh(f"find {path} -maxdepth 1 -type f").splitlines()


def make_cold(machine: Machine, path: str) -> None:
    """Drop the page cache, as the oracle confirms for these files."""
    names = files(machine, path)
    total = sum(machine.size_bytes(names))
    for _ in range(3):
        machine.drop_caches()
        if (stayed := sum(machine.resident_bytes(names))) <= ALLOWED_WARM * total:
            return
    raise AssertionError(f"{stayed} bytes stay resident")
