"""--verify: what each file should be, and what came of it."""

import enum
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.checkpoint import digests, safetensors
from prefetch_cli.checkpoint.checksums import Checksums
from prefetch_cli.checkpoint.digests import Digest
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.plan.extents import Extent
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Hashed, Plan, ReadResult

_NOTHING_KNOWN = (
    "--verify: no checksum of any file is known: only in the caches of Hugging Face and Ollama are "
    "files named after their content; give --checksums"
)
_BEYOND = "it does not fit into the limit"
_ENDED = "the run ended before it was read to its end"
_FAILED = "it could not be read"
_NO_CHECKSUM = "no checksum is known"
_ONLY_HEADER = "no checksum is known, only the header was checked"


class Finding(enum.Enum):
    """What came of one file."""

    MATCH = "match"
    MISMATCH = "mismatch"
    UNCHECKED = "unchecked"


class Checked(NamedTuple):
    """What came of one file, and why: what was expected and found, or why it was not checked."""

    path: str
    size_bytes: int
    finding: Finding
    reason: str = ""

    @property
    def verified(self) -> bool | None:
        """Whether it is what it should be, None where that was not checked."""
        return None if self.finding is Finding.UNCHECKED else self.finding is Finding.MATCH


class Verification(NamedTuple):
    """What came of all files of a share, in load order."""

    files: tuple[Checked, ...]
    ignored_lines: int  # of --checksums, because they name no file of the checkpoint

    def of(self, finding: Finding) -> list[Checked]:
        """Return the files with this finding."""
        return [file for file in self.files if file.finding is finding]

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """Whether each file, by its path, is what it should be; None where not checked."""
        return {file.path: file.verified for file in self.files}

    @property
    def verified_bytes(self) -> int:
        """The size of the files that are what they should be."""
        return sum(file.size_bytes for file in self.of(Finding.MATCH))

    @property
    def reasons(self) -> Counter[str]:
        """How many files were not checked for each reason."""
        return Counter(file.reason for file in self.of(Finding.UNCHECKED))


class Expected(NamedTuple):
    """What is known of the files' content before it is read."""

    digests: Mapping[int, Digest]  # by the file's number
    ignored_lines: int
    warning: str | None


def expect(
    files: Sequence[File], sources: Sequence[Source], checksums: Checksums | None
) -> Expected:
    """Return what the hub's names and the list say of the files; the list wins.

    Raises UsageError where two lines of the list disagree about a file.
    """
    known = {number: digests.of_blob(file.real_path) for number, file in enumerate(files)}
    found = {number: digest for number, digest in known.items() if digest is not None}
    if checksums is None:
        warning = None if found or not files else _NOTHING_KNOWN
        return Expected(found, 0, warning)
    # A source may be a file, or the folder of a model in a store that one list is about.
    folders = [folder for one in sources for folder in (one.path, os.path.dirname(one.path))]
    listed, ignored_lines = checksums.match(files, folders)
    warning = None
    if not listed:
        warning = (
            f"--checksums {checksums.path}: none of its names is a file of this checkpoint; they "
            "are looked up below its folder, and below CHECKPOINT"
        )
    return Expected({**found, **listed}, ignored_lines, warning)


def to_hash(
    files: Sequence[File], extents: Sequence[Extent], digests: Mapping[int, Digest]
) -> dict[int, Digest]:
    """Return the digests of those files that `extents` hold from front to end."""
    return {
        extent.file: digests[extent.file]
        for extent in extents
        if extent.file in digests and extent.length == files[extent.file].size_bytes
    }


def unread(files: Sequence[File], share: Share, expected: Expected) -> Verification:
    """Return what is known before anything is read."""
    return Verification(
        tuple(_unchecked(files[number], _ENDED) for number in _numbers(files, share)),
        expected.ignored_lines,
    )


def conclude(
    files: Sequence[File],
    share: Share,
    expected: Expected,
    plan: Plan,
    result: ReadResult | None,
    monitor: Monitor,
    stop: Stop,
) -> Verification:
    """Return what came of the files of a share, once the plan has been read.

    `result` is None where nothing was to be read. Headers are looked into now, because they are in
    the page cache. After a stop, only those of files that were read to their end.
    """
    hashed = {} if result is None else dict(result.hashed)
    failed = set() if result is None else {path for path, _ in result.failed}
    for number, digest in expected.digests.items():
        if files[number].size_bytes == 0:
            hashed[number] = Hashed(digest.hasher(0).hexdigest(), 0)

    def check(number: int) -> Checked:
        file = files[number]
        if file.path in failed:
            return _unchecked(file, _FAILED)
        if plan.cut is not None and number >= plan.cut.file:
            return _unchecked(file, _BEYOND)
        digest, found = expected.digests.get(number), hashed.get(number)
        if digest is not None and found is None:
            return _unchecked(file, _ENDED)
        wrong = None
        if digest is not None and found is not None:
            wrong = _difference(file, digest, found)
        # Who interrupts does not wait, and after a time limit the file may not answer.
        skips = stop.interrupted or (stop.requested and found is None)
        looks = wrong is None and _has_header(file) and not skips
        if looks:
            try:
                with monitor.waiting(file.path):
                    wrong = safetensors.fault(file.path, file.size_bytes)
            except OSError:
                return _unchecked(file, _FAILED)
        if wrong is not None:
            return Checked(file.path, file.size_bytes, Finding.MISMATCH, wrong)
        if digest is None:
            return _unchecked(file, _ONLY_HEADER if looks else _NO_CHECKSUM)
        return Checked(file.path, file.size_bytes, Finding.MATCH)

    checked = map_threads(check, _numbers(files, share), plan.threads.first)
    return Verification(tuple(checked), expected.ignored_lines)


def _numbers(files: Sequence[File], share: Share) -> list[int]:
    """Return the files of a share. An empty file is in none: the first rank takes it."""
    mine = {extent.file for extent in share.extents}
    return [
        number
        for number, file in enumerate(files)
        if number in mine or (file.size_bytes == 0 and share.rank == 0)
    ]


def _unchecked(file: File, reason: str) -> Checked:
    return Checked(file.path, file.size_bytes, Finding.UNCHECKED, reason)


def _difference(file: File, digest: Digest, found: Hashed) -> str | None:
    # A FUSE server's short answer can make a whole file look shorter afterwards.
    if found.size_bytes > file.size_bytes:
        return (
            f"expected {file.size_bytes:,} bytes, found {found.size_bytes:,}: it was changed "
            "while it was read"
        )
    if found.hexdigits == digest.hexdigits:
        return None
    return (
        f"expected {digest.algorithm.value} {digest.hexdigits} by {digest.source}, "
        f"found {found.hexdigits}"
    )


def _has_header(file: File) -> bool:
    return file.size_bytes > 0 and file.path.endswith(safetensors.SUFFIX)
