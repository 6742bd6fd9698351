"""Models of several folders, and the formats beside safetensors, .bin and GGUF."""

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import layouts
from prefetch_cli.checkpoint.companions import external_data, shards_in
from prefetch_cli.checkpoint.layouts import Component, Origin
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.linux.pagecache import PAGE_BYTES
from tests.unit.checkpoint.test_resolve import (
    names,
    refusal,
    resolved,
    shards,
    told,
    weights,
    write,
)

UNET = ["diffusers", "UNet2DConditionModel"]
VAE = ["diffusers", "AutoencoderKL"]
CLIP = ["transformers", "CLIPTextModel"]
INDEX = "diffusion_pytorch_model.safetensors.index{}.json"
PLAIN = shards(2, "diffusion_pytorch_model-")
FP16 = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]


def pipeline(folder: Path, files: Iterable[str], **components: Sequence[object]) -> Path:
    """Write a diffusers pipeline with these weights, and a config for each component."""
    write(folder, files)
    for name in components:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text("{}")
    document = {"_class_name": "P", **components}
    (folder / "model_index.json").write_text(json.dumps(document))
    return folder


def index(folder: Path, name: str, named: Iterable[str]) -> None:
    write(folder, [], index={name: list(named)})


def two_precisions(folder: Path, index_name: str = INDEX.format(".fp16")) -> Path:
    """Write a pipeline in full precision and fp16, its transformer in shards."""
    pipeline(
        folder,
        [
            *(f"transformer/{name}" for name in (*PLAIN, *FP16)),
            *("vae/diffusion_pytorch_model.safetensors",),
            *("vae/diffusion_pytorch_model.fp16.safetensors",),
            *("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
        ],
        transformer=UNET,
        vae=VAE,
        text_encoder=CLIP,
    )
    index(folder / "transformer", INDEX.format(""), PLAIN)
    index(folder / "transformer", index_name, FP16)
    return folder


# Variants of diffusers


def test_without_a_variant_the_plain_weights_of_every_component_are_read(tmp_path: Path) -> None:
    two_precisions(tmp_path)
    assert weights(tmp_path) == [
        *(f"transformer/{name}" for name in PLAIN),
        *("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
    ]


@pytest.mark.parametrize(
    "index_name", [INDEX.format(".fp16"), "diffusion_pytorch_model.safetensors.fp16.index.json"]
)
def test_a_glob_for_a_variant_takes_its_shards_too(tmp_path: Path, index_name: str) -> None:
    two_precisions(tmp_path, index_name)
    half = [
        *(f"transformer/{name}" for name in FP16),
        *("vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
    ]
    assert weights(tmp_path, include=("*.fp16.*",)) == half
    (tmp_path / "transformer" / FP16[1]).unlink()
    error = refusal(tmp_path, include=("*.fp16.*",))
    assert f"missing or cut short: transformer/{FP16[1]} (not there)" in error.message


def test_an_index_whose_shards_are_not_wanted_does_not_decide(tmp_path: Path) -> None:
    write(
        tmp_path,
        [*shards(2), "whole.safetensors"],
        index={"model.safetensors.index.json": shards(2)},
    )
    assert weights(tmp_path) == shards(2)
    assert weights(tmp_path, include=("whole*",)) == ["whole.safetensors"]
    assert weights(tmp_path, exclude=("model-*",)) == ["whole.safetensors"]


def test_an_index_that_came_without_its_shards_leaves_the_variant(tmp_path: Path) -> None:
    two_precisions(tmp_path)
    for name in PLAIN:
        (tmp_path / "transformer" / name).unlink()
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "text_encoder/model.safetensors").unlink()
    assert weights(tmp_path) == [
        *(f"transformer/{name}" for name in FP16),
        *("vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
    ]
    for name in FP16:
        (tmp_path / "transformer" / name).unlink()
    assert f"transformer/{PLAIN[0]} (not there)" in refusal(tmp_path).message


def test_a_format_that_is_asked_for_keeps_to_the_names_of_components(tmp_path: Path) -> None:
    two_precisions(tmp_path)
    write(tmp_path, ["text_encoder/pytorch_model.bin"])
    half = [
        *(f"transformer/{name}" for name in FP16),
        *("vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
    ]
    only = LoadFormat.SAFETENSORS
    assert weights(tmp_path, load_format=only) == weights(tmp_path)
    assert weights(tmp_path, load_format=only, include=("*.fp16.*",)) == half
    assert weights(tmp_path, load_format=LoadFormat.NPCACHE) == ["text_encoder/pytorch_model.bin"]


@pytest.mark.parametrize("server", [Server.AUTO, Server.DIFFUSERS])
def test_a_folder_with_one_model_of_diffusers(tmp_path: Path, server: Server) -> None:
    write(tmp_path, [*PLAIN, *FP16, "diffusion_pytorch_model.bin", "config.json"])
    index(tmp_path, INDEX.format(""), PLAIN)
    found = resolved(tmp_path, server=server)
    assert names(found, tmp_path, weight=True) == PLAIN
    assert found.sources[0].server is Server.DIFFUSERS
    assert weights(tmp_path, server=server, include=("*.fp16.*",)) == FP16
    assert len(weights(tmp_path, server=Server.VLLM)) == 4  # by its own rules


def test_diffusers_takes_the_index_and_transformers_the_single_file(tmp_path: Path) -> None:
    encoder = shards(2)
    pipeline(
        tmp_path,
        [
            *(f"unet/{name}" for name in PLAIN),
            "unet/diffusion_pytorch_model.safetensors",
            *(f"text_encoder/{name}" for name in encoder),
            *("text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
            *("vae/diffusion_pytorch_model.bin", "vae/other.safetensors"),
        ],
        unet=UNET,
        text_encoder=CLIP,
        vae=VAE,
    )
    index(tmp_path / "unet", INDEX.format(""), PLAIN)
    index(tmp_path / "text_encoder", "model.safetensors.index.json", encoder)
    assert weights(tmp_path) == [
        *(f"unet/{name}" for name in PLAIN),
        *("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.bin"),
    ]


def test_a_component_of_onnx(tmp_path: Path) -> None:
    pipeline(tmp_path, [], unet=["diffusers", "OnnxRuntimeModel"])
    (tmp_path / "unet/model.onnx").write_bytes(onnx("weights.pb"))
    (tmp_path / "unet/weights.pb").write_bytes(b"x")
    assert weights(tmp_path) == ["unet/model.onnx", "unet/weights.pb"]


# Components of which nothing is selected


def test_a_component_that_the_globs_leave_nothing_of_is_missing(tmp_path: Path) -> None:
    two_precisions(tmp_path)
    (tmp_path / "vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    error = refusal(tmp_path, include=("*.fp16.*",))
    assert error.message.endswith(
        "found 1 file missing or cut short: vae/ (the globs leave none of its weights in: "
        "diffusion_pytorch_model.safetensors)"
    )
    assert error.hint == (
        "--exclude 'vae/*' leaves it out, --include 'vae/*' takes what it has; or give "
        "--allow-incomplete to warm what is there"
    )
    others = [*(f"transformer/{name}" for name in FP16), "text_encoder/model.fp16.safetensors"]
    assert weights(tmp_path, include=("*.fp16.*",), exclude=("vae/*",)) == others
    assert weights(tmp_path, include=("*.fp16.*", "vae/*")) == [
        *(f"transformer/{name}" for name in FP16),
        *("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.fp16.safetensors"),
    ]
    allowed = resolved(tmp_path, include=("*.fp16.*",), allow_incomplete=True)
    assert names(allowed, tmp_path, weight=True) == others
    assert "vae/ (the globs leave" in allowed.warnings[0]


def test_a_component_without_its_weights_is_missing(tmp_path: Path) -> None:
    pipeline(tmp_path, ["vae/diffusion_pytorch_model.safetensors"], vae=VAE, unet=UNET)
    error = refusal(tmp_path)
    assert error.message.endswith("1 file missing or cut short: unet/ (it has no weights)")
    assert weights(tmp_path, exclude=("unet/*",)) == ["vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    "component",
    [
        ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        ["transformers", "T5TokenizerFast"],
        ["transformers", "CLIPTokenizer"],
        ["transformers", "CLIPFeatureExtractor"],
        ["transformers", "CLIPImageProcessor"],
        ["transformers", "SiglipImageProcessorFast"],
        ["transformers", "Qwen2VLProcessor"],
        ["diffusers", "ClassifierFreeGuidance"],
        ["custom_module", "Anything"],
    ],
)
def test_a_component_without_weights_by_nature(tmp_path: Path, component: list[str]) -> None:
    pipeline(tmp_path, ["vae/diffusion_pytorch_model.safetensors"], vae=VAE, other=component)
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == ["vae/diffusion_pytorch_model.safetensors"]
    assert "other/config.json" in names(found, tmp_path, weight=False)


def test_configs_of_components_beside_a_single_file(tmp_path: Path) -> None:
    pipeline(tmp_path, ["flux.safetensors"], vae=VAE, unet=UNET)
    assert weights(tmp_path) == ["flux.safetensors"]


def test_a_component_that_lies_beside_the_layout(tmp_path: Path) -> None:
    pipeline(tmp_path, ["vae/diffusion_pytorch_model.safetensors", "model.safetensors"], vae=VAE)
    document = {"vae": VAE, "text_encoder": CLIP, "tokenizer": ["transformers", "CLIPTokenizer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(document))
    assert "2 files missing" in refusal(tmp_path).message
    write(tmp_path, ["config.json"])
    assert weights(tmp_path) == ["model.safetensors", "vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), False),
        (("*.fp16.*",), (), False),
        (("vae/*",), (), False),
        (("unet/*",), (), True),
        (("unet/*", "*.fp16.*"), (), False),
        (("un*t/x", "text_encoder/*"), (), True),
        (("v*/x",), (), False),
        ((), ("vae/*",), True),
        ((), ("vae*",), True),
        ((), ("vae/*.safetensors",), True),
        ((), ("vae/x",), False),
        ((), ("*.safetensors",), False),
        ((), ("*",), True),
    ],
)
def test_when_a_folder_is_left_out_on_purpose(
    include: tuple[str, ...], exclude: tuple[str, ...], expected: bool
) -> None:
    assert Filters(include, exclude).leaves_out("vae", ["model.safetensors"]) is expected


# Modular pipelines


def modular(folder: Path, **components: Mapping[str, object] | None) -> Path:
    folder.mkdir(exist_ok=True)
    document: dict[str, object] = {"_class_name": "ModularPipeline", "num": 3}
    for name, origin in components.items():
        document[name] = [None, None, {"type_hint": UNET, "variant": None, **(origin or {})}]
    (folder / "modular_model_index.json").write_text(json.dumps(document))
    return folder


def test_the_components_of_a_modular_pipeline(tmp_path: Path) -> None:
    modular(
        tmp_path,
        unet={"pretrained_model_name_or_path": "org/base", "subfolder": "unet"},
        vae={"repo": "org/vae", "subfolder": "vae"},
        image={"pretrained_model_name_or_path": "org/clip", "subfolder": ""},
        guider={"pretrained_model_name_or_path": None, "subfolder": None},
    )
    write(tmp_path, ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
    write(tmp_path, ["vae/config.json"])
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == ["unet/diffusion_pytorch_model.safetensors"]
    assert told(found) == [
        f"{tmp_path}: modular_model_index.json takes components from org/vae, org/clip: to "
        "warm them too, give each as another CHECKPOINT"
    ]


def test_a_modular_pipeline_of_other_repos_only(tmp_path: Path) -> None:
    modular(tmp_path, unet={"pretrained_model_name_or_path": "org/base", "subfolder": "unet"})
    error = refusal(tmp_path)
    assert error.hint == (
        "modular_model_index.json takes the components from org/base: give that instead"
    )


def test_a_modular_pipeline_of_one_folder(tmp_path: Path) -> None:
    modular(tmp_path, unet={"pretrained_model_name_or_path": "org/base", "subfolder": ""})
    write(tmp_path, ["diffusion_pytorch_model.safetensors"])
    assert weights(tmp_path) == ["diffusion_pytorch_model.safetensors"]


def test_a_component_of_a_modular_pipeline_is_optional_and_stays_inside() -> None:
    path = "/m/modular_model_index.json"
    document = {"a": ["x", "Y", {"type_hint": UNET, "repo": "o/r", "subfolder": "a/b"}]}
    found = layouts.components(path, json.dumps(document).encode())
    assert found == [Component("a/b", has_weights=True, origin=Origin("o/r"))]
    document["a"][2]["subfolder"] = "../b"  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"inside the checkpoint, found '\.\./b'"):
        layouts.components(path, json.dumps(document).encode())


# sentence-transformers


def modules(folder: Path, **paths: str) -> Path:
    document = [
        {"idx": number, "name": str(number), "path": path, "type": f"{PREFIX}{kind}"}
        for number, (kind, path) in enumerate(paths.items())
    ]
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(document))
    return folder


def router(folder: Path, *types: tuple[str, str], name: str = "router_config.json") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "types": {model: f"{PREFIX}{kind}" for model, kind in types},
        "structure": {"query": [model for model, _ in types]},
        "parameters": {},
    }
    (folder / name).write_text(json.dumps(document))


PREFIX = "sentence_transformers.base.modules."


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("", "router_config.json"),
        ("", "config.json"),
        ("0_Router", "router_config.json"),
        ("0_Asym", "config.json"),
        ("deep/0_Router", "router_config.json"),
    ],
)
def test_the_modules_that_a_router_names(tmp_path: Path, folder: str, name: str) -> None:
    modules(tmp_path, Router=folder, Normalize="1_Normalize")
    inner = tmp_path / folder
    router(
        inner,
        ("query_0_SparseStaticEmbedding", "SparseStaticEmbedding"),
        ("document_0_MLMTransformer", "MLMTransformer"),
        ("document_1_SpladePooling", "SpladePooling"),
        ("document_2_Normalize", "Normalize"),  # git keeps no empty folder
        name=name,
    )
    write(inner, ["query_0_SparseStaticEmbedding/model.safetensors"])
    write(inner, ["document_0_MLMTransformer/model.safetensors"])
    write(inner, ["document_1_SpladePooling/config.json"])
    found = resolved(tmp_path)
    assert names(found, inner, weight=True) == [
        "query_0_SparseStaticEmbedding/model.safetensors",
        "document_0_MLMTransformer/model.safetensors",
    ]
    assert told(found) == []
    assert "document_1_SpladePooling/config.json" in names(found, inner, weight=False)


def test_a_router_in_a_router(tmp_path: Path) -> None:
    modules(tmp_path, Router="")
    router(tmp_path, ("query_0_Router", "Router"))
    router(tmp_path / "query_0_Router", ("a_0_Dense", "Dense"))
    write(tmp_path, ["query_0_Router/a_0_Dense/config.json"])
    write(tmp_path, ["query_0_Router/a_0_Dense/pytorch_model.bin"])
    assert weights(tmp_path) == ["query_0_Router/a_0_Dense/pytorch_model.bin"]


def test_globs_reach_into_the_modules_of_a_router(tmp_path: Path) -> None:
    modules(tmp_path, Router="0_Router")
    router(tmp_path / "0_Router", ("a", "Dense"), ("b", "Dense"))
    for name in ("a", "b"):
        write(tmp_path / "0_Router" / name, ["config.json", "model.safetensors"])
    kept = ["0_Router/b/model.safetensors"]
    assert weights(tmp_path, exclude=("0_Router/a/*",)) == kept
    assert weights(tmp_path, include=("0_Router/b/*",), exclude=("0_Router/a/*",)) == kept


def test_a_router_that_names_itself_through_links_ends(tmp_path: Path) -> None:
    modules(tmp_path, Router="r")
    router(tmp_path / "r", ("again", "Router"), ("dense", "Dense"))
    write(tmp_path, ["r/dense/model.safetensors"])
    (tmp_path / "r/again").symlink_to(tmp_path / "r")
    assert weights(tmp_path) == ["r/dense/model.safetensors"]


@pytest.mark.parametrize("types", [None, [], "x"])
def test_a_malformed_router(tmp_path: Path, types: object) -> None:
    modules(tmp_path, Router="")
    write(tmp_path, ["model.safetensors"])
    (tmp_path / "router_config.json").write_text(json.dumps({"types": types}))
    assert "router_config.json: expected an object `types`, found" in refusal(tmp_path).message


def test_a_module_outside_of_the_model(tmp_path: Path) -> None:
    modules(tmp_path, Router="")
    router(tmp_path, ("../x", "Dense"))
    assert "inside the checkpoint, found '../x'" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("kind", "there", "read"),
    [
        ("Transformer", ["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        ("Transformer", [*shards(2), "model.safetensors"], ["model.safetensors"]),
        ("Dense", ["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        ("Dense", ["pytorch_model.bin"], ["pytorch_model.bin"]),
        ("StaticEmbedding", ["model.safetensors", "tokenizer.json"], ["model.safetensors"]),
        ("LSTM", ["pytorch_model.bin", "lstm_config.json"], ["pytorch_model.bin"]),
        ("CNN", ["model.safetensors", "cnn_config.json"], ["model.safetensors"]),
        ("WordWeights", ["model.safetensors", "config.json"], ["model.safetensors"]),
        (
            "WordEmbeddings",
            ["pytorch_model.bin", "wordembedding_config.json"],
            ["pytorch_model.bin"],
        ),
        ("SparseAutoEncoder", ["model.safetensors", "config.json"], ["model.safetensors"]),
    ],
)
def test_the_weights_of_each_module(
    tmp_path: Path, kind: str, there: list[str], read: list[str]
) -> None:
    modules(tmp_path, **{kind: "0_Module", "Pooling": "1_Pooling"})
    write(tmp_path, [f"0_Module/{name}" for name in there])
    write(tmp_path, ["1_Pooling/config.json"])
    assert weights(tmp_path) == [f"0_Module/{name}" for name in read]


def test_a_module_whose_weights_did_not_come(tmp_path: Path) -> None:
    modules(tmp_path, Transformer="", Dense="2_Dense", BoW="3_BoW")
    write(tmp_path, ["model.safetensors", "2_Dense/config.json", "3_BoW/config.json"])
    assert refusal(tmp_path).message.endswith("cut short: 2_Dense/ (it has no weights)")


# Distributed checkpoints


def distributed(folder: Path, ranks: int) -> Path:
    """Write what torch.distributed.checkpoint and Megatron write, with shards of some bytes."""
    files = [f"__{rank}_0.distcp" for rank in range(ranks)]
    write(folder, [*files, "common.pt", "metadata.json"])
    (folder / ".metadata").write_bytes(pickle.dumps({"storage_data": {n: n for n in files}}))
    return folder


def test_a_distributed_checkpoint_is_its_shards(tmp_path: Path) -> None:
    distributed(tmp_path, 11)
    found = resolved(tmp_path)
    assert found.sources[0].load_format is LoadFormat.DCP
    assert found.sources[0].server is None
    assert names(found, tmp_path, weight=True) == [
        *(".metadata", *(f"__{rank}_0.distcp" for rank in range(11)), "common.pt"),
    ]
    assert names(found, tmp_path, weight=False) == ["metadata.json"]


def test_a_shard_that_the_metadata_names_is_missing(tmp_path: Path) -> None:
    distributed(tmp_path, 3)
    (tmp_path / "__1_0.distcp").unlink()
    assert "missing or cut short: __1_0.distcp (not there)" in refusal(tmp_path).message
    assert len(weights(tmp_path, exclude=("__1*",))) == 4


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_the_metadata_is_never_unpickled(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    distributed(tmp_path / "m", 1)
    (tmp_path / "m/.metadata").write_bytes(pickle.dumps(["__0_0.distcp", Trap(str(trap))]))
    assert len(weights(tmp_path / "m")) == 3
    assert not trap.exists()


def test_the_folder_above_names_what_to_give(tmp_path: Path) -> None:
    distributed(tmp_path / "iter_0000100", 2)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    error = refusal(tmp_path)
    assert error.message.endswith("--load-format auto, found 1 .txt and 1 folder")
    assert error.hint == f"its weights are in a folder below: give {tmp_path}/iter_0000100"
    distributed(tmp_path / "iter_0000020", 2)
    assert refusal(tmp_path).hint == (
        "there are weights in folders below: give the path of one of iter_0000020/, iter_0000100/"
    )


@given(st.binary(max_size=200), st.integers(0, 9), st.integers(0, 300))
def test_any_metadata_gives_names_of_shards(content: bytes, rank: int, gap: int) -> None:
    name = f"__{rank}_12.distcp"
    text = content + b"\0" * gap + name.encode()
    assert name in shards_in(len(text), lambda at, size: text[at : at + size])


def test_a_name_across_two_reads_is_found() -> None:
    text = b"\0" * (64 * 1024 - 5) + b"__3_0.distcp"
    assert shards_in(len(text), lambda at, size: text[at : at + size]) == {"__3_0.distcp"}


# ONNX


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(location: str) -> bytes:
    entries = [("offset", "0"), ("location", location)]
    named = (field(13, field(1, key.encode()), field(2, value.encode())) for key, value in entries)
    return b"".join((b"\x10\x01", field(8, b"w"), *named))


def onnx(*locations: str, inline_bytes: int = 0) -> bytes:
    """Return an ONNX model whose tensors lie in these files, and one that it holds itself."""
    tensors = [field(5, tensor(location)) for location in locations]
    inline = field(5, field(8, b"inline"), field(9, bytes(inline_bytes)))
    return b"\x08\x08" + field(7, field(1, field(1, b"x")), inline, *tensors)


def search(content: bytes) -> list[str]:
    return external_data(len(content), lambda at, size: content[at : at + size])


def test_external_data_of_any_name_is_read_with_its_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx("data/w.weights", "model.onnx_data"))
    write(tmp_path, ["data/w.weights", "model.onnx_data", "model.onnx_data_1", "config.json"])
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == [
        *("model.onnx", "model.onnx_data", "model.onnx_data_1", "data/w.weights"),
    ]
    assert found.sources[0].load_format is LoadFormat.ONNX
    (tmp_path / "data/w.weights").unlink()
    assert "missing or cut short: data/w.weights (not there)" in refusal(tmp_path).message


def test_external_data_is_no_set_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx("weights.bin"))
    write(tmp_path, ["weights.bin"])
    assert weights(tmp_path) == ["model.onnx", "weights.bin"]
    write(tmp_path, ["pytorch_model.bin"])
    assert weights(tmp_path) == ["pytorch_model.bin", "weights.bin"]


def test_an_onnx_file_that_is_named_brings_its_data(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(onnx("a.w"))
    write(tmp_path, ["a.w", "b.w"])
    found = resolved(tmp_path / "a.onnx")
    assert names(found, tmp_path) == ["a.onnx", "a.w"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b"])
def test_external_data_outside_of_the_model(tmp_path: Path, location: str) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx(location))
    assert "expected external data inside the checkpoint, found" in refusal(tmp_path).message
    assert "found" in refusal(tmp_path / "m.onnx").message


def test_tensors_anywhere_in_a_model_are_found() -> None:
    in_constant = field(
        1, field(4, b"Constant"), field(5, field(1, b"value"), field(5, tensor("c")))
    )
    inner = field(1, field(5, field(1, b"then"), field(6, in_constant, field(5, tensor("i")))))
    sparse = field(15, field(1, tensor("s")))
    function = field(25, field(7, field(5, field(10, tensor("f")))))
    model = field(7, in_constant, inner, field(5, tensor("g")), sparse) + function
    assert sorted(search(model)) == ["c", "f", "g", "i", "s"]


def test_the_bytes_of_tensors_are_not_read() -> None:
    content = onnx("w", inline_bytes=10 << 20)
    asked = 0

    def read(at: int, size: int) -> bytes:
        nonlocal asked
        assert at % PAGE_BYTES == 0
        asked += size
        return content[at : at + size]

    assert external_data(len(content), read) == ["w"]
    assert asked <= 4 * 128 * 1024


@given(st.binary(max_size=300))
def test_any_bytes_are_searched_to_an_end(content: bytes) -> None:
    assert isinstance(search(content), list)


@given(st.integers(0, 400), st.binary(max_size=4))
def test_a_damaged_model_ends_the_search(at: int, damage: bytes) -> None:
    model = onnx("a", "b", inline_bytes=100)
    search(model[:at] + damage + model[at + len(damage) :])
    assert set(search(model[:at])) <= {"a", "b"}


def test_a_model_nested_without_end_costs_nothing() -> None:
    content = b""
    for _ in range(2000):  # a graph in an attribute of a node of a graph
        content = field(1, field(5, field(6, content), field(1, b"location")))
    assert search(field(7, content)) == []


# Engines, npz


@pytest.mark.parametrize("server", [Server.AUTO, Server.TENSORRT_LLM])
def test_the_engines_of_tensorrt(tmp_path: Path, server: Server) -> None:
    write(tmp_path, ["rank0.engine", "rank10.engine", "rank2.engine", "config.json"])
    found = resolved(tmp_path, server=server)
    assert names(found, tmp_path) == [
        *("config.json", "rank0.engine", "rank2.engine", "rank10.engine"),
    ]
    assert found.sources[0].load_format is LoadFormat.ENGINE
    assert found.sources[0].server is Server.TENSORRT_LLM
    assert told(found) == []


def test_a_plan_of_triton(tmp_path: Path) -> None:
    write(tmp_path, ["model.plan", "config.pbtxt"])
    assert weights(tmp_path) == ["model.plan"]


def test_npz_files_of_mlx(tmp_path: Path) -> None:
    for number in (0, 10, 2):
        np.savez(tmp_path / f"weights.{number}.npz", w=np.zeros(9000, np.uint8))
    assert weights(tmp_path) == ["weights.0.npz", "weights.2.npz", "weights.10.npz"]
    path = tmp_path / "weights.2.npz"
    assert zipfile.is_zipfile(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "weights.2.npz (it is a zip file without its end)" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("load_format", "read"),
    [
        (LoadFormat.AUTO, ["model.safetensors"]),
        (LoadFormat.DCP, ["__0_0.distcp"]),
        (LoadFormat.ONNX, ["m.onnx"]),
        (LoadFormat.ENGINE, ["rank0.engine"]),
        (LoadFormat.NPZ, ["w.npz"]),
    ],
)
def test_each_format_can_be_asked_for(
    tmp_path: Path, load_format: LoadFormat, read: list[str]
) -> None:
    write(tmp_path, ["model.safetensors", "__0_0.distcp", "m.onnx", "rank0.engine", "w.npz"])
    (tmp_path / "m.onnx").write_bytes(onnx())
    assert weights(tmp_path, load_format=load_format) == read


# Folders of what we do not know


def test_what_a_folder_holds_instead_is_said(tmp_path: Path) -> None:
    write(tmp_path, ["a.ckpt", "b.ckpt", "c.nemo", "README", "x.md", "y.yaml", "deep/z"])
    with (tmp_path / "b.ckpt").open("wb") as file:
        file.truncate(3 << 20)
    error = refusal(tmp_path)
    assert error.message.endswith(
        "found 2 .ckpt, 1 without a suffix, 1 .nemo, 1 .md, 1 other file (largest: b.ckpt, "
        "3 MiB) and 1 folder"
    )
    assert error.hint == "--load-format all takes every file"


# Indexes and numbers that are stale


def test_a_stale_index_beside_a_whole_file(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"], index={"model.safetensors.index.json": shards(2)})
    error = refusal(tmp_path)
    assert "2 files missing or cut short" in error.message
    assert error.hint == (
        "the index names none of the files here, it may be stale: give "
        f"{tmp_path}/model.safetensors itself; or give --allow-incomplete to warm what is there"
    )
    assert weights(tmp_path, server=Server.TRANSFORMERS) == ["model.safetensors"]
    assert names(resolved(tmp_path / "model.safetensors"), tmp_path) == ["model.safetensors"]
    write(tmp_path, shards(2)[:1])
    assert "stale" not in str(refusal(tmp_path).hint)


def test_a_lone_numbered_file_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, shards(3)[:1])
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == shards(3)[:1]
    assert told(found) == [
        f"{tmp_path}/{shards(3)[0]}: its name promises more files, but there are none, and no "
        "index: warmed as it is"
    ]


def test_two_of_a_set_promise_the_others(tmp_path: Path) -> None:
    write(tmp_path, shards(3)[:2])
    assert f"missing or cut short: {shards(3)[2]} (not there)" in refusal(tmp_path).message
    # Those that the globs leave out are not missing, and the rest is not alone.
    found = resolved(tmp_path, include=("*00001*",))
    assert told(found) == []


def test_an_index_backs_a_lone_file(tmp_path: Path) -> None:
    write(tmp_path, shards(3)[:1], index={"model.safetensors.index.json": shards(3)})
    assert "2 files missing" in refusal(tmp_path).message


def test_a_lone_part_of_a_split_gguf_is_incomplete(tmp_path: Path) -> None:
    write(tmp_path, ["m-00001-of-00003.gguf"])
    assert (
        "2 files missing or cut short: m-00002-of-00003.gguf (not there)"
        in refusal(tmp_path).message
    )


def test_shards_of_a_component_need_their_index(tmp_path: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "X"]}')
    write(tmp_path / "vae", [*names, "config.json"])
    message = refusal(tmp_path).message
    assert "vae/diffusion_pytorch_model.safetensors.index.json (not there)" in message
    write(tmp_path / "vae", [], index={"diffusion_pytorch_model.safetensors.index.json": names})
    assert weights(tmp_path) == [f"vae/{name}" for name in names]


def test_the_first_module_of_sentence_transformers_needs_weights(tmp_path: Path) -> None:
    kind = "sentence_transformers.models."
    modules = [
        {"path": "", "type": kind + "Transformer"},
        {"path": "2_Dense", "type": kind + "Dense"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    write(tmp_path, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    write(tmp_path, ["config.json"])
    write(tmp_path / "2_Dense", ["model.safetensors", "config.json"])
    server = Server.SENTENCE_TRANSFORMERS
    assert "1 file missing" in refusal(tmp_path, server=server).message
    write(tmp_path, ["model.safetensors"])
    expected = ["model.safetensors", "2_Dense/model.safetensors"]
    assert names(resolved(tmp_path, server=server), tmp_path, weight=True) == expected
