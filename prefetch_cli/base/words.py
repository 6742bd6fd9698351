"""The words of the flags: every enum that a flag's value becomes.

Imports nothing else, so that `--help` stays fast.
"""

import enum

PROGRAM = "prefetch-cli"


class Server(enum.Enum):
    """Whose rules say which files are read."""

    AUTO = "auto"  # that of COMMAND, else vLLM
    VLLM = "vllm"
    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    TGI = "tgi"
    TRANSFORMERS = "transformers"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    DIFFUSERS = "diffusers"
    LLAMA_CPP = "llama.cpp"
    OLLAMA = "ollama"


class LoadFormat(enum.Enum):
    """Which weight files count, in vLLM's words."""

    AUTO = "auto"
    HF = "hf"
    SAFETENSORS = "safetensors"
    MISTRAL = "mistral"
    PT = "pt"
    NPCACHE = "npcache"
    GGUF = "gguf"
    BITSANDBYTES = "bitsandbytes"
    FASTSAFETENSORS = "fastsafetensors"
    INSTANTTENSOR = "instanttensor"
    MODELEXPRESS = "modelexpress"
    RUNAI_STREAMER = "runai_streamer"
    RUNAI_STREAMER_SHARDED = "runai_streamer_sharded"
    SHARDED_STATE = "sharded_state"
    TENSORIZER = "tensorizer"
    DUMMY = "dummy"
    IPC_CACHE = "ipc_cache"
    DCP = "dcp"  # this and the next three are no words of vLLM's
    ENGINE = "engine"
    ONNX = "onnx"
    NPZ = "npz"
    ALL = "all"


class Hub(enum.Enum):
    """Whose local store a repo id or a model's name is looked up in."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"
    OLLAMA = "ollama"


class Split(enum.Enum):
    """How ranks share the bytes."""

    AUTO = "auto"
    FILES = "files"
    BYTES = "bytes"


class Overrule(enum.Flag):
    """What to read although the decision would be to skip."""

    NONE = 0
    FORCE = enum.auto()
    PARTIAL = enum.auto()
    VERIFY = enum.auto()  # for its content, not for the page cache


class Engine(enum.Enum):
    """How bytes are brought into the page cache."""

    AUTO = "auto"
    POPULATE = "populate"  # fault in a mapping for huge pages, then drain what that reads
    ADVISE = "advise"  # POSIX_FADV_WILLNEED on a window, then drain it
    SPLICE = "splice"  # sendfile to /dev/null: no copy, no buffer
    READ = "read"  # preadv into one buffer per thread

    # The same as Enum's, but in C: a run counts by engine at each step.
    __hash__ = object.__hash__

    @classmethod
    def fixed(cls) -> tuple["Engine", ...]:
        """Return all but AUTO, which is a choice among them."""
        return tuple(engine for engine in cls if engine is not cls.AUTO)


class Action(enum.Enum):
    """What the command was asked to do."""

    PREFETCH = "prefetch"
    DRY_RUN = "dry-run"
    CHECK = "check"
    EVICT = "evict"
    LIST = "list"


class Which(enum.Enum):
    """Which of several, where none is left out."""

    ALL = "all"


class Until(enum.Enum):
    """What ends keeping, beside a duration."""

    LOAD = "load"  # COMMAND has loaded its weights


class ProgressMode(enum.Enum):
    """How progress is shown."""

    AUTO = "auto"
    BAR = "bar"
    LOG = "log"
    JSON = "json"  # one object a line, and so is everything else on standard error
    NONE = "none"


class Terminator(enum.Enum):
    """What ends each name of a list."""

    NEWLINE = b"\n"
    NUL = b"\0"


class Verbosity(enum.Enum):
    """How much is printed."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"
