"""What the user wants of a run, in one value."""

from dataclasses import dataclass

from prefetch_cli.base.words import Action, Engine, Overrule, Split
from prefetch_cli.checkpoint.request import Request
from prefetch_cli.libraries import gather


@dataclass(frozen=True)
class Options:
    """What the user wants, all of it."""

    action: Action
    request: Request
    libraries: gather.Request | None
    rank: int | None  # None: as the launcher says
    world_size: int | None
    split: Split
    overrule: Overrule
    ram_threshold_percent: float | None  # None: as the hardware says
    max_bytes: int | None
    threads: int
    block_size_bytes: int
    engine: Engine
    trial: bool  # of the storage, in a dry run too
    max_bytes_per_second: int | None
    background: bool
    beside_command: bool
    time_limit_seconds: float | None
    min_resident_percent: float | None
