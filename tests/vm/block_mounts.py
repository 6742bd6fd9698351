"""File systems on block devices: far ones, each served by the machine itself, and slow ones.

All network devices show one image, an ext4 with a checkpoint. In the machine they are as near as
memory, so each can be made to wait before it answers.
"""

import contextlib
import re
import time
from collections.abc import Iterator

from tests.vm import nfs
from tests.vm.local_mounts import mounted, once
from tests.vm.machine import MIB, SLOW_DISK, Machine, MachineError, Process

FOLDER = f"{nfs.EXPORT}/storage"  # in the machine, on its first disk
MODEL = f"{FOLDER}/model"  # what the image holds too
IMAGE = f"{FOLDER}/image"

_SPARE_BYTES = 24 * MIB  # of the image: for ext4 itself
_SOCKET = "/run/nbd.socket"
_NBD = "nbd0"
_NVME_NAME = "nqn.2026-01.example:storage"
_HOST = "11111111-2222-3333-4444-555555555555"
_ISCSI_NAME = "iqn.2026-01.example:storage"
_ADDRESS = "127.0.0.1"
_SECONDS = 60  # until a device or a daemon is there


def fill(machine: Machine, source: str) -> None:
    """Put the checkpoint in `source` on the first disk and into the image, once per machine."""

    def make() -> None:
        machine.sh(f"mkdir -p {FOLDER}; cp -r {source} {MODEL}; chmod -R a+rX {FOLDER}")
        size = int(machine.sh(f"du -sb {MODEL}").split()[0]) + _SPARE_BYTES
        # NVMe has sectors of the file's blocks, and ext4 none that are smaller.
        machine.sh(f"truncate -s {size} {IMAGE}; mkfs.ext4 -q -b 4096 -d {MODEL} {IMAGE}; sync")

    once(machine, "storage", make)


