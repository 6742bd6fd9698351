"""What to read, and the result: the values at both ends of the reader."""

from dataclasses import dataclass

from prefetch_cli.base.words import Engine
from prefetch_cli.plan.extents import Extent


@dataclass(frozen=True)
class Medium:
    """What the reader needs to know about a file system."""

    far: bool  # dominated by latency: network and FUSE
    step_bytes: int  # the most that one WILLNEED reads
    reads_ahead_little: bool  # little enough to double it for each open file
    spins: bool  # or says so, as many virtual disks do


@dataclass(frozen=True)
class Target:
    """A file to read from."""

    path: str
    medium: Medium


@dataclass(frozen=True)
class Plan:
    """What to read, and how."""

    extents: tuple[Extent, ...]  # what is missing, in load order
    cut: Extent | None  # the head of the file in which the budget ends
    already_resident_bytes: int
    threads: int
    block_size_bytes: int
    engine: Engine
    max_bytes_per_second: int | None
    yielding: bool  # others use the disk too: keep the queue short for them

    @property
    def size_bytes(self) -> int:
        """The bytes to read."""
        return sum(extent.length for extent in self.extents)

    @property
    def files(self) -> int:
        """The files to read from."""
        return len({extent.file for extent in self.extents})


@dataclass(frozen=True)
class ReadResult:
    """The result of reading a plan."""

    bytes_read: int
    bytes_already_resident: int
    elapsed_seconds: float
    engine: Engine  # the one that read the most
    complete: bool  # everything planned was read
    failed: tuple[tuple[str, str], ...]  # path and error, each file once

    @property
    def bytes_per_second(self) -> float:
        """The mean rate."""
        return self.bytes_read / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0
