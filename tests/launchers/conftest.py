"""Cold checkpoints, and the Slurm that several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import run
from tests.launchers import programs, slurm
from tests.launchers.ranks import MIB
from tests.launchers.slurm import Cluster

NODES = 2
_SHARDS = [44 * MIB, 33 * MIB, 53 * MIB + 4321]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        # Slurm checks time limits only every 30 seconds.
        item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def made(built: BuiltCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> list[BuiltCheckpoint]:
    """One checkpoint per node, `modelN`: three unequal shards, 130 MiB, on a disk.

    That is far more than the kernel reads ahead at the end of a share.
    """
    # Cache the command's own modules, so that only the checkpoint is counted.
    assert run("--check", built.directory).code == 0
    folder = tmp_path_factory.mktemp("made")
    return [
        checkpoints.write_streamed(f"{folder}/model{node}", shard_bytes=_SHARDS, seed=node)
        for node in range(NODES)
    ]


@pytest.fixture
def copies(made: list[BuiltCheckpoint]) -> list[BuiltCheckpoint]:
    """The checkpoints, cold."""
    for one in made:
        oracle.make_cold(one.files)
    return made


@pytest.fixture
def weights(made: list[BuiltCheckpoint]) -> BuiltCheckpoint:
    """One checkpoint, cold."""
    oracle.make_cold(made[0].files)
    return made[0]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm of two nodes that does not limit its steps."""
    need_slurm()
    with Cluster.started(nodes=NODES) as started:
        yield started


def need_slurm() -> None:
    """Skip if Slurm cannot be started."""
    programs.need(slurm.PACKAGES)
    if os.geteuid() != 0:
        programs.give_up("needs root: slurmctld and slurmd run as root")