@contextlib.contextmanager
def nbd(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on a network block device that answers after so many seconds."""
    with nbd_device(machine, seconds) as device, _shown(machine, device) as point:
        yield point


@contextlib.contextmanager
def nbd_partition(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on the first partition of a network block device."""
    with nbd_device(machine, seconds, plugin="partitioning") as device:
        machine.run("blockdev", "--rereadpt", device)
        _await(machine, f"{device}p1")
        with _shown(machine, f"{device}p1") as point:
            yield point


@contextlib.contextmanager
def mapped_nbd(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on a linear mapping of a network block device."""
    with (
        nbd_device(machine, seconds) as device,
        mapping(machine, "far", device, "linear {device} 0") as mapped,
        _shown(machine, mapped) as point,
    ):
        yield point


@contextlib.contextmanager
def nvme_over_tcp(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on an NVMe namespace over TCP."""
    target = "/sys/kernel/config/nvmet"
    system, port = f"{target}/subsystems/{_NVME_NAME}", f"{target}/ports/1"
    machine.modprobe("nvmet", "nvmet-tcp", "nvme-tcp")
    with contextlib.ExitStack() as undone:
        _configfs(machine)
        undone.callback(
            machine.run,
            *("sh", "-c"),
            f"rm {port}/subsystems/{_NVME_NAME}; echo 0 > {system}/namespaces/1/enable; "
            f"rmdir {port} {system}/namespaces/1 {system}",
            check=False,
        )
        machine.sh(f"""
            mkdir {system} {system}/namespaces/1 {port}
            echo 1 > {system}/attr_allow_any_host
            echo -n {IMAGE} > {system}/namespaces/1/device_path
            echo 1 > {system}/namespaces/1/enable
            echo tcp > {port}/addr_trtype
            echo ipv4 > {port}/addr_adrfam
            echo {_ADDRESS} > {port}/addr_traddr
            echo 4420 > {port}/addr_trsvcid
            ln -s {system} {port}/subsystems/
        """)
        words = (
            f"transport=tcp,traddr={_ADDRESS},trsvcid=4420,nqn={_NVME_NAME},"
            f"hostnqn=nqn.2014-08.org.nvmexpress:uuid:{_HOST},hostid={_HOST}"
        )
        # The device says who it became: instance=0,cntlid=1.
        said = machine.sh(f"exec 3<> /dev/nvme-fabrics; echo '{words}' >&3; cat <&3")
        number = re.search(r"instance=(\d+)", said)
        if number is None:
            raise MachineError(f"expected the number of an NVMe controller, found {said!r}")
        controller = f"nvme{number[1]}"
        undone.callback(
            machine.run,
            *("sh", "-c", f"echo 1 > /sys/class/nvme/{controller}/delete_controller"),
            check=False,
        )
        device = f"/dev/{controller}n1"
        _await(machine, device)
        with _slow_loopback(machine, seconds), _shown(machine, device) as point:
            yield point


@contextlib.contextmanager
def iscsi(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint on an iSCSI disk, from the kernel's own target."""
    target = "/sys/kernel/config/target"
    store = f"{target}/core/fileio_0/storage"
    group = f"{target}/iscsi/{_ISCSI_NAME}/tpgt_1"
    machine.modprobe(
        "target_core_mod", "target_core_file", "iscsi_target_mod", "iscsi_tcp", "sd_mod"
    )
    with contextlib.ExitStack() as undone:
        _configfs(machine)
        undone.callback(
            machine.run,
            *("sh", "-c"),
            f"echo 0 > {group}/enable; rm {group}/lun/lun_0/storage; "
            f"rmdir {group}/np/* {group}/lun/lun_0 {group} {target}/iscsi/{_ISCSI_NAME} "
            f"{target}/iscsi {store} {target}/core/fileio_0",
            check=False,
        )
        machine.sh(f"""
            mkdir -p {store} {target}/iscsi
            echo fd_dev_name={IMAGE},fd_dev_size=$(stat -c %s {IMAGE}) > {store}/control
            echo 1 > {store}/enable
            mkdir -p {group}/np/{_ADDRESS}:3260 {group}/lun/lun_0
            ln -s {store} {group}/lun/lun_0/storage
            echo 0 > {group}/attrib/authentication
            echo 1 > {group}/attrib/generate_node_acls
            echo 1 > {group}/enable
            mkdir -p /etc/iscsi /run/lock/iscsi
            echo InitiatorName=iqn.2026-01.example:machine > /etc/iscsi/initiatorname.iscsi
        """)
        daemon = machine.start_process("iscsid", "--foreground")
        undone.callback(_end, machine, daemon)
        node = f"iscsiadm -m node -T {_ISCSI_NAME} -p {_ADDRESS}"
        undone.callback(machine.run, "sh", "-c", f"{node} --logout", check=False)
        find = f"iscsiadm -m discovery -t sendtargets -p {_ADDRESS}"
        machine.sh(
            f"for n in 1 2 3 4 5 6 7 8 9; do {find} > /dev/null && break; sleep 0.5; done; "
            f"{node} --login",
            seconds=_SECONDS,
        )
        device = machine.sh(
            "for n in $(seq 100); do for disk in"
            " /sys/class/iscsi_session/session*/device/target*/*/block/*; do"
            ' [ -e "$disk" ] && { basename "$disk"; exit; }; done; sleep 0.2; done'
        ).strip()
        _await(machine, f"/dev/{device}")
        with _slow_loopback(machine, seconds), _shown(machine, f"/dev/{device}") as point:
            yield point


@contextlib.contextmanager
def loop_on_nfs(machine: Machine, seconds: float) -> Iterator[str]:
    """Yield the checkpoint in an image on NFS, whose server is so many seconds away."""
    machine.modprobe("loop")
    with nfs.mounted(machine, path=FOLDER) as folder:
        nfs.delay(machine, seconds)
        try:
            with _shown(machine, f"{folder}/image", "loop") as point:
                yield point
        finally:
            nfs.delay(machine, 0)


@contextlib.contextmanager
def spinning_loop(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint on a loop device, of which the kernel says that it spins."""
    machine.modprobe("loop")
    with _shown(machine, IMAGE, "loop") as point:
        number = machine.sh(f"mountpoint -d {point}").strip()
        machine.sh(f"echo 1 > /sys/dev/block/{number}/queue/rotational")
        yield point


@contextlib.contextmanager
def slow_disk(machine: Machine, source: str, seconds: float) -> Iterator[str]:
    """Yield a large checkpoint on a disk that is throttled and takes so long for each read."""
    machine.modprobe("dm-delay")
    disk = machine.disks[SLOW_DISK]

    def make() -> None:
        machine.sh(f"mkfs.ext4 -q -E nodiscard {disk}")
        with mounted(machine, "/mnt/fill-slow", disk) as point:
            fill_large(machine, source, f"{point}/model")

    once(machine, SLOW_DISK, make)
    # Reads are late, writes are not: a target for each.
    target = f"delay {{device}} 0 {round(seconds * 1000)} {{device}} 0 0"
    with (
        mapping(machine, SLOW_DISK, disk, target) as device,
        mounted(machine, "/mnt/slow", "-o", "ro", device) as point,
    ):
        yield f"{point}/model"


def fill_large(machine: Machine, source: str, folder: str) -> None:
    """Copy a checkpoint of any size, with zeros for its weights, and soon.

    As they are written, the blocks are read from the disk later, unlike those of a hole. `source`
    has holes, and copying it would take long.
    """
    machine.sh(
        f"""
        mkdir {folder}
        cp {source}/*.json {folder}
        for shard in {source}/*.safetensors; do
            copy={folder}/$(basename $shard)
            size=$(stat -c %s $shard)
            dd if=/dev/zero of=$copy bs=16M count=$((size / 16777216 + 1)) oflag=direct
            dd if=$shard of=$copy bs=64K count=1 conv=notrunc
            truncate -s $size $copy
        done 2> /dev/null
        sync
        """,
        seconds=300,
    )


@contextlib.contextmanager
def nbd_device(machine: Machine, seconds: float, plugin: str = "file") -> Iterator[str]:
    """Yield the node of a network block device with the image."""
    machine.run("modprobe", "nbd", "nbds_max=1", "max_part=4")
    server = machine.start_process(
        *("nbdkit", "--foreground", "--readonly", "--unix", _SOCKET, "--threads", "64"),
        *("--filter=delay", plugin, IMAGE, f"rdelay={round(seconds * 1000)}ms"),
    )
    try:
        _await(machine, _SOCKET, server)
        machine.run("nbd-client", "-unix", _SOCKET, f"/dev/{_NBD}")
        yield f"/dev/{_NBD}"
    finally:
        machine.run("nbd-client", "-d", f"/dev/{_NBD}", check=False)
        _end(machine, server)
        machine.run("rm", "-f", _SOCKET)


@contextlib.contextmanager
def mapping(machine: Machine, name: str, device: str, target: str) -> Iterator[str]:
    """Yield the node of a mapped device with one target for all of a device."""
    words = target.format(device=device)
    try:
        machine.sh(
            f'dmsetup create --noudevsync {name} --table "0 $(blockdev --getsz {device}) {words}"'
            " && dmsetup mknodes"
        )
        yield f"/dev/mapper/{name}"
    finally:
        machine.run("dmsetup", "remove", "--noudevsync", "--retry", name, check=False)
        machine.run("dmsetup", "mknodes", check=False)


def _shown(machine: Machine, device: str, *options: str) -> contextlib.AbstractContextManager[str]:
    return mounted(machine, "/mnt/storage", "-o", ",".join(("ro", *options)), device)


@contextlib.contextmanager
def _slow_loopback(machine: Machine, seconds: float) -> Iterator[None]:
    """Have each round trip over the loopback interface take so long."""
    if seconds == 0:
        yield
        return
    machine.modprobe("sch_netem")
    microseconds = round(seconds / 2 * 1_000_000)
    try:
        machine.run(
            *("tc", "qdisc", "replace", "dev", "lo", "root"),
            *("netem", "delay", f"{microseconds}us", "limit", "100000"),
        )
        yield
    finally:
        machine.run("tc", "qdisc", "del", "dev", "lo", "root", check=False)


def _configfs(machine: Machine) -> None:
    place = "/sys/kernel/config"
    machine.sh(f"mountpoint -q {place} || mount -t configfs configfs {place}")


def _await(machine: Machine, path: str, server: Process | None = None) -> None:
    deadline = time.monotonic() + _SECONDS
    while machine.run("test", "-e", path, check=False).code != 0:
        said = "" if server is None else "".join(server.shown())
        if time.monotonic() > deadline or (server is not None and not server.running):
            raise MachineError(f"expected {path} within {_SECONDS} s, found nothing: {said}")
        time.sleep(0.1)


def _end(machine: Machine, server: Process) -> None:
    machine.run("kill", str(server.pid), check=False)
    with contextlib.suppress(MachineError):
        server.end(_SECONDS)
    machine.run("kill", "-KILL", str(server.pid), check=False)
