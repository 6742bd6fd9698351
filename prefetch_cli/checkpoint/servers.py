"""The servers: by which rules each chooses the weight files of a folder. A table of values.

Read in vLLM 0.33 (model_executor/model_loader/default_loader.py, weight_utils.py, and the models
that set `secondary_weights` or `allow_patterns_overrides`), SGLang 0.5.23
(srt/model_loader/loader.py, weight_utils.py), TensorRT-LLM
(_torch/models/checkpoints/hf/weight_loader.py), text-generation-inference
(server/text_generation_server/utils/hub.py), transformers 5.24 (modeling_utils.py), llama.cpp
(common/arg.cpp, src/llama.cpp) and Ollama (server/manifest.go).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.config import Config

SAFETENSORS_INDEX = "model.safetensors.index.json"
MISTRAL_INDEX = "consolidated.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
MISTRAL_PARAMETERS = "params.json"
# Names by which torch's distributed checkpoints are known: these come before config.json.
TORCH_SHARDS = "shard-[0-9]*-model-*-of-*.safetensors"

# Training loops save these beside the weights; no server reads them.
_NOT_WEIGHTS = (
    "*training_args.bin",
    "*optimizer.bin",
    "*optimizer.pt",
    "*scheduler.pt",
    "*scaler.pt",
)


class Consolidated(enum.Enum):
    """Whether Mistral's own copy of the weights counts, where there are others."""

    COUNTS = enum.auto()
    NOT_AS_ONE_OF_TWO = enum.auto()  # left out where there is just one other, and no index
    NEVER = enum.auto()


class Order(enum.Enum):
    """In which order a server opens the files."""

    NATURAL = enum.auto()  # model-2 before model-10
    PLAIN = enum.auto()  # by characters


@dataclass(frozen=True)
class Family:
    """Weight files that are loaded together, and the index that may list them."""

    load_format: LoadFormat
    patterns: tuple[str, ...] = ()  # empty: only what the index names
    index: str | None = None
    # A folder may hold the same weights in two layouts. Some servers read only the files that the
    # index names.
    index_decides: bool = False
    consolidated: Consolidated = Consolidated.COUNTS
    never: tuple[str, ...] = ()  # globs
    only_with: str | None = None  # a glob: it counts only where that is, too
    not_with: str | None = None
    beside: tuple[str, ...] = ()  # globs: read along with the others, no weights where they are not


_SAFETENSORS_FORMATS = frozenset(
    (
        LoadFormat.SAFETENSORS,
        LoadFormat.FASTSAFETENSORS,
        LoadFormat.INSTANTTENSOR,
        LoadFormat.MISTRAL,
    )
)
# The formats of the loader that knows of extra weights.
_DEFAULT_LOADER = _SAFETENSORS_FORMATS | {
    LoadFormat.AUTO,
    LoadFormat.HF,
    LoadFormat.PT,
    LoadFormat.NPCACHE,
}


class Extra(NamedTuple):
    """Weights that a server reads beside those of the table, for models of some architectures."""

    architectures: tuple[str, ...]
    folder: str = ""  # a glob for folders below the checkpoint; empty: the checkpoint itself
    pattern: str = "*.safetensors"
    for_next_layers: bool = False  # only where the model has layers that predict further tokens
    instead: bool = False  # of all others
    formats: frozenset[LoadFormat] = _DEFAULT_LOADER

    def applies(self, config: Config, load_format: LoadFormat) -> bool:
        """Return whether a model with this config.json has it, in this format."""
        return (
            not set(self.architectures).isdisjoint(config.architectures)
            and load_format in self.formats
            and (config.next_layers > 0 or not self.for_next_layers)
        )


class Rules(NamedTuple):
    """How one server chooses."""

    server: Server
    families: tuple[Family, ...]  # the first that has files is loaded
    # Where a format is asked for. What is not here is as in vLLM.
    formats: Mapping[LoadFormat, tuple[Family, ...]] = MappingProxyType({})
    order: Order = Order.NATURAL
    extras: tuple[Extra, ...] = ()
    config_names_weights: bool = False  # `transformers_weights` in config.json comes first
    # Words in the path of models that are loaded in Mistral's format where params.json is.
    mistral_paths: tuple[str, ...] = ()
    loads_other_repos: bool = False  # that config.json names
    # Layouts on which it fails before it has read anything.
    takes_nested_consolidated_for_mistral: bool = False
    takes_training_args_for_weights: bool = False
    refuses_shards_in_folders: bool = False

    def of_format(self, load_format: LoadFormat) -> tuple[Family, ...]:
        """Return the families that count where this format is asked for."""
        if load_format is LoadFormat.AUTO:
            return self.families
        return self.formats.get(load_format) or _FORMATS[load_format]


