"""The mount that a row describes."""

import contextlib
from collections.abc import Iterator

from tests.uml.rows import Row
from tests.vm import nfs
from tests.vm.machine import MIB, Machine

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
