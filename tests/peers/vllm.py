"""vLLM's own choice of files: functions of its wheel, among stubs."""

import collections
import fnmatch
import functools
import json
import os
import re
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, NoReturn

from tests.peers import cutting, streamer
from tests.peers.outcomes import Bar, Context, Outcome, Shelf, Silent, Words, outcome_of
from tests.peers.wheels import CHOOSES, TRANSFORMERS, VLLM, modules_of, source_of

_LOADERS = "vllm.model_executor.model_loader."
_DEFAULT = ("DefaultModelLoader._prepare_weights", "DefaultModelLoader._get_weights_iterator")
_UTILS = (
    "_natural_sort_key",
    "filter_duplicate_safetensors_files",
    "filter_files_not_needed_for_inference",
    "enable_tqdm",
    "np_cache_weights_iterator",
    "_get_checkpoints_size_bytes",
    "safetensors_weights_iterator",
    "fastsafetensors_weights_iterator",
    "instanttensor_weights_iterator",
    "pt_weights_iterator",
    "_BAR_FORMAT",
)
_SHARDED = (
    "ShardedStateLoader._get_default_pattern",
    "ShardedStateLoader._render_default_pattern",
    "ShardedStateLoader._filter_subtensors",
    "ShardedStateLoader.load_weights",
    "ShardedStateLoader.iterate_over_files",
)
_RUNAI = (
    "RunaiModelStreamerLoader._prepare_weights",
    "RunaiModelStreamerLoader._get_weights_iterator",
)
_OBJECTS = ("SUPPORTED_SCHEMES", "is_runai_obj_uri", "list_safetensors")
_RANKED = re.compile(r"model-(?:rank-(?P<rank>\d+)|pp-(?P<pp>\d+)-tp-(?P<tp>\d+))-part-.*")
FORMATS = (
    *("auto", "hf", "safetensors", "mistral", "pt", "npcache"),
    *("fastsafetensors", "instanttensor"),
    *("sharded_state", "runai_streamer", "runai_streamer_sharded", "tensorizer"),
)
# What these models set for the loader, by architecture: which files it reads instead of the usual
# ones, and the sources that it reads after those. `modules_that_choose` keeps this complete.
_INSTEAD = {
    "Cosmos3ForConditionalGeneration": ["[tv]*er/*.safetensors"],
    "Cosmos3EdgeForConditionalGeneration": ["[tv]*er/*.safetensors"],
}
_AFTER: dict[str, list[dict[str, Any]]] = {
    "MoonshotKimiaForCausalLM": [{"subfolder": "whisper-large-v3"}],
    "BgeM3EmbeddingModel": [
        {"allow_patterns_overrides": [name]} for name in ("sparse_linear.pt", "colbert_linear.pt")
    ],
    "D3ForSequenceClassification": [{"allow_patterns_overrides": ["readout.safetensors"]}],
    "ClefFlashForJointSchema": [{"allow_patterns_overrides": ["joint_head.safetensors"]}],
    "ClefOmniForJointSchema": [{"allow_patterns_overrides": ["joint_head.safetensors"]}],
}
KNOWN_MODULES = {
    *("kimi_audio", "roberta", "d3", "clef_flash", "clef_omni", "cosmos3", "cosmos3_edge"),
    "ultravox",  # its other sources are repos of their own
}
NOT_COMPARED = {
    "dummy": "opens no file",
    "ipc_cache": "opens no file: the weights are in another process",
    "modelexpress": "another package opens the files",
}


def outcome(directory: str, load_format: str) -> Outcome:
    """Return what vLLM does with a directory, for all ranks of a node together."""
    peer = functools.partial(_PEERS.get(load_format, _default), load_format)
    return outcome_of(directory, peer)


def known_formats() -> list[str]:
    """Return the load formats that this vLLM has, sorted."""
    part = cutting.cut(source_of(VLLM, _LOADERS.removesuffix(".")), ["LoadFormats"])
    return sorted(cutting.run([part], {"Literal": Words()}, {}).LoadFormats)


