"""What stays in the page cache when a Slurm step ends, without and with a cgroup around it.

The kernel charges page cache to the cgroup that reads it first: with task/cgroup, to the step's,
below the job's. Its limit caps what stays while it runs; what happens at its end is up to Slurm.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND
from tests.launchers import ranks
from tests.launchers.conftest import need_slurm
from tests.launchers.ranks import MIB, TOOL
from tests.launchers.slurm import Cluster, cgroup_version

ROOM = "--mem=512"  # MiB per job: several times what is warmed
TIGHT = "--mem=64"  # half of it
# The most that a job's own processes need besides page cache.
_PROCESSES_BYTES = 40 * MIB
_CGROUPS = "/sys/fs/cgroup/memory"
_FORCE_EMPTY = """#!/bin/sh
path=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)
echo 1 > {root}${{path%/task_*}}/memory.force_empty
"""


@pytest.fixture(scope="module")
def bounded() -> Iterator[Cluster]:
    """A Slurm of one node that limits the memory of its steps by cgroups."""
    need_slurm()
    if cgroup_version() != "cgroup/v1" or not os.access(_CGROUPS, os.W_OK):
        pytest.skip(f"needs the memory controller of cgroup v1, to write, at {_CGROUPS}")
    with Cluster.started(task_plugin="cgroup") as started:
        yield started


@pytest.fixture(params=["none", "cgroup"])
def either(request: pytest.FixtureRequest) -> Cluster:
    """A Slurm whose steps have no cgroup, and one whose steps have one."""
    name = {"none": "cluster", "cgroup": "bounded"}[request.param]
    found: Cluster = request.getfixturevalue(name)
    return found


def left(built: BuiltCheckpoint) -> float:
    """Return the resident share of a checkpoint, 0 to 1."""
    return oracle.resident_bytes(built.files) / sum(map(os.path.getsize, built.files))


def parts(output: str, built: BuiltCheckpoint) -> list[float]:
    """Return the resident shares that a batch script printed, in order."""
    total_bytes = sum(map(os.path.getsize, built.files))
    return [sum(map(int, line.split())) / total_bytes for line in output.splitlines()]


def look(built: BuiltCheckpoint) -> str:
    """Return a script line that prints the resident bytes of each file."""
    return f"echo $(fincore --bytes --raw -n -o RES {shlex.join(built.files)})"


def warm(built: BuiltCheckpoint) -> str:
    """Return a script line that warms the checkpoint quietly."""
    return shlex.join([*TOOL, "--quiet", built.directory])


def test_what_a_step_has_warmed_stays_after_its_end(
    either: Cluster, weights: BuiltCheckpoint
) -> None:
    script = f"#!/bin/sh\nsrun -n2 {warm(weights)}\n{look(weights)}\nsrun -n1 true\n{look(weights)}"
    job = either.sbatch(script + "\n", "-n2", ROOM)
    assert job.code == 0, job
    left_of_it = [*parts(job.output, weights), left(weights)]
    # After the step, after another one, and after the job.
    assert len(left_of_it) == 3
    assert min(left_of_it) >= 0.99, f"resident: {left_of_it}"


def test_what_the_script_itself_has_warmed_stays(either: Cluster, weights: BuiltCheckpoint) -> None:
    script = f"#!/bin/sh\n{warm(weights)}\nsrun -n1 true\n{look(weights)}\n"
    job = either.sbatch(script, "-n2", ROOM)
    assert job.code == 0, job
    left_of_it = [*parts(job.output, weights), left(weights)]
    assert len(left_of_it) == 2
    assert min(left_of_it) >= 0.99, f"resident: {left_of_it}"


def test_the_limit_of_a_job_bounds_what_stays(bounded: Cluster, weights: BuiltCheckpoint) -> None:
    """The tool says so before it reads, and names the job's cgroup."""
    folder = f"{bounded.folder}/limit"
    line = shlex.join(ranks.words(folder, *TOOL, "--json", weights.directory))
    job = bounded.sbatch(f"#!/bin/sh\nsrun -n1 {line}\n", TIGHT)
    assert job.code == 0, job
    [one] = ranks.ended(folder)
    memory = one.document["memory"]
    assert memory["limited_by"].startswith(f"{_CGROUPS}/slurm_{bounded.nodes[0]}/uid_0/job_")
    assert memory["available_bytes"] <= 64 * MIB
    assert one.document["decision"]["reason"] == "forced-too-big"
    assert 0 < left(weights) <= 64 * MIB / sum(map(os.path.getsize, weights.files))


def test_what_a_step_has_warmed_counts_for_its_job(
    bounded: Cluster, weights: BuiltCheckpoint
) -> None:
    """A server in a later step uses the pages as they are: its job is already charged for them."""
    job_group = "${path%/step_*}/memory.usage_in_bytes"
    second = (
        "path=$(sed -n s/^[0-9]*:memory://p /proc/self/cgroup);"
        f" cat {shlex.join(weights.files)} > /dev/null;"
        f" cat {_CGROUPS}{job_group} {_CGROUPS}${{path%/task_*}}/memory.usage_in_bytes"
    )
    script = f"#!/bin/sh\nsrun -n1 {warm(weights)}\nsrun -n1 sh -c {shlex.quote(second)}\n"
    job = bounded.sbatch(script, ROOM)
    assert job.code == 0, job
    job_bytes, step_bytes = map(int, job.output.split())
    total_bytes = sum(map(os.path.getsize, weights.files))
    assert 0.99 * total_bytes <= job_bytes <= total_bytes + _PROCESSES_BYTES
    assert step_bytes <= _PROCESSES_BYTES


@pytest.mark.parametrize("place", ["step", "script"])
def test_what_is_left_where_the_end_of_a_step_empties_its_cgroup(
    bounded: Cluster, weights: BuiltCheckpoint, tmp_path: Path, place: str
) -> None:
    """Older releases did this with jobacct_gather/cgroup; here a task epilog stands in for it.

    What the step read is gone; what the batch script read stays, since no step is charged for it.
    """
    epilog = tmp_path / "epilog"
    epilog.write_text(_FORCE_EMPTY.format(root=_CGROUPS))
    epilog.chmod(0o755)
    first = {"step": "srun -n1 ", "script": ""}[place]
    script = (
        f"#!/bin/sh\n{first.replace('srun', f'srun --task-epilog={epilog}')}{warm(weights)}\n"
        f"srun --task-epilog={epilog} -n1 true\n{look(weights)}\n"
    )
    job = bounded.sbatch(script, ROOM)
    assert job.code == 0, job
    [left_of_it] = parts(job.output, weights)
    if place == "step":
        assert left_of_it <= 0.01, job
    else:
        assert left_of_it >= 0.99, f"resident: {left_of_it}"


def test_a_step_that_becomes_the_server_keeps_all_until_its_end(
    bounded: Cluster, weights: BuiltCheckpoint
) -> None:
    """Running the warmer and the server in one step works in all these cases."""
    server = ("--", "sh", "-c", look(weights))
    line = shlex.join([*COMMAND, "--force", "--lead", "100%", weights.directory, *server])
    job = bounded.sbatch(f"#!/bin/sh\nsrun -n1 {line}\n", ROOM)
    assert job.code == 0, job
    [left_of_it] = parts(job.output, weights)
    assert left_of_it >= 0.99, f"resident: {left_of_it}"
