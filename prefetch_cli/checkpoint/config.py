"""A model's config.json -> what it says of the weight files: pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefetch_cli.base.text import stays_below
from prefetch_cli.checkpoint.metadata import bounded_json
from prefetch_cli.checkpoint.scanner import TooLargeError

CONFIG = "config.json"

# Keys under which a model of several towers names the repos of the others (vLLM's Ultravox).
_OTHER_REPOS = ("audio_model_id", "text_model_id")


class Config(NamedTuple):
    """What counts of a config.json; one that cannot be used says nothing."""

    architectures: tuple[str, ...] = ()
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
    weights = document.get("transformers_weights")
    return Config(
        architectures=tuple(_texts(architectures if isinstance(architectures, list) else ())),
        next_layers=_number({**document, **inner}, "num_nextn_predict_layers"),
        weights=weights if isinstance(weights, str) and stays_below(weights) else None,
        other_repos=tuple(_texts(map(document.get, _OTHER_REPOS))),
    )


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) else 0
