"""Directories whose layout names the folders that hold the weights: pipelines, and modules."""

import json
import random
from collections.abc import Mapping

from tests.peers.directories import Directory, content, index

_INDEX = ".index.json"
_LIBRARIES = {"transformer": "diffusers", "vae": "diffusers", "text_encoder": "transformers"}
_BASES = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_BINS = {"diffusers": "diffusion_pytorch_model.bin", "transformers": "pytorch_model.bin"}
_ST = "sentence_transformers.models."


def pipeline(seed: int) -> Directory:
    """Return the diffusers pipeline of a seed."""
    chance = random.Random(seed)
    names = [name for name in _LIBRARIES if chance.random() < 0.8] or ["transformer"]
    chance.shuffle(names)
    files: dict[str, bytes | None] = {}
    for name in names:
        files.update(_below(name, _component(chance, _LIBRARIES[name])))
    return Directory(f"pipeline-{seed}", {**_pipeline_layout(names), **files})


def modules(seed: int) -> Directory:
    """Return the sentence-transformers model of a seed."""
    chance = random.Random(seed)
    folders = {"": "Transformer", "1_Pooling": "Pooling"}
    if chance.random() < 0.6:
        folders["2_Dense"] = chance.choice(["Dense", "LayerNorm"])
    if chance.random() < 0.4:
        folders["3_Normalize"] = "Normalize"
    if chance.random() < 0.2:
        folders = {"0_Transformer": "Transformer", "1_Dense": "Dense"}
    files: dict[str, bytes | None] = {}
    for folder, kind in folders.items():
        if kind == "Transformer":
            files.update(_below(folder, _component(chance, "transformers")))
        elif kind in ("Dense", "LayerNorm"):
            names = ["model.safetensors", "pytorch_model.bin"]
            found = [name for name in names if chance.random() < 0.6] or names[:1]
            files.update(_below(folder, {name: content(name) for name in found}))
        if folder:
            files[f"{folder}/config.json"] = b"{}"
    return Directory(f"modules-{seed}", {**_modules_layout(folders), **files})


def named_pipelines() -> list[Directory]:
    """Return the pipelines that people have, by their names."""
    base = "diffusion_pytorch_model"
    shards = [f"{base}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    fp16 = [f"{base}-0000{number}-of-00002.fp16.safetensors" for number in (1, 2)]
    whole = _below("vae", {f"{base}.safetensors": content(f"{base}.safetensors")})
    sharded = {
        **{name: content(name) for name in shards},
        f"{base}.safetensors{_INDEX}": index(shards),
    }
    variant = {
        **{name: content(name) for name in fp16},
        f"{base}.safetensors.index.fp16.json": index(fp16),
    }
    two = _pipeline_layout(["transformer", "vae"])
    found: dict[str, Mapping[str, bytes | None]] = {
        "pipeline": {**two, **_below("transformer", sharded), **whole},
        "pipeline-with-a-variant": {
            **two,
            **_below("transformer", {**sharded, **variant}),
            **whole,
        },
        "pipeline-with-its-single-file": {
            **two,
            **_below("transformer", sharded),
            **whole,
            "flux.safetensors": content("flux.safetensors"),
        },
        "pipeline-whose-index-and-file-differ": {
            **two,
            **_below("transformer", {**sharded, f"{base}.safetensors": content("x.safetensors")}),
            **whole,
        },
    }
    return [Directory(name, files) for name, files in found.items()]


def named_modules() -> list[Directory]:
    """Return the sentence-transformers models that people have, by their names."""
    weights = "model.safetensors"
    router = {"query_0": f"{_ST}Transformer", "document_0": f"{_ST}StaticEmbedding"}
    layout = [{"idx": 0, "name": "0", "path": "", "type": f"{_ST}Router"}]
    found: dict[str, Mapping[str, bytes | None]] = {
        "dense": {
            **_modules_layout({"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}),
            **{name: content(name) for name in (weights, f"2_Dense/{weights}")},
            "1_Pooling/config.json": b"{}",
            "2_Dense/config.json": b"{}",
        },
        "router": {
            "modules.json": json.dumps(layout).encode(),
            "router_config.json": json.dumps({"types": router, "structure": {}}).encode(),
            **{f"{folder}/{weights}": content(weights) for folder in router},
        },
    }
    return [Directory(name, files) for name, files in found.items()]


def _component(chance: random.Random, library: str) -> dict[str, bytes | None]:
    """Return the files of a component: whole, in shards, in both, with variants, or as .bin."""
    base = _BASES[library]
    names: list[str] = []
    shards = [f"{base}-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    listed = list(shards)
    if chance.random() < 0.5:
        names.append(f"{base}.safetensors")
    if chance.random() < 0.5 or not names:
        names += shards
        if chance.random() < 0.1:
            names.remove(shards[1])
    if chance.random() < 0.15:
        names.append(f"{base}.fp16.safetensors")
    if chance.random() < 0.2:
        names.append(_BINS[library])
    if chance.random() < 0.1:
        names = [_BINS[library]]
    files: dict[str, bytes | None] = {name: content(name) for name in names}
    if shards[0] in names and chance.random() < 0.9:
        files[f"{base}.safetensors{_INDEX}"] = index(listed)
    return files


def _below(folder: str, files: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    return {f"{folder}/{name}" if folder else name: held for name, held in files.items()}


def _pipeline_layout(names: list[str]) -> dict[str, bytes | None]:
    layout: dict[str, object] = {"_class_name": "P", "_diffusers_version": "0.42.1"}
    layout |= {name: [_LIBRARIES[name], "C"] for name in names}
    return {"model_index.json": json.dumps({**layout, "safety_checker": [None, None]}).encode()}


def _modules_layout(folders: Mapping[str, str]) -> dict[str, bytes | None]:
    layout = [
        {"idx": number, "name": str(number), "path": folder, "type": _ST + kind}
        for number, (folder, kind) in enumerate(folders.items())
    ]
    return {"modules.json": json.dumps(layout).encode()}
