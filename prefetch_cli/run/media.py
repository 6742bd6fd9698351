"""What a reader needs to know of the files and of what they lie on."""

from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.mapping import keeps_huge_folios
from prefetch_cli.linux.readahead import read_step_bytes, reads_ahead_little
from prefetch_cli.reading.plan import Medium, Target
from prefetch_cli.run.states import Wanted


def targets(wanted: Wanted) -> list[Target]:
    """Return all files as a reader needs to know them."""
    media = {one: medium(one) for one in set(wanted.filesystems)}
    return [
        Target(file.path, media[one])
        for file, one in zip(wanted.found.files, wanted.filesystems, strict=True)
    ]


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
