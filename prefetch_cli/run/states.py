"""The states of a part: wanted -> looked (-> tried) -> decided -> read or evicted -> proven.

Beside COMMAND a window may slide before the proof, or what is warm be kept behind it. Each is a
whole value, published as soon as it is known, and never filled in later.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.checkpoint.files import Found
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.memory import Memory
from prefetch_cli.plan.budget import Budget
from prefetch_cli.plan.decision import Decision, Forecast
from prefetch_cli.plan.loaders import Lost
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Plan, ReadResult, Threads
from prefetch_cli.reading.trial import Trial
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.keep import Ended
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.options import Keep
from prefetch_cli.run.parts import Kind
from prefetch_cli.run.verification import Finding, Verification


@dataclass(frozen=True)
class State:
    """What has become known of one part."""

    kind: Kind

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should not overlook in it."""
        return ()


@dataclass(frozen=True)
class Wanted(State):
    """Which files there are, where they lie, what they may take, and this process's share."""

    found: Found
    filesystems: tuple[FileSystem, ...]  # one for each file
    memory: Memory
    budget: Budget
    share: Share
    launcher: str | None  # the one that told the rank; None where the user did, or nobody
    threads: Threads  # that look at the files and read them
    advice: tuple[str, ...] = ()  # what would make these mounts faster

    @property
    def on_storage(self) -> dict[int, FileSystem]:
        """The file system of each file, by its number, without the files that lie in memory."""
        return {number: one for number, one in enumerate(self.filesystems) if not one.in_memory}

    @property
    def by_filesystem(self) -> list[tuple[FileSystem, int, int]]:
        """Each file system with the number and the bytes of the files on it."""
        totals: dict[FileSystem, tuple[int, int]] = {}
        for file, found in zip(self.found.files, self.filesystems, strict=True):
            files, size_bytes = totals.get(found, (0, 0))
            totals[found] = (files + 1, size_bytes + file.needed_bytes)
        return [(found, *total) for found, total in totals.items()]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was noticed while the files and their mounts were looked at."""
        return (*self.found.warnings, *self.advice)


@dataclass(frozen=True)
class Looked(State):
    """How much of the share is resident before anything is done."""

    survey: Survey


@dataclass(frozen=True)
class Tried(State):
    """What a trial of the storage says."""

    trial: Trial
    forecast: Forecast


@dataclass(frozen=True)
class Decided(State):
    """What to do about the share, and the plan that follows."""

    decision: Decision
    plan: Plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """The decision, where it is one that the user should know of."""
        return (self.decision.message,) if self.decision.warning else ()


@dataclass(frozen=True)
class Read(State):
    """What came of the plan."""

    result: ReadResult


@dataclass(frozen=True)
class Verified(State):
    """What came of comparing the content of the files with what it should be.

    Published before they are read too, when none is verified.
    """

    verification: Verification
    warning: str | None

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """Path and difference of each file that is not what it should be."""
        return tuple((one.path, one.reason) for one in self.verification.of(Finding.MISMATCH))

    @property
    def warnings(self) -> tuple[str, ...]:
        """That the list of checksums is about other files."""
        return () if self.warning is None else (self.warning,)


@dataclass(frozen=True)
class Evicted(State):
    """What came of dropping the share from the page cache."""

    eviction: Eviction

    @property
    def warnings(self) -> tuple[str, ...]:
        """That nobody knows whether it helped."""
        if self.eviction.complete is not None:
            return ()
        return (
            "the files were dropped, but this user cannot tell whether anything stayed: "
            "look as root, or as the user who owns them",
        )


@dataclass(frozen=True)
class Proven(State):
    """How much of the share is resident in the end."""

    survey: Survey
    doubt: str | None = None  # why less stayed than was read

    @property
    def warnings(self) -> tuple[str, ...]:
        """The doubt."""
        return () if self.doubt is None else (self.doubt,)


class Tally(NamedTuple):
    """What keeping has come to so far."""

    held_bytes: int  # when it began
    locked_bytes: int
    resident_bytes: int | None  # of what is held, at the last look; None: no method can tell
    looks: int = 0
    bytes_read_again: int = 0
    bytes_given_up: int = 0
    elapsed_seconds: float = 0.0


@dataclass(frozen=True)
class Keeping(State):
    """What is warm is being kept; published again whenever something was read again."""

    keep: Keep
    tally: Tally
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has been noticed since the last one."""
        return self.notes


@dataclass(frozen=True)
class Kept(State):
    """Keeping has ended."""

    keep: Keep
    tally: Tally
    ended: Ended
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why it ended before its time, where it did."""
        return self.notes


class Slide(NamedTuple):
    """What a window has come to so far."""

    size_bytes: int  # how far it reaches at most
    furthest_bytes: int  # how far ahead of the loader any reading ended
    bytes_read: int  # without what was read before it moved
    dropped_bytes: int
    elapsed_seconds: float


class SlideEnded(enum.Enum):
    """Why a window moves no more."""

    LOADED = "loaded"
    HEAD = "head"  # the loader cannot be followed
    TIME_LIMIT = "time-limit"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Sliding(State):
    """A window moves with COMMAND's loader."""

    slide: Slide


@dataclass(frozen=True)
class Slid(State):
    """The window moves no more."""

    slide: Slide
    ended: SlideEnded
    lost: Lost | None  # why the loader cannot be followed
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be read or dropped, and why the loader cannot be followed."""
        return self.notes


class Warned(NamedTuple):
    """Something that the user should not overlook, and that concerns no single part."""

    warnings: tuple[str, ...]
