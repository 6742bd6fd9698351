"""The recipes for Slurm, submitted to a real Slurm, with a stand-in for vLLM.

This Slurm has no GPUs, so the lines that ask for some are removed.
"""

import os
import re
from dataclasses import dataclass

import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.launchers import programs
from tests.launchers.slurm import Cluster, Job, SlurmError
from tests.recipes.section import recipe
from tests.recipes.server import Server

RECIPES = ("slurm-before", "slurm-beside", "slurm-nodes")
# Makes the read of 20 MiB outlast the server's start.
SLOW = {"PREFETCH_CLI_MAX_RATE": "10M"}


@dataclass(frozen=True)
class Site:
    """A cluster of two nodes on which both commands are installed."""

    cluster: Cluster
    server: Server

    def submit(self, name: str, checkpoint: str, **more: str) -> Job:
        """Submit a recipe, and return its job once it has ended."""
        return self.sbatch(without_gpus(recipe(name).of(checkpoint)), **more)

    def sbatch(self, script: str, **more: str) -> Job:
        """Submit a script, and return its job once it has ended."""
        path = os.pathsep.join((self.server.bin, self.cluster.environment["PATH"]))
        variables = {"PATH": path, **self.server.variables(**more)}
        exported = ",".join(f"{name}={value}" for name, value in variables.items())
        return self.cluster.sbatch(script, f"--export=ALL,{exported}")


def without_gpus(script: str) -> str:
    """Return the script without the line that asks for GPUs; all other options stay."""
    changed, found = re.subn(r"^#SBATCH --gpus-per-node=\d+\n", "", script, flags=re.MULTILINE)
    assert found == 1
    assert "gpu" not in changed
    return changed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Both commands, built once for all tests."""
    programs.need({"fincore": "util-linux-extra"})
    return Server.built(str(tmp_path_factory.mktemp("recipes") / "server"))


@pytest.fixture
def site(cluster: Cluster, installed: Server) -> Site:
    """The cluster and both commands, with no start noted yet."""
    installed.reset()
    return Site(cluster, installed)


def test_slurm_before(site: Site, cold: str) -> None:
    job = site.submit("slurm-before", cold)
    assert (job.code, job.state) == (0, "COMPLETED"), job
    (notes,) = site.server.starts()
    assert notes.words == ["serve", cold, "--tensor-parallel-size", "8"]
    assert notes.part_at_start >= 0.99, job
    # A step of its own, after the tool's.
    assert notes.environment["SLURM_STEP_ID"] == "1"


def test_slurm_beside(site: Site, cold: str) -> None:
    job = site.submit("slurm-beside", cold, **SLOW)
    assert (job.code, job.state) == (0, "COMPLETED"), job
    (notes,) = site.server.starts()
    assert notes.words == ["serve", cold, "--tensor-parallel-size", "8"]
    assert notes.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "forkserver"
    assert notes.part_at_start < 0.9, job
    assert notes.part_at_load >= 0.99, job
    assert notes.library_resident >= 0.99 * notes.library_bytes > 0, job
    # The tool has become the server, in one step.
    assert notes.environment["SLURM_STEP_ID"] == "0"
    assert "10%" in job.errors, job


def test_slurm_nodes(site: Site, built: BuiltCheckpoint, cold: str) -> None:
    job = site.submit("slurm-nodes", cold)
    assert (job.code, job.state) == (0, "COMPLETED"), job
    found = {notes.environment["SLURMD_NODENAME"]: notes for notes in site.server.starts()}
    assert found.keys() == set(site.cluster.nodes)
    common = f"serve {cold} --tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2"
    head, *others = site.cluster.nodes
    for rank, node in enumerate((head, *others)):
        expected = f"{common} --master-addr {head} --safetensors-load-strategy lazy"
        expected += f" --node-rank {rank}"
        expected += " --headless" if rank else ""
        assert found[node].words == expected.split()
        # Each reads its own stage.
        part = rf"part +stage {rank}/2, layers {(0, 2)[rank]} to \d of 3; .*; from COMMAND"
        assert re.search(part, job.errors), job
        own = (built.weight_files[:2], built.weight_files[2:])[rank]
        assert found[node].resident_at_load >= 0.99 * sum(map(os.path.getsize, own)), job


@pytest.mark.parametrize("name", RECIPES)
def test_a_job_ends_as_its_server_does(site: Site, cold: str, name: str) -> None:
    job = site.submit(name, cold, STANDIN_EXIT="7")
    assert (job.code, job.state) == (7, "FAILED"), job
    assert site.server.starts()


@pytest.mark.parametrize("name", RECIPES)
def test_a_job_ends_where_the_model_is_not_there(site: Site, name: str) -> None:
    job = site.submit(name, f"{site.server.folder}/nothing")
    assert (job.code, job.state) == (3, "FAILED"), job
    assert site.server.starts() == []


@pytest.mark.parametrize("name", RECIPES)
def test_slurm_refuses_an_option_that_it_does_not_know(site: Site, cold: str, name: str) -> None:
    script = without_gpus(recipe(name).of(cold)).replace("--exclusive", "--exclusively")
    with pytest.raises(SlurmError, match="exclusively"):
        site.sbatch(script)
