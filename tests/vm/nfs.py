"""An NFS server in the machine and its clients, with a network between them that can be slow.

The server is the kernel's, in the initial network namespace; clients mount in a namespace of their
own, at the other end of a veth pair. All processes share one mount namespace, so the command sees
such a mount like any other.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tests.vm.machine import MIB, Machine, MachineError

EXPORT = "/srv"  # what the server exports, including mounts below it
CLIENT = "client"  # the clients' network namespace
SERVER_ADDRESS = "10.77.0.1"
CLIENT_ADDRESS = "10.77.0.2"

_SERVER_DEVICE = "server0"
_CLIENT_DEVICE = "client0"
_MOUNTD_PORT = 20048
_THREADS = 8
# The most in flight on one connection: Linux's own 6 MiB would cap it at 120 MB/s at 50 ms.
_TCP_BUFFER_BYTES = 64 * MIB
_LARGEST_READ_BYTES = MIB  # the server's limit; clients ask for no more either
# The kernel's minimum. By default a client's first open waits 90 s, the time that the server's
# earlier clients have to reclaim their files (RFC 8881, 8.4.2).
_LEASE_SECONDS = 10
_PACKETS_IN_FLIGHT = 100_000  # netem's own limit drops packets beyond 1,000
_UNMOUNT_SECONDS = 30
_KEPT = "/run/nfs-tcp"  # the machine's own sizes of buffers, while they are enlarged


@dataclass(frozen=True)
class Link:
    """The network between server and clients."""

    # Network cards split and join packets in hardware; an emulated processor would have to.
    mtu: int = 65535
    tcp_buffer_bytes: int | None = _TCP_BUFFER_BYTES  # None: Linux's own


_holders: WeakKeyDictionary[Machine, int] = WeakKeyDictionary()
_numbers = itertools.count(1)


@contextlib.contextmanager
def serving(machine: Machine, link: Link = Link()) -> Iterator[None]:
    """Run the server for the duration of the context; nested contexts cost nothing.

    The server takes seconds to start: hold one context around many mounts. The outermost one's link
    is the one that counts.
    """
    outermost = machine not in _holders
    _holders[machine] = _holders.get(machine, 0) + 1
    try:
        if outermost:
            _set_up(machine, link)
        yield
    finally:
        _holders[machine] -= 1
        if outermost:
            del _holders[machine]
            _tear_down(machine)


@contextlib.contextmanager
def mounted(
    machine: Machine,
    *,
    version: str = "4.2",
    rsize_bytes: int = _LARGEST_READ_BYTES,
    path: str = EXPORT,
    options: Sequence[str] = (),
) -> Iterator[str]:
    """Yield a mount of the server's directory `path`, with nothing cached.

    `version` is "4.2" or "3"; `options` are further nfs(5) options. The server and the link are
    restored before the unmount, which needs both.
    """
    if os.path.commonpath((EXPORT, path)) != EXPORT:
        raise ValueError(f"expected a path in {EXPORT}, found {path!r}")
    words = [f"vers={version}", f"rsize={rsize_bytes}", *options]
    shown = path
    if version == "3":
        # With both ports given and no locks, a client needs neither rpcbind nor rpc.statd.
        ports = ("proto=tcp", "port=2049", "mountproto=tcp", f"mountport={_MOUNTD_PORT}")
        words += ["nolock", *ports]
    else:
        # fsid=0 makes the export the root of the NFSv4 tree.
        shown = "/" + path[len(EXPORT) :].strip("/")
    point = f"/mnt/nfs-{next(_numbers)}"
    with serving(machine):
        _end_grace(machine)
        machine.run("mkdir", point)
        try:
            source = f"{SERVER_ADDRESS}:{shown}"
            machine.run("mount.nfs", source, point, "-o", ",".join(words), netns=CLIENT)
            yield point
        finally:
            try:
                join(machine)
                start_server(machine)
            finally:
                _unmount(machine, point)


def delay(machine: Machine, round_trip_seconds: float, bytes_per_second: int | None = None) -> None:
    """Delay every round trip by this much, half of it each way; 0 removes the delay.

    With `bytes_per_second`, the server sends no faster than that.
    """
    microseconds = round(round_trip_seconds / 2 * 1_000_000)
    for device, netns in ((_SERVER_DEVICE, None), (_CLIENT_DEVICE, CLIENT)):
        place = ("dev", device, "root", "handle", "1:")
        if microseconds > 0:
            kind = ("netem", "delay", f"{microseconds}us", "limit", str(_PACKETS_IN_FLIGHT))
            machine.run("tc", "qdisc", "replace", *place, *kind, netns=netns)
        else:
            # Fails if there is no delay.
            machine.run("tc", "qdisc", "del", *place, netns=netns, check=False)
    if bytes_per_second is not None:
        below = ("parent", "1:1") if microseconds > 0 else ("root", "handle", "1:")
        rate = ("tbf", "rate", f"{bytes_per_second}bps", "burst", "1mb", "latency", "100ms")
        machine.run("tc", "qdisc", "replace", "dev", _SERVER_DEVICE, *below, *rate)


def stop_server(machine: Machine) -> None:
    """Stop the server's threads: its connections close and new ones are refused."""
    machine.sh("echo 0 > /proc/fs/nfsd/threads")


