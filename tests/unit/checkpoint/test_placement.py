"""Which tensors are needed, by their names: what is not sure is needed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.config import Config, parse_config
from prefetch_cli.checkpoint.placement import (
    Needs,
    Place,
    Placement,
    Ranks,
    Span,
    experts_of,
    layers_of,
    place_of,
    placement,
)

SERVERS = st.sampled_from([None, *Server])


@pytest.mark.parametrize(
    ("name", "tower", "layer", "expert"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "model.layers.", 7, None),
        ("layers.0.attention.wq.weight", "layers.", 0, None),
        ("transformer.h.11.attn.c_attn.weight", "transformer.h.", 11, None),
        ("h.11.attn.c_attn.weight", "h.", 11, None),
        ("encoder.block.3.layer.0.weight", "encoder.block.", 3, None),
        ("transformer.blocks.2.ffn.experts.mlp.w1", "transformer.blocks.", 2, None),
        ("blk.40.ffn_gate_exps.weight", "blk.", 40, None),
        ("model.layers.3.mlp.experts.255.up_proj.weight", "model.layers.", 3, 255),
        ("language_model.model.layers.1.block_sparse_moe.experts.0.w1.weight", None, 1, 0),
        ("model.layers.1.mlp.shared_experts.0.w1.weight", "model.layers.", 1, None),
        ("experts.5.w1", "", None, 5),
        # No number of a layer, or of an expert.
        ("model.embed_tokens.weight", "", None, None),
        ("lm_head.weight", "", None, None),
        ("model.layers.norm.weight", "", None, None),
        ("model.layers.12", "", None, None),
        ("model.mylayers.1.weight", "", None, None),
        ("model.layers.1234567.weight", "", None, None),
        ("model.layers.-1.weight", "", None, None),
        ("model.layers.²3.weight", "", None, None),
        ("model.experts.gate_up_proj", "", None, None),
        ("", "", None, None),
    ],
)
def test_a_name_says_its_layer_and_its_expert(
    name: str, tower: str | None, layer: int | None, expert: int | None
) -> None:
    found = place_of(name)
    assert (found.layer, found.expert, found.wanted) == (layer, expert, True)
    assert tower is None or found.tower == ("", tower)


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ((), True),
        (("model.*",), True),
        (("model",), False),
        (("*.q_proj.*", "nothing"), True),
        (("!*.q_proj.*",), False),
        (("!*.k_proj.*",), True),
        (("model.*", "!*.q_proj.*"), False),
        (("!*.q_proj.*", "model.*"), False),
        (("MODEL.*",), False),
    ],
)
def test_globs_are_about_whole_names_and_what_is_left_out_wins(
    globs: tuple[str, ...], expected: bool
) -> None:
    assert place_of("model.layers.7.self_attn.q_proj.weight", globs).wanted is expected


@given(layers=st.integers(0, 300), stages=st.integers(1, 64), server=SERVERS)
def test_each_layer_is_on_one_stage_and_stages_differ_by_one(
    layers: int, stages: int, server: Server | None
) -> None:
    found = [layers_of(Ranks(stage, stage, stages), layers, server) for stage in range(stages)]
    assert [layer for one in found for layer in one] == list(range(layers))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(experts=st.integers(0, 600), ranks=st.integers(1, 64))
def test_each_expert_is_on_one_rank_and_the_first_have_one_more(experts: int, ranks: int) -> None:
    found = [experts_of(Ranks(rank, rank, ranks), experts) for rank in range(ranks)]
    assert [expert for one in found for expert in one] == list(range(experts))
    assert sorted(map(len, found), reverse=True) == list(map(len, found))
    assert len(found[0]) - len(found[-1]) <= 1


@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=9))
def test_the_variable_of_the_server_partitions_the_layers(parts: list[int]) -> None:
    listed = ",".join(map(str, parts))
    environ = {"VLLM_PP_LAYER_PARTITION": listed, "SGLANG_PP_LAYER_PARTITION": "1,1"}
    found = [
        layers_of(Ranks(stage, stage, len(parts)), sum(parts), Server.VLLM, environ)
        for stage in range(len(parts))
    ]
    assert list(map(len, found)) == parts
    assert [layer for one in found for layer in one] == list(range(sum(parts)))


@pytest.mark.parametrize("listed", ["3", "3,3,2", "3,4", "3,", "a,b", "-1,9", "8", "³,5", "3;5"])
def test_a_variable_that_does_not_fit_is_refused(listed: str) -> None:
    for server, variable in (
        (Server.VLLM, "VLLM_PP_LAYER_PARTITION"),
        (None, "VLLM_PP_LAYER_PARTITION"),
        (Server.SGLANG, "SGLANG_PP_LAYER_PARTITION"),
    ):
        with pytest.raises(UsageError) as caught:
            layers_of(Ranks(0, 0, 2), 8, server, {variable: listed})
        assert caught.value.message == (
            f"{variable}: expected 2 numbers of layers, 8 in all, found {listed}"
        )


def names(layers: int, experts: int = 0, before: str = "model.layers.") -> list[str]:
    found = ["model.embed_tokens.weight", "lm_head.weight"]
    for layer in range(layers):
        found.append(f"{before}{layer}.self_attn.q_proj.weight")
        found += [f"{before}{layer}.mlp.experts.{expert}.w1" for expert in range(experts)]
    return found


def placed(needs: Needs, found: list[str], config: Config | None = None) -> Placement:
    places = [place_of(name, needs.globs) for name in found]
    return placement(needs, places, config or Config(), Server.VLLM, {})


def needed(needs: Needs, found: list[str], config: Config | None = None) -> list[str]:
    place = placed(needs, found, config)
    return [name for name in found if place.needs(place_of(name, needs.globs))]


@given(
    layers=st.integers(1, 20),
    experts=st.integers(0, 9),
    stages=st.integers(1, 5),
    ranks=st.integers(1, 5),
    known=st.booleans(),
)
def test_stages_and_ranks_together_need_all_and_share_only_what_has_no_number(
    layers: int, experts: int, stages: int, ranks: int, known: bool
) -> None:
    found = names(layers, experts)
    config = Config(layers=(layers,), experts=experts or None) if known else None
    needs = [
        Needs(stage=Ranks(stage, stage, stages), experts=Ranks(rank, rank, ranks))
        for stage in range(stages)
        for rank in range(ranks)
    ]
    each = [needed(one, found, config) for one in needs]
    assert set().union(*each) == set(found)
    for name in found:
        place = place_of(name)
        times = sum(name in one for one in each)
        assert times == (stages if place.layer is None else 1) * (
            ranks if place.expert is None else 1
        )


def test_experts_from_one_to_another() -> None:
    found = names(2, 8)
    assert needed(Needs(experts=Span(2, 3)), found) == [
        name for name in found if place_of(name).expert in (None, 2, 3)
    ]
    assert (
        placed(Needs(experts=Span(6, 99)), found).experts
        == placed(Needs(experts=Span(6, 7)), found).experts
    )
    assert needed(Needs(experts=Span(90, 99)), found) == [
        name for name in found if place_of(name).expert is None
    ]


TOWERS = [f"visual.blocks.{number}.weight" for number in range(8)]


@pytest.mark.parametrize(
    ("found", "config", "total"),
    [
        pytest.param(names(8), Config(), 8, id="by-names"),
        pytest.param(names(8), Config(layers=(8,)), 8, id="agree"),
        pytest.param(names(8) + TOWERS, Config(), 8, id="tower"),
        pytest.param(names(8) + TOWERS, Config(layers=(8,)), 8, id="tower-as-long"),
        pytest.param(names(9), Config(layers=(8,), next_layers=1), 8, id="heads-behind"),
        pytest.param(names(8), Config(layers=(16, 8)), 8, id="two-numbers"),
        pytest.param(
            names(8) + names(3, before="model.decoder2.layers."), Config(layers=(8,)), 8, id="other"
        ),
        pytest.param(
            [*names(8), *names(8, before="model.encoder.layers.")],
            Config(layers=(8,)),
            8,
            id="two-ends",
        ),
        pytest.param(names(9), Config(layers=(8,)), None, id="more-than-config"),
        pytest.param(names(7), Config(layers=(8,)), None, id="fewer-than-config"),
        pytest.param(names(8) + names(8, before="other.layers."), Config(), None, id="two"),
        pytest.param(
            names(8) + names(8, before="other.layers."), Config(layers=(8,)), None, id="two-fit"
        ),
        pytest.param(names(0), Config(layers=(8,)), None, id="none"),
        pytest.param(TOWERS, Config(layers=(8,)), None, id="only-a-tower"),
    ],
)
def test_layers_are_parted_only_where_their_number_is_sure(
    found: list[str], config: Config, total: int | None
) -> None:
    needs = Needs(stage=Ranks(1, 1, 2))
    place = placed(needs, found, config)
    assert (place.layers.total if place.layers else None) == total
    assert len(place.doubts) == (total is None)
    missing = set(found) - set(needed(needs, found, config))
    if total is None:
        assert not missing
    else:
        assert missing == {
            name for name in found if name.startswith("model.layers.") and _layer(name) < 4
        }


def test_what_chatglm_calls_its_decoder_is_one() -> None:
    found = names(8, before="transformer.encoder.layers.")
    found += names(8, before="transformer.vision.transformer.layers.")
    place = placed(Needs(stage=Ranks(0, 0, 2)), found, Config(layers=(8,)))
    assert place.tower == ("", "transformer.encoder.layers.")


def _layer(name: str) -> int:
    return place_of(name).layer or 0


def test_layers_of_two_folders_are_two_models() -> None:
    needs = Needs(stage=Ranks(0, 0, 2))
    places = [place_of(f"layers.{one}.w", (), folder) for one in range(4) for folder in ("a", "b")]
    place = placement(needs, places, Config(layers=(4,)), None, {})
    assert place.layers is None
    assert all(map(place.needs, places))


@pytest.mark.parametrize(
    ("experts", "in_config", "sure"), [(8, 8, True), (8, None, True), (8, 9, False), (0, 8, False)]
)
def test_experts_are_parted_only_where_their_number_is_sure(
    experts: int, in_config: int | None, sure: bool
) -> None:
    needs = Needs(experts=Ranks(0, 0, 2))
    found, config = names(2, experts), Config(experts=in_config)
    place = placed(needs, found, config)
    assert (place.experts is not None) is sure
    assert len(place.doubts) == (not sure)
    if not sure:
        assert needed(needs, found, config) == found


@given(st.text(), st.builds(Needs, stage=st.just(Ranks(0, 0, 3)), experts=st.just(Ranks(1, 1, 2))))
def test_any_name_has_a_place(name: str, needs: Needs) -> None:
    place = place_of(name)
    assert isinstance(place, Place)
    assert placement(needs, [place], Config(), None, {}).needs(place) in (True, False)


@pytest.mark.parametrize(
    ("document", "layers", "experts"),
    [
        ({"num_hidden_layers": 32}, (32,), None),
        ({"n_layer": 12}, (12,), None),
        ({"num_hidden_layers": 56, "num_layers": 28}, (56, 28), None),
        ({"text_config": {"num_hidden_layers": 40, "num_experts": 128}}, (40,), 128),
        (
            {"num_hidden_layers": 3, "thinker_config": {"text_config": {"num_hidden_layers": 5}}},
            (5,),
            None,
        ),
        ({"n_routed_experts": 256, "num_hidden_layers": 61}, (61,), 256),
        ({"moe_num_experts": [64, 64], "num_hidden_layers": 2}, (2,), 64),
        ({"num_hidden_layers": "32", "num_experts": {}}, (), None),
        ({"num_hidden_layers": None, "text_config": 3}, (), None),
        ({"moe_num_experts": []}, (), None),
        ([1], (), None),
    ],
)
def test_config_says_how_many_there_are(
    document: object, layers: tuple[int, ...], experts: int | None
) -> None:
    found = parse_config(json.dumps(document).encode())
    assert (found.layers, found.experts) == (layers, experts)


def test_needs_are_written_as_they_are_given() -> None:
    assert [str(Ranks(1, 1, 4)), str(Ranks(0, 3, 8)), str(Span(0, 7))] == ["1/4", "0-3/8", "0-7"]


@given(number=st.integers(0, 300), count=st.integers(1, 40), data=st.data())
def test_several_have_what_each_of_them_has(number: int, count: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(0, count - 1))
    first = data.draw(st.integers(0, last))
    server = data.draw(SERVERS)
    each = [Ranks(one, one, count) for one in range(first, last + 1)]
    together = Ranks(first, last, count)
    assert list(layers_of(together, number, server)) == [
        layer for one in each for layer in layers_of(one, number, server)
    ]
    assert list(experts_of(together, number)) == [
        expert for one in each for expert in experts_of(one, number)
    ]
