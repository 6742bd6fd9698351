"""Run:ai's Model Streamer, which lists the files for vLLM and SGLang."""

import functools
import os
from collections.abc import Callable
from types import CodeType
from typing import cast

from tests.peers import cutting
from tests.peers.outcomes import Shelf
from tests.peers.wheels import RUNAI, source_of

_MODULE = "runai_model_streamer.safetensors_streamer.safetensors_streamer"


def list_safetensors(shelf: Shelf) -> Callable[[str], list[str]]:
    """Return the streamer's own function of that name."""
    stores = dict.fromkeys(("is_s3_path", "is_gs_path", "is_azure_path"), _is_none)
    names = cutting.run([_part()], {"glob": shelf.glob, "os": os, **stores}, {})
    return cast("Callable[[str], list[str]]", names.list_safetensors)


@functools.cache
def _part() -> CodeType:
    return cutting.cut(source_of(RUNAI, _MODULE), ["SAFETENSORS_PATTERN", "list_safetensors"])


def _is_none(_path: str) -> bool:
    return False