_MISTRAL = Family(
    LoadFormat.MISTRAL, ("consolidated*.safetensors",), MISTRAL_INDEX, index_decides=True
)
_SAFETENSORS = Family(LoadFormat.HF, ("*.safetensors",), SAFETENSORS_INDEX, index_decides=True)
# With their index: a missing shard is found before the server starts, though it looks at none.
_BIN = Family(LoadFormat.HF, ("*.bin",), BIN_INDEX, never=_NOT_WEIGHTS)
_PT = Family(LoadFormat.HF, ("*.pt",), never=_NOT_WEIGHTS)
_PTH = Family(LoadFormat.HF, ("*.pth",), never=_NOT_WEIGHTS)
_GGUF = Family(LoadFormat.GGUF, ("*.gguf",))
_SHARDED = Family(
    LoadFormat.SHARDED_STATE,
    ("model-rank-*-part-*.safetensors", "model-pp-*-tp-*-part-*.safetensors"),
)
_ANY_SAFETENSORS = Family(LoadFormat.HF, ("*.safetensors",))
_TENSORS = Family(LoadFormat.TENSORIZER, ("*.tensors",))
# torch.distributed.checkpoint and Megatron: what is not sharded is in common.pt.
_DCP = Family(LoadFormat.DCP, ("*.distcp",), beside=(".metadata", "common.pt"))
_ENGINE = Family(LoadFormat.ENGINE, ("*.engine", "*.plan"))
_ONNX = Family(LoadFormat.ONNX, ("*.onnx",), beside=("*.onnx_data*", "*.onnx.data*"))
_NPZ = Family(LoadFormat.NPZ, ("*.npz",))
_HF = (_SAFETENSORS, _BIN, _PT)

_FORMATS: Mapping[LoadFormat, tuple[Family, ...]] = {
    LoadFormat.HF: _HF,
    LoadFormat.SAFETENSORS: (_SAFETENSORS,),
    LoadFormat.FASTSAFETENSORS: (_SAFETENSORS,),
    LoadFormat.INSTANTTENSOR: (_SAFETENSORS,),
    LoadFormat.MODELEXPRESS: (_MISTRAL, *_HF),
    LoadFormat.MISTRAL: (_MISTRAL,),
    LoadFormat.PT: (_PT,),
    LoadFormat.NPCACHE: (_BIN, _PT),
    LoadFormat.GGUF: (_GGUF,),
    LoadFormat.BITSANDBYTES: _HF,
    LoadFormat.RUNAI_STREAMER: (_ANY_SAFETENSORS,),
    LoadFormat.RUNAI_STREAMER_SHARDED: (_SHARDED,),
    LoadFormat.SHARDED_STATE: (_SHARDED,),
    LoadFormat.TENSORIZER: (_TENSORS,),
    LoadFormat.DCP: (_DCP,),
    LoadFormat.ENGINE: (_ENGINE,),
    LoadFormat.ONNX: (_ONNX,),
    LoadFormat.NPZ: (_NPZ,),
    LoadFormat.DUMMY: (),
    LoadFormat.IPC_CACHE: (),
}

_TRANSFORMERS_SAFETENSORS = (
    # Shards of torch's distributed checkpoints: everything beside them counts.
    Family(LoadFormat.HF, ("*.safetensors",), only_with=TORCH_SHARDS),
    Family(LoadFormat.HF, ("model.safetensors",)),
    Family(LoadFormat.HF, (), SAFETENSORS_INDEX, index_decides=True),
)
_TRANSFORMERS_BIN = (
    Family(LoadFormat.HF, ("pytorch_model.bin",)),
    Family(LoadFormat.HF, (), BIN_INDEX, index_decides=True),
)
_TRANSFORMERS = (
    *_TRANSFORMERS_SAFETENSORS,
    *_TRANSFORMERS_BIN,
    Family(LoadFormat.HF, ("adapter_model.safetensors",)),
    Family(LoadFormat.HF, ("adapter_model.bin",)),
    _MISTRAL,
)
_TRANSFORMERS_FORMATS = {
    LoadFormat.HF: _TRANSFORMERS,
    LoadFormat.SAFETENSORS: _TRANSFORMERS_SAFETENSORS,
    LoadFormat.PT: _TRANSFORMERS_BIN,
    LoadFormat.NPCACHE: _TRANSFORMERS_BIN,
}
_SGLANG = Family(
    LoadFormat.HF,
    ("*.safetensors",),
    SAFETENSORS_INDEX,
    index_decides=True,
    consolidated=Consolidated.NOT_AS_ONE_OF_TWO,
)
_SGLANG_MISTRAL = replace(_MISTRAL, not_with="model*.safetensors")
_SGLANG_SHARDED = replace(_SHARDED, patterns=("model-rank-*-part-*.safetensors",))
_TGI_NEVER = ("*arguments*", "*args*", "*adapter*", "*training*")
_COSMOS = ("Cosmos3ForConditionalGeneration", "Cosmos3EdgeForConditionalGeneration")

