"""The command lines of the servers: which of their words name what they read. A table of values.

Read in vLLM 0.33 (entrypoints/common/cli_args.py, engine/arg_utils.py, utils/argparse_utils.py),
SGLang 0.5.23 (cli/serve.py, srt/arg_groups/fields), TensorRT-LLM (commands/serve.py),
text-generation-inference (launcher/src/main.rs, server/text_generation_server/cli.py),
transformers 5.24 (cli/serve.py) and llama.cpp (common/arg.cpp, common/hf-cache.cpp).
"""

import enum
from typing import NamedTuple

from prefetch_cli.base.words import Server


class Meaning(enum.Enum):
    """What a word on a server's command line names."""

    MODEL = enum.auto()
    REVISION = enum.auto()
    LOAD_FORMAT = enum.auto()
    CACHE_DIR = enum.auto()
    TOKENIZER = enum.auto()
    TOKENIZER_REVISION = enum.auto()
    LORA = enum.auto()
    DRAFT = enum.auto()
    DRAFT_REVISION = enum.auto()
    DRAFT_FORMAT = enum.auto()
    DRAFT_CONFIG = enum.auto()  # JSON with the three above
    CONFIG_FILE = enum.auto()  # more options, in YAML
    # What of a model a node has:
    NODES = enum.auto()
    NODE_RANK = enum.auto()
    TENSOR_SIZE = enum.auto()
    PIPELINE_SIZE = enum.auto()
    DATA_SIZE = enum.auto()
    CONTEXT_SIZE = enum.auto()
    EXECUTOR = enum.auto()
    STRATEGY = enum.auto()  # of reading safetensors files
    EXPERT_PARALLEL = enum.auto()
    EXPERT_PLACEMENT = enum.auto()
    EXPERT_BALANCE = enum.auto()
    # Of llama.cpp:
    REPO = enum.auto()
    REPO_FILE = enum.auto()
    DRAFT_REPO = enum.auto()
    PROJECTOR = enum.auto()
    NO_PROJECTOR = enum.auto()


class Takes(enum.Enum):
    """What follows an option."""

    NOTHING = enum.auto()
    ONE = enum.auto()
    MANY = enum.auto()  # words, up to the next option
    COMMAS = enum.auto()  # one word, several values in it


class Option(NamedTuple):
    """An option that says what a server reads. The last one wins."""

    meaning: Meaning
    names: tuple[str, ...]
    variables: tuple[str, ...] = ()  # environment variables that stand for it
    takes: Takes = Takes.ONE
    gives: str = "1"  # the value of one that takes NOTHING; empty: as if it were not there


class Syntax(NamedTuple):
    """The command line of one server."""

    server: Server
    options: tuple[Option, ...]
    positionals: tuple[Meaning, ...] = ()
    positional_first: bool = False  # counts only in front of all options
    moves: str = ""  # of this option, the first is put in front as a positional
    # Other options, without and with one value: those that often stand before a positional.
    switches: tuple[str, ...] = ()
    valued: tuple[str, ...] = ()
    equals: bool = True  # --option=value
    abbreviates: bool = False  # --rev for --revision
    dashes: bool = False  # --load_format is --load-format
    dotted: bool = False  # --speculative-config.model is a key of that JSON
    # Where its own cache is: the first of these variables that is set, and a folder below it.
    caches: tuple[tuple[str, str], ...] = ()
    repeats: bool = True  # options that take MANY or COMMAS add up; else the last one wins


class Start(NamedTuple):
    """One way to start a server."""

    syntax: Syntax
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # of `python -m`
    subcommands: tuple[str, ...] = ()  # one of these must come first
    optional: bool = False  # the subcommand may be left out