def start_server(machine: Machine) -> None:
    """Start the server's threads, unless they run.

    For `_LEASE_SECONDS` only its earlier clients may continue, with the files they had open; all
    other opens wait.
    """
    # The last thread closed the sockets as it stopped, and only rpc.nfsd creates them.
    machine.sh(
        '[ "$(cat /proc/fs/nfsd/threads)" != 0 ]'
        f" || {{ rpc.nfsd --no-udp {_THREADS}; [ $(cat /proc/fs/nfsd/threads) = {_THREADS} ]; }}"
    )


def cut(machine: Machine) -> None:
    """Cut the link: packets are lost silently."""
    machine.run("ip", "link", "set", _SERVER_DEVICE, "down")


def join(machine: Machine) -> None:
    """Restore the link; TCP notices at its next retry, later the longer the link was cut."""
    machine.run("ip", "link", "set", _SERVER_DEVICE, "up")


def export(machine: Machine) -> None:
    """Give clients the export; the server starts with it."""
    options = "rw,no_root_squash,insecure,no_subtree_check,crossmnt,fsid=0"
    machine.run("exportfs", "-o", options, f"{CLIENT_ADDRESS}:{EXPORT}")


def withdraw(machine: Machine) -> None:
    """Withdraw the export: every further request is stale, on open files too."""
    machine.run("exportfs", "-u", f"{CLIENT_ADDRESS}:{EXPORT}")


def wire_bytes(machine: Machine, mount_point: str) -> int:
    """Return the bytes of file data that the mount received from the server, repeats included.

    The client's own count (`server read` of nfsiostat): READ replies without their headers.
    """
    statistics = machine.read("/proc/self/mountstats").decode()
    _, found, of_mount = statistics.partition(f" mounted on {mount_point} with fstype nfs")
    for line in of_mount.split("\ndevice ")[0].splitlines():
        name, _, numbers = line.strip().partition(":")
        if name == "bytes":
            # nfs_show_stats() in fs/nfs/super.c: read and written normally, directly, on the wire.
            return int(numbers.split()[4])
    raise MachineError(f"expected statistics of {mount_point}, found {found or statistics!r}")


def sent_bytes(machine: Machine) -> int:
    """Return all bytes that the server sent on the link, with headers and retransmissions."""
    return int(machine.read(f"/sys/class/net/{_SERVER_DEVICE}/statistics/tx_bytes"))


