"""A model's name -> what vLLM opens in its place, by `VLLM_MODEL_REDIRECT_PATH`.

Mirrors vLLM 0.33's maybe_model_redirect() (transformers_utils/utils.py). The variable names a file
with a JSON object, or with lines of two words.
"""

import os
from collections.abc import Mapping
from typing import Any

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.metadata import MOST_BYTES, bounded_json
from prefetch_cli.checkpoint.scanner import TooLargeError
from prefetch_cli.hubs.hub_cache import unreadable
from prefetch_cli.linux.files import read_head


def redirected(name: str, server: Server, environ: Mapping[str, str]) -> str | None:
    """Return what vLLM opens in place of `name`, None where that is the name itself.

    Raises CheckpointError if the file cannot be read or is far too large.
    """
    path = environ.get("VLLM_MODEL_REDIRECT_PATH")
    if not path or server not in (Server.AUTO, Server.VLLM):
        return None
    try:
        content = read_head(path, MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if content is None:
        return None
    if len(content) > MOST_BYTES:
        raise CheckpointError(
            f"{printable(path)}: expected a list of models, found more than {MOST_BYTES:,} bytes",
            "check VLLM_MODEL_REDIRECT_PATH",
        )
    leads_to = (_json(content) or _lines(content)).get(name)
    return leads_to if isinstance(leads_to, str) and leads_to not in ("", name) else None


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        document = bounded_json(content)
    except (ValueError, RecursionError, TooLargeError):
        return {}
    return document if isinstance(document, dict) else {}


def _lines(content: bytes) -> Mapping[str, str]:
    pairs = (line.split() for line in os.fsdecode(content).splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
