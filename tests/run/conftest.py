"""What the tests of the documents start from."""

import os

import pytest

from prefetch_cli.linux import mounts
from tests.helpers.checkpoints import write_sharded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small checkpoint on a disk."""
    directory = str(tmp_path_factory.mktemp("docs") / "model")
    os.mkdir(directory)
    if mounts.inspect([directory])[0].in_memory:
        pytest.skip("needs a temporary directory on a disk, found one in memory")
    return write_sharded(directory, shard_bytes=[3 << 20, 1 << 20]).directory
