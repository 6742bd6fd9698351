"""By which names the weights of a component are looked for: a table of values.

Read in diffusers 0.42 (models/modeling_utils.py, models/model_loading_utils.py,
utils/hub_utils.py), transformers 5.24 (modeling_utils.py) and sentence-transformers 6.2
(base/modules/module.py).
"""

from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint.servers import Family

_DIFFUSERS = "diffusion_pytorch_model"


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
    older = [_indexed(f"{_DIFFUSERS}.safetensors{part}.index.json")] if part else []
    return (
        _indexed(f"{_DIFFUSERS}.safetensors.index{part}.json"),
        *older,
        _single(f"{_DIFFUSERS}{part}.safetensors"),
        _single(f"model{part}.safetensors"),
        _indexed(f"model.safetensors.index{part}.json"),
        _single(f"{_DIFFUSERS}{part}.bin"),
        _indexed(f"{_DIFFUSERS}.bin.index{part}.json"),
        _single(f"pytorch_model{part}.bin"),
        _indexed(f"pytorch_model.bin.index{part}.json"),
    )


def _single(name: str) -> Family:
    return Family(LoadFormat.HF, (name,))


def _indexed(name: str) -> Family:
    return Family(LoadFormat.HF, (), name, index_decides=True)
