"""The matrix's local file systems, each made on a disk or in the memory of the machine."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.vm.machine import Machine, MachineError, Process
from tests.vm.rows import MODEL, Keeps, Mounting, Row, Skip

_MADE = "/run/made"  # in the machine: an empty file for each file system already made
_IMAGES = "/run/images"
_AUTOFS_SECONDS = 60


@contextlib.contextmanager
def ext4(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on the first disk, where it already is."""
    yield MODEL


@contextlib.contextmanager
def mounted(machine: Machine, point: str, *words: str, netns: str | None = None) -> Iterator[str]:
    """Run `mount WORDS POINT`, yield the mount point, and unmount at the end.

    With `netns`, the client's network is that namespace.
    """
    machine.run("mkdir", "-p", point)
    try:
        machine.run("mount", *words, point, netns=netns)
        yield point
    finally:
        unmount(machine, point)


def unmount(machine: Machine, point: str) -> None:
    """Unmount, at once if nothing uses the mount, otherwise as soon as nothing does."""
    if machine.run("umount", point, check=False).code != 0:
        machine.run("umount", "-l", point, check=False)


def once(machine: Machine, name: str, make: Callable[[], object]) -> None:
    """Call `make` unless it has succeeded in this machine before."""
    marker = f"{_MADE}/{name}"
    if machine.run("test", "-e", marker, check=False).code != 0:
        machine.run("mkdir", "-p", _MADE, _IMAGES)
        make()
        machine.run("touch", marker)


def filled(machine: Machine, name: str, device: str, make: str) -> None:
    """Make a file system and copy the checkpoint to it, once per machine."""

    def fill() -> None:
        machine.sh(f"{make} {device}")
        with mounted(machine, f"/mnt/fill-{name}", device) as point:
            machine.run("cp", "-r", MODEL, f"{point}/model")

    once(machine, name, fill)


def disk(machine: Machine, kind: str) -> str:
    """Return the disk named after this file system, with the checkpoint on it."""
    device = machine.disks[kind]
    filled(machine, kind, device, f"mkfs.{kind} -q -f -K")
    return device


@contextlib.contextmanager
def on_disk(machine: Machine, *, kind: str) -> Iterator[str]:
    """Yield the checkpoint on the disk with this file system."""
    with mounted(machine, f"/mnt/{kind}", disk(machine, kind)) as point:
        yield f"{point}/model"


@contextlib.contextmanager
def image(machine: Machine, *, kind: str, make: str) -> Iterator[str]:
    """Yield the checkpoint in a read-only image, kept in memory, on a loop device."""
    path = f"{_IMAGES}/{kind}"
    machine.modprobe("loop")  # nothing here creates the device that would load it on demand
    once(machine, kind, lambda: machine.sh(make.format(image=path, model=MODEL)))
    with mounted(machine, f"/mnt/{kind}", "-t", kind, "-o", "loop,ro", path) as point:
        yield point


# Compressed like container images; data that does not compress, e.g. weights, is stored as it is.
# Blocks are read whole: with one default block of 128 KiB a file would no longer pass as cold.
_MAKE_SQUASHFS = "mksquashfs {model} {image} -noappend -b 16K -comp lz4 -quiet -no-progress"
_MAKE_EROFS = "mkfs.erofs --quiet {image} {model}"


