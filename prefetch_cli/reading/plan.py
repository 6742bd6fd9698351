"""What to read, and the result: the values at both ends of the reader."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from prefetch_cli.base.text import counted
from prefetch_cli.base.words import Engine
from prefetch_cli.checkpoint.digests import Digest
from prefetch_cli.plan.extents import Extent


class Medium(NamedTuple):
    """What the reader needs to know about a file system."""

    far: bool  # dominated by latency: network and FUSE
    step_bytes: int  # the most that one WILLNEED reads
    reads_ahead_little: bool  # little enough to double it for each open file
    spins: bool  # or says so, as many virtual disks do
    fuse: bool = False  # a FUSE server answers
    huge_folios: bool = False  # so that whoever maps the files can map huge pages


class Threads(NamedTuple):
    """How many threads read."""

    first: int  # that begin, and that look at the files before
    most: int  # with those that join as long as more pay

    @classmethod
    def fixed(cls, count: int) -> "Threads":
        """Return just so many."""
        return cls(count, count)

    def at_least(self, first: int) -> "Threads":
        """Return the same where so many begin."""
        return Threads(first, max(first, self.most))

    def none_join(self) -> "Threads":
        """Return the same where only those read that begin."""
        return Threads.fixed(self.first)

    def __str__(self) -> str:
        """Return it in words, as in `8 to 64 threads`."""
        if self.first == self.most:
            return counted(self.most, "thread")
        return f"{self.first:,} to {counted(self.most, 'thread')}"


AUTO_THREADS = Threads(8, 64)


class Target(NamedTuple):
    """A file to read from."""

    path: str
    medium: Medium


class Plan(NamedTuple):
    """What to read, and how."""

    extents: tuple[Extent, ...]  # what is missing, in load order
    cut: Extent | None  # the head of the file in which the budget ends
    already_resident_bytes: int
    threads: Threads
    block_size_bytes: int
    engine: Engine
    max_bytes_per_second: int | None
    yielding: bool  # others use the disk too: keep the queue short for them
    # Of the files to hash on the way, by number: each is one whole extent, and one thread reads it.
    digests: Mapping[int, Digest] = MappingProxyType({})
    parted: frozenset[int] = frozenset()  # files of which parts are not needed, by number

    @property
    def size_bytes(self) -> int:
        """The bytes to read."""
        return sum(extent.length for extent in self.extents)

    @property
    def files(self) -> int:
        """The files to read from."""
        return len({extent.file for extent in self.extents})


class Hashed(NamedTuple):
    """A file whose bytes have all been hashed."""

    hexdigits: str  # of the bytes that were planned
    size_bytes: int  # of the file when that was done


class ReadResult(NamedTuple):
    """The result of reading a plan."""

    bytes_read: int
    bytes_already_resident: int
    elapsed_seconds: float
    engine: Engine  # this and the next: what read the most
    threads: int
    complete: bool  # everything planned was read
    failed: tuple[tuple[str, str], ...]  # path and error, each file once
    hashed: Mapping[int, Hashed] = MappingProxyType({})  # by the file's number

    @property
    def bytes_per_second(self) -> float:
        """The mean rate."""
        return self.bytes_read / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0
