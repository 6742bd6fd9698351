"""What a reader needs to know of the files and of what they lie on."""

from collections.abc import Iterable

from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.mapping import keeps_huge_folios
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.readahead import read_step_bytes, reads_ahead_little
from prefetch_cli.plan import extents
from prefetch_cli.reading.plan import Medium, Target
from prefetch_cli.run.states import Wanted

_SEEK_BYTES = 2 * 1024 * 1024  # 10 ms at 200 MB/s
_MOST_GAP_BYTES = 4 * 1024 * 1024  # a round trip of 10 ms, of one of many threads


def targets(wanted: Wanted) -> list[Target]:
    """Return all files as a reader needs to know them."""
    media = {one: medium(one) for one in set(wanted.filesystems)}
    return [
        Target(file.path, media[one])
        for file, one in zip(wanted.found.files, wanted.filesystems, strict=True)
    ]


def in_pages(files: Iterable[File], filesystems: Iterable[FileSystem]) -> tuple[File, ...]:
    """Return files with the parts that are read of each for those that are needed."""
    return tuple(
        file if file.parts is None else extents.in_pages(file, PAGE_BYTES, _gap_bytes(medium(one)))
        for file, one in zip(files, filesystems, strict=True)
    )


def _gap_bytes(found: Medium) -> int:
    """Return how much it is not worth to leave out.

    The kernel reads up to two windows more behind a part anyway, and a disk that spins could read
    so much while it seeks.
    """
    ahead_bytes = min(2 * found.step_bytes, _MOST_GAP_BYTES)
    return max(ahead_bytes, _SEEK_BYTES if found.spins else 0)


def medium(found: FileSystem) -> Medium:
    """Return what a reader needs to know of a file system."""
    return Medium(
        far=found.far,
        step_bytes=read_step_bytes(found),
        reads_ahead_little=reads_ahead_little(found),
        spins=found.storage is not None and found.storage.rotational,
        fuse=found.is_fuse,
        # A file that is mapped through an overlay is not mapped in huge pages.
        huge_folios=keeps_huge_folios(found.type) and not found.overlaid,
    )
