"""What we warm in a directory, in the same words as what a server opens."""

import os

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.request import Reference, Request
from prefetch_cli.checkpoint.resolve import resolve
from prefetch_cli.checkpoint.selection import Filters
from tests.peers.outcomes import Outcome


def outcome(directory: str, server: str, load_format: str) -> Outcome:
    """Return the weight files that we would read, in load order, or our refusal."""
    request = Request(
        references=(Reference(directory),),
        server=Server(server),
        hub=None,
        cache_dir=None,
        load_format=LoadFormat(load_format),
        filters=Filters(),
        weights_only=True,
        allow_incomplete=False,
    )
    try:
        found = resolve(request, {}, Monitor(), threads=1)
    except CheckpointError as error:
        return Outcome(refusal=str(error).replace(directory, "DIR"))
    if found.failed:
        return Outcome(refusal=f"{found.failed[0].path}: {found.failed[0].reason}")
    files = (os.path.relpath(file.path, directory) for file in found.files if file.weight)
    return Outcome(tuple(files), warnings=found.warnings)
