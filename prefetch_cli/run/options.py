"""What the user wants of a run, in one value."""

from typing import NamedTuple

from prefetch_cli.base.words import Action, Engine, Overrule, Split
from prefetch_cli.checkpoint.request import Request
from prefetch_cli.libraries import gather
from prefetch_cli.reading.plan import Threads
from prefetch_cli.run.from_file import FromFile


class Keep(NamedTuple):
    """How long to keep what is warm, and how."""

    seconds: float | None  # None: until COMMAND has loaded it
    command_pid: int | None  # None: there is no COMMAND
    lock: bool  # instead of reading again what was dropped
    best_effort: bool = False  # without locking where that is refused

    @property
    def until_loaded(self) -> bool:
        """Whether COMMAND's loading ends it."""
        return self.seconds is None


class Window(NamedTuple):
    """How far to read ahead of COMMAND's loader."""

    size_bytes: int | None  # None: half of the budget
    command_pid: int
    given: bool  # else only where the hardware asks for it


class Options(NamedTuple):
    """What the user wants, all of it."""

    action: Action
    request: Request
    from_file: FromFile | None  # whose checkpoints come behind those of the request
    libraries: gather.Request | None
    rank: int | None  # None: as the launcher says
    world_size: int | None
    split: Split
    overrule: Overrule
    ram_threshold_percent: float | None  # None: as the hardware says
    max_bytes: int | None
    threads: Threads
    block_size_bytes: int
    engine: Engine
    trial: bool  # of the storage, in a dry run too
    max_bytes_per_second: int | None
    background: bool
    beside_command: bool
    time_limit_seconds: float | None
    min_resident_percent: float | None
    keep: Keep | None
    checksums: str | None = None  # the file that lists them
    window: Window | None = None  # None: there cannot be one

    @property
    def verifies(self) -> bool:
        """Whether the content of the files is compared with what it should be."""
        return Overrule.VERIFY in self.overrule
