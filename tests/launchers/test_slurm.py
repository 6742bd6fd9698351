"""Ranks as Slurm starts them: in a step, in part of a job, on several nodes; a batch script."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pytest

from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, environment
from tests.launchers import ranks
from tests.launchers.ranks import TOOL
from tests.launchers.slurm import Cluster

SLOW = (*TOOL, "--max-rate", "1M")  # a rank's share would take 30 seconds
SCRIPT = "#!/bin/sh\n"


def tool(folder: Path, checkpoint: str, *more: str) -> list[str]:
    """Return a rank's command line."""
    return ranks.words(folder, *TOOL, "--json", *more, checkpoint)


def test_four_ranks_of_a_step_read_each_byte_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    done = cluster.srun("-n4", "--ntasks-per-node=4", *tool(tmp_path, weights.directory))
    assert done.code == 0, done
    found = ranks.ended(tmp_path)
    ranks.read_each_byte_once(found, weights, 4)
    assert {one.environment["SLURM_STEP_TASKS_PER_NODE"] for one in found} == {"4"}


def test_several_nodes_read_each_byte_once_on_each(
    cluster: Cluster, copies: list[BuiltCheckpoint], tmp_path: Path
) -> None:
    """Both nodes are this machine, so each has a checkpoint of its own to warm."""
    out = tmp_path / "out"
    line = shlex.join(tool(out, copies[0].directory.removesuffix("0")))
    done = cluster.srun(
        "-N2", "-n6", "--ntasks-per-node=3", "sh", "-c", f"exec {line}$SLURM_NODEID"
    )
    assert done.code == 0, done
    found = ranks.ended(out)
    # Ranks 3 to 5 of the step are 0 to 2 of their node.
    assert sorted(one.environment["SLURM_PROCID"] for one in found) == list("012345")
    for node, built in enumerate(copies):
        here = [one for one in found if one.environment["SLURM_NODEID"] == str(node)]
        ranks.read_each_byte_once(here, built, 3)


