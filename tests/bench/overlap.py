"""A server's whole cold start: alone, after the warming, and beside it."""

import json
import os
import shlex
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from prefetch_cli.base.amounts import format_rate
from tests.bench.environment import EnvironmentFailureError, ServerEnvironment, make
from tests.bench.figures import Bound, Figure
from tests.bench.run import Usage, run, tool
from tests.bench.throttle import ThrottleError, own_disk, throttled
from tests.bench.throughput import GB, Say, in_turn
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint, write_streamed

PLAIN = "server X"
BEHIND = "prefetch-cli X && server X"
BESIDE = "prefetch-cli X -- server X"
LIBRARIES = "prefetch-cli --libraries X -- server X"
IMPORT_ALONE = "  the imports alone"
WARM_ALONE = "  the warming alone"
WARM = "  server X, all warm"
_TITLE = "a server's start"
_LOCAL = "the disk as it is"
_SHARDS = 4
_SLACK = 1.1  # goal: at most this times the longer of imports and warming, plus the load
_HEAVY = {"numpy", "safetensors", "scipy", "torch"}
_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Entrant:
    """One way of starting the server."""

    name: str
    command: tuple[str, ...]
    cold: bool = True  # False: everything is read beforehand
    before: tuple[str, ...] = ()  # a command that runs first, untimed


@dataclass(frozen=True)
class Storage:
    """Where everything lies, and how fast that is; no rate means unlimited."""

    name: str
    rate: int | None = None  # bytes a second
    paths: tuple[str, ...] = ()  # the rate limits the disks of these

    def limited(self) -> AbstractContextManager[tuple[str, ...]]:
        """Return a context that yields the command prefix of a limited process."""
        if self.rate is None:
            return nullcontext(())
        return throttled(self.paths, self.rate)


@dataclass(frozen=True)
class Start:
    """One entrant's runs: medians, with the fastest and slowest."""

    name: str
    runs: int
    seconds: float
    seconds_min: float
    seconds_max: float
    import_seconds: float | None  # as the server reports it, without the interpreter's start
    load_seconds: float | None
    error: str | None  # why a run does not count


@dataclass(frozen=True)
class Comparison:
    """All entrants on one storage."""

    title: str
    storage: str
    starts: tuple[Start, ...]
    notes: tuple[str, ...] = ()

    def find(self, name: str) -> Start | None:
        """Return the entrant of this name, None if no run of it counts."""
        return next((one for one in self.starts if one.name == name and one.runs), None)


def prepare(directory: str, say: Say, *, torch: str) -> ServerEnvironment | str:
    """Return the server's environment, or why there is none."""
    try:
        return make(directory, say, torch=torch)
    except EnvironmentFailureError as error:
        return str(error)


