"""The layouts, who loads each, and where what is opened is not exactly what is warmed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

# Why a server opens a file that is not warmed, or the other way round.
CARD = "the model card, for its metadata: a few kB that no other server opens"
TEMPLATES = "chat templates beside the usual one: a few hundred bytes in a folder of their own"
UNUSED_INDEX = "read to decide; whoever has no whole file beside it reads it"
REF = "40 bytes that say which snapshot to load; read to find it"
OTHER_INDEX = "the index of the other precision, read to decide"
MISTRAL = "configuration of the other format: small, and read by a server that takes that"


@dataclass(frozen=True)
class Case:
    """One model, loaded by one server."""

    server: str  # for --server
    folder: str  # that models.py made
    library: str = ""  # of load.py; empty: the server's own
    options: Mapping[str, str] = field(default_factory=dict)  # of the loader; {root}: of all models
    flags: tuple[str, ...] = ()  # of prefetch-cli
    model: str = "{root}/{folder}"  # for both
    opened_only: Mapping[str, str] = field(default_factory=dict)  # name below the folder: why
    warmed_only: Mapping[str, str] = field(default_factory=dict)
    number: str = ""  # tells cases of one folder apart

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.server}-{self.folder}{self.number}"


_transformers = partial(Case, "transformers")
_sentences = partial(Case, "sentence-transformers", opened_only={"README.md": CARD})
_normalized = partial(_sentences, opened_only={"README.md": CARD})
_diffusers = partial(Case, "diffusers")
_HALF = {"variant": "fp16"}
_TAKE_HALF = ("--include", "*.json", "--include", "*fp16*")
_FULL_INDEXES = tuple(
    f"{part}/diffusion_pytorch_model.safetensors.index.json" for part in ("unet", "vae")
)
_HALF_INDEXES = tuple(name.replace(".index.", ".index.fp16.") for name in _FULL_INDEXES)

LIBRARY_CASES = (
    _transformers("single"),
    _transformers("sharded"),
    _transformers("pickled"),
    _transformers("pickled_shards"),
    _transformers("both_formats"),
    _transformers("consolidated", warmed_only={"params.json": MISTRAL}),
    _transformers(
        "consolidated_shards", warmed_only={"consolidated.safetensors.index.json": MISTRAL}
    ),
    _transformers("stale_index", warmed_only={"model.safetensors.index.json": UNUSED_INDEX}),
    _transformers("both_sets", warmed_only={"model.safetensors.index.json": UNUSED_INDEX}),
    _transformers("stray_shard"),
    _transformers("variant"),
    _transformers("named_by_config"),
    _transformers("named_by_config_beside"),
    _transformers("original_folder"),
    _transformers("remote_code", options={"trust_remote_code": "yes"}),
    _transformers(
        "chat_templates",
        opened_only={"additional_chat_templates/tool_use.jinja": TEMPLATES},
    ),
    _transformers("old_tokenizer"),
    _transformers(
        "hub_cache",
        model="org/name",
        options={"cache_dir": "{root}/hub_cache/hub"},
        flags=("--cache-dir", "{root}/hub_cache/hub"),
        opened_only={"hub/models--org--name/refs/main": REF},
    ),
    _normalized("sentences"),
    _sentences("sentences_in_folder"),
    _normalized("sentences_pickled"),
    _normalized("sentences_exported"),
    _sentences("sentences_static"),
    _sentences("router", opened_only={"README.md": CARD}),
    _sentences("sparse", library="sparse-encoder"),
    _sentences("cross_encoder", library="cross-encoder"),
    _diffusers("pipeline"),
    _diffusers("pipeline_single_beside"),
    _diffusers("pipeline_variant"),
    _diffusers("pipeline_variant", options=_HALF, flags=_TAKE_HALF, number="-fp16"),
    _diffusers("pipeline_variant_shards", warmed_only=dict.fromkeys(_HALF_INDEXES, OTHER_INDEX)),
    _diffusers(
        "pipeline_variant_shards",
        options=_HALF,
        flags=_TAKE_HALF,
        warmed_only=dict.fromkeys(_FULL_INDEXES, OTHER_INDEX),
        number="-fp16",
    ),
    _diffusers(
        "pipeline_variant_old_names",
        options=_HALF,
        flags=_TAKE_HALF,
        warmed_only=dict.fromkeys(_FULL_INDEXES, OTHER_INDEX),
    ),
    _diffusers("pipeline_pickled"),
    _diffusers("pipeline_both_formats"),
)


@dataclass(frozen=True)
class LlamaCase:
    """One model as llama-server is given it."""

    name: str
    words: tuple[str, ...]  # of llama-server, of which each path is a checkpoint for us


def _llama(name: str, model: str, *more: str) -> LlamaCase:
    return LlamaCase(name, ("-m", f"{{root}}/{model}", *more))


_WITH = "gguf_companions/tiny.gguf"

LLAMA_CASES = (
    _llama("single", "gguf_single/tiny-f32.gguf"),
    _llama("one-of-two", "gguf_quantisations/tiny-Q8_0.gguf"),
    _llama("projector", _WITH, "--mmproj", "{root}/gguf_companions/mmproj-tiny.gguf"),
    _llama("draft", _WITH, "-md", "{root}/gguf_companions/draft.gguf"),
    _llama("adapter", _WITH, "--lora", "{root}/gguf_companions/adapter.gguf"),
    _llama("split", "gguf_split/tiny-00001-of-00004.gguf"),
)