_VLLM_OPTIONS = (
    Option(Meaning.REVISION, ("--revision",)),
    Option(Meaning.LOAD_FORMAT, ("--load-format",)),
    Option(Meaning.CACHE_DIR, ("--download-dir",)),
    Option(Meaning.TOKENIZER, ("--tokenizer",)),
    Option(Meaning.TOKENIZER_REVISION, ("--tokenizer-revision",)),
    Option(Meaning.LORA, ("--lora-modules",), takes=Takes.MANY),
    Option(Meaning.DRAFT_CONFIG, ("--speculative-config", "-sc")),
    Option(Meaning.DRAFT, ("--spec-model",)),
    Option(Meaning.CONFIG_FILE, ("--config",)),
    Option(Meaning.NODES, ("--nnodes", "-n")),
    Option(Meaning.NODE_RANK, ("--node-rank", "-r")),
    Option(Meaning.TENSOR_SIZE, ("--tensor-parallel-size", "-tp")),
    Option(Meaning.PIPELINE_SIZE, ("--pipeline-parallel-size", "-pp")),
    Option(Meaning.DATA_SIZE, ("--data-parallel-size", "-dp")),
    Option(Meaning.CONTEXT_SIZE, ("--prefill-context-parallel-size", "-pcp")),
    Option(Meaning.EXECUTOR, ("--distributed-executor-backend",)),
    Option(Meaning.STRATEGY, ("--safetensors-load-strategy",)),
    Option(Meaning.EXPERT_PARALLEL, ("--enable-expert-parallel", "-ep"), takes=Takes.NOTHING),
    Option(
        Meaning.EXPERT_PARALLEL, ("--no-enable-expert-parallel",), takes=Takes.NOTHING, gives=""
    ),
    Option(Meaning.EXPERT_PLACEMENT, ("--expert-placement-strategy",)),
    Option(Meaning.EXPERT_BALANCE, ("--enable-eplb",), takes=Takes.NOTHING),
)
_VLLM = Syntax(
    Server.VLLM,
    (Option(Meaning.MODEL, ("--model",)), *_VLLM_OPTIONS),
    abbreviates=True,
    dashes=True,
    dotted=True,
    repeats=False,
)
_VLLM_SERVE = _VLLM._replace(
    positionals=(Meaning.MODEL,),
    moves="--model",
    switches=(
        *("--trust-remote-code", "--enforce-eager", "--headless", "--enable-lora"),
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill"),
        "--no-enable-chunked-prefill",
        *("--enable-auto-tool-choice", "--disable-log-stats", "--async-scheduling"),
        *("--skip-tokenizer-init", "--enable-sleep-mode", "--language-model-only"),
        *("--disable-custom-all-reduce", "--enable-log-requests"),
    ),
    valued=(
        *("--host", "--port", "--dtype", "--seed", "--max-model-len", "--max-num-seqs"),
        *("--max-num-batched-tokens", "--gpu-memory-utilization", "--kv-cache-dtype"),
        *("--quantization", "-q", "--chat-template", "--tool-call-parser", "--reasoning-parser"),
        *("--tokenizer-mode", "--config-format", "--block-size", "--uvicorn-log-level"),
        *("--hf-config-path", "--runner", "--convert", "--cpu-offload-gb"),
    ),
)
_SGLANG = Syntax(
    Server.SGLANG,
    (
        Option(Meaning.MODEL, ("--model-path", "--model")),
        Option(Meaning.REVISION, ("--revision",)),
        Option(Meaning.LOAD_FORMAT, ("--load-format",)),
        Option(Meaning.CACHE_DIR, ("--download-dir",)),
        Option(Meaning.TOKENIZER, ("--tokenizer-path",)),
        Option(Meaning.LORA, ("--lora-paths",), takes=Takes.MANY),
        Option(Meaning.DRAFT, ("--speculative-draft-model-path", "--speculative-draft-model")),
        Option(Meaning.DRAFT_REVISION, ("--speculative-draft-model-revision",)),
        Option(Meaning.DRAFT_FORMAT, ("--speculative-draft-load-format",)),
        Option(Meaning.CONFIG_FILE, ("--config",)),
        Option(Meaning.NODES, ("--nnodes",)),
        Option(Meaning.NODE_RANK, ("--node-rank",)),
        Option(Meaning.TENSOR_SIZE, ("--tp-size", "--tensor-parallel-size")),
        Option(Meaning.PIPELINE_SIZE, ("--pp-size", "--pipeline-parallel-size")),
    ),
    abbreviates=True,
    repeats=False,
)
_SGLANG_SERVE = _SGLANG._replace(positionals=(Meaning.MODEL,), positional_first=True)
_TENSORRT_LLM = Syntax(
    Server.TENSORRT_LLM,
    (
        Option(Meaning.REVISION, ("--revision",)),
        Option(Meaning.TOKENIZER, ("--tokenizer",)),
        Option(Meaning.CONFIG_FILE, ("--config", "--extra-llm-api-options")),
    ),
    positionals=(Meaning.MODEL,),
    switches=(
        *("--trust-remote-code", "--enable-chunked-prefill"),
        "--fail-fast-on-attention-window-too-large",
    ),
    valued=(
        *("--host", "--port", "--backend", "--log-level", "--max-beam-width", "--max-batch-size"),
        *("--max-num-tokens", "--max-seq-len", "--tensor-parallel-size", "--tp-size"),
        *("--pipeline-parallel-size", "--pp-size", "--context-parallel-size", "--cp-size"),
        *("--moe-expert-parallel-size", "--ep-size", "--moe-cluster-parallel-size"),
        *("--cluster-size", "--gpus-per-node", "--free-gpu-memory-fraction"),
        *("--kv-cache-free-gpu-memory-fraction", "--num-postprocess-workers"),
        *("--reasoning-parser", "--tool-parser", "--metadata-server-config-file"),
        *("--server-role", "--otlp-traces-endpoint", "--disagg-cluster-uri"),
        *("--media-io-kwargs", "--chat-template", "--custom-tokenizer", "--custom-module-dirs"),
    ),
    dashes=True,
)
_TGI_LAUNCHER = Syntax(
    Server.TGI,
    (
        Option(Meaning.MODEL, ("--model-id",), ("MODEL_ID",)),
        Option(Meaning.REVISION, ("--revision",), ("REVISION",)),
        # The variable of this one is huggingface_hub's too.
        Option(Meaning.CACHE_DIR, ("--huggingface-hub-cache",)),
        Option(Meaning.LORA, ("--lora-adapters",), ("LORA_ADAPTERS",), takes=Takes.COMMAS),
    ),
    repeats=False,
)
_TGI_SERVER = Syntax(
    Server.TGI,
    (Option(Meaning.REVISION, ("--revision",)),),
    positionals=(Meaning.MODEL, Meaning.REVISION),
    positional_first=True,
)
_TRANSFORMERS_SERVE = Syntax(
    Server.TRANSFORMERS, (), positionals=(Meaning.MODEL,), positional_first=True
)
_LLAMA_CPP = Syntax(
    Server.LLAMA_CPP,
    (
        Option(Meaning.MODEL, ("-m", "--model"), ("LLAMA_ARG_MODEL",)),
        Option(Meaning.REPO, ("-hf", "-hfr", "--hf-repo"), ("LLAMA_ARG_HF_REPO",)),
        Option(Meaning.REPO_FILE, ("-hff", "--hf-file"), ("LLAMA_ARG_HF_FILE",)),
        Option(Meaning.PROJECTOR, ("-mm", "--mmproj"), ("LLAMA_ARG_MMPROJ",)),
        Option(
            Meaning.NO_PROJECTOR,
            ("--no-mmproj", "--no-mmproj-auto"),
            ("LLAMA_ARG_NO_MMPROJ_AUTO",),
            takes=Takes.NOTHING,
        ),
        Option(
            Meaning.DRAFT,
            ("-md", "--model-draft", "--spec-draft-model"),
            ("LLAMA_ARG_SPEC_DRAFT_MODEL", "LLAMA_ARG_MODEL_DRAFT"),
        ),
        Option(
            Meaning.DRAFT_REPO,
            ("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"),
            ("LLAMA_ARG_SPEC_DRAFT_HF_REPO", "LLAMA_ARG_HFD_REPO"),
        ),
        Option(Meaning.LORA, ("--lora",), takes=Takes.COMMAS),
    ),
    equals=False,
    dashes=True,
    caches=(
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ),
)
_LLAMA_CPP_PYTHON = Syntax(
    Server.LLAMA_CPP,
    (
        Option(Meaning.MODEL, ("--model",)),
        Option(Meaning.PROJECTOR, ("--clip-model-path",)),
        Option(Meaning.LORA, ("--lora-path",)),
        Option(Meaning.CONFIG_FILE, ("--config-file",), ("CONFIG_FILE",)),
    ),
    abbreviates=True,
    dashes=True,
)
# Its server loads a model when a request names it, as `ollama run` does.
_OLLAMA_SERVE = Syntax(Server.OLLAMA, ())
_OLLAMA_RUN = Syntax(
    Server.OLLAMA,
    (),
    positionals=(Meaning.MODEL,),
    switches=("--verbose", "--insecure", "--nowordwrap", "--hidethinking"),
    valued=("--keepalive", "--format"),
)

