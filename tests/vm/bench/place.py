"""A machine for a measurement, with the checkpoints on its first disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.helpers import checkpoints
from tests.vm import kernels
from tests.vm.conftest import CGROUPS, prepare, shares_of
from tests.vm.machine import MIB, Machine

# Read over each new connection before it is measured: TCP starts slowly, and at 50 ms it takes
# seconds to open a window of some 10 MB, which a server's mount already has.
BALLAST = "/srv/ballast-192"

_BALLAST_BYTES = 192 * MIB
_MEMORY_BYTES = 8 * 1024 * MIB


@dataclass(frozen=True)
class Place:
    """A running machine, and a folder on the host that it sees."""

    machine: Machine
    folder: str

    def checkpoint(self, name: str, shard_bytes: Sequence[int]) -> str:
        """Return the directory of a checkpoint of these shards on the machine's first disk."""
        # A different name for each size: the machine keeps what it once saw of a path.
        name = f"{name}-{sum(shard_bytes) // MIB}"
        directory = f"/srv/{name}"
        if self.machine.run("test", "-d", directory, check=False).code != 0:
            built = checkpoints.write_streamed(
                os.path.join(self.folder, name), shard_bytes=shard_bytes, durable=False
            )
            self.machine.sh(f"cp -r {built.directory} {directory}; sync", seconds=300)
            shutil.rmtree(built.directory)
        return directory


@contextmanager
def place(series: str, model_bytes: int) -> Iterator[Place]:
    """Boot a machine whose matrix mounts show a checkpoint of this size, and yield it."""
    kernels.prepare()
    folder = tempfile.mkdtemp(prefix="model-", dir=kernels.BUILD)
    try:
        model = checkpoints.write_streamed(
            f"{folder}/model", shard_bytes=[model_bytes // 4] * 4, durable=False
        )
        with Machine(
            kernels.fetch(series),
            CGROUPS[series],
            shares=shares_of(model),
            memory_bytes=_MEMORY_BYTES,
            # Memory that the host still has to find would slow down the first run.
            touched=True,
        ) as machine:
            prepare(machine, model)
            found = Place(machine, folder)
            assert found.checkpoint("ballast", [_BALLAST_BYTES]) == BALLAST
            yield found
    finally:
        shutil.rmtree(folder)
