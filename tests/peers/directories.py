"""Directories for the servers and us: made from a seed, and those that people really have."""

import json
import os
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_GLM = ("Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM", "Glm4MoeForCausalLMNextN")
_INDEX_STATES = (
    *("whole", "whole", "whole", "stale", "partial", "one missing", "nested", "mixed"),
    *("empty", "broken"),
)
_INDEX = ".index.json"


@dataclass(frozen=True)
class Directory:
    """A directory: the files in it, by their paths, with what they hold."""

    name: str
    files: Mapping[str, bytes | None]  # None: a symbolic link to nothing
    linked: bool = False  # whether each file is a link to a blob, as in a hub's cache

    def write(self, parent: str) -> str:
        """Write it below `parent`; return its path."""
        root = os.path.join(parent, self.name)
        os.makedirs(root)
        for number, (name, content) in enumerate(self.files.items()):
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if content is None:
                os.symlink("nothing", path)
                continue
            if self.linked:
                blob = os.path.join(parent, f"{self.name}-blobs", str(number))
                os.makedirs(os.path.dirname(blob), exist_ok=True)
                os.symlink(blob, path)
            with open(path, "wb") as file:
                file.write(content)
        return root

    def __str__(self) -> str:
        lines = [f"{self.name}{', of links' if self.linked else ''}:"]
        for name, content in self.files.items():
            if content is None:
                lines.append(f"  {name} -> nothing")
            elif name.endswith(".json"):
                lines.append(f"  {name}: {content.decode()}")
            else:
                lines.append(f"  {name}")
        return "\n".join(lines)


def generated(seed: int) -> Directory:
    """Return the directory of a seed: the same for the same seed."""
    chance = random.Random(seed)
    files: dict[str, bytes | None] = {}
    for part in (_consolidated, _models, _bins, _others, _ranks, _nested, _config):
        files.update(part(chance))
    if chance.random() < 0.1:
        hidden = chance.choice(["._model.safetensors", ".model.safetensors", "._pytorch_model.bin"])
        files[hidden] = b"\0\5\x16\7" * 16
    weights = [name for name in files if not name.endswith(".json")]
    if weights and chance.random() < 0.06:
        files[chance.choice(weights)] = None
    return Directory(f"seed-{seed}", files, linked=chance.random() < 0.2)


def named() -> list[Directory]:
    """Return the layouts that people have, by their names."""
    return [Directory(name, files) for name, files in _NAMED.items()]


