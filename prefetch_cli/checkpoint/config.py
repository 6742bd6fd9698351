"""A model's config.json -> what it says of the weight files: pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefetch_cli.base.text import stays_below
from prefetch_cli.checkpoint.metadata import bounded_json
from prefetch_cli.checkpoint.scanner import TooLargeError

CONFIG = "config.json"

# Where the config of the language model is, in one of several towers (vLLM's get_hf_text_config(),
# and the configs of its own).
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
# What transformers' configs call the number of layers. LongCat has two of these, for the layers and
# for their halves: which one counts, the names of the tensors say.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")  # vLLM's
# Keys under which a model of several towers names the repos of the others (vLLM's Ultravox).
_OTHER_REPOS = ("audio_model_id", "text_model_id")


class Config(NamedTuple):
    """What counts of a config.json; one that cannot be used says nothing."""

    architectures: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()  # how many there are; where it has several numbers, one of them
    experts: int | None = None  # of a layer
    next_layers: int = 0  # layers that predict more than the next token
    weights: str | None = None  # the file, or the index, that transformers loads before others
    other_repos: tuple[str, ...] = ()


def parse_config(content: bytes) -> Config:
    """Return what a config.json says; a server reports by itself what is wrong with it."""
    try:
        document = bounded_json(content)
    except (ValueError, RecursionError, TooLargeError):
        return Config()
    if not isinstance(document, dict):
        return Config()
    architectures = document.get("architectures")
    text = document.get("text_config")
    inner = text if isinstance(text, dict) else {}
    language = _language(document)
    weights = document.get("transformers_weights")
    return Config(
        architectures=tuple(_texts(architectures if isinstance(architectures, list) else ())),
        layers=tuple(dict.fromkeys(filter(None, (_number(language, key) for key in _LAYERS)))),
        experts=next(filter(None, (_number(language, key) for key in _EXPERTS)), None),
        next_layers=_number({**document, **inner}, "num_nextn_predict_layers"),
        weights=weights if isinstance(weights, str) and stays_below(weights) else None,
        other_repos=tuple(_texts(map(document.get, _OTHER_REPOS))),
    )


def _language(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model, which may lie within that of a tower."""
    for key in _TEXT_CONFIGS:
        inner = document.get(key)
        if isinstance(inner, dict):
            return _language(inner)
    return document


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if isinstance(value, list):  # one for each kind of expert, all the same (Ernie VL)
        value = next(iter(value), 0)
    return value if isinstance(value, int) else 0
