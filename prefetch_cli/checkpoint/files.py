"""Files of a checkpoint or of libraries, as values, and the rule for names that lead to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Range(NamedTuple):
    """A part of a file."""

    offset: int  # bytes
    length: int  # bytes


class File(NamedTuple):
    """A regular file, and what is needed of it."""

    path: str  # as it is opened and shown
    real_path: str
    size_bytes: int
    weight: bool  # else config or tokenizer
    device: int
    inode: int
    parts: tuple[Range, ...] | None = None  # that are needed, apart and in order; None: all of it

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two paths to one file."""
        return self.device, self.inode

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What is needed of it: none of them is empty."""
        if self.parts is not None:
            return self.parts
        return (Range(0, self.size_bytes),) if self.size_bytes > 0 else ()

    @property
    def needed_bytes(self) -> int:
        """How much of it is needed."""
        return sum(part.length for part in self.ranges)


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
        """What is needed of all files together."""
        return sum(file.needed_bytes for file in self.files)


def each_once(files: Iterable[File], *, known: Iterable[File] = ()) -> tuple[File, ...]:
    """Return each physical file once, under its first path, without those in `known`.

    What is needed of it under any path is needed.
    """
    before = {file.identity for file in known}
    once: dict[tuple[int, int], File] = {}
    for file in files:
        if file.identity not in before:
            first = once.setdefault(file.identity, file)
            if first is not file:
                once[file.identity] = first._replace(parts=_either(first.parts, file.parts))
    return tuple(once.values())


def _either(
    parts: tuple[Range, ...] | None, others: tuple[Range, ...] | None
) -> tuple[Range, ...] | None:
    """Return what either needs, apart and in order."""
    if parts is None or others is None or parts == others:
        return None if others is None else parts
    found: list[Range] = []
    for part in sorted((*parts, *others)):
        last = found[-1] if found else Range(0, 0)
        if found and part.offset <= last.offset + last.length:
            end = max(last.offset + last.length, part.offset + part.length)
            found[-1] = Range(last.offset, end - last.offset)
        else:
            found.append(part)
    return tuple(found)
