"""transformers' own choice of files: functions of its wheel, among stubs."""

import functools
import json
import os
import re
from types import CodeType, SimpleNamespace
from typing import Any

from tests.peers import cutting
from tests.peers.outcomes import Outcome, Shelf, Silent, outcome_of
from tests.peers.wheels import TRANSFORMERS, source_of

_NAMES = ("SAFE_WEIGHTS_NAME", "SAFE_WEIGHTS_INDEX_NAME", "WEIGHTS_NAME", "WEIGHTS_INDEX_NAME")
# --load-format -> from_pretrained's `use_safetensors`
FORMATS: dict[str, bool | None] = {"auto": None, "safetensors": True}


def outcome(directory: str, load_format: str) -> Outcome:
    """Return what AutoModel.from_pretrained does with a directory."""
    return outcome_of(directory, functools.partial(_load, FORMATS[load_format]))


def load(directory: str, shelf: Shelf, use_safetensors: bool | None = None) -> None:
    """Open what transformers opens in a directory."""
    _load(use_safetensors, directory, shelf)


def _load(use_safetensors: bool | None, directory: str, shelf: Shelf) -> None:
    names = cutting.run(_parts(), _stubs(), {})
    distributed = names.get_distributed_checkpoint_dir(directory, "", None, None)
    if distributed is not None:
        files = names._get_resolved_distributed_checkpoint_files(distributed)
    else:
        files, _ = names._get_resolved_checkpoint_files(
            pretrained_model_name_or_path=directory,
            variant=None,
            gguf_file=None,
            use_safetensors=use_safetensors,
            user_agent=None,
            is_remote_code=False,
            transformers_explicit_filename=_explicit(directory),
        )
    # Here the first file decides how all are opened (_load_pretrained_model).
    safe = files[0].endswith(".safetensors")
    for path in files:
        if safe:
            shelf.safe_open(path)
        else:
            shelf.torch.load(path)


def _explicit(directory: str) -> str | None:
    """Return the name that config.json gives for the weights, if it does."""
    path = os.path.join(directory, "config.json")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content.get("transformers_weights")


@functools.cache
def _parts() -> list[CodeType]:
    """Return all that is cut out of the wheel."""
    return [
        cutting.cut(source_of(TRANSFORMERS, "transformers.utils"), _NAMES),
        cutting.cut(
            source_of(TRANSFORMERS, "transformers.utils.hub"), ["get_checkpoint_shard_files"]
        ),
        cutting.cut(
            source_of(TRANSFORMERS, "transformers.distributed.checkpoint"),
            [
                "is_sharded_checkpoint",
                "get_distributed_checkpoint_dir",
                "_get_resolved_distributed_checkpoint_files",
            ],
        ),
        cutting.cut(
            source_of(TRANSFORMERS, "transformers.modeling_utils"),
            ["_add_variant", "_get_resolved_checkpoint_files"],
        ),
    ]


def _stubs() -> dict[str, Any]:
    return {
        "DownloadKwargs": dict,
        "_check_distributed_checkpointing_available": lambda: True,
        "json": json,
        "logger": Silent(),
        "logging": SimpleNamespace(),
        "os": os,
        "re": re,
    }