def _set_up(machine: Machine, link: Link) -> None:
    machine.modprobe("nfsd", "nfs", "nfsv3", "nfsv4", "veth", "sch_netem")
    machine.sh(f"""
        ip netns add {CLIENT}
        ip link add {_SERVER_DEVICE} mtu {link.mtu} type veth \
            peer name {_CLIENT_DEVICE} mtu {link.mtu} netns {CLIENT}
        ip addr add {SERVER_ADDRESS}/24 dev {_SERVER_DEVICE}
        ip link set {_SERVER_DEVICE} up
        ip -n {CLIENT} addr add {CLIENT_ADDRESS}/24 dev {_CLIENT_DEVICE}
        ip -n {CLIENT} link set {_CLIENT_DEVICE} up
        # A connection that was idle for a moment keeps what it has learnt of the link.
        echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle
        # A pair of such devices delivers on whichever processor a packet is sent, so that they
        # pass each other, which TCP takes for losses: all on one, as one queue of a card does.
        # A kernel for one processor has no such file.
        steer='file=/sys/class/net/$1/queues/rx-0/rps_cpus; [ ! -e "$file" ] || echo 1 > "$file"'
        sh -ec "$steer" steer {_SERVER_DEVICE}
        ip netns exec {CLIENT} sh -ec "$steer" steer {_CLIENT_DEVICE}
    """)
    if link.tcp_buffer_bytes is not None:
        _enlarge_buffers(machine, link.tcp_buffer_bytes)
    machine.sh(f"""
        mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
        echo {_LARGEST_READ_BYTES} > /proc/fs/nfsd/max_block_size
        echo {_LEASE_SECONDS} > /proc/fs/nfsd/nfsv4leasetime
        echo {_LEASE_SECONDS} > /proc/fs/nfsd/nfsv4gracetime
        # A server of NFSv3 does not start where it cannot tell rpcbind.
        rpcbind
        # It answers NFSv3's mounts, and nfsd's questions of what is exported to whom.
        rpc.mountd --no-udp --port {_MOUNTD_PORT}
    """)
    export(machine)
    start_server(machine)


def _enlarge_buffers(machine: Machine, size_bytes: int) -> None:
    buffers = f"4096 {size_bytes} {size_bytes}"
    machine.sh(f"""
        for name in rmem wmem; do
            echo {size_bytes} > /proc/sys/net/core/${{name}}_max
            cat /proc/sys/net/ipv4/tcp_$name > {_KEPT}_$name
            echo {buffers} > /proc/sys/net/ipv4/tcp_$name
            ip netns exec {CLIENT} sh -c "echo {buffers} > /proc/sys/net/ipv4/tcp_$name"
        done
    """)


def _tear_down(machine: Machine) -> None:
    """Undo the set-up, however far it got."""
    machine.sh(f"""
        echo 0 > /proc/fs/nfsd/threads || true
        exportfs -ua || true
        pkill -x rpc.mountd || true
        pkill -x rpcbind || true
        while pgrep -x 'rpc.mountd|rpcbind' > /dev/null; do sleep 0.1; done
        umount /proc/fs/nfsd || true
        ip link del {_SERVER_DEVICE} || true
        ip netns del {CLIENT} || true
        for name in rmem wmem; do
            [ ! -e {_KEPT}_$name ] || cat {_KEPT}_$name > /proc/sys/net/ipv4/tcp_$name
            rm -f {_KEPT}_$name
        done
    """)


def _end_grace(machine: Machine) -> None:
    """Let clients open files at once: none of the server's earlier clients is left."""
    # Fails if the grace period is over.
    machine.sh("echo Y > /proc/fs/nfsd/v4_end_grace || true")


def _unmount(machine: Machine, point: str) -> None:
    """Unmount; if that takes too long, detach the mount until its last user is gone."""
    script = f"! mountpoint -q {point} || umount {point}"
    try:
        machine.sh(
            f"for n in 1 2 3 4 5; do {{ {script}; }} && break; sleep 1; done; {script}",
            seconds=_UNMOUNT_SECONDS,
        )
    except MachineError:
        # Waiting calls return an error; nobody uses what is left of this mount.
        machine.run("umount", "-f", "-l", point, check=False, seconds=_UNMOUNT_SECONDS)
    else:
        machine.run("rmdir", point)