def overlap_comparisons(
    directory: str,
    server: ServerEnvironment,
    say: Say,
    *,
    size_bytes: int,
    rounds: int,
    rates: Sequence[int],
) -> Iterator[Comparison]:
    """Yield the server's start on several storages.

    First the disk as it is; then, for each rate in bytes a second, the weights on a disk of their
    own, as on a share, and everything on one disk. Each run begins with the checkpoint and the
    server's own files proven cold. Cached directory entries, the system's interpreter and the
    tool itself stay warm.
    """
    say(f"overlap: writing {size_bytes / GB:.2f} GB")
    shards = [size_bytes // _SHARDS] * _SHARDS
    here = os.path.join(directory, "overlap")
    checkpoint = write_streamed(here, shard_bytes=shards)
    libraries_bytes = _brought(server)
    yield _compare(Storage(_LOCAL), server, checkpoint, say, libraries_bytes, rounds=rounds)
    for rate in rates:
        storage = Storage(
            f"one disk of {format_rate(rate)} for all", rate, (here, server.directory)
        )
        yield _compare(storage, server, checkpoint, say, libraries_bytes, rounds=rounds)
    shutil.rmtree(here)
    title = "weights on a disk of their own"
    try:
        with own_disk(directory, size_bytes) as apart:
            checkpoint = write_streamed(os.path.join(apart, "overlap"), shard_bytes=shards)
            for rate in rates:
                storage = Storage(f"{title}, of {format_rate(rate)}", rate, (apart,))
                yield _compare(storage, server, checkpoint, say, libraries_bytes, rounds=rounds)
    except ThrottleError as error:
        yield Comparison(_TITLE, title, (), (str(error),))


def _compare(
    storage: Storage,
    server: ServerEnvironment,
    checkpoint: BuiltCheckpoint,
    say: Say,
    libraries_bytes: int,
    *,
    rounds: int,
) -> Comparison:
    entrants = overlap_entrants(server, checkpoint.directory, libraries=knows("--libraries"))
    files = [*server.files(), *checkpoint.files]
    try:
        samples = list(_measure(entrants, files, storage, say, rounds=rounds))
    except ThrottleError as error:
        return Comparison(_TITLE, storage.name, (), (str(error),))
    return Comparison(
        _TITLE,
        storage.name,
        tuple(
            _start(entrant, samples, checkpoint if _loads(entrant) else None)
            for entrant in entrants
        ),
        tuple(_notes(storage, server, checkpoint, libraries_bytes)),
    )


def _brought(server: ServerEnvironment) -> int:
    """Return how many bytes of its own files the server's imports bring into the page cache."""
    files = server.files()
    _make_cold(files)
    run((server.server,))
    return oracle.resident_bytes(files)


def overlap_entrants(
    server: ServerEnvironment, checkpoint: str, *, libraries: bool
) -> list[Entrant]:
    """Return the ways of starting, and the steps they consist of, in table order."""
    start = (server.server, checkpoint)
    warm = tool("--force", "--progress", "none", "--quiet", checkpoint)
    both = f"{shlex.join(warm)} && exec {shlex.join(start)}"
    entrants = [
        Entrant(PLAIN, start),
        Entrant(BEHIND, ("sh", "-c", both)),
        Entrant(BESIDE, (*tool("--force", "--quiet", checkpoint), "--", *start)),
    ]
    if libraries:
        options = ("--force", "--quiet", "--libraries")
        entrants.append(Entrant(LIBRARIES, (*tool(*options, checkpoint), "--", *start)))
    return [
        *entrants,
        Entrant(IMPORT_ALONE, (server.server,)),
        Entrant(WARM_ALONE, warm),
        Entrant(WARM, start, cold=False),
    ]


def library_comparisons(
    server: ServerEnvironment, say: Say, *, rounds: int, rates: Sequence[int]
) -> Iterator[Comparison]:
    """Yield the time of one import on each storage: cold, after `--package`, and warm."""
    package, module = server.heaviest
    title = f"python -c 'import {module}'"
    if not knows("--package"):
        yield Comparison(title, _LOCAL, (), ("the tool knows no --package",))
        return
    start = (server.python, "-c", f"import {module}")
    options = ("--force", "--progress", "none", "--quiet")
    warm = tool(*options, "--package", package, "--python", server.python)
    entrants = [
        Entrant("cold", start),
        Entrant(f"after prefetch-cli --package {package}", start, before=warm),
        Entrant("  that warming", warm),
        Entrant("warm", start, cold=False),
    ]
    slow = (Storage(f"a disk of {format_rate(rate)}", rate, (server.directory,)) for rate in rates)
    for storage in (Storage(_LOCAL), *slow):
        try:
            samples = list(_measure(entrants, server.files(), storage, say, rounds=rounds))
        except ThrottleError as error:
            yield Comparison(title, storage.name, (), (str(error),))
            continue
        starts = tuple(_start(entrant, samples, None) for entrant in entrants)
        yield Comparison(title, storage.name, starts, (_versions(server),))


def overlap_figures(comparisons: Sequence[Comparison]) -> Iterator[Figure]:
    """Yield each storage's goal: the start beside the warming against its steps alone."""
    for comparison in comparisons:
        # Take the load time from the start after the warming, not from the warm one: on a virtual
        # machine, pages that the warming brought in are slower to touch first than copied ones.
        beside, imports, warming, warm = (
            comparison.find(name) for name in (BESIDE, IMPORT_ALONE, WARM_ALONE, BEHIND)
        )
        value, detail = None, "; ".join(comparison.notes) or "a part of it was not measured"
        if beside and imports and warming and warm and warm.load_seconds is not None:
            longer = max(imports.seconds, warming.seconds)
            goal = _SLACK * longer + warm.load_seconds
            value = beside.seconds / goal
            detail = (
                f"{beside.seconds:.2f} s against {_SLACK} x max({imports.seconds:.2f} s of "
                f"imports, {warming.seconds:.2f} s of warming) + {warm.load_seconds:.2f} s of "
                f"loading what is warm = {goal:.2f} s"
            )
        yield Figure(f"overlapped, {comparison.storage}", value, "x", Bound.AT_MOST, 1.0, detail)


def knows(flag: str) -> bool:
    """Whether the tool has this flag."""
    return flag in run(tool("--help")).stdout


def _measure(
    entrants: Sequence[Entrant],
    files: Sequence[str],
    storage: Storage,
    say: Say,
    *,
    rounds: int,
) -> Iterator[tuple[Entrant, Usage]]:
    for number in range(1, rounds + 1):
        for entrant in in_turn(entrants, number, rounds):
            usage = _run(entrant, files, storage)
            outcome = usage.error or f"{usage.wall_seconds:7.3f} s"
            say(f"{storage.name}: round {number}/{rounds}  {entrant.name:40} {outcome}")
            yield entrant, usage


def _run(entrant: Entrant, files: Sequence[str], storage: Storage) -> Usage:
    if entrant.cold:
        _make_cold(files)
    else:
        _read_all(files)
    # One cgroup per run: reads that a run left in the queue must not delay the next run.
    with storage.limited() as prefix:
        if entrant.before:
            first = run((*prefix, *entrant.before))
            if first.error is not None:
                return first
        return run((*prefix, *entrant.command))


def _start(
    entrant: Entrant, samples: Sequence[tuple[Entrant, Usage]], loaded: BuiltCheckpoint | None
) -> Start:
    own = [usage for one, usage in samples if one is entrant]
    errors = [usage.error or _wrong(usage, loaded) for usage in own]
    good = [usage for usage, error in zip(own, errors, strict=True) if error is None]
    walls = [usage.wall_seconds for usage in good] or [0.0]
    said = [json.loads(usage.stdout) for usage in good if usage.stdout.startswith("{")]
    return Start(
        name=entrant.name,
        runs=len(good),
        seconds=statistics.median(walls),
        seconds_min=min(walls),
        seconds_max=max(walls),
        import_seconds=_median(said, "import_seconds"),
        load_seconds=_median(said, "load_seconds") if loaded else None,
        error=next((error for error in errors if error is not None), None),
    )


def _median(documents: Sequence[dict[str, float]], name: str) -> float | None:
    return statistics.median(one[name] for one in documents) if documents else None


def _loads(entrant: Entrant) -> bool:
    return entrant.name not in {IMPORT_ALONE, WARM_ALONE}


def _wrong(usage: Usage, loaded: BuiltCheckpoint | None) -> str | None:
    """Return what is wrong with a server run that exited with 0, else None."""
    if loaded is None:
        return None
    size_bytes = json.loads(usage.stdout)["size_bytes"]
    if size_bytes == loaded.tensor_bytes:
        return None
    return f"expected {loaded.tensor_bytes} bytes of tensors, found {size_bytes}"


def _make_cold(files: Sequence[str]) -> None:
    # Touch less memory than `run_cold`: as much would take longer than the run.
    oracle.make_cold(files)
    oracle.pretouch(sum(map(os.path.getsize, files)))


def _read_all(files: Sequence[str]) -> None:
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass


def _notes(
    storage: Storage, server: ServerEnvironment, checkpoint: BuiltCheckpoint, libraries_bytes: int
) -> Iterator[str]:
    yield (
        f"{checkpoint.weight_bytes / GB:.2f} GB of weights; the imports bring in "
        f"{libraries_bytes / GB:.2f} GB ({_versions(server)})"
    )
    if server.note:
        yield server.note
    if storage.rate is not None:
        one_disk = len(storage.paths) > 1
        size = checkpoint.weight_bytes + (libraries_bytes if one_disk else 0)
        yield f"to read them from it takes {size / storage.rate:.1f} s, whoever does it"


def _versions(server: ServerEnvironment) -> str:
    return ", ".join(one for one in server.packages if one.partition("==")[0] in _HEAVY)
