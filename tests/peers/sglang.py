"""SGLang's own choice of files: functions of its wheel, among stubs."""

import abc
import collections
import enum
import fnmatch
import functools
import json
import os
import re
import time
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

from tests.peers import cutting, streamer
from tests.peers.outcomes import Bar, Context, Outcome, Shelf, Silent, outcome_of
from tests.peers.wheels import CHOOSES, SGLANG, TRANSFORMERS, modules_of, source_of

_LOADER = (
    "BaseModelLoader.__init__",
    "_validate_default_loader_extra_config",
    "DefaultModelLoader.__init__",
    "DefaultModelLoader._maybe_download_from_modelscope",
    "DefaultModelLoader._prepare_weights",
    "DefaultModelLoader._get_weights_iterator",
    "ShardedStateLoader.__init__",
    "ShardedStateLoader._filter_subtensors",
    "ShardedStateLoader._prepare_weights",
    "ShardedStateLoader.load_model",
    "BitsAndBytesModelLoader._get_weight_files",
    "BitsAndBytesModelLoader._prepare_weights",
    "BitsAndBytesModelLoader._hf_weight_iter",
    "GGUFModelLoader.__init__",
    "GGUFModelLoader._prepare_weights",
    "RunaiModelStreamerLoader.__init__",
    "RunaiModelStreamerLoader._prepare_weights",
    "RunaiModelStreamerLoader._get_weights_iterator",
    "get_model_loader",
)
_UTILS = (
    "filter_duplicate_safetensors_files",
    "maybe_add_mtp_safetensors",
    "filter_files_not_needed_for_inference",
    "np_cache_weights_iterator",
    "safetensors_weights_iterator",
    "instanttensor_weights_iterator",
    "_load_pt_file",
    "pt_weights_iterator",
)
_RANK = re.compile(r"model-rank-(\d+)-part-.*")
FORMATS = (
    *("auto", "safetensors", "mistral", "pt", "npcache", "bitsandbytes", "gguf"),
    *("fastsafetensors", "instanttensor", "sharded_state", "runai_streamer"),
)
# What these models set for the loader, by architecture: the patterns of each source.
# `modules_that_choose` keeps this complete.
_INSTEAD = {
    "Cosmos3ForConditionalGeneration": [
        ["transformer/*.safetensors"],
        ["vision_encoder/*.safetensors"],
    ],
    "Cosmos3EdgeForConditionalGeneration": [["[tv]*er/*.safetensors"]],
}
KNOWN_MODULES = {"cosmos3", "cosmos3_edge"}
NOT_COMPARED = {
    "dummy": "opens no file",
    "expert_pack": "for two models, named in its source",
    "flash_rl": "as auto, less its rule for Mistral's files",
    "layered": "as auto, less its rule for Mistral's files",
    "presharded": "its folder bears a hash of the configuration that runs",
    "private": "code that is not in the wheel",
    "remote": "from another machine",
    "remote_instance": "from another machine",
}
_THREADED = ("auto", "pt", "safetensors", "mistral")


def outcome(directory: str, load_format: str) -> Outcome:
    """Return what SGLang does with a directory, for all ranks of a node together."""
    peer = functools.partial(_load, load_format)
    return outcome_of(directory, peer)


def known_formats() -> list[str]:
    """Return what --load-format of this SGLang takes, sorted."""
    source = source_of(SGLANG, "sglang.srt.arg_groups.choices")
    part = cutting.cut(source, ["LOAD_FORMAT_CHOICES"])
    return sorted(cutting.run([part], {}, {}).LOAD_FORMAT_CHOICES)


def modules_that_choose() -> set[str]:
    """Return the modules of models that set other sources or other patterns for the loader."""
    return {
        module.rpartition(".")[2]
        for module in modules_of(SGLANG, "sglang.srt.models.")
        if CHOOSES.search(source_of(SGLANG, module))
    }


def _load(load_format: str, directory: str, shelf: Shelf) -> None:
    """Load as SGLang does, from --load-format on."""
    names = _namespace(shelf)
    given = _arguments(directory, load_format)
    names.handle_load_format(given)
    loader = _loader(names, given.load_format)
    if isinstance(loader, names.ShardedStateLoader):
        ranks = [int(match[1]) for name in os.listdir(directory) if (match := _RANK.match(name))]
        shelf.ordered = len(ranks) == 1
        for rank in range(1 + max(ranks, default=0)):
            names = _namespace(shelf, rank=rank)
            _loader(names, given.load_format).load_model(
                model_config=SimpleNamespace(model_path=directory, revision=None, dtype=None),
                device_config=SimpleNamespace(device="cuda"),
            )
    elif isinstance(loader, names.BitsAndBytesModelLoader):
        list(loader._hf_weight_iter(*loader._prepare_weights(directory, None)))
    elif isinstance(loader, names.GGUFModelLoader):
        loader._prepare_weights(directory)
    else:
        loader.target_device_str = "cuda:0"  # its load_model sets this
        for source in _sources(directory):
            list(loader._get_weights_iterator(source))


def _loader(names: Any, load_format: str) -> Any:
    """Return the loader that SGLang takes."""
    # One thread, so that the files are opened in the order in which they are yielded.
    extra = {"enable_multithread_load": False} if load_format in _THREADED else {}
    return names.get_model_loader(_load_config(names.LoadFormat(load_format), extra))


def _load_config(load_format: Any, extra: dict[str, Any]) -> SimpleNamespace:
    """Stand for LoadConfig."""
    return SimpleNamespace(
        load_format=load_format,
        model_loader_extra_config=extra,
        download_dir=None,
        draft_model_idx=None,
        ignore_patterns=[],
        load_group=None,
        modelopt_config=None,
    )


