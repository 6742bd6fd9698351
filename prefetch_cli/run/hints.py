"""What the mounts of a part say of themselves: how much stays in memory, and what is far off."""

from collections.abc import Sequence

from prefetch_cli.base.words import Action
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import advice, lustre
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.run.options import Options


def most_cached_bytes(filesystems: Sequence[FileSystem]) -> int | None:
    """Return how much the client of the one file system keeps that holds all files."""
    different = set(filesystems)
    return lustre.max_cached_bytes(different.pop()) if len(different) == 1 else None


def advise(
    files: Sequence[File], filesystems: Sequence[FileSystem], options: Options
) -> tuple[str, ...]:
    """Return what would make reading these mounts faster, if they are to be read."""
    if options.action not in {Action.PREFETCH, Action.DRY_RUN}:
        return ()
    lines = (
        line
        for one in dict.fromkeys(filesystems)
        for line in advice.advise(
            one,
            (
                (file.path, file.size_bytes)
                for file, other in zip(files, filesystems, strict=True)
                if other == one
            ),
            options.block_size_bytes,
        )
    )
    return tuple(lines)
