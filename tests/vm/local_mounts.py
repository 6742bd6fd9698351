"""The local file systems of the matrix, each made on a disk or in memory of the machine."""

import contextlib
from collections.abc import Iterator

from tests.vm.machine import Machine
from tests.vm.rows import MODEL, Row, Skip


@contextlib.contextmanager
def ext4(machine: Machine) -> Iterator[str]:
    """Yield the checkpoint where it lies on the first disk."""
    yield MODEL


ROWS = (Row("ext4", ext4, "ext4", network=False, skip=Skip.LOCAL),)