def _arguments(directory: str, load_format: str) -> SimpleNamespace:
    """Return SGLang's arguments as far as the choice of a loader looks at them."""
    return SimpleNamespace(
        model_path=directory,
        revision=None,
        load_format=load_format,
        custom_weight_loader=[],
        remote_instance_weight_loader_start_seed_via_transfer_engine=False,
        speculative_algorithm=None,
        speculative_draft_load_format=None,
        speculative_draft_model_path=None,
        weight_cache_mode="off",
    )


def _sources(directory: str) -> list[SimpleNamespace]:
    """Return the sources of the weights, with what config.json says."""
    path = os.path.join(directory, "config.json")
    content: dict[str, Any] = {}
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    if isinstance(content.get("text_config"), dict):
        content["text_config"] = SimpleNamespace(**content["text_config"])
    config = SimpleNamespace(**{"architectures": ["LlamaForCausalLM"], **content})
    return [
        SimpleNamespace(
            model_or_path=directory,
            revision=None,
            prefix="",
            fall_back_to_pt=True,
            allow_patterns_overrides=patterns,
            model_config=SimpleNamespace(hf_config=config),
        )
        for patterns in _INSTEAD.get(config.architectures[0], [None])
    ]


def _set(given: SimpleNamespace, _by: str, **values: Any) -> None:
    """Stand for declare_resolution."""
    vars(given).update(values)


@functools.cache
def _parts() -> list[CodeType]:
    """Return all that is cut out of the wheels."""
    return [
        cutting.cut(source_of(TRANSFORMERS, "transformers.utils"), ["SAFE_WEIGHTS_INDEX_NAME"]),
        cutting.cut(source_of(SGLANG, "sglang.srt.configs.load_config"), ["LoadFormat"]),
        cutting.cut(
            source_of(SGLANG, "sglang.srt.arg_groups.model_path_hook"),
            ["handle_load_format", "is_mistral_native_format"],
        ),
        cutting.cut(
            source_of(SGLANG, "sglang.srt.utils.hf_transformers.common"), ["check_gguf_file"]
        ),
        cutting.cut(
            source_of(SGLANG, "sglang.srt.utils.runai_utils"),
            ["SUPPORTED_SCHEMES", "is_runai_obj_uri"],
        ),
        cutting.cut(source_of(SGLANG, "sglang.srt.model_loader.weight_utils"), _UTILS),
        cutting.cut(source_of(SGLANG, "sglang.srt.model_loader.loader"), _LOADER),
    ]


def _namespace(shelf: Shelf, *, rank: int = 0) -> Any:
    """Return what was cut out, run among stubs that open files from the shelf."""
    model = SimpleNamespace(
        model_checksum=None,
        weight_loader_disable_mmap=False,
        weight_loader_prefetch_checkpoints=False,
        weight_loader_prefetch_num_threads=1,
        weight_loader_drop_cache_after_load=False,
    )
    loaded = SimpleNamespace(named_modules=list, state_dict=dict, eval=lambda: None)
    stubs = {
        "ABC": abc.ABC,
        "BAR_FORMAT": "",
        "Path": Path,
        "_DEFAULT_LOAD_GROUP": object(),
        "_get_quantization_config": lambda *_args: None,
        "_gguf_quantization": None,
        "_initialize_model": lambda *_args: loaded,
        "collections": collections,
        "current_platform": SimpleNamespace(device_type="cuda", get_device=lambda _number: 0),
        "declare_resolution": _set,
        "enum": enum,
        "envs": SimpleNamespace(SGLANG_SORT_WEIGHT_FILES=SimpleNamespace(get=lambda: 0)),
        "fastsafetensors_weights_iterator": shelf.open_all,
        "fnmatch": fnmatch,
        "get_bool_env_var": lambda _name: False,
        "get_lock": Context,
        "get_model": lambda: model,
        "get_parallel": lambda: SimpleNamespace(tp_rank=rank),
        "get_server_args": lambda: None,
        "glob": shelf.glob,
        "is_remote_url": lambda _path: False,
        "json": json,
        "logger": Silent(),
        "np": shelf.numpy,
        "os": os,
        "re": re,
        "resolving_view": lambda given: given,
        "post_load_weights": lambda _model: None,
        "run_post_process_pass": lambda *_args: None,
        "safetensors": SimpleNamespace(safe_open=shelf.safe_open),
        "set_default_torch_dtype": Context,
        "set_runai_streamer_env": lambda _config: None,
        "time": time,
        "torch": shelf.torch,
        "tqdm": Bar,
    }
    objects = SimpleNamespace(
        ObjectStorageModel=None,
        is_runai_obj_uri=lambda _path: False,
        list_safetensors=streamer.list_safetensors(shelf),
    )
    imports = {
        "instanttensor": SimpleNamespace(safe_open=functools.partial(_Instant, shelf)),
        "safetensors.torch": SimpleNamespace(safe_open=shelf.safe_open),
        "sglang.srt.model_loader.weight_utils": SimpleNamespace(
            runai_safetensors_weights_iterator=shelf.open_all
        ),
        "sglang.srt.utils.runai_utils": objects,
    }
    return cutting.run(_parts(), stubs, imports)


class _Instant(Context):
    """Stands for instanttensor.safe_open."""

    def __init__(self, shelf: Shelf, paths: list[str], **_options: Any) -> None:
        shelf.open_all(paths)

    def __enter__(self) -> "_Instant":
        return self

    @staticmethod
    def tensors() -> list[Any]:
        return []

    keys = tensors
