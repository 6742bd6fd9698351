"""What a node has of a model, by the words of its server; all of it where that is not sure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.checkpoint.placement import EVERYTHING, Needs, Ranks
from prefetch_cli.checkpoint.request import Reference
from prefetch_cli.commands.infer import completed, infer
from tests.helpers.requests import request

VLLM = "vllm serve org/m "
SGLANG = "sglang serve org/m "
TWO_STAGES = "--tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2"


def needs(text: str, **environ: str) -> Needs:
    return infer(text.split(), {"HOME": "/home/me", **environ}).needs


def of(stage: Ranks | None, experts: Ranks | None = None) -> Needs:
    return Needs(stage=stage, experts=experts, inferred=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{VLLM}{TWO_STAGES} --node-rank 1", of(Ranks(1, 1, 2))),
        (f"{VLLM}{TWO_STAGES} --node-rank 0 --master-addr n0", of(Ranks(0, 0, 2))),
        (f"{VLLM}{TWO_STAGES}", of(Ranks(0, 0, 2))),
        (f"{VLLM}{TWO_STAGES} --safetensors-load-strategy lazy", of(Ranks(0, 0, 2))),
        (f"{VLLM}-tp 8 -pp=2 -n 2 -r 1 --headless", of(Ranks(1, 1, 2))),
        (f"{VLLM}-tp 16 -pp 2 --nnodes 4 --node-rank 2", of(Ranks(1, 1, 2))),
        (f"{VLLM}-tp 4 -pp 4 --nnodes 2 --node-rank 1", of(Ranks(2, 3, 4))),
        (f"{VLLM}-tp 8 -pp 2 --nnodes 2 --node-rank 1 -ep", of(Ranks(1, 1, 2))),
        (f"{VLLM}-tp 16 --nnodes 2 --node-rank 1 -ep", of(None, Ranks(8, 15, 16))),
        (
            f"{VLLM}-tp 16 -pp 2 --nnodes 4 --node-rank 3 --enable-expert-parallel",
            of(Ranks(1, 1, 2), Ranks(8, 15, 16)),
        ),
        (
            f"{VLLM}-tp 16 --nnodes 2 -ep --expert-placement-strategy linear",
            of(None, Ranks(0, 7, 16)),
        ),
        (f"{VLLM}{TWO_STAGES} --distributed-executor-backend mp -dp 1", of(Ranks(0, 0, 2))),
        (f"{SGLANG}--tp 8 --pp 2 --nnodes 2 --node-rank 1", of(Ranks(1, 1, 2))),
        (f"{SGLANG}--tp-size 16 --pp-size 2 --nnodes 4 --node-rank 1", of(Ranks(0, 0, 2))),
        (f"{SGLANG}--tp 4 --pp 4 --nnodes 2 --node-rank 1 --ep-size 4", of(Ranks(2, 3, 4))),
    ],
)
def test_what_a_node_has(text: str, expected: Needs) -> None:
    assert needs(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        VLLM,
        f"{VLLM}-tp 8 -pp 2",  # one node has all
        f"{VLLM}-tp 16 --nnodes 2 --node-rank 1",  # of each tensor a part
        f"{VLLM}{TWO_STAGES} --node-rank 2",
        f"{VLLM}{TWO_STAGES} --node-rank one",
        f"{VLLM}{TWO_STAGES} --node-rank -1",
        f"{VLLM}{TWO_STAGES} --node-rank=",
        f"{VLLM}{TWO_STAGES} --node-rank 99999999999999999999",
        f"{VLLM}-tp 8 -pp 2 --nnodes 3 --node-rank 1",
        f"{VLLM}-tp 1 -pp 2 --nnodes 4 --node-rank 1",
        f"{VLLM}-tp 0 -pp 2 --nnodes 2",
        f"{VLLM}-tp 8 -pp 2 --nnodes 0",
        f"{VLLM}{TWO_STAGES} --data-parallel-size 2",
        f"{VLLM}{TWO_STAGES} -pcp 2",
        f"{VLLM}{TWO_STAGES} --safetensors-load-strategy eager",
        f"{VLLM}{TWO_STAGES} --distributed-executor-backend ray",
        f"{VLLM}{TWO_STAGES} --config more.yaml",
        f"{VLLM}-tp 16 --nnodes 2 -ep --enable-eplb",
        f"{VLLM}-tp 16 --nnodes 2 -ep --expert-placement-strategy round_robin",
        f"{VLLM}-tp 16 --nnodes 2 -ep --no-enable-expert-parallel",
        f"{SGLANG}--tp 8 --pp 3 --nnodes 2",
        f"{SGLANG}--tp 3 --pp 1 --nnodes 2",
        f"{SGLANG}--tp 16 --nnodes 2 --node-rank 1 --ep-size 16",
        f"trtllm-serve org/m --pp_size 2 {TWO_STAGES}",
        "llama-server -m org/m --nnodes 2",
        f"unknown serve org/m {TWO_STAGES}",
    ],
)
def test_all_where_it_is_not_sure(text: str) -> None:
    assert needs(text) == EVERYTHING


def test_variables_of_slurm_where_a_shell_expands_them() -> None:
    words = [
        *("bash", "-c"),
        "vllm serve org/m -tp 8 -pp $SLURM_NNODES --nnodes $SLURM_NNODES --node-rank $SLURM_NODEID",
    ]
    found = infer(words, {"SLURM_NNODES": "4", "SLURM_NODEID": "2"})
    assert found.needs == of(Ranks(2, 2, 4))
    assert infer(words, {}).needs == EVERYTHING


SIZES = st.integers(1, 24)


@given(tensor=SIZES, pipeline=SIZES, nodes=SIZES, experts=st.booleans())
def test_nodes_together_have_every_rank(
    tensor: int, pipeline: int, nodes: int, experts: bool
) -> None:
    """By a list of all ranks, as vLLM numbers them."""
    text = f"{VLLM}-tp {tensor} -pp {pipeline} --nnodes {nodes}{' -ep' * experts}"
    ranks = [(stage, rank) for stage in range(pipeline) for rank in range(tensor)]
    each = len(ranks) // nodes
    for node in range(nodes):
        found = needs(f"{text} --node-rank {node}")
        if len(ranks) % nodes:
            assert found == EVERYTHING
            continue
        for stage, rank in ranks[node * each : (node + 1) * each]:
            assert found.stage is None or found.stage.first <= stage <= found.stage.last
            if isinstance(found.experts, Ranks):
                assert experts
                assert found.experts.first <= rank <= found.experts.last
        if found.stage is not None:
            own = {stage for stage, _ in ranks[node * each : (node + 1) * each]}
            assert own == set(range(found.stage.first, found.stage.last + 1))


def test_what_is_inferred_counts_where_the_user_says_nothing() -> None:
    inferred = infer(f"{VLLM}{TWO_STAGES} --node-rank 1".split(), {})
    second, mine = of(Ranks(1, 1, 2)), Needs(globs=("*",))
    assert completed(request(), inferred, None).needs == second
    assert completed(request("org/m"), inferred, None).needs == second
    for given_needs in (mine, EVERYTHING):
        for references in ([], ["org/m"]):
            asked = request(*references, needs=given_needs)
            assert completed(asked, inferred, None).needs == given_needs
    # Of other models nothing is known.
    assert completed(request("/models/m"), inferred, None).needs is None
    assert completed(request("org/m", Reference("org/draft")), inferred, None).needs is None
