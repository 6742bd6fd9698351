"""CHECKPOINT -> its weight files, their storage, and which parts are cold."""

import mmap
import os
import time
from dataclasses import dataclass

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import listing
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.cli import meaning
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX
from prefetch_cli.cli.main import command
from prefetch_cli.cli.rules import Given
from prefetch_cli.linux import readahead
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Target
from prefetch_cli.residency.survey import Survey, survey
from prefetch_cli.run import media, pipeline
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.run.states import Looked, State, Wanted, Warned
from tests.bench.pieces import Piece

_LOOKING_THREADS = 8


@dataclass(frozen=True)
class Storage:
    """What the stages of a dry run found of one checkpoint."""

    argument: str
    path: str
    files: tuple[File, ...]
    targets: tuple[Target, ...]  # one for each file
    weights: dict[int, int]  # their sizes, by place; without files on memory file systems
    types: str  # of the file systems
    method: Method  # how residency was found
    cold: tuple[Extent, ...]  # of the weights, in load order; only true where the method is exact
    failed: tuple[tuple[str, str], ...]  # path and error of each file that cannot be opened
    memory_bytes: int  # what the page cache may take
    read_ahead_bytes: int  # the furthest that the kernel reads past a request

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights."""
        return sum(self.weights.values())

    @property
    def cold_bytes(self) -> int:
        """The bytes of them that are cold."""
        return sum(extent.length for extent in self.cold)

    def resident_share(self, piece: Piece) -> float | None:
        """Return how much of the piece is resident, 0 to 1; None if unknown."""
        found = survey(self.files, piece.extents, threads=_LOOKING_THREADS, monitor=Monitor())
        return None if found.exact_bytes is None else found.exact_bytes / piece.size_bytes

    def mapping_seconds(self, piece: Piece) -> float | None:
        """Return how long MAP_POPULATE takes for a piece that is warm, None if nothing maps it."""
        seconds = 0.0
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        for extent in piece.extents:
            start = extent.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            try:
                with open(self.files[extent.file].path, "rb") as file:
                    began = time.perf_counter()
                    mmap.mmap(
                        file.fileno(),
                        extent.end - start,
                        flags=flags,
                        prot=mmap.PROT_READ,
                        offset=start,
                    ).close()
                    seconds += time.perf_counter() - began
            except OSError:
                return None
        return seconds


def look(checkpoint: str) -> Storage:
    """Return what a dry run of the tool finds; it reads no weight.

    Raises PrefetchError if there is no such checkpoint, and click.ClickException if the
    environment sets an option to an invalid value.
    """
    context = command.make_context(
        "bench", ["--dry-run", checkpoint], auto_envvar_prefix=ENVIRONMENT_PREFIX
    )
    typed = {"dry_run", "checkpoints"}
    values = Given(context.params, typed).effective().values
    options = meaning.to_options(values, (), os.environ)
    events: list[State | Warned] = []
    pipeline.run(options._replace(libraries=None), os.environ, Monitor(), Stop(), events.append)
    known = folded(Outcome(options.action), events).checkpoint
    wanted, looked = known.get(Wanted), known.get(Looked)
    assert wanted is not None, "a dry run resolves"
    assert looked is not None, "a dry run looks"
    return _storage(wanted, looked.survey)


def _storage(wanted: Wanted, before: Survey) -> Storage:
    found = wanted.found
    weights = {
        number: file.size_bytes
        for number, file in enumerate(found.files)
        if file.weight and number in wanted.on_storage
    }
    (argument,) = found.names
    return Storage(
        argument=argument,
        path=found.sources[0].path if isinstance(found, Checkpoint) else argument,
        files=found.files,
        targets=tuple(
            Target(file.path, media.medium(place))
            for file, place in zip(found.files, wanted.filesystems, strict=True)
        ),
        weights=weights,
        types=listing(sorted({place.type for place in wanted.filesystems})),
        method=before.method,
        cold=tuple(extent for extent in before.missing if extent.file in weights),
        failed=before.failed,
        memory_bytes=wanted.budget.size_bytes,
        # The next window is asked for before the one that is being read ends.
        read_ahead_bytes=2
        * max(map(readahead.read_step_bytes, set(wanted.filesystems)), default=0),
    )
