"""CHECKPOINT -> its weight files, where they lie, and what of them is cold."""

import os
from dataclasses import dataclass, replace

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import listing
from prefetch_cli.checkpoint.files import File
from prefetch_cli.cli import meaning
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX
from prefetch_cli.cli.main import command
from prefetch_cli.cli.rules import Given
from prefetch_cli.linux import readahead
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Target
from prefetch_cli.residency.survey import survey
from prefetch_cli.run import pipeline
from prefetch_cli.run.outcome import Report
from tests.bench.pieces import Piece

_LOOKING_THREADS = 8


@dataclass(frozen=True)
class Storage:
    """What the stages of a dry run found of one checkpoint."""

    argument: str
    path: str
    files: tuple[File, ...]
    targets: tuple[Target, ...]  # one for each file
    weights: dict[int, int]  # their sizes, by place; not those that lie in memory anyway
    types: str  # of the file systems
    method: Method  # how residency was found
    cold: tuple[Extent, ...]  # of the weights, in load order; only true where the method is exact
    failed: tuple[tuple[str, str], ...]  # path and error of each file that cannot be opened
    memory_bytes: int  # what the page cache may take
    read_ahead_bytes: int  # the furthest that the kernel reads beyond what is asked for

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights."""
        return sum(self.weights.values())

    @property
    def cold_bytes(self) -> int:
        """The bytes of them that are cold."""
        return sum(extent.length for extent in self.cold)

    def resident_share(self, piece: Piece) -> float | None:
        """Return how much of the piece is resident, 0 to 1; None where nobody can tell."""
        found = survey(self.files, piece.extents, threads=_LOOKING_THREADS, monitor=Monitor())
        return None if found.exact_bytes is None else found.exact_bytes / piece.size_bytes


def look(checkpoint: str) -> Storage:
    """Return what a dry run of the tool finds; it reads no weight.

    Raises PrefetchError where there is no such checkpoint, and click.ClickException where the
    environment sets an option to what it cannot be.
    """
    context = command.make_context(
        "bench", ["--dry-run", checkpoint], auto_envvar_prefix=ENVIRONMENT_PREFIX
    )
    typed = {"dry_run", "checkpoints"}
    values = Given(context.params, typed).effective().values
    options = meaning.to_options(values, (), os.environ)
    found: list[Report] = []
    pipeline.run(replace(options, libraries=None), os.environ, Monitor(), Stop(), found.append)
    return _storage(found[-1])


def _storage(report: Report) -> Storage:
    known, before, budget = report.checkpoint, report.before, report.budget
    assert known is not None, "a dry run resolves"
    assert before is not None, "a dry run looks"
    assert budget is not None, "a dry run inspects"
    places = report.filesystems or ()
    weights = {
        number: file.size_bytes
        for number, (file, place) in enumerate(zip(known.files, places, strict=True))
        if file.weight and not place.in_memory
    }
    return Storage(
        argument=known.sources[0].argument,
        path=known.sources[0].path,
        files=known.files,
        targets=tuple(
            Target(file.path, pipeline._medium(place))
            for file, place in zip(known.files, places, strict=True)
        ),
        weights=weights,
        types=listing(sorted({place.type for place in places})),
        method=before.method,
        cold=tuple(extent for extent in before.missing if extent.file in weights),
        failed=before.failed,
        memory_bytes=budget.size_bytes,
        # The next window is asked for before the one that is being read ends.
        read_ahead_bytes=2 * max(map(readahead.read_step_bytes, set(places)), default=0),
    )
