"""What the command line asks of `resolve`, for tests that do without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.request import Reference, Request
from prefetch_cli.checkpoint.selection import Filters

_DEFAULTS = Request(
    references=(),
    server=Server.AUTO,
    hub=None,
    cache_dir=None,
    load_format=LoadFormat.AUTO,
    filters=Filters(),
    weights_only=False,
    allow_incomplete=False,
)


def request(
    *checkpoints: str | Path | Reference,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    **given: Any,
) -> Request:
    """Return a request for these checkpoints, with the defaults of the flags.

    `given` are other fields of Request. A path or a name is taken at this revision.
    """
    return _DEFAULTS._replace(
        references=tuple(
            one if isinstance(one, Reference) else Reference(str(one), revision)
            for one in checkpoints
        ),
        cache_dir=None if cache_dir is None else str(cache_dir),
        filters=Filters(tuple(include), tuple(exclude)),
        **given,
    )
