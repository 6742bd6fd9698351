"""The words that flags take: every enum that a value of a flag becomes."""

import enum


class LoadFormat(enum.Enum):
    """Which weight files count, by vLLM's names."""

    AUTO = "auto"
    HF = "hf"
    SAFETENSORS = "safetensors"
    MISTRAL = "mistral"
    PT = "pt"
    NPCACHE = "npcache"
    GGUF = "gguf"
    ALL = "all"


class Hub(enum.Enum):
    """Whose cache layout a repo id is looked up in."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


class Split(enum.Enum):
    """How the bytes are dealt out to the ranks."""

    AUTO = "auto"
    FILES = "files"
    BYTES = "bytes"


class Overrule(enum.Flag):
    """What the user says about a checkpoint that the decision would skip."""

    NONE = 0
    FORCE = enum.auto()
    PARTIAL = enum.auto()


class Engine(enum.Enum):
    """How bytes get into the cache."""

    AUTO = "auto"
    ADVISE = "advise"  # POSIX_FADV_WILLNEED for a window, then drain it
    SPLICE = "splice"  # sendfile to /dev/null: no copy, no buffer
    READ = "read"  # preadv into one buffer of each thread

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


class ProgressMode(enum.Enum):
    """Where progress goes."""

    AUTO = "auto"
    BAR = "bar"
    LOG = "log"
    NONE = "none"


class Verbosity(enum.Enum):
    """How much is said."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"
