"""Ranks as Open MPI and MPICH start them, and ranks with the variables that torchrun sets.

The real mpirun of both starts the command, which is not an MPI program. torchrun is part of
PyTorch, far too large for this: four processes get the variables that its agent gives its workers
(torch/distributed/elastic/agent/server/local_elastic_agent.py), and nothing else of it runs.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import environment
from tests.launchers import programs, ranks
from tests.launchers.ranks import TOOL, Rank
from tests.launchers.slurm import Cluster, without_launchers

# Allow root, and more ranks than cores.
_AS_ROOT = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
OPEN_MPI = ("mpirun.openmpi", *_AS_ROOT, "--oversubscribe")
MPICH = ("mpiexec.hydra",)
PACKAGES = {"mpirun.openmpi": "openmpi-bin", "mpiexec.hydra": "mpich"}
LAUNCHERS = {"Open MPI": OPEN_MPI, "MPICH": MPICH}
# The variables in which each gives the rank and size on this node.
LOCAL = {
    "Open MPI": ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
_LONGEST_SECONDS = 60


def started(*line: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a launcher without other launchers' variables and return the result."""
    program = os.path.basename(line[0])
    programs.need({program: PACKAGES[program]})
    return subprocess.run(
        line,
        check=False,
        capture_output=True,
        text=True,
        env=without_launchers(environment(**more)),
        stdin=subprocess.DEVNULL,
        timeout=_LONGEST_SECONDS,
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_four_ranks_read_each_byte_once(
    name: str, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = ranks.words(tmp_path, *TOOL, "--json", weights.directory)
    done = started(*LAUNCHERS[name], "-n", "4", *line)
    assert done.returncode == 0, done
    found = ranks.ended(tmp_path)
    ranks.read_each_byte_once(found, weights, 4)
    rank, size = LOCAL[name]
    assert [(one.environment[rank], one.environment[size]) for one in found] == [
        (str(number), "4") for number in range(4)
    ]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_one_rank_reads_everything(name: str, weights: BuiltCheckpoint, tmp_path: Path) -> None:
    line = ranks.words(tmp_path, *TOOL, "--json", weights.directory)
    done = started(*LAUNCHERS[name], "-n", "1", *line)
    assert done.returncode == 0, done
    [alone] = ranks.ended(tmp_path)
    assert f"{LOCAL[name][1]}=1" in ranks.read_everything(alone, weights)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_rank_names_its_launcher(name: str, weights: BuiltCheckpoint, tmp_path: Path) -> None:
    done = started(*LAUNCHERS[name], "-n", "2", *ranks.words(tmp_path, *TOOL, weights.directory))
    assert done.returncode == 0, done
    for one in ranks.ended(tmp_path):
        assert f" of 2, as {name}" in one.output


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_failure_of_a_rank_is_the_launchers(name: str, tmp_path: Path) -> None:
    done = started(*LAUNCHERS[name], "-n", "2", *TOOL, f"{tmp_path}/nothing")
    assert done.returncode == 3, done
    assert "prefetch-cli: error: " in done.stderr


def test_two_nodes_of_hydra_are_told_apart(copies: list[BuiltCheckpoint], tmp_path: Path) -> None:
    """Hydra takes two names of this machine for two nodes and starts its proxy on each."""
    out = tmp_path / "out"
    tool = shlex.join(ranks.words(out, *TOOL, "--json", copies[0].directory.removesuffix("0")))
    # Ranks 0 and 1 are on the first node, 2 and 3 on the second.
    script = f"exec {tool}$((PMI_RANK / 2))"
    done = started(
        *(*MPICH, "-launcher", "fork", "-hosts", "localhost:2,127.0.0.1:2", "-n", "4"),
        *("sh", "-c", script),
    )
    assert done.returncode == 0, done
    found = ranks.ended(out)
    for node, built in enumerate(copies):
        here = [one for one in found if int(one.environment["PMI_RANK"]) // 2 == node]
        ranks.read_each_byte_once(here, built, 2)


def test_torchruns_variables(weights: BuiltCheckpoint, tmp_path: Path) -> None:
    """This is the second of two nodes with four workers each: its global ranks are 4 to 7."""
    line = ranks.words(tmp_path, *TOOL, "--json", weights.directory)
    workers = [
        subprocess.Popen(line, env={**without_launchers(environment()), **of_torchrun(rank)})
        for rank in range(4)
    ]
    assert [worker.wait(_LONGEST_SECONDS) for worker in workers] == [0] * 4
    ranks.read_each_byte_once(ranks.ended(tmp_path), weights, 4)


def of_torchrun(rank: int) -> dict[str, str]:
    """Return what torchrun sets for a worker of the second of two nodes."""
    return {
        "LOCAL_RANK": str(rank),
        "RANK": str(4 + rank),
        "GROUP_RANK": "1",
        "ROLE_RANK": str(4 + rank),
        "ROLE_NAME": "default",
        "LOCAL_WORLD_SIZE": "4",
        "WORLD_SIZE": "8",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_WORLD_SIZE": "8",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def job_words(tmp_path: Path, weights: BuiltCheckpoint) -> list[str]:
    """A rank's command line, for launchers within a Slurm job."""
    return ranks.words(tmp_path / "out", *TOOL, "--json", weights.directory)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_mpirun_in_a_batch_script_reads_each_byte_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path, job_words: list[str], name: str
) -> None:
    """Open MPI and Hydra use srun, if they can, to start a daemon that starts the ranks.

    The daemon is the only task of its step, so Slurm's own variables name no rank.
    """
    line = shlex.join([*within_slurm(name), "-n", "4", *job_words])
    job = cluster.sbatch(f"#!/bin/sh\nexec {line}\n", "-n4", "--ntasks-per-node=4")
    assert job.code == 0, job
    ranks.read_each_byte_once(ranks.ended(tmp_path / "out"), weights, 4)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_mpirun_on_two_nodes_of_a_batch_script(
    cluster: Cluster, copies: list[BuiltCheckpoint], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    tool = shlex.join(ranks.words(out, *TOOL, "--json", copies[0].directory.removesuffix("0")))
    # Two ranks per node, the first two on the first node.
    script = f"exec {tool}$((${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}} / 2))"
    line = shlex.join([*within_slurm(name), "-n", "4", "sh", "-c", script])
    job = cluster.sbatch(f"#!/bin/sh\nexec {line}\n", "-N2", "-n4", "--ntasks-per-node=2")
    assert job.code == 0, job
    found = ranks.ended(out)
    assert len(found) == 4
    for node, built in enumerate(copies):
        here = [one for one in found if number(one) // 2 == node]
        ranks.read_each_byte_once(here, built, 2)


def number(one: Rank) -> int:
    """Return the global rank, from either launcher."""
    return int(one.environment.get("OMPI_COMM_WORLD_RANK") or one.environment["PMI_RANK"])


# By default they start their daemon in a step of its own, which would wait for the CPUs that the
# surrounding step holds.
ON_THIS_NODE = {
    "Open MPI": ("--mca", "plm", "isolated", "--mca", "ras", "^slurm"),
    "MPICH": ("-launcher", "fork", "-rmk", "user"),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_mpirun_in_a_task_of_a_step_reads_each_byte_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path, job_words: list[str], name: str
) -> None:
    """By the variables that its ranks inherit, the step has one task: no rank among several."""
    line = [*within_slurm(name), *ON_THIS_NODE[name], "-n", "4", *job_words]
    done = cluster.srun("-n1", "--cpus-per-task=4", *line)
    assert done.code == 0, done
    found = ranks.ended(tmp_path / "out")
    assert {one.environment["SLURM_STEP_TASKS_PER_NODE"] for one in found} == {"1"}
    ranks.read_each_byte_once(found, weights, 4)


def within_slurm(name: str) -> tuple[str, ...]:
    program = LAUNCHERS[name][0]
    programs.need({program: PACKAGES[program]})
    path = shutil.which(program)
    assert path is not None
    return (path, *LAUNCHERS[name][1:])


def test_two_sets_of_variables_that_agree(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    """A Slurm step whose tasks carry torchrun's variables for the same ranks."""
    tool = shlex.join(ranks.words(tmp_path, *TOOL, weights.directory))
    script = f"LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=4 exec {tool}"
    done = cluster.srun("-n4", "--ntasks-per-node=4", "sh", "-c", script)
    assert done.code == 0, done
    found = ranks.ended(tmp_path)
    assert len(found) == 4
    assert all(" of 4, as torchrun, Slurm says: " in one.output for one in found)
    ranks.all_is_resident(weights)


def test_two_sets_of_variables_that_differ(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    """Two tasks of a step, in each of which another launcher starts four processes."""
    tool = shlex.join(ranks.words(tmp_path, *TOOL, "--json", weights.directory))
    script = f"LOCAL_RANK=3 LOCAL_WORLD_SIZE=4 exec {tool}"
    done = cluster.srun("-n2", "--ntasks-per-node=2", "sh", "-c", script)
    assert done.code == 0, done
    found = ranks.ended(tmp_path)
    assert [one.place for one in found] == [(0, 1)] * 2
    for one in found:
        [warning] = one.doubts
        assert "launchers that disagree (torchrun: rank 3 of 4; Slurm: rank " in warning
