"""Files of a checkpoint or of libraries, as values, and the rule for names that lead to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class File(NamedTuple):
    """A regular file."""

    path: str  # as it is opened and shown
    real_path: str
    size_bytes: int
    weight: bool  # else config or tokenizer
    device: int
    inode: int

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two paths to one file."""
        return self.device, self.inode


class Skipped(NamedTuple):
    """A path that cannot be read as a file, and why; the other files can."""

    path: str
    reason: str
    failed: bool  # should have been read: counts in the exit code


class Incomplete(NamedTuple):
    """A file that is missing or cut short, and why."""

    path: str
    reason: str
    file: File | None  # the part that exists


Finding = File | Skipped | Incomplete


@dataclass(frozen=True)
class Found:
    """Files in the order of warming, each physical file once, and what went wrong."""

    files: tuple[File, ...]
    failed: tuple[Skipped, ...]  # should be read, but even their metadata cannot be
    warnings: tuple[str, ...]
    names: tuple[str, ...]  # of what they belong to

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)


def each_once(files: Iterable[File], *, known: Iterable[File] = ()) -> tuple[File, ...]:
    """Return each physical file once, under its first path, without those in `known`."""
    before = {file.identity for file in known}
    once: dict[tuple[int, int], File] = {}
    for file in files:
        if file.identity not in before:
            once.setdefault(file.identity, file)
    return tuple(once.values())
