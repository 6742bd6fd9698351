"""The checkpoints that a user asks for, as values."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint.placement import Needs
from prefetch_cli.checkpoint.selection import Filters


class Role(enum.Enum):
    """What a server does with a checkpoint."""

    MODEL = "model"
    TOKENIZER = "tokenizer"  # only its config and tokenizer files are read


class Pick(NamedTuple):
    """Which GGUF files of a repo llama.cpp reads."""

    file: str | None = None  # its path in the repo, in any case
    projector: bool = True  # and the projector that goes with the model


class Reference(NamedTuple):
    """What leads to one checkpoint: a path or a repo id, and what goes with it."""

    argument: str
    revision: str | None = None
    role: Role = Role.MODEL
    load_format: LoadFormat | None = None  # None: the request's
    cache_dir: str | None = None  # None: the request's
    pick: Pick | None = None  # the argument is then llama.cpp's `org/name[:QUANT]`
    inferred: bool = False  # from COMMAND


class Request(NamedTuple):
    """The checkpoints that the user asks for."""

    references: tuple[Reference, ...]
    server: Server
    hub: Hub | None
    cache_dir: str | None
    load_format: LoadFormat
    filters: Filters
    weights_only: bool
    allow_incomplete: bool
    environ: Mapping[str, str] | None = None  # COMMAND's, where that decides; None: our own
    notes: tuple[str, ...] = ()  # warnings about what was inferred
    needs: Needs | None = None  # of the first model, of others by globs only; None: all
