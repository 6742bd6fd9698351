"""The checkpoints that a user asks for, as values."""

import enum
from dataclasses import dataclass

from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint.selection import Filters


class Role(enum.Enum):
    """What a server does with a checkpoint."""

    MODEL = "model"
    TOKENIZER = "tokenizer"  # only its config and tokenizer files are read


@dataclass(frozen=True)
class Reference:
    """What leads to one checkpoint: a path or a repo id, and what goes with it."""

    argument: str
    revision: str | None = None
    role: Role = Role.MODEL


@dataclass(frozen=True)
class Request:
    """The checkpoints that the user asks for."""

    references: tuple[Reference, ...]
    server: Server
    hub: Hub | None
    cache_dir: str | None
    load_format: LoadFormat
    filters: Filters
    weights_only: bool
    allow_incomplete: bool