def tensors(name: str) -> bytes:
    """Return a safetensors file with one tensor."""
    header = json.dumps({name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def pickled(name: str) -> bytes:
    """Return what stands for a file of torch.save in its old format."""
    return b"\x80\x02" + name.encode()


def gguf() -> bytes:
    """Return a GGUF file without keys and tensors."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(8)


def index(shards: Iterable[str]) -> bytes:
    """Return an index that names these shards."""
    weights = {f"w{number}": name for number, name in enumerate(shards)}
    return json.dumps({"metadata": {"total_size": 8}, "weight_map": weights}).encode()


def content(name: str) -> bytes:
    """Return what a weight file of this name holds."""
    if name.endswith(".safetensors"):
        return tensors(name)
    return gguf() if name.endswith(".gguf") else pickled(name)


def _filled(names: Iterable[str]) -> dict[str, bytes | None]:
    return {name: content(name) for name in names}


def _shards(chance: random.Random, base: str, suffix: str) -> list[str]:
    """Return the names of a numbered set, in which some may be missing."""
    total = chance.choice([1, 2, 2, 3, 4, 11, 12])
    padded = chance.random() < 0.75
    names = [
        f"{base}-{number:05d}-of-{total:05d}{suffix}"
        if padded
        else f"{base}-{number}-of-{total}{suffix}"
        for number in range(1, total + 1)
    ]
    if total > 1 and chance.random() < 0.15:
        names.remove(chance.choice(names))
    chance.shuffle(names)  # the order in which they are written
    return names


def _index(chance: random.Random, names: Sequence[str], suffix: str) -> bytes:
    """Return an index for these files, in one of its states."""
    state = chance.choice(_INDEX_STATES)
    other = f"model-00007-of-00007{suffix}"
    if state == "whole":
        return index(names)
    if state == "stale":
        return index([other, f"old{suffix}"])
    if state == "partial":
        return index(names[: max(1, len(names) // 2)])
    if state == "one missing":
        return index([*names, other])
    if state == "nested":
        return index([f"sub/{name}" for name in names])
    if state == "mixed":
        return index([*names, f"sub/{other}"])
    return b'{"metadata": {}, "weight_map": {}}' if state == "empty" else b'{"weight_map": '


def _consolidated(chance: random.Random) -> dict[str, bytes | None]:
    if chance.random() > 0.3:
        return {}
    names = chance.choice(
        [
            ["consolidated.safetensors"],
            ["consolidated.safetensors"],
            ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"],
            ["consolidated.00.safetensors", "consolidated.01.safetensors"],
        ]
    )
    files = _filled(names)
    if chance.random() < 0.35:
        files["consolidated.safetensors" + _INDEX] = _index(chance, names, ".safetensors")
    return files


def _models(chance: random.Random) -> dict[str, bytes | None]:
    """Return a set of safetensors files, or none, with their index, or an index alone."""
    names: list[str] = []
    if chance.random() < 0.3:
        names.append("model.safetensors")
    if chance.random() < 0.45:
        names += _shards(chance, chance.choice(["model", "model", "weights"]), ".safetensors")
    files = _filled(names)
    if chance.random() < (0.55 if names else 0.1):
        found = _index(chance, names or ["model.safetensors"], ".safetensors")
        files["model.safetensors" + _INDEX] = found
        if b"sub/" in found and chance.random() < 0.7:
            files.update(_filled(json.loads(found)["weight_map"].values()))
    return files


def _bins(chance: random.Random) -> dict[str, bytes | None]:
    names: list[str] = []
    if chance.random() < 0.25:
        names.append("pytorch_model.bin")
    if chance.random() < 0.15:
        names += _shards(chance, "pytorch_model", ".bin")
    files = _filled(names)
    if names and chance.random() < 0.4:
        files["pytorch_model.bin" + _INDEX] = _index(chance, names, ".bin")
    if chance.random() < 0.2:
        files.update(_filled(["training_args.bin"]))
    if chance.random() < 0.1:
        files.update(_filled(["optimizer.bin"]))
    if chance.random() < 0.2:
        files.update(_filled([chance.choice(["model.pt", "consolidated.00.pt", "a.pt"])]))
    if chance.random() < 0.15:
        files.update(_filled(["optimizer.pt", "scheduler.pt"]))
    if chance.random() < 0.1:
        files.update(_filled(["consolidated.00.pth", "rng_state.pth"]))
    return files


def _others(chance: random.Random) -> dict[str, bytes | None]:
    several = [
        ["adapter_model.safetensors"],
        ["adapter_model.bin"],
        ["model.fp16.safetensors"],
        ["other.safetensors"],
        [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (0, 1)],
        ["model-Q4_K_M.gguf"],
        ["model-Q4_K_M-00001-of-00002.gguf", "model-Q4_K_M-00002-of-00002.gguf"],
        ["model.tensors"],
        ["flax_model.msgpack", "tf_model.h5"],
    ]
    names = [name for group in several if chance.random() < 0.07 for name in group]
    if chance.random() < 0.1:
        names.append("mtp.safetensors")
    return _filled(names)


def _ranks(chance: random.Random) -> dict[str, bytes | None]:
    """Return the shards of sharded_state, in one of its two ways to name them."""
    if chance.random() > 0.12:
        return {}
    ranks = chance.choice([1, 2, 2, 12])
    parts = chance.choice([1, 2])
    by_stage = chance.random() < 0.3
    files = _filled(
        f"model-pp-{stage}-tp-{rank}-part-{part}.safetensors"
        if by_stage
        else f"model-rank-{rank}-part-{part}.safetensors"
        for stage in range(2 if by_stage else 1)
        for rank in range(ranks)
        for part in range(parts)
    )
    if chance.random() < 0.1:
        files.pop(chance.choice(list(files)))
    return files


def _nested(chance: random.Random) -> dict[str, bytes | None]:
    """Return what lies in folders."""
    several = [
        ["original/consolidated.00.pth"],
        ["original/consolidated.00.safetensors"],
        ["checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt"],
        ["onnx/model.onnx"],
        ["np/weight_names.json", "np/w0", "np/w1"],
        ["whisper-large-v3/model.safetensors"],
    ]
    names = [name for group in several if chance.random() < 0.05 for name in group]
    files = _filled(names)
    if "np/weight_names.json" in files:
        files["np/weight_names.json"] = json.dumps(["w1", "w0"]).encode()
    return files


def _config(chance: random.Random) -> dict[str, bytes | None]:
    if chance.random() < 0.15:
        return {}
    config: dict[str, object] = {"architectures": ["LlamaForCausalLM"]}
    if chance.random() < 0.4:
        config["architectures"] = [chance.choice(_GLM)]
    if chance.random() < 0.6:
        config["num_nextn_predict_layers"] = chance.choice([0, 1, 1])
    if chance.random() < 0.1:
        config["text_config"] = {"num_nextn_predict_layers": chance.choice([0, 1])}
    if chance.random() < 0.03:
        config["transformers_weights"] = chance.choice(["model.safetensors", "other.safetensors"])
    return {"config.json": json.dumps(config).encode()}


def _config_of(architecture: str) -> dict[str, bytes | None]:
    return {"config.json": json.dumps({"architectures": [architecture]}).encode()}


_CONFIG = _config_of("LlamaForCausalLM")
_GLM_CONFIG: dict[str, bytes | None] = {
    "config.json": json.dumps({"architectures": [_GLM[0]], "num_nextn_predict_layers": 1}).encode()
}
_TWO = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
_TWELVE = [f"model-{number}-of-12.safetensors" for number in range(1, 13)]
_ST = "model.safetensors"
_ST_INDEX = _ST + _INDEX
_BIN_INDEX = "pytorch_model.bin" + _INDEX

_NAMED: dict[str, dict[str, bytes | None]] = {
    "one-file": {**_CONFIG, **_filled([_ST])},
    "sharded": {**_CONFIG, **_filled(_TWO), _ST_INDEX: index(_TWO)},
    "sharded-without-index": {**_CONFIG, **_filled(_TWO)},
    "sharded-not-padded": {**_CONFIG, **_filled(_TWELVE), _ST_INDEX: index(_TWELVE)},
    "sharded-not-padded-without-index": {**_CONFIG, **_filled(_TWELVE)},
    "a-shard-is-missing": {**_CONFIG, **_filled(_TWO[:1]), _ST_INDEX: index(_TWO)},
    "a-shard-is-missing-without-index": {**_CONFIG, **_filled(_TWO[:1])},
    "two-of-three-without-index": {
        **_CONFIG,
        **_filled(f"model-0000{number}-of-00003.safetensors" for number in (1, 2)),
    },
    "only-an-index": {**_CONFIG, _ST_INDEX: index(_TWO)},
    "whole-file-beside-a-stale-index": {**_CONFIG, **_filled([_ST]), _ST_INDEX: index(_TWO)},
    "whole-bin-beside-a-stale-index": {
        **_CONFIG,
        **_filled(["pytorch_model.bin"]),
        _BIN_INDEX: index(["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
    },
    "mistral-both": {
        **_CONFIG,
        **_filled(["consolidated.safetensors", *_TWO]),
        _ST_INDEX: index(_TWO),
    },
    "mistral-both-without-index": {**_CONFIG, **_filled(["consolidated.safetensors", *_TWO])},
    "mistral-both-one-file": {**_CONFIG, **_filled(["consolidated.safetensors", _ST])},
    "mistral-only": _filled(["consolidated.safetensors"]),
    "mistral-sharded": {
        **_filled(f"consolidated-0000{number}-of-00002.safetensors" for number in (1, 2)),
        "consolidated.safetensors" + _INDEX: index(
            f"consolidated-0000{number}-of-00002.safetensors" for number in (1, 2)
        ),
    },
    "mistral-beside-another-name": _filled(["consolidated.safetensors", "other.safetensors"]),
    "mistral-large-3": {**_filled(["consolidated.safetensors", _ST]), "params.json": b"{}"},
    "consolidated-in-a-folder": {
        **_CONFIG,
        **_filled([*_TWO, "original/consolidated.00.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "llama-original": {
        **_CONFIG,
        **_filled([*_TWO, "original/consolidated.00.pth"]),
        _ST_INDEX: index(_TWO),
    },
    "bin": {**_CONFIG, **_filled(["pytorch_model.bin"])},
    "bin-with-training-args": {**_CONFIG, **_filled(["pytorch_model.bin", "training_args.bin"])},
    "pt-beside-training-args": {**_CONFIG, **_filled(["model.pt", "training_args.bin"])},
    "only-pt": {**_CONFIG, **_filled(["model.pt", "optimizer.pt"])},
    "only-pth": _filled(["consolidated.00.pth", "consolidated.01.pth"]),
    "bin-beside-safetensors": {**_CONFIG, **_filled([_ST, "pytorch_model.bin"])},
    "bins-sharded": {
        **_CONFIG,
        **_filled(f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)),
        _BIN_INDEX: index(f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)),
    },
    "bin-shard-missing": {
        **_CONFIG,
        **_filled(["pytorch_model-00001-of-00002.bin"]),
        _BIN_INDEX: index(f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)),
    },
    "glm-with-forgotten-mtp": {
        **_GLM_CONFIG,
        **_filled([*_TWO, "mtp.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "glm-with-mtp-in-its-index": {
        **_GLM_CONFIG,
        **_filled([*_TWO, "mtp.safetensors"]),
        _ST_INDEX: index([*_TWO, "mtp.safetensors"]),
    },
    "other-model-with-mtp": {
        **_CONFIG,
        **_filled([*_TWO, "mtp.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "index-names-a-folder": {
        **_CONFIG,
        **_filled(["sub/" + name for name in _TWO]),
        _ST_INDEX: index("sub/" + name for name in _TWO),
    },
    "only-gguf": _filled(["model-Q4_K_M.gguf"]),
    "gguf-beside-safetensors": {**_CONFIG, **_filled([_ST, "model-Q4_K_M.gguf"])},
    "sharded-state": {
        **_CONFIG,
        **_filled(
            f"model-rank-{rank}-part-{part}.safetensors" for rank in (0, 1) for part in (0, 1)
        ),
    },
    "sharded-state-with-a-copied-index": {
        **_CONFIG,
        **_filled(f"model-rank-{rank}-part-0.safetensors" for rank in (0, 1)),
        _ST_INDEX: index(_TWO),
    },
    "sharded-state-by-stage": {
        **_CONFIG,
        **_filled(
            f"model-pp-{stage}-tp-{rank}-part-0.safetensors" for stage in (0, 1) for rank in (0, 1)
        ),
    },
    "sharded-state-beside-its-original": {
        **_CONFIG,
        **_filled([*_TWO, "model-rank-0-part-0.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "numpy-cache": {
        **_CONFIG,
        **_filled(["pytorch_model.bin", "np/w0", "np/w1"]),
        "np/weight_names.json": b'["w1", "w0"]',
    },
    "tensorized": {**_CONFIG, **_filled(["model.tensors"])},
    "tensorized-beside-safetensors": {**_CONFIG, **_filled(["model.tensors", _ST])},
    "adapter": {
        "adapter_config.json": b'{"base_model_name_or_path": "x/y"}',
        **_filled(["adapter_model.safetensors"]),
    },
    "trainer-checkpoint": {
        **_CONFIG,
        **_filled([_ST, "optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"]),
    },
    "fp16-variant": {**_CONFIG, **_filled([_ST, "model.fp16.safetensors"])},
    "only-a-variant": {**_CONFIG, **_filled(["model.fp16.safetensors"])},
    "hidden-files-of-macos": {**_CONFIG, **_filled([_ST]), "._model.safetensors": b"\0\5\x16\7"},
    "torch-shards": {
        **_CONFIG,
        **_filled(f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (0, 1)),
    },
    "torch-shards-with-a-hidden-file": {
        **_filled(["shard-00000-model-00001-of-00001.safetensors"]),
        "._model.safetensors": b"\0\5\x16\7",
    },
    "weights-named-in-config": {
        "config.json": b'{"architectures": ["X"], "transformers_weights": "other.safetensors"}',
        **_filled(["other.safetensors", _ST]),
    },
    "a-link-to-nothing": {**_CONFIG, **_filled(_TWO[:1]), _TWO[1]: None, _ST_INDEX: index(_TWO)},
    "a-link-to-nothing-beside-a-bin": {**_CONFIG, _ST: None, **_filled(["pytorch_model.bin"])},
    "kimi-audio": {
        **_config_of("MoonshotKimiaForCausalLM"),
        **_filled([*_TWO, "whisper-large-v3/model.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "bge-m3": {
        **_config_of("BgeM3EmbeddingModel"),
        **_filled(["pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"]),
    },
    "d3": {
        **_config_of("D3ForSequenceClassification"),
        **_filled([*_TWO, "readout.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "clef": {
        **_config_of("ClefFlashForJointSchema"),
        **_filled([*_TWO, "joint_head.safetensors"]),
        _ST_INDEX: index(_TWO),
    },
    "cosmos3": {
        **_config_of("Cosmos3ForConditionalGeneration"),
        **_filled(f"transformer/{name}" for name in _TWO),
        **_filled(["vision_encoder/model.safetensors", "vae/model.safetensors"]),
    },
    "empty": {},
    "config-only": {**_CONFIG},
}
