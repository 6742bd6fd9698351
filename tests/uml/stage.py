"""A checkpoint whose layers cross its files, and the loaders of one stage. Runs in the machine.

    python -m tests.uml.stage write DIRECTORY BYTES
    python -m tests.uml.stage resident DIRECTORY
    python -m tests.uml.stage slices|vllm DIRECTORY FIRST BEHIND [MODULE]

`resident` prints the resident share of each layer; a loader prints the bytes that it has copied of
the layers from FIRST up to BEHIND and of what has no layer. MODULE is the text of vLLM's
weight_utils.py.
"""

import glob
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

LAYERS = 16
# What a layer has, in units of 1/1024 of all; the rest is embeddings and head.
_LAYER = {
    "self_attn.qkv_proj": 8,
    "self_attn.o_proj": 4,
    "mlp.gate_up_proj": 30,
    "mlp.down_proj": 18,
}
_OTHERS = {"model.embed_tokens.weight": 32, "model.norm.weight": 1, "lm_head.weight": 31}
# Each page that a process has mapped in user-mode Linux may be a mapping on the host, which allows
# 65,530 (vm.max_map_count): a process that maps 256 MiB and touches all of it dies.
_FILES = 8
_ROW = 1024  # columns, of two bytes each

# vLLM's iterator, and what it calls.
_VLLM = (
    "_natural_sort_key",
    "_get_fs_type",
    "_get_checkpoints_size_bytes",
    "_BAR_FORMAT",
    "enable_tqdm",
    "safetensors_weights_iterator",
)

Loader = Callable[[Sequence[str], Callable[[str], bool]], Iterator[int]]


def write(directory: str, size_bytes: int) -> None:
    """Write a checkpoint of 8 files, filled one after the other in the model's order."""
    import numpy as np  # noqa: PLC0415
    from safetensors.numpy import save_file  # noqa: PLC0415

    os.makedirs(directory)
    unit = size_bytes // 1024 // (2 * _ROW)  # rows
    first, *last = _OTHERS.items()
    names = [
        first,
        *(
            (f"model.layers.{layer}.{name}.weight", units)
            for layer in range(LAYERS)
            for name, units in _LAYER.items()
        ),
        *last,
    ]
    shards: list[dict[str, int]] = [{}]
    for name, units in names:
        if sum(shards[-1].values()) + units > 1024 // _FILES and len(shards) < _FILES:
            shards.append({})
        shards[-1][name] = units
    random = np.random.Generator(np.random.SFC64(18))
    for number, shard in enumerate(shards, start=1):
        tensors = {
            name: random.integers(0, 2**16, (units * unit, _ROW), dtype=np.uint16).view(np.float16)
            for name, units in shard.items()
        }
        save_file(tensors, f"{directory}/model-{number:05}-of-{_FILES:05}.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    with open(f"{directory}/config.json", "w", encoding="ascii") as file:
        json.dump(config, file)


def layer_of(name: str) -> int | None:
    """Return the layer of a tensor; None: it has none."""
    found = re.search(r"layers\.(\d+)\.", name)
    return None if found is None else int(found[1])


def resident(directory: str) -> dict[str, float]:
    """Return the share of each layer that is in resident pages; `None` stands for the others."""
    from tests.helpers import oracle  # noqa: PLC0415 - the servers' environment lacks what it needs

    found: dict[str, list[int]] = {}
    for path in weights(directory):
        # Without a buffer, and without read-ahead: what lies behind the header is not to be read.
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            here = oracle.resident_within(path, 8 + length + start, end - start)
            bytes_of = found.setdefault(str(layer_of(name)), [0, 0])
            bytes_of[0] += here
            bytes_of[1] += end - start
    return {layer: here / size for layer, (here, size) in found.items()}


def weights(directory: str) -> list[str]:
    """Return the weight files, in load order."""
    return sorted(glob.glob(f"{directory}/*.safetensors"))


def slices(paths: Sequence[str], mine: Callable[[str], bool]) -> Iterator[int]:
    """Yield the bytes of each tensor, copied as a slice by safetensors."""
    from safetensors import safe_open  # noqa: PLC0415

    for path in paths:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if mine(name):
                    yield file.get_slice(name)[:].nbytes


def vllm(paths: Sequence[str], mine: Callable[[str], bool]) -> Iterator[int]:
    """Yield the bytes of each tensor that vLLM's own iterator gives, copied as its models do.

    The iterator gives all tensors, and a model copies those of its stage
    (`is_pp_missing_parameter()` in vllm/model_executor/models/utils.py).
    """
    from types import SimpleNamespace  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    from tests.peers import cutting  # noqa: PLC0415

    quiet = SimpleNamespace(info_once=lambda *_: None, warning_once=lambda *_: None)
    names: dict[str, Any] = {
        "DEFAULT_SAFETENSORS_PREFETCH_BLOCK_SIZE": 1,
        "DEFAULT_SAFETENSORS_PREFETCH_NUM_THREADS": 1,
        # For its log alone, as long as the strategy is lazy.
        "_get_available_ram_bytes": lambda: 0,
        "logger": quiet,
        "os": os,
        "re": re,
        "safe_open": safe_open,
        "should_skip_weight": lambda *_: False,  # without experts
        "torch": torch,
        "tqdm": lambda files, **_: files,
    }
    with open(sys.argv[5], encoding="utf-8") as file:
        # Not among stubs for imports, as the tests of peers run theirs: torch imports itself here.
        exec(cutting.cut(file.read(), _VLLM), names)
    iterator = names["safetensors_weights_iterator"](
        list(paths), False, safetensors_load_strategy="lazy"
    )
    for name, parameter in iterator:
        if mine(name):
            copied = torch.empty_like(parameter).copy_(parameter)
            yield copied.numel() * copied.element_size()


def main() -> None:
    """Do what the arguments say, and print one JSON document."""
    word, directory, *rest = sys.argv[1:]
    if word == "write":
        write(directory, int(rest[0]))
        return
    if word == "resident":
        print(json.dumps(resident(directory)))
        return
    first, behind = int(rest[0]), int(rest[1])
    loader: Loader = {"slices": slices, "vllm": vllm}[word]
    # The first tensor does not pay for the import.
    importlib.import_module({"slices": "safetensors.numpy", "vllm": "torch"}[word])
    began = time.monotonic()

    def mine(name: str) -> bool:
        layer = layer_of(name)
        return layer is None or first <= layer < behind

    loaded = sum(loader(weights(directory), mine))
    print(json.dumps({"loaded_bytes": loaded, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
