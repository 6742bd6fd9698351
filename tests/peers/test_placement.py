"""Layers and experts lie where vLLM and SGLang put them, by their own functions."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.placement import Ranks, experts_of, layers_of
from prefetch_cli.commands.infer import infer
from tests.peers import cutting
from tests.peers.wheels import SGLANG, VLLM, source_of

LAYERS, STAGES = st.integers(0, 200), st.integers(1, 40)
LISTS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


class Silent:
    """A logger."""

    def info(self, *_: object) -> None:
        """Say nothing."""


def vllm_layers(layers: int, stage: int, stages: int, listed: str | None) -> range:
    part = cutting.cut(source_of(VLLM, "vllm.distributed.utils"), ["get_pp_indices"])
    envs = SimpleNamespace(VLLM_PP_LAYER_PARTITION=listed)
    names = cutting.run([part], {"envs": envs, "logger": Silent()}, {})
    return range(*names.get_pp_indices(layers, stage, stages))


def sglang_layers(layers: int, stage: int, stages: int, listed: str | None) -> range:
    part = cutting.cut(source_of(SGLANG, "sglang.srt.distributed.utils"), ["get_pp_indices"])
    system = SimpleNamespace(getenv=lambda _name, _default: listed)
    names = cutting.run([part], {"os": system}, {})
    return range(*names.get_pp_indices(layers, stage, stages))


PEERS = {
    Server.VLLM: (vllm_layers, "VLLM_PP_LAYER_PARTITION"),
    Server.SGLANG: (sglang_layers, "SGLANG_PP_LAYER_PARTITION"),
}


@pytest.mark.parametrize("server", PEERS)
@settings(deadline=None)  # the source is parsed each time
@given(layers=LAYERS, stages=STAGES, data=st.data())
def test_a_stage_has_the_layers_that_its_server_gives_it(
    server: Server, layers: int, stages: int, data: st.DataObject
) -> None:
    theirs, _ = PEERS[server]
    stage = data.draw(st.integers(0, stages - 1))
    assert layers_of(Ranks(stage, stage, stages), layers, server) == theirs(
        layers, stage, stages, None
    )


@pytest.mark.parametrize("server", PEERS)
@settings(deadline=None)  # the source is parsed each time
@given(parts=LISTS, more=st.sampled_from([0, 0, 0, 1]), extra=st.sampled_from(["", "", " ", ",1"]))
def test_a_list_of_layers_is_taken_or_refused_as_the_server_does(
    server: Server, parts: list[int], more: int, extra: str
) -> None:
    theirs, variable = PEERS[server]
    layers, listed = sum(parts) + more, ",".join(map(str, parts)) + extra
    for stage in range(len(parts)):
        try:
            expected: range | None = theirs(layers, stage, len(parts), listed)
        except ValueError:
            expected = None
        try:
            found: range | None = layers_of(
                Ranks(stage, stage, len(parts)), layers, server, {variable: listed}
            )
        except UsageError:
            found = None
        assert found == expected


def sglang_stages(nodes: int, node: int, tensor: int, pipeline: int) -> range:
    """Return the stages of a node, and check that its ranks are as many as it takes."""
    module = "sglang.srt.entrypoints.engine"
    part = cutting.cut(source_of(SGLANG, module), ["_calculate_rank_ranges"])
    parallel = SimpleNamespace(nnodes=nodes, pp_size=pipeline, tp_size=tensor)
    names = cutting.run([part], {"get_parallel": lambda: parallel}, {})
    found: range = names._calculate_rank_ranges(node)[0]
    return found


@settings(deadline=None)  # the source is parsed each time
@given(nodes=STAGES, pipeline=STAGES, each=st.integers(1, 8), data=st.data())
def test_a_node_has_the_stages_that_sglang_gives_it(
    nodes: int, pipeline: int, each: int, data: st.DataObject
) -> None:
    node = data.draw(st.integers(0, nodes - 1))
    tensor = each * max(nodes // pipeline, 1)
    words = ["sglang", "serve", "m", "--tp", f"{tensor}", "--pp", f"{pipeline}"]
    stage = infer([*words, "--nnodes", f"{nodes}", "--node-rank", f"{node}"], {}).needs.stage
    if stage is not None:
        theirs = sglang_stages(nodes, node, tensor, pipeline)
        assert range(stage.first, stage.last + 1) == theirs
    else:
        uneven = max(nodes, pipeline) % min(nodes, pipeline) != 0
        assert uneven or len(sglang_stages(nodes, node, tensor, pipeline)) == pipeline


class Map(list[int]):
    """The few things that vLLM does with a tensor of one dimension."""

    def __setitem__(self, where: Any, value: Any) -> None:
        super().__setitem__(where, list(value))


@settings(deadline=None)  # the source is parsed each time
@given(experts=st.integers(0, 300), ranks=st.integers(2, 40), data=st.data())
def test_a_rank_has_the_experts_that_vllm_gives_it(
    experts: int, ranks: int, data: st.DataObject
) -> None:
    torch = SimpleNamespace(
        full=lambda shape, value, dtype: Map([value] * shape[0]),
        arange=lambda first, behind, dtype: range(first, behind),
        int32=None,
    )
    module = "vllm.model_executor.layers.fused_moe.expert_map_manager"
    part = cutting.cut(source_of(VLLM, module), ["determine_expert_map"])
    names = cutting.run([part], {"torch": torch}, {"typing": SimpleNamespace(get_args=None)})
    rank = data.draw(st.integers(0, ranks - 1))
    count, found, _ = names.determine_expert_map(ranks, rank, experts)
    ours = experts_of(Ranks(rank, rank, ranks), experts)
    assert [number for number, local in enumerate(found) if local >= 0] == list(ours)
    assert count == len(ours)
