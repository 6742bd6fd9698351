"""What we warm in a directory, in the same words as what a server opens."""

import os

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.resolve import resolve
from tests.helpers.requests import request
from tests.peers.outcomes import Outcome


def outcome(directory: str, server: str, load_format: str) -> Outcome:
    """Return the weight files that we would read, in load order, or our refusal."""
    asked = request(
        directory,
        server=Server(server),
        load_format=LoadFormat(load_format),
        weights_only=True,
    )
    try:
        found = resolve(asked, {}, Monitor(), threads=1)
    except CheckpointError as error:
        return Outcome(refusal=str(error).replace(directory, "DIR"))
    if found.failed:
        return Outcome(refusal=f"{found.failed[0].path}: {found.failed[0].reason}")
    files = (os.path.relpath(file.path, directory) for file in found.files if file.weight)
    return Outcome(tuple(files), warnings=found.warnings)