def test_uneven_nodes_read_each_byte_once_on_each(
    cluster: Cluster, copies: list[BuiltCheckpoint], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = shlex.join(tool(out, copies[0].directory.removesuffix("0")))
    done = cluster.srun(
        *("-N2", "-n3", "--distribution=block", "--cpus-per-task=4"),
        *("sh", "-c", f"exec {line}$SLURM_NODEID"),
    )
    assert done.code == 0, done
    found = ranks.ended(out)
    assert {one.environment["SLURM_STEP_TASKS_PER_NODE"] for one in found} == {"2,1"}
    here = {
        node: [one for one in found if one.environment["SLURM_NODEID"] == node] for node in "01"
    }
    ranks.read_each_byte_once(here["0"], copies[0], 2)
    # A lone task on its node is not a rank among several.
    [alone] = here["1"]
    assert "SLURM_STEP_TASKS_PER_NODE=2,1" in ranks.read_everything(alone, copies[1])


def test_a_batch_script_itself_reads_everything(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = shlex.join(tool(tmp_path, weights.directory))
    job = cluster.sbatch(f"{SCRIPT}exec {line}\n", "-n4", "--ntasks-per-node=4")
    assert job.code == 0, job
    [alone] = ranks.ended(tmp_path)
    # The trap: by its variables it is rank 0 of 4, but it runs only once.
    assert alone.environment["SLURM_LOCALID"] == "0"
    assert alone.environment["SLURM_NTASKS"] == "4"
    assert alone.environment["SLURM_TASKS_PER_NODE"] == "4"
    assert "SLURM_STEP_ID" not in alone.environment
    warning = ranks.read_everything(alone, weights)
    assert "no rank among several processes on this node, only SLURM_LOCALID=0" in warning


def test_a_step_of_a_batch_script_reads_each_byte_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = shlex.join(tool(tmp_path, weights.directory))
    job = cluster.sbatch(f"{SCRIPT}srun {line}\n", "-n4", "--ntasks-per-node=4")
    assert job.code == 0, job
    ranks.read_each_byte_once(ranks.ended(tmp_path), weights, 4)


def test_a_step_smaller_than_its_job_reads_each_byte_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = shlex.join(tool(tmp_path, weights.directory))
    job = cluster.sbatch(f"{SCRIPT}srun -n2 {line}\n", "-n4", "--ntasks-per-node=4")
    assert job.code == 0, job
    found = ranks.ended(tmp_path)
    assert {one.environment["SLURM_STEP_TASKS_PER_NODE"] for one in found} == {"2"}
    ranks.read_each_byte_once(found, weights, 2)


def test_a_step_of_one_task_reads_everything(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = shlex.join(tool(tmp_path, weights.directory))
    job = cluster.sbatch(f"{SCRIPT}srun -n1 {line}\n", "-n4", "--ntasks-per-node=4")
    assert job.code == 0, job
    [alone] = ranks.ended(tmp_path)
    assert alone.environment["SLURM_STEP_TASKS_PER_NODE"] == "1"
    ranks.read_everything(alone, weights)


def test_a_command_of_salloc_reads_everything_and_its_step_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    itself, step = tmp_path / "itself", tmp_path / "step"
    lines = [
        shlex.join(tool(itself, weights.directory)),
        shlex.join([*COMMAND, "--evict", weights.directory]),
        f"srun {shlex.join(tool(step, weights.directory))}",
    ]
    done = cluster.client(
        "salloc", "-n4", "--ntasks-per-node=4", "sh", "-c", " && ".join(lines), timeout=60
    )
    assert done.code == 0, done
    ranks.read_each_byte_once(ranks.ended(step), weights, 4)
    [alone] = ranks.ended(itself)
    assert alone.environment["SLURM_NTASKS"] == "4"
    ranks.warned_alone(alone, weights)


def test_the_shell_of_salloc_reads_everything(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    line = shlex.join(tool(tmp_path, weights.directory))
    with pexpect.spawn(
        "salloc",
        ["-n4", "--ntasks-per-node=4"],
        env={**cluster.environment, "SHELL": "/bin/sh", "PS1": "ready> "},
        timeout=60,
        echo=False,
    ) as shell:
        shell.expect_exact("ready> ")
        shell.sendline(f"{line}; exit $?")
        shell.expect(pexpect.EOF)
    assert shell.exitstatus == 0
    [alone] = ranks.ended(tmp_path)
    # A step of a special kind, numbered far above srun's.
    assert int(alone.environment["SLURM_STEP_ID"]) >= 0xFFFFFFF0
    assert alone.environment["SLURM_LOCALID"] == "0"
    ranks.read_everything(alone, weights)


@pytest.mark.parametrize("form", ["json", "text"])
def test_labelled_output_is_whole_for_each_rank(
    cluster: Cluster, weights: BuiltCheckpoint, form: str
) -> None:
    how = ("--json",) if form == "json" else ()
    done = cluster.srun("-l", "-n4", "--ntasks-per-node=4", *TOOL, *how, weights.directory)
    assert done.code == 0, done
    lines: dict[int, list[str]] = {}
    for line in done.output.splitlines():
        match = re.fullmatch("([0-3]): (.*)", line)
        assert match is not None, line
        lines.setdefault(int(match[1]), []).append(match[2])
    assert sorted(lines) == [0, 1, 2, 3]
    for rank, texts in lines.items():
        if form == "json":
            share = json.loads("\n".join(texts))["share"]
            assert (share["rank"], share["world_size"]) == (rank, 4)
        else:
            head = f"rank {rank}/4  "
            assert all(text.startswith(head) for text in texts), texts
            [share] = [text for text in texts if text.startswith(f"{head}share")]
            assert f" rank {rank} of 4, as Slurm says: " in share
    assert done.errors == ""


def test_progress_of_a_step_reaches_its_standard_error(
    cluster: Cluster, weights: BuiltCheckpoint
) -> None:
    words = (*COMMAND, "--rank", "auto", "--force", weights.directory)
    done = cluster.srun("-l", "-n2", "--ntasks-per-node=2", *words)
    assert done.code == 0, done
    for rank in range(2):
        assert f"{rank}: prefetch-cli rank {rank}/2: 100% " in done.errors


@pytest.mark.parametrize("place", ["script", "step"])
def test_scancel_ends_the_ranks_at_once(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path, place: str
) -> None:
    slow = ranks.words(tmp_path / "out", *SLOW, weights.directory)
    start = {"script": "exec ", "step": "srun "}[place]
    # The script would go on after the command's end: only the job's end may stop it.
    script = f"{SCRIPT}{start}{shlex.join(slow)}\nsleep 100\n"
    job = cluster.submit(script, "-n4", "--ntasks-per-node=4")
    count = {"script": 1, "step": 4}[place]
    cluster.await_it(lambda: len(runs(weights.directory)) == count or None, "the ranks")
    until_answering(cluster, weights.directory)

    since = time.monotonic()
    assert cluster.client("scancel", job).code == 0
    cluster.await_it(lambda: runs(weights.directory) == [] or None, "the end of the ranks")
    seconds = time.monotonic() - since

    assert cluster.ended(job).state == "CANCELLED"
    found = ranks.ended(tmp_path / "out")
    # By SIGTERM, before KillWait is over and SIGKILL comes.
    assert [one.code for one in found] == [128 + signal.SIGTERM] * count, found
    assert seconds < 2


def test_the_end_of_a_job_by_its_time_limit_leaves_nothing(
    cluster: Cluster, weights: BuiltCheckpoint, tmp_path: Path
) -> None:
    slow = shlex.join(ranks.words(tmp_path / "out", *TOOL, "--max-rate", "64K", weights.directory))
    job = cluster.submit(f"{SCRIPT}srun {slow}\n", "-n2", "--ntasks-per-node=2", "--time=5")
    cluster.await_it(lambda: len(runs(weights.directory)) == 2 or None, "the ranks")
    until_answering(cluster, weights.directory)
    # A limit is in whole minutes, but the end time derived from it can be set to the second.
    changed = cluster.client("scontrol", "update", f"JobId={job}", "EndTime=now+1second")
    assert changed.code == 0, changed
    done = cluster.ended(job)
    assert done.state == "TIMEOUT", done
    assert runs(weights.directory) == []
    assert [one.code for one in ranks.ended(tmp_path / "out")] == [128 + signal.SIGTERM] * 2


@pytest.mark.parametrize("form", ["alone", "beside"])
def test_a_killed_step_leaves_no_rank(
    cluster: Cluster, weights: BuiltCheckpoint, form: str
) -> None:
    beside = ["--", "sleep", "100"] if form == "beside" else []
    slow = shlex.join(["srun", "-n2", *SLOW, weights.directory, *beside])
    job = cluster.submit(f"{SCRIPT}{slow}\nexec sleep 100\n", "-n2")
    # In the form "beside" these are the warmers.
    cluster.await_it(lambda: len(runs(weights.directory)) >= 2 or None, "the ranks")
    [step] = re.findall(rf"StepId=({job}\.0) ", cluster.client("scontrol", "show", "step").output)
    assert cluster.client("scancel", "--signal=KILL", step).code == 0
    cluster.await_it(lambda: runs(weights.directory) == [] or None, "the end of the ranks")
    assert cluster.describe(job)["JobState"] == "RUNNING"
    assert cluster.client("scancel", job).code == 0
    cluster.ended(job)


def test_a_step_has_the_exit_code_of_the_command_beside(
    cluster: Cluster, weights: BuiltCheckpoint
) -> None:
    since = time.monotonic()
    done = cluster.srun("-n2", *SLOW, weights.directory, "--", "sh", "-c", "echo hi; exit 7")
    assert (done.code, done.output) == (7, "hi\n" * 2), done
    assert time.monotonic() - since < 20  # a share alone takes longer
    assert runs(weights.directory) == []


def runs(checkpoint: str) -> list[int]:
    """Return the pids of the command that have this checkpoint as an argument."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(checkpoint) in words and words[1:3] == [b"-m", b"prefetch_cli"]:
            found.append(int(name))
    return found


def until_answering(cluster: Cluster, checkpoint: str) -> None:
    """Wait until every run waits for SIGTERM: its main thread blocks the signal first."""

    def waits() -> bool | None:
        masks = []
        for pid in runs(checkpoint):
            status = Path(f"/proc/{pid}/status").read_text()
            masks += re.findall(r"SigBlk:\s*([0-9a-f]+)", status)
        return all(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks) or None

    cluster.await_it(waits, "the ranks, to wait for SIGTERM")
    assert runs(checkpoint)


def test_the_cluster_ends_with_all_that_it_started(cluster: Cluster) -> None:
    """Nothing outlives the cluster: daemons, a running job, its step, or what left its session."""
    with Cluster.started() as started:
        script = f"{SCRIPT}setsid sleep 100 &\nsrun -n2 sh -c 'setsid sleep 100; true'\n"
        job = started.submit(script, "-n2")
        started.await_it(lambda: len(with_name(started.folder, "sleep")) == 3 or None, "the sleeps")
        assert with_name(started.folder, "slurmctld")
        assert started.describe(job)["JobState"] == "RUNNING"
        folder = started.folder
    assert with_name(folder) == []
    assert not os.path.exists(folder)
    assert with_name(cluster.folder, "slurmctld")


def test_the_cluster_ends_with_a_process_that_is_killed(cluster: Cluster) -> None:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        line = [sys.executable, "-c", _STARTED_AND_LEFT, folder]
        with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert {"munged", "slurmctld", "slurmd"} <= set(with_name(folder))
            process.kill()
        cluster.await_it(lambda: with_name(folder) == [] or None, "the end of all of them")


_STARTED_AND_LEFT = """
import sys, time
from tests.launchers.slurm import Cluster
with Cluster.started(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(100)
"""


def with_name(folder: str, *names: str) -> list[str]:
    """Return the names of the processes of a folder's cluster, all or only these."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            name = Path(f"/proc/{process}/comm").read_text().strip()
        except OSError:
            continue
        if os.fsencode(f"SLURM_CONF={folder}/slurm.conf") in variables:
            # Debian calls it slurmctld-wlm, and a name is cut at 15 characters.
            found.append(name.removesuffix("-wlm"))
    return [name for name in found if name in names or not names]