def modules_that_choose() -> set[str]:
    """Return the modules of models that set other sources or other patterns for the loader."""
    return {
        module.rpartition(".")[2]
        for module in modules_of(VLLM, "vllm.model_executor.models.")
        if CHOOSES.search(source_of(VLLM, module))
    }


def _default(load_format: str, directory: str, shelf: Shelf) -> None:
    """Load as DefaultModelLoader does."""
    loader = object.__new__(_namespace(shelf).DefaultModelLoader)
    loader.load_config = _load_config(load_format)
    loader.local_expert_ids = loader._encoder_only_lm_prefixes = None
    architecture = _architecture(directory)
    first = {"allow_patterns_overrides": _INSTEAD.get(architecture)}
    for choice in (first, *_AFTER.get(architecture, ())):
        source = SimpleNamespace(
            **{
                "model_or_path": directory,
                "revision": None,
                "subfolder": None,
                "prefix": "",
                "fall_back_to_pt": True,
                "allow_patterns_overrides": None,
                "is_unused_weight": None,
                **choice,
            }
        )
        list(loader._get_weights_iterator(source))


def _architecture(directory: str) -> str:
    """Return the architecture that config.json names, empty if it names none."""
    path = os.path.join(directory, "config.json")
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return str(content.get("architectures", [""])[0])


def _sharded_state(load_format: str, directory: str, shelf: Shelf) -> None:
    """Load as ShardedStateLoader does, on each rank that the names in the directory tell of."""
    matches = [match for name in os.listdir(directory) if (match := _RANKED.fullmatch(name))]
    stages = 1 + max((int(match["pp"] or 0) for match in matches), default=0)
    ranks = 1 + max((int(match["tp"] or match["rank"] or 0) for match in matches), default=0)
    shelf.ordered = stages * ranks == 1
    for stage in range(stages):
        for rank in range(ranks):
            names = _namespace(shelf, stage=stage, stages=stages, rank=rank, ranks=ranks)
            loader = object.__new__(names.ShardedStateLoader)
            loader.load_config = _load_config(load_format)
            loader.pattern = None
            loader.load_weights(
                SimpleNamespace(state_dict=dict),
                SimpleNamespace(model=directory, model_weights=None),
            )


def _runai_streamer(load_format: str, directory: str, shelf: Shelf) -> None:
    """Load as RunaiModelStreamerLoader does."""
    loader = object.__new__(_namespace(shelf).RunaiModelStreamerLoader)
    loader.load_config = _load_config(load_format)
    loader._is_distributed = False
    list(loader._get_weights_iterator(directory, None))


def _tensorizer(load_format: str, directory: str, shelf: Shelf) -> None:
    """Open what TensorizerConfig names for a directory."""
    given = SimpleNamespace(
        tensorizer_uri=None,
        tensorizer_dir=directory,
        serialization_kwargs=None,
        deserialization_kwargs=None,
    )
    _namespace(shelf).TensorizerConfig.__post_init__(given)
    shelf.note(given.tensorizer_uri)


_PEERS: dict[str, Callable[[str, str, Shelf], None]] = {
    "sharded_state": _sharded_state,
    "runai_streamer": _runai_streamer,
    "runai_streamer_sharded": _sharded_state,
    "tensorizer": _tensorizer,
}


def _load_config(load_format: str) -> SimpleNamespace:
    return SimpleNamespace(
        load_format=load_format,
        model_loader_extra_config={},
        download_dir=None,
        ignore_patterns=[],
        use_tqdm_on_load=False,
        pt_load_map_location="cpu",
        safetensors_load_strategy=None,
        safetensors_prefetch_num_threads=1,
        safetensors_prefetch_block_size=1,
    )


class _ParallelLoader:
    """Stands for fastsafetensors' ParallelLoader."""

    def __init__(self, shelf: Shelf, *, hf_weights_files: list[str], **_options: Any) -> None:
        self._shelf = shelf
        self._files = hf_weights_files

    def iterate_weights(self) -> Iterator[Any]:
        """Open the files in the order in which they were given."""
        return self._shelf.open_all(self._files)

    def close(self) -> None:
        """Do nothing."""


