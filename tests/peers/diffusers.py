"""diffusers' own choice of files: functions of its wheel, among stubs."""

import functools
import json
import os
from pathlib import Path
from types import CodeType
from typing import Any

from tests.peers import cutting, transformers
from tests.peers.outcomes import Outcome, Shelf, Silent, outcome_of
from tests.peers.wheels import DIFFUSERS, source_of

_MODELS = "diffusers.models."
_NAMES = (
    *("WEIGHTS_NAME", "WEIGHTS_INDEX_NAME", "SAFETENSORS_WEIGHTS_NAME", "SAFE_WEIGHTS_INDEX_NAME"),
    "FLASHPACK_WEIGHTS_NAME",
)
_PARAMETERS = (
    *("pretrained_model_name_or_path", "subfolder", "use_safetensors", "allow_pickle", "variant"),
    *("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision"),
    *("user_agent", "commit_hash", "use_flashpack"),
)


def outcome(directory: str, _load_format: str) -> Outcome:
    """Return what DiffusionPipeline.from_pretrained does with a directory."""
    return outcome_of(directory, _load)


def _load(directory: str, shelf: Shelf) -> None:
    """Load the components in the order of the layout, each with its library's own rule."""
    with open(os.path.join(directory, "model_index.json"), encoding="utf-8") as file:
        layout: dict[str, Any] = json.load(file)
    for name, value in layout.items():
        if name.startswith("_") or value[0] is None:
            continue
        folder = os.path.join(directory, name)
        if value[0] == "transformers":
            transformers.load(folder, shelf)
            continue
        names = cutting.run(_parts(), _stubs(), {})
        # The defaults of a pipeline, as its from_pretrained passes them on.
        given = dict.fromkeys(_PARAMETERS) | {
            "pretrained_model_name_or_path": folder,
            "use_safetensors": True,
            "allow_pickle": True,
            "use_flashpack": False,
        }
        for path in names.chosen(**given):
            if path.endswith(".safetensors"):
                shelf.safe_open(path)
            else:
                shelf.torch.load(path)


@functools.cache
def _parts() -> list[CodeType]:
    """Return all that is cut out of the wheel."""
    return [
        cutting.cut(source_of(DIFFUSERS, "diffusers.utils.constants"), _NAMES),
        cutting.cut(
            source_of(DIFFUSERS, "diffusers.utils.hub_utils"),
            ["_add_variant", "_get_model_file", "_get_checkpoint_shard_files"],
        ),
        cutting.cut(
            source_of(DIFFUSERS, _MODELS + "model_loading_utils"),
            ["_fetch_index_file", "_fetch_index_file_legacy"],
        ),
        cutting.cut_piece(
            source_of(DIFFUSERS, _MODELS + "modeling_utils"),
            "ModelMixin.from_pretrained",
            name="chosen",
            parameters=_PARAMETERS,
            begins="is_sharded",
            ends="resolved_model_file",
        ),
    ]


def _stubs() -> dict[str, Any]:
    return {"Path": Path, "json": json, "logger": Silent(), "os": os}