_RULES = (
    Rules(
        Server.VLLM,
        # consolidated* wins wherever there is any; GGUF by its plugin. The others are no formats of
        # vLLM's: they are what a folder holds that is not for it. Beside *.distcp a common.pt is
        # the least part.
        (_MISTRAL, _SAFETENSORS, _BIN, _DCP, _PT, _GGUF, _ENGINE, _ONNX, _NPZ),
        extras=(
            Extra(
                ("MoonshotKimiaForCausalLM", "KimiAudioForConditionalGeneration"),
                folder="whisper-large-v3",
            ),
            Extra(("BgeM3EmbeddingModel",), pattern="sparse_linear.pt"),
            Extra(("BgeM3EmbeddingModel",), pattern="colbert_linear.pt"),
            Extra(("D3ForSequenceClassification",), pattern="readout.safetensors"),
            Extra(
                ("ClefFlashForJointSchema", "ClefOmniForJointSchema"),
                pattern="joint_head.safetensors",
            ),
            Extra(_COSMOS, folder="[tv]*er", instead=True),
        ),
        loads_other_repos=True,
        takes_nested_consolidated_for_mistral=True,
        refuses_shards_in_folders=True,
        takes_training_args_for_weights=True,
    ),
    Rules(
        Server.SGLANG,
        (_SGLANG_MISTRAL, _SGLANG, _BIN, _PT, _GGUF),
        formats={
            LoadFormat.HF: (_SGLANG, _BIN, _PT),
            LoadFormat.SAFETENSORS: (_SGLANG,),
            LoadFormat.FASTSAFETENSORS: (_SGLANG,),
            LoadFormat.INSTANTTENSOR: (_SGLANG,),
            LoadFormat.RUNAI_STREAMER: (_SGLANG,),
            LoadFormat.BITSANDBYTES: (_ANY_SAFETENSORS, _BIN, _PT),
            LoadFormat.SHARDED_STATE: (_SGLANG_SHARDED,),
        },
        order=Order.PLAIN,
        extras=(
            Extra(
                (
                    "Glm4MoeForCausalLM",
                    "Glm4MoeForCausalLMNextN",
                    "Glm4MoeLiteForCausalLM",
                    "Glm4MoeLiteForCausalLMNextN",
                ),
                pattern="mtp.safetensors",
                for_next_layers=True,
                formats=_SAFETENSORS_FORMATS | {LoadFormat.AUTO, LoadFormat.RUNAI_STREAMER},
            ),
            Extra(_COSMOS, folder="[tv]*er", instead=True),
        ),
        mistral_paths=("mistral-large-3", "mistral-small-4", "leanstral"),
        takes_training_args_for_weights=True,
    ),
    Rules(
        Server.TENSORRT_LLM,
        (
            Family(
                LoadFormat.HF,
                ("*.safetensors",),
                SAFETENSORS_INDEX,
                consolidated=Consolidated.NEVER,
            ),
            _BIN,
            _PTH,
            _ENGINE,
        ),
    ),
    Rules(
        Server.TGI,
        (
            Family(LoadFormat.HF, ("*.safetensors",), SAFETENSORS_INDEX, never=_TGI_NEVER),
            Family(LoadFormat.HF, ("*.bin",), BIN_INDEX, never=(*_NOT_WEIGHTS, *_TGI_NEVER)),
        ),
    ),
    Rules(
        Server.TRANSFORMERS,
        _TRANSFORMERS,
        formats=_TRANSFORMERS_FORMATS,
        order=Order.PLAIN,
        config_names_weights=True,
    ),
    Rules(
        Server.SENTENCE_TRANSFORMERS,
        _TRANSFORMERS,
        formats=_TRANSFORMERS_FORMATS,
        order=Order.PLAIN,
        config_names_weights=True,
    ),
    Rules(Server.DIFFUSERS, _HF),
    Rules(Server.LLAMA_CPP, (_GGUF,)),
    Rules(Server.OLLAMA, (_GGUF, _SAFETENSORS)),
)
_BY_SERVER = {rules.server: rules for rules in _RULES}


def rules_of(server: Server) -> Rules:
    """Return a server's row; where none is known, vLLM's."""
    return _BY_SERVER[Server.VLLM if server is Server.AUTO else server]
