"""What is found at one path of a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A regular file of the checkpoint."""

    path: str  # as it is opened and shown
    real_path: str
    size_bytes: int
    weight: bool  # else config or tokenizer
    device: int
    inode: int

    @property
    def identity(self) -> tuple[int, int]:
        """What tells this file from every other, whatever its paths are."""
        return self.device, self.inode


@dataclass(frozen=True)
class Skipped:
    """Something that cannot be read as a file, and why; the rest can."""

    path: str
    reason: str
    failed: bool  # a file that should have been read: the exit code tells


@dataclass(frozen=True)
class Incomplete:
    """A file that is not, or not wholly, there, and why."""

    path: str
    reason: str
    file: File | None  # what there is of it


Finding = File | Skipped | Incomplete
