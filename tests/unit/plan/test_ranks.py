"""Launchers: the contract's table, what does not count as a rank, and the warning."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.plan.ranks import LocalRank, detect

PAIRS = [
    ("torchrun", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("DeepSpeed", "LOCAL_RANK", "LOCAL_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPICH or Intel MPI", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MVAPICH2", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PALS", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("jsrun", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
]
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}


def warned(environ: dict[str, str]) -> str:
    """Return the warning for an environment without a usable rank."""
    found = detect(environ)
    assert (found.rank, found.world_size, found.launcher) == (0, 1, None)
    assert found.warning is not None
    assert "reads everything" in found.warning
    assert "\n" not in found.warning
    return found.warning


@pytest.mark.parametrize(("launcher", "rank", "size"), PAIRS)
def test_each_launcher(launcher: str, rank: str, size: str) -> None:
    assert detect({rank: "3", size: "4"}) == LocalRank(3, 4, launcher, None)
    assert detect({rank: "0", size: "4"}) == LocalRank(0, 4, launcher, None)


@pytest.mark.parametrize(("launcher", "rank", "size"), PAIRS)
@pytest.mark.parametrize(
    "pair",
    [
        ("4", "4"),
        ("5", "4"),
        ("-1", "4"),
        ("0", "0"),
        ("0", "-4"),
        ("", "4"),
        ("1", ""),
        (" 1", "4"),
        ("1", "4 "),
        ("+1", "4"),
        ("1_0", "20"),
        ("1", "4.0"),
        ("0x1", "4"),
        ("\u0661", "\u0664"),
        ("1\n", "4"),
        ("1", "9" * 5000),
    ],
)
def test_a_pair_that_makes_no_sense_does_not_count(
    launcher: str, rank: str, size: str, pair: tuple[str, str]
) -> None:
    warning = warned({rank: pair[0], size: pair[1]})
    assert rank in warning
    assert size in warning
    assert len(warning) < 400


@pytest.mark.parametrize(("launcher", "rank", "size"), PAIRS)
def test_half_a_pair_does_not_count(launcher: str, rank: str, size: str) -> None:
    assert f"{rank}=1" in warned({rank: "1"})
    assert f"{size}=2" in warned({size: "2"})


def test_no_launcher() -> None:
    assert "no launcher" in warned({})
    assert "no launcher" in warned({"PATH": "/bin", "RANK": "1", "WORLD_SIZE": "2"})


def test_global_ranks_are_never_used() -> None:
    names = ["SLURM_PROCID", "SLURM_NTASKS", "RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE"]
    assert "no launcher" in warned(dict.fromkeys(names, "1"))


def test_launchers_that_agree_are_all_named() -> None:
    environ = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2", **STEP}
    assert detect(environ) == LocalRank(1, 2, "torchrun, DeepSpeed, Slurm", None)


def test_launchers_that_disagree() -> None:
    warning = warned({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **STEP})
    assert "torchrun: rank 1 of 4" in warning
    assert "Slurm: rank 1 of 2" in warning
    assert "--rank" in warning


def test_a_pair_of_one_process_is_ignored() -> None:
    alone = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    assert "OMPI_COMM_WORLD_LOCAL_SIZE=1" in warned(alone)
    both = {**alone, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert detect(both) == LocalRank(1, 2, "torchrun", None)


@pytest.mark.parametrize(
    ("tasks", "node", "size"),
    [
        ("2(x3),1", 0, 2),
        ("2(x3),1", 2, 2),
        ("2(x3),4", 3, 4),
        ("4", 0, 4),
        ("3,5,2(x2)", 1, 5),
        ("3,5,2(x2)", 3, 2),
        ("2(x0),4", 0, 4),
        ("8(x999999999)", 999_999_998, 8),
    ],
)
def test_slurm_step(tasks: str, node: int, size: int) -> None:
    environ = {**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
    assert detect(environ) == LocalRank(1, size, "Slurm", None)


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_NODEID": "3"},
        {"SLURM_STEP_TASKS_PER_NODE": ""},
        {"SLURM_STEP_TASKS_PER_NODE": "2(3)"},
        {"SLURM_STEP_TASKS_PER_NODE": "2(x)"},
        {"SLURM_STEP_TASKS_PER_NODE": "two"},
        {"SLURM_STEP_TASKS_PER_NODE": ",2"},
        {"SLURM_STEP_TASKS_PER_NODE": "2 (x3)"},
        {"SLURM_NODEID": "-1"},
        {"SLURM_NODEID": ""},
        {"SLURM_LOCALID": "2"},
        {"SLURM_LOCALID": "first"},
        {"SLURM_STEP_ID": ""},
        {"SLURM_STEP_ID": "0xfffffffb"},
        {"SLURM_STEP_ID": str(0xFFFFFFF0)},
        {"SLURM_STEP_ID": str(0xFFFFFFFA)},  # interactive step
        {"SLURM_STEP_ID": str(0xFFFFFFFB)},  # batch script
        {"SLURM_STEP_ID": str(0xFFFFFFFC)},  # extern step
        {"SLURM_STEP_ID": "99999999999999999999"},
    ],
)
def test_what_is_no_slurm_step(changed: dict[str, str]) -> None:
    assert "SLURM_LOCALID=" in warned({**STEP, **changed})


@pytest.mark.parametrize("missing", STEP)
def test_slurm_step_needs_all_of_it(missing: str) -> None:
    warned({name: value for name, value in STEP.items() if name != missing})


def test_a_batch_script_is_one_process() -> None:
    # As under sbatch --nodes=1 --ntasks=4: no step, and yet a rank 0.
    batch = {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "4"}
    assert "SLURM_LOCALID=0" in warned(batch)


@pytest.mark.parametrize(
    "tasks", ["1(x999999999)", "1," * 200_000, "1" * 200_000, "1(x1)" * 50_000]
)
def test_a_hostile_list_takes_no_memory_and_no_time(tasks: str) -> None:
    started = time.process_time()
    warned({**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks})
    assert time.process_time() - started < 2


def test_values_are_shown_escaped() -> None:
    warning = warned({"LOCAL_RANK": "\x1b[31m\n\udce9"})
    assert "LOCAL_RANK=\\x1b[31m\\n\\xe9" in warning


variables = [name for _, *pair in PAIRS for name in pair] + list(STEP)
values = st.one_of(
    st.integers(0, 5).map(str),
    st.text(max_size=12),
    st.text("0123456789(x),-", max_size=12),
    st.integers(0xFFFFFFE0, 0xFFFFFFFF).map(str),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(variables), values))
def test_never_raises_and_the_rank_is_below_the_size(environ: dict[str, str]) -> None:
    found = detect(environ)
    assert 0 <= found.rank < found.world_size
    assert (found.launcher is None) == (found.warning is not None)
    assert (found.world_size > 1) == (found.launcher is not None)


@pytest.mark.parametrize(
    ("rank", "size", "nodes", "found"),
    [
        ("3", "4", "1", (3, 4)),
        ("0", "4", "1", (0, 4)),
        ("3", "4", "2", None),  # perhaps three here, one elsewhere
        ("3", "4", "0", None),
        ("3", "4", "", None),
        ("4", "4", "1", None),
        ("0", "1", "1", None),
    ],
)
def test_a_job_of_flux_on_one_node(
    rank: str, size: str, nodes: str, found: tuple[int, int] | None
) -> None:
    job = {"FLUX_TASK_LOCAL_ID": rank, "FLUX_JOB_SIZE": size, "FLUX_JOB_NNODES": nodes}
    if found is None:
        assert f"FLUX_TASK_LOCAL_ID={rank}" in warned(job)
    else:
        assert detect(job) == LocalRank(*found, "Flux", None)
        del job["FLUX_JOB_NNODES"]
        assert warned(job)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, (1, 2)),
        ({"SLURM_LOCALID": "0"}, (0, 2)),
        ({"SLURM_STEP_ID": "3"}, (1, 2)),
        ({"SLURM_STEP_ID": str(0xFFFFFFF0 - 1)}, (1, 2)),
        ({"SLURM_STEP_ID": str(0xFFFFFFF0)}, None),
        ({"SLURM_LOCALID": "5"}, None),
        ({"SLURM_LOCALID": "300", "SLURM_STEP_TASKS_PER_NODE": "300"}, None),
        ({"SLURM_LOCALID": "0", "SLURM_NODEID": "3"}, None),  # alone on that node
        ({"SLURM_LOCALID": "0", "SLURM_NODEID": "4"}, None),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2,x"}, (0, 2)),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "x,2"}, None),
    ],
)
def test_a_step_counts_where_its_numbers_fit(
    changed: dict[str, str], found: tuple[int, int] | None
) -> None:
    if found is None:
        warned({**STEP, **changed})
    else:
        assert detect({**STEP, **changed}) == LocalRank(*found, "Slurm", None)


def test_a_variable_that_is_named_like_a_launcher_says_nothing() -> None:
    assert "no launcher" in warned({"PALS": "1", "jsrun": "2", "Open MPI": "3"})


def test_a_long_value_is_shown_in_part() -> None:
    warning = warned({"LOCAL_RANK": "7" * 50})
    assert f"LOCAL_RANK={'7' * 40};" in warning
