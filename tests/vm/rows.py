"""A row of the matrix: a real mount, and what must be found, decided and kept on it."""

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.vm.machine import Machine

MODEL = "/srv/model"  # the checkpoint, on the ext4 of the machine's first disk
# Mounts for the duration of the context and yields the checkpoint's directory.
Mounting = Callable[[Machine], AbstractContextManager[str]]


class Keeps(enum.Enum):
    """What remains of the pages read once the file is closed and reopened."""

    ALL = "all"
    NOTHING = "nothing"
    MEMORY = "memory"  # the file system is in memory: there is nothing to read


class Skip(enum.Enum):
    """Why a run without flags reads nothing."""

    LOCAL = "local-fits"
    IN_MEMORY = "in-memory-filesystem"
    NO_CACHE = "no-page-cache"


def without_advice(warnings: Sequence[str]) -> list[str]:
    """Return the warnings that are no advice about NFS: emulated, a server can seem far."""
    return [one for one in warnings if "mount it with nconnect=" not in one]


def always(_machine: Machine) -> str | None:
    """Return None: the row can always run."""
    return None


@dataclass(frozen=True)
class Row:
    """A mount, and what the command must do with it."""

    name: str
    mounting: Mounting
    type: str  # as the command reports it
    network: bool
    keeps: Keeps = Keeps.ALL
    skip: Skip | None = None  # None: read without flags
    warning: str = ""  # part of the warning if pages do not stay
    advice: str = ""  # part of the advice about the mount
    engine: str = ""  # the engine that --force must use, if only one works
    # Whether root and a stranger get a figure, rather than "unknown".
    known_to_root: bool = True
    known_to_stranger: bool | None = None  # None: either a correct figure or "unknown"
    readable_by_stranger: bool = True
    unavailable: Callable[[Machine], str | None] = always  # the skip reason, or None

    def __str__(self) -> str:
        return self.name
