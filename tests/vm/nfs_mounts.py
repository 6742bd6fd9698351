"""The matrix's NFS mounts, from a server in the machine itself."""

import contextlib
from collections.abc import Iterator

from tests.vm import nfs
from tests.vm.machine import Machine, MachineError
from tests.vm.rows import MODEL, Mounting, Row

_KIB = 1024


@contextlib.contextmanager
def nfs42(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on NFSv4.2."""
    with nfs.mounted(machine) as point:
        yield _model(point)


@contextlib.contextmanager
def nfs3(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on NFSv3."""
    with nfs.mounted(machine, version="3") as point:
        yield _model(point)


@contextlib.contextmanager
def small_reads(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on NFSv4.2, mounted to read 128 KiB per call."""
    with nfs.mounted(machine, rsize_bytes=128 * _KIB) as point:
        yield _model(point)


@contextlib.contextmanager
def below_overlay(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint in an overlay whose lower layer is an NFSv4.2 mount."""
    folder = "/run/overlay-over-nfs"
    with nfs.mounted(machine) as point:
        machine.run("mkdir", "-p", f"{folder}/upper", f"{folder}/work", f"{folder}/merged")
        try:
            layers = f"lowerdir={point},upperdir={folder}/upper,workdir={folder}/work"
            machine.run("mount", "-t", "overlay", "overlay", "-o", layers, f"{folder}/merged")
            try:
                yield _model(f"{folder}/merged")
            finally:
                _take_off(machine, f"{folder}/merged")
        finally:
            machine.run("rm", "-r", "--one-file-system", folder, check=False)


def unavailable(machine: Machine) -> str | None:
    """Return which modules for an NFS client and server this kernel lacks, or None."""
    missing = [name for name in ("nfsd", "nfsv3", "nfsv4", "veth") if not machine.has_module(name)]
    return f"{machine.kernel.release} has no {', '.join(missing)}" if missing else None


def _model(point: str) -> str:
    return point + MODEL.removeprefix(nfs.EXPORT)


def _take_off(machine: Machine, point: str) -> None:
    try:
        machine.run("umount", point, seconds=30)
    except MachineError:
        machine.run("umount", "-l", point, check=False, seconds=30)


def _row(name: str, mounting: Mounting, type_: str, advice: str = "") -> Row:
    # NFS has no reads without waiting (RWF_NOWAIT), so users who may not write the files get a
    # timed sample, or "unknown" where the emulated machine is too busy to tell.
    return Row(
        name,
        mounting,
        type_,
        network=True,
        advice=advice,
        unavailable=unavailable,
    )


ROWS = (
    _row("nfs4.2", nfs42, "nfs4"),
    _row("nfs3", nfs3, "nfs"),
    _row("nfs4.2-rsize-128k", small_reads, "nfs4", "mount it with rsize="),
    _row("overlay-over-nfs", below_overlay, "nfs4"),
)