@contextlib.contextmanager
def loop(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on an ext4 in a file."""
    path = f"{_IMAGES}/ext4"
    machine.modprobe("loop")
    large = f"$(($(du -sm {MODEL} | cut -f 1) * 9 / 8 + 32))M"
    filled(machine, "loop", path, f"truncate -s {large} {path}; mkfs.ext4 -q")
    with mounted(machine, "/mnt/loop", "-o", "loop", path) as point:
        yield f"{point}/model"


@contextlib.contextmanager
def device_mapper(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on an ext4 on a linear mapping of a disk."""
    below, name = machine.disks["spare"], "linear"
    try:
        machine.sh(
            f'dmsetup create --noudevsync {name} --table "0 $(blockdev --getsz {below})'
            f' linear {below} 0" && dmsetup mknodes'
        )
        filled(machine, "dm", f"/dev/mapper/{name}", "mkfs.ext4 -q -E nodiscard")
        with mounted(machine, "/mnt/dm", f"/dev/mapper/{name}") as point:
            yield f"{point}/model"
    finally:
        machine.run("dmsetup", "remove", "--noudevsync", "--retry", name, check=False)
        machine.run("dmsetup", "mknodes", check=False)


@contextlib.contextmanager
def overlay(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint through an overlay whose upper layer is in memory."""
    folder = "/mnt/layers"
    machine.run("mkdir", "-p", f"{folder}/upper", f"{folder}/work")
    options = f"lowerdir=/srv,upperdir={folder}/upper,workdir={folder}/work"
    try:
        with mounted(machine, "/mnt/overlay", "-t", "overlay", "-o", options, "overlay") as point:
            yield f"{point}/model"
    finally:
        machine.run("rm", "-rf", folder)


@contextlib.contextmanager
def bind(machine: Machine) -> Iterator[str]:
    """Yield a bind mount of the checkpoint's folder."""
    with mounted(machine, "/mnt/bind", "--bind", MODEL) as point:
        yield point


@contextlib.contextmanager
def memory(machine: Machine, *, kind: str) -> Iterator[str]:
    """Yield the checkpoint in a tmpfs or ramfs."""
    with mounted(machine, f"/mnt/{kind}", "-t", kind, kind) as point:
        machine.sh(f"cp -r {MODEL} {point}/model; chmod 755 {point}")
        yield f"{point}/model"


@contextlib.contextmanager
def nested(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on an XFS that is mounted inside a tmpfs."""
    with (
        mounted(machine, "/mnt/outer", "-t", "tmpfs", "outer") as outer,
        mounted(machine, f"{outer}/a/b", disk(machine, "xfs")) as inner,
    ):
        yield f"{inner}/model"


@contextlib.contextmanager
def automounter(machine: Machine, place: str, key: str, entries: str) -> Iterator[None]:
    """Have automount serve `place` from a map that the master map names under `key`."""
    folder = "/run/autofs-maps"
    with contextlib.ExitStack() as undone:
        undone.callback(machine.run, "rm", "-rf", folder, check=False)
        machine.run("mkdir", "-p", folder)
        machine.modprobe("autofs4")
        machine.write(f"{folder}/master", f"{key} {folder}/map\n")
        machine.write(f"{folder}/map", entries)
        daemon = machine.start_process("automount", "--foreground", "--verbose", f"{folder}/master")
        undone.callback(_end_automounter, machine, daemon)
        deadline = time.monotonic() + _AUTOFS_SECONDS
        # Look for the name: automount briefly mounts another one first, to query the protocol.
        while place not in _automounts(machine):
            if not daemon.running or time.monotonic() > deadline:
                raise MachineError(f"automount did not start: {daemon.shown()}")
            time.sleep(0.1)
        try:
            yield
        except MachineError as error:
            # The command saw only that nothing is there; the daemon knows why.
            raise MachineError(f"{error}automount said: {daemon.shown()}") from error


def _end_automounter(machine: Machine, daemon: Process) -> None:
    # Unlike SIGTERM, this ends it even while a mount is in use.
    machine.run("kill", "-USR2", str(daemon.pid), check=False)
    with contextlib.suppress(MachineError):
        daemon.end(_AUTOFS_SECONDS)
    machine.run("kill", "-KILL", str(daemon.pid), check=False)
    for point in _automounts(machine):
        machine.run("umount", "-l", point, check=False)


def _automounts(machine: Machine) -> list[str]:
    lines = machine.read("/proc/self/mounts").decode().splitlines()
    return [point for _, point, kind, *_ in map(str.split, lines) if kind == "autofs"]


@contextlib.contextmanager
def autofs_direct(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on an XFS that a direct map mounts on access."""
    place = "/run/autofs-direct"
    direct = f"{place} -fstype=xfs :{disk(machine, 'xfs')}\n"
    with automounter(machine, place, "/-", direct):
        yield f"{place}/model"


@contextlib.contextmanager
def autofs_indirect(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint, which an indirect map bind-mounts below its folder."""
    place = "/run/autofs-indirect"
    indirect = f"model -fstype=bind :{MODEL}\n"
    with automounter(machine, place, place, indirect):
        yield f"{place}/model"


def _local(name: str, mounting: Mounting, kind: str, *, stranger: bool | None) -> Row:
    return Row(name, mounting, kind, network=False, skip=Skip.LOCAL, known_to_stranger=stranger)


def _disk(kind: str) -> Row:
    return _local(kind, functools.partial(on_disk, kind=kind), kind, stranger=True)


def _image(kind: str, make: str) -> Row:
    mounting = functools.partial(image, kind=kind, make=make)
    return replace(_local(kind, mounting, kind, stranger=None), unavailable=_without(kind))


def _memory(kind: str) -> Row:
    row = _local(kind, functools.partial(memory, kind=kind), kind, stranger=False)
    return replace(row, keeps=Keeps.MEMORY, skip=Skip.IN_MEMORY)


def _without(module: str) -> Callable[[Machine], str | None]:
    return lambda machine: None if machine.has_module(module) else f"the kernel has no {module}"


# On ext4, XFS and btrfs a stranger gets an estimate from samples (RWF_NOWAIT). The others have no
# such reads, so the sample is timed; "unknown" where the clock cannot tell.
ROWS = (
    _local("ext4", ext4, "ext4", stranger=True),
    _disk("xfs"),
    _disk("btrfs"),
    _image("squashfs", _MAKE_SQUASHFS),
    _image("erofs", _MAKE_EROFS),
    _local("overlay-ext4", overlay, "ext4", stranger=None),
    _local("loop", loop, "ext4", stranger=True),
    _local("device-mapper", device_mapper, "ext4", stranger=True),
    _local("bind", bind, "ext4", stranger=True),
    _local("nested", nested, "xfs", stranger=True),
    _local("autofs-direct", autofs_direct, "xfs", stranger=True),
    _local("autofs-indirect", autofs_indirect, "ext4", stranger=True),
    _memory("tmpfs"),
    _memory("ramfs"),
)
