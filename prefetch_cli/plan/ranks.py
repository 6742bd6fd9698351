"""The node-local rank of this process, from the environment of its launcher.

The page cache is per node, so global ranks (SLURM_PROCID, RANK) are never used. When in doubt,
read everything: warming all is safe, warming 1/N is not.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prefetch_cli.base.text import printable

_PAIRS = (
    ("torchrun", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("DeepSpeed", "LOCAL_RANK", "LOCAL_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPICH or Intel MPI", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MVAPICH2", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PALS", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("jsrun", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
)
_SLURM = ("SLURM_STEP_ID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")
_FLUX = ("FLUX_TASK_LOCAL_ID", "FLUX_JOB_SIZE", "FLUX_JOB_NNODES")
_NAMES = tuple(dict.fromkeys((*(name for pair in _PAIRS for name in pair[1:]), *_SLURM, *_FLUX)))

# Step ids from here up are not srun's: the batch script, the extern step, salloc's interactive
# step (SLURM_MAX_NORMAL_STEP_ID, slurm/slurm.h).
_SLURM_SPECIAL_STEPS = 0xFFFFFFF0
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_LONGEST_VALUE = 40


class LocalRank(NamedTuple):
    """A rank among the `world_size` processes of this node, or 0 of 1 and a warning that says why.

    `launcher` names the launchers that agree on it, joined by commas; None with a warning.
    """

    rank: int
    world_size: int
    launcher: str | None
    warning: str | None


def detect(environ: Mapping[str, str]) -> LocalRank:
    """Return the node-local rank and size that all launchers in `environ` agree on.

    Only complete pairs with a size above 1 count. If there is none, or two differ, return rank 0
    of 1, which reads everything, with a warning that says what was found. Never raises.
    """
    found = {name: _pair(environ.get(rank), environ.get(size)) for name, rank, size in _PAIRS}
    found["Slurm"] = _slurm_step(environ)
    found["Flux"] = _flux_job(environ)
    launchers: dict[tuple[int, int], list[str]] = {}
    for launcher, pair in found.items():
        if pair and pair[1] > 1:
            launchers.setdefault(pair, []).append(launcher)
    if len(launchers) == 1:
        [((rank, world_size), names)] = launchers.items()
        return LocalRank(rank, world_size, ", ".join(names), None)
    return LocalRank(0, 1, None, _warning(environ, launchers))


def _pair(rank: str | None, size: str | None) -> tuple[int, int] | None:
    pair = _number(rank), _number(size)
    return pair if 0 <= pair[0] < pair[1] else None


def _slurm_step(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the rank and size in a step that srun started.

    A batch script sees rank 0 of several too, although it runs only once.
    """
    step, rank, node = (_number(environ.get(name)) for name in _SLURM[:3])
    if step < 0 or step >= _SLURM_SPECIAL_STEPS:
        return None
    size = _tasks_on(node, environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return (rank, size) if 0 <= rank < size else None


def _flux_job(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the rank and size in a Flux job on a single node.

    On several, no variable tells how many tasks are on this one (flux-environment(7)).
    """
    rank, size, nodes = map(environ.get, _FLUX)
    return _pair(rank, size) if _number(nodes) == 1 else None


def _tasks_on(node: int, tasks_per_node: str) -> int:
    """Return the tasks on a node, -1 if unknown, from Slurm's list: `2(x3),1` means 2,2,2,1."""
    for part in tasks_per_node.split(",") if node >= 0 else ():
        match = _TASKS.fullmatch(part)
        if match is None:
            return -1
        # Do not expand the list: the repetition can be any number.
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    return -1


def _number(text: str | None) -> int:
    """Return a plain decimal number, -1 for anything else."""
    return int(text) if text and re.fullmatch("[0-9]{1,10}", text) else -1


def _warning(environ: Mapping[str, str], launchers: Mapping[tuple[int, int], list[str]]) -> str:
    """Return what was found instead of one rank and size, and the consequence."""
    if launchers:
        claims = "; ".join(
            f"{', '.join(names)}: rank {rank} of {size}"
            for (rank, size), names in launchers.items()
        )
        found = f"launchers that disagree ({claims})"
    elif names := [name for name in _NAMES if environ.get(name) is not None]:
        values = ", ".join(f"{name}={printable(environ[name][:_LONGEST_VALUE])}" for name in names)
        found = f"no rank among several processes on this node, only {values}"
    else:
        found = "no launcher"
    return f"--rank auto found {found}; this process reads everything (see --rank, --world-size)"
