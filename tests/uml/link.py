"""The mounts that are measured: over NFS as a row describes it, and over 9p."""

import contextlib
from collections.abc import Iterator

from tests.uml.rows import Row
from tests.vm import kernels, local_mounts, nfs, shared_mounts
from tests.vm.kernels import NoMachineError
from tests.vm.machine import MIB, Machine

_9P_PORT = 5640
_LARGE_BYTES = 64 * MIB


@contextlib.contextmanager
def mounted(machine: Machine, row: Row, bytes_per_second: int | None = None) -> Iterator[str]:
    """Yield a mount of the server's files behind the row's link."""
    buffers = _LARGE_BYTES if row.buffers == "large" else None
    options = [f"nconnect={row.nconnect}"]
    link = nfs.Link(mtu=row.mtu, tcp_buffer_bytes=buffers)
    with (
        nfs.serving(machine, link),
        nfs.mounted(machine, version=row.version, options=options) as point,
    ):
        nfs.delay(machine, row.round_trip_ms / 1000, bytes_per_second)
        try:
            yield point
        finally:
            nfs.delay(machine, 0)


@contextlib.contextmanager
def plan9(machine: Machine, round_trip_ms: int) -> Iterator[str]:
    """Yield a 9p mount that keeps pages, of the server's files behind a link.

    Raises NoMachineError without the server, which is diod.
    """
    if kernels.command("diod") is None:
        raise NoMachineError("needs Debian's diod: apt-get install it")
    address = f"{nfs.SERVER_ADDRESS}:{_9P_PORT}"
    export = ("--no-auth", "--no-userdb", "--export", nfs.EXPORT)
    options = f"trans=tcp,port={_9P_PORT},version=9p2000.L,msize=512000,cache=loose"
    # It gives files no versions, without which Linux caches none unless told to.
    options += f",ignoreqv,access=any,uname=root,aname={nfs.EXPORT}"
    # It refuses clients whose addresses have no name.
    machine.sh(f"echo {nfs.CLIENT_ADDRESS} {nfs.CLIENT} >> /etc/hosts")
    with nfs.serving(machine):  # for its link
        daemon = machine.start_process("diod", "--foreground", "--listen", address, *export)
        try:
            shared_mounts.await_server(machine, daemon, nfs.SERVER_ADDRESS, _9P_PORT)
            words = ("-t", "9p", "-o", options, nfs.SERVER_ADDRESS)
            with local_mounts.mounted(machine, "/mnt/9p", *words, netns=nfs.CLIENT) as point:
                nfs.delay(machine, round_trip_ms / 1000)
                try:
                    yield point
                finally:
                    nfs.delay(machine, 0)
        finally:
            shared_mounts.end(machine, str(daemon.pid), daemon)