def _no_group() -> NoReturn:
    raise AssertionError


@functools.cache
def _parts() -> list[CodeType]:
    """Return all that is cut out of the wheels."""
    utils = source_of(VLLM, _LOADERS + "weight_utils")
    return [
        cutting.cut(source_of(TRANSFORMERS, "transformers.utils"), ["SAFE_WEIGHTS_INDEX_NAME"]),
        cutting.cut(
            source_of(VLLM, "vllm.transformers_utils.repo_utils"),
            ["list_repo_files", "list_filtered_repo_files"],
        ),
        cutting.cut(source_of(VLLM, "vllm.transformers_utils.runai_utils"), _OBJECTS),
        cutting.cut(utils, _UTILS),
        cutting.cut(source_of(VLLM, _LOADERS + "default_loader"), _DEFAULT),
        cutting.cut(source_of(VLLM, _LOADERS + "sharded_state_loader"), _SHARDED),
        cutting.cut(source_of(VLLM, _LOADERS + "runai_streamer_loader"), _RUNAI),
        cutting.cut(source_of(VLLM, _LOADERS + "tensorizer"), ["TensorizerConfig.__post_init__"]),
    ]


def _namespace(
    shelf: Shelf, *, stage: int = 0, stages: int = 1, rank: int = 0, ranks: int = 1
) -> Any:
    """Return what was cut out, run among stubs that open files from the shelf."""
    stubs = {
        "BaseModelLoader": object,
        "MutableMapping": object,
        "DEFAULT_SAFETENSORS_PREFETCH_NUM_THREADS": 1,
        "DEFAULT_SAFETENSORS_PREFETCH_BLOCK_SIZE": 1,
        "Path": Path,
        "SingleGroup": lambda: SimpleNamespace(size=lambda: 1),
        "_get_available_ram_bytes": lambda: 2**60,
        "_get_fs_type": lambda _files: "ext4",
        "collections": collections,
        "current_platform": SimpleNamespace(current_device=lambda: 0, is_cuda=lambda: True),
        "envs": SimpleNamespace(VLLM_FASTSAFETENSORS_QUEUE_SIZE=0),
        "field": lambda **_options: None,
        "fnmatch": fnmatch,
        "get_current_vllm_config_or_none": lambda: None,
        "get_lock": Context,
        "get_pp_group": lambda: SimpleNamespace(world_size=1),
        "get_world_group": _no_group,
        "glob": shelf.glob,
        "is_s3": lambda _path: False,
        "json": json,
        "logger": Silent(),
        "maybe_download_from_modelscope": lambda *_args: None,
        "np": shelf.numpy,
        "os": os,
        "re": re,
        "runai_list_safetensors": streamer.list_safetensors(shelf),
        "runai_safetensors_weights_iterator": shelf.open_all,
        "safe_open": shelf.safe_open,
        "should_skip_weight": lambda *_args: False,
        "string": string,
        "time": time,
        "torch": shelf.torch,
        "tqdm": Bar,
        "with_retry": lambda function, _message: function(),
    }
    streamed = SimpleNamespace(ParallelLoader=functools.partial(_ParallelLoader, shelf))
    imports = {
        "fastsafetensors.parallel_loader": streamed,
        "instanttensor": SimpleNamespace(safe_open=Context),
        "safetensors.torch": SimpleNamespace(safe_open=shelf.safe_open),
        "vllm.distributed": SimpleNamespace(
            get_pipeline_model_parallel_rank=lambda: stage,
            get_pp_group=lambda: SimpleNamespace(world_size=stages),
            get_tensor_model_parallel_rank=lambda: rank,
            get_tp_group=lambda: SimpleNamespace(world_size=ranks),
        ),
    }
    return cutting.run(_parts(), stubs, imports)
