"""The parts of a run: what was asked for, in the order in which it is read.

A new kind of part is one more `yield` in `asked`, and its words in a `Kind`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Overrule
from prefetch_cli.checkpoint.files import Found
from prefetch_cli.checkpoint.resolve import resolve
from prefetch_cli.libraries import gather as libraries
from prefetch_cli.libraries.interpreters import OutOfReachError
from prefetch_cli.run import from_file
from prefetch_cli.run.options import Options, Window


class Kind(NamedTuple):
    """A kind of part, in words: `name` labels its lines and is its key in JSON.

    `names_key` is the JSON key for the names of what it consists of, None where it has no such key.
    COMMAND waits for what is `awaited` before it reads weights: that does not give way to it.
    """

    name: str
    names_key: str | None = None
    awaited: bool = False


CHECKPOINT = Kind("checkpoint")
LIBRARIES = Kind("libraries", names_key="distributions", awaited=True)
# The kinds beside the checkpoint. Every document has their keys, null where nothing was asked for.
BESIDE = (LIBRARIES,)


class Part(NamedTuple):
    """A part as it was asked for: everything that the user named is there.

    `find` takes a number of threads and returns the files. `places` are paths of the storage that
    holds them, where they are many and small: over a network more threads ask for such files.
    """

    kind: Kind
    find: Callable[[int], Found]
    overrule: Overrule
    places: tuple[str, ...] = ()
    window: Window | None = None


def asked(
    options: Options, environ: Mapping[str, str], monitor: Monitor, stop: Stop
) -> Iterator[Part]:
    """Yield the parts in the order in which they are read.

    Raises CheckpointError where one of them names something that is not there, and UsageError where
    the list of `--from-file` is not one, or nothing is asked for.
    """
    request = options.request
    if options.from_file is not None:
        request = from_file.requested(request, options.from_file, monitor)
        if not request.references and options.libraries is None:
            raise UsageError(
                f"--from-file {printable(options.from_file.path)}: expected at least one "
                "checkpoint, found none"
            )
    checkpoint = resolve(request, environ, monitor, options.threads.first)
    if options.libraries is not None:
        yield _libraries(options.libraries, environ, monitor, stop)
    yield Part(CHECKPOINT, lambda _threads: checkpoint, options.overrule, window=options.window)


def _libraries(
    request: libraries.Request, environ: Mapping[str, str], monitor: Monitor, stop: Stop
) -> Part:
    # The user named them, so they are read as far as they fit.
    overrule = Overrule.FORCE | Overrule.PARTIAL
    try:
        located = libraries.locate(request, environ, monitor, stop)
    except OutOfReachError as error:
        found = libraries.out_of_reach(error)
        return Part(LIBRARIES, lambda _threads: found, overrule)
    return Part(
        LIBRARIES,
        partial(libraries.gather, located, monitor),
        overrule,
        libraries.places(located),
    )
