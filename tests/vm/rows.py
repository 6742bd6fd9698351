"""A row of the matrix: a real mount, and what has to be found, decided and kept on it."""

import enum
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.vm.machine import Machine

MODEL = "/srv/model"  # the checkpoint, on the ext4 of the machine's first disk
# Mounts, and yields the directory that holds the checkpoint, for as long as the context lasts.
Mounting = Callable[[Machine], AbstractContextManager[str]]


class Keeps(enum.Enum):
    """What becomes of pages that were read, when the file is closed and opened again."""

    ALL = "all"
    NOTHING = "nothing"
    MEMORY = "memory"  # the file system is memory: nothing is read, all is there


class Skip(enum.Enum):
    """The reason by which a run without flags reads nothing."""

    LOCAL = "local-fits"
    IN_MEMORY = "in-memory-filesystem"
    NO_CACHE = "no-page-cache"


def always(_machine: Machine) -> str | None:
    """Return no reason not to run."""
    return None


@dataclass(frozen=True)
class Row:
    """A mount, and what the command has to make of it."""

    name: str
    mounting: Mounting
    type: str  # as the command reports it
    network: bool
    keeps: Keeps = Keeps.ALL
    skip: Skip | None = None  # None: read without flags
    warning: str = ""  # part of the warning where pages do not stay
    engine: str = ""  # the engine that has to be used with --force, where only one works
    # Whether root and a stranger can be told an exact figure, rather than "unknown".
    known_to_root: bool = True
    known_to_stranger: bool | None = None  # None: right or unknown, whichever
    readable_by_stranger: bool = True
    unavailable: Callable[[Machine], str | None] = always  # the reason of a skip

    def __str__(self) -> str:
        return self.name
