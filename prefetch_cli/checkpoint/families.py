"""By which names the weights of a component are looked for: a table of values.

Read in diffusers 0.42 (models/modeling_utils.py, models/model_loading_utils.py,
utils/hub_utils.py), transformers 5.24 (modeling_utils.py) and sentence-transformers 6.2
(base/modules/module.py).
"""

import re
from collections.abc import Sequence

from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint.names import NUMBERED
from prefetch_cli.checkpoint.servers import Family

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
_NAMES_WITH_INDEX = (DIFFUSERS_WEIGHTS, "model", "pytorch_model")

# `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and, older,
# `model-00001-of-00002.fp16.safetensors` are variants of `model.safetensors`, and
# `model.safetensors.index.fp16.json` and, older, `model.safetensors.fp16.index.json` their indexes.
_VARIANT = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:"
    r"(?:-[0-9]+-of-[0-9]+)?\.([A-Za-z0-9_]+)(?:-[0-9]+-of-[0-9]+)?\.(?:safetensors|bin)(?:\.index\.json)?"
    r"|\.(?:safetensors|bin)(?:\.index\.([A-Za-z0-9_]+)|\.([A-Za-z0-9_]+)\.index)\.json)"
)


def variant_of(name: str) -> str:
    """Return the variant that a file of weights, or an index, is of; empty for a plain one."""
    found = _VARIANT.fullmatch(name)
    return next(filter(None, found.groups())) if found else ""


def index_missed(weights: Sequence[str]) -> list[str]:
    """Return the index without which no library finds these shards of a component, if any."""
    part = NUMBERED.fullmatch(weights[0]) if weights else None
    base = part["base"].rstrip("-") if part else ""
    if part is None or base not in _NAMES_WITH_INDEX or variant_of(weights[0]):
        return []
    return [f"{base}{part['rest']}.index.json"]


def plain_families(others: tuple[Family, ...]) -> tuple[Family, ...]:
    """Return the families of a component's own files; `others` are those of custom components."""
    return (*_named(""), *others)


def variant_families(variant: str) -> tuple[Family, ...]:
    """Return the families of a variant: of `fp16`, `model.fp16.safetensors` and its like."""
    without_index = tuple(
        Family(LoadFormat.HF, (f"*.{variant}.{suffix}", f"*.{variant}-*.{suffix}"))
        for suffix in ("safetensors", "bin")
    )
    return (*_named(f".{variant}"), *without_index)


def _named(part: str) -> tuple[Family, ...]:
    # diffusers looks for an index first, transformers for a single file. No component has both
    # kinds of names.
    older = [_indexed(f"{DIFFUSERS_WEIGHTS}.safetensors{part}.index.json")] if part else []
    return (
        _indexed(f"{DIFFUSERS_WEIGHTS}.safetensors.index{part}.json"),
        *older,
        _single(f"{DIFFUSERS_WEIGHTS}{part}.safetensors"),
        _single(f"model{part}.safetensors"),
        _indexed(f"model.safetensors.index{part}.json"),
        _single(f"{DIFFUSERS_WEIGHTS}{part}.bin"),
        _indexed(f"{DIFFUSERS_WEIGHTS}.bin.index{part}.json"),
        _single(f"pytorch_model{part}.bin"),
        _indexed(f"pytorch_model.bin.index{part}.json"),
    )


def _single(name: str) -> Family:
    return Family(LoadFormat.HF, (name,))


def _indexed(name: str) -> Family:
    return Family(LoadFormat.HF, (), name, index_decides=True)