_TENSORRT_LLM_SUBCOMMANDS = ("serve", "grpc", "mm_embedding_serve")

STARTS = (
    Start(_VLLM_SERVE, ("vllm",), ("vllm.entrypoints.cli.main",), ("serve",)),
    Start(_VLLM, ("vllm",), ("vllm.entrypoints.cli.main",), ("run-batch",)),
    Start(
        _VLLM,
        modules=(
            "vllm.entrypoints.openai.api_server",
            "vllm.entrypoints.api_server",
            "vllm.entrypoints.launchers.api_server.entry",
            "vllm.entrypoints.openai.run_batch",
            "vllm.entrypoints.grpc_server",
        ),
    ),
    Start(_SGLANG_SERVE, ("sglang",), (), ("serve",)),
    Start(_SGLANG, modules=("sglang.launch_server",)),
    Start(
        _TENSORRT_LLM,
        ("trtllm-serve",),
        ("tensorrt_llm.commands.serve",),
        _TENSORRT_LLM_SUBCOMMANDS,
        optional=True,
    ),
    Start(_TGI_LAUNCHER, ("text-generation-launcher",)),
    Start(
        _TGI_SERVER,
        ("text-generation-server",),
        ("text_generation_server.cli",),
        ("serve",),
    ),
    Start(_TRANSFORMERS_SERVE, ("transformers",), (), ("serve",)),
    Start(_LLAMA_CPP, ("llama-server", "llama-cli", "llama-mtmd-cli")),
    Start(_LLAMA_CPP_PYTHON, modules=("llama_cpp.server",)),
    Start(_OLLAMA_SERVE, ("ollama",), (), ("serve", "start")),
    Start(_OLLAMA_RUN, ("ollama",), (), ("run",)),
)
