"""The stages of a run: each takes a part from one state to the next."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Split
from prefetch_cli.checkpoint.files import File, each_once
from prefetch_cli.linux import memory, mounts
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.readahead import read_step_bytes, reads_ahead_little
from prefetch_cli.plan import decision
from prefetch_cli.plan.decision import (
    NOTHING_MEANT,
    Decision,
    Facts,
    Storage,
    Verdict,
)
from prefetch_cli.plan.extents import Extent, head, whole, within, without
from prefetch_cli.plan.ranks import LocalRank
from prefetch_cli.plan.share import partition
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Medium, Plan, Target
from prefetch_cli.residency import doubt, evict, survey
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run import hints
from prefetch_cli.run.options import Options
from prefetch_cli.run.parts import Part
from prefetch_cli.run.states import Decided, Evicted, Looked, Proven, Read, Tried, Wanted

# Threads that ask for small files over a network, for each that was asked for.
_SMALL_FILES_FACTOR = 4


def want(
    part: Part,
    options: Options,
    rank: LocalRank,
    known: Collection[File],
    monitor: Monitor,
) -> Wanted:
    """Return the files of a part, less those that are `known`."""
    threads = options.threads
    if any(one.far for one in mounts.inspect(part.places, monitor)):
        threads *= _SMALL_FILES_FACTOR
    found = part.find(threads)
    files = each_once(found.files, known=known)
    filesystems = mounts.inspect(
        [file.real_path for file in files], monitor, [file.device for file in files]
    )
    available = memory.measure()
    return Wanted(
        kind=part.kind,
        found=replace(found, files=files),
        filesystems=filesystems,
        memory=available,
        budget=decision.budget(
            available.available_bytes,
            available.limited_by,
            options.ram_threshold_percent,
            options.max_bytes,
            available.shared_with_gpu,
            hints.most_cached_bytes(filesystems),
        ),
        share=partition(
            [file.size_bytes for file in files],
            [file.weight for file in files],
            rank=rank.rank,
            world_size=rank.world_size,
            split=options.split if any(file.weight for file in files) else Split.FILES,
            block_size_bytes=options.block_size_bytes,
        ),
        launcher=rank.launcher,
        threads=threads,
        advice=hints.advise(files, filesystems, options),
    )


def look(wanted: Wanted, monitor: Monitor) -> Looked:
    """Return how much of the share is resident."""
    return Looked(wanted.kind, _survey(wanted, monitor))


def decide(part: Part, wanted: Wanted, looked: Looked, tried: Tried | None = None) -> Decision:
    """Return what to do about the share."""
    facts = _facts(wanted, looked)
    if tried is not None:
        facts = replace(facts, forecast=tried.forecast)
    return decision.decide(facts, wanted.budget, part.overrule)


def awaits_trial(wanted: Wanted, looked: Looked, decided: Decision) -> bool:
    """Return whether a trial of the storage could change the decision."""
    return decision.awaits_trial(decided, _facts(wanted, looked))


def cold(wanted: Wanted, looked: Looked) -> tuple[Extent, ...]:
    """Return what of the share is not known to be resident, on storage and readable so far."""
    failed = {path for path, _ in looked.survey.failed}
    files, on_storage = wanted.found.files, wanted.on_storage
    return tuple(
        extent
        for extent in looked.survey.missing
        if extent.file in on_storage and files[extent.file].path not in failed
    )


def _facts(wanted: Wanted, looked: Looked) -> Facts:
    on_storage = wanted.on_storage
    return Facts(
        total_bytes=sum(wanted.found.files[number].size_bytes for number in on_storage),
        share_bytes=wanted.share.size_bytes,
        resident_bytes=looked.survey.exact_bytes,
        in_memory=on_storage.keys().isdisjoint(extent.file for extent in wanted.share.extents),
        bypasses_cache=all(one.bypasses_cache for one in on_storage.values()),
        storage=_storage(on_storage.values()),
        cold_bytes=wanted.share.world_size * sum(extent.length for extent in cold(wanted, looked)),
    )


def plan(
    wanted: Wanted,
    looked: Looked,
    decided: Decision,
    options: Options,
    taken_bytes: int,
    tried: Tried | None = None,
) -> Decided:
    """Return the plan of a decision, where other parts take so many bytes of the limit.

    What a trial has brought in is not read again.
    """
    on_storage = wanted.on_storage
    extents: tuple[Extent, ...] = ()
    cut = None
    if decided.action is not Verdict.SKIP:
        limit_bytes = decided.limit_bytes
        if limit_bytes is None and taken_bytes > 0:
            limit_bytes = options.max_bytes  # a bound of all parts together
        if limit_bytes is not None:
            cut = _cut(wanted, max(0, limit_bytes - taken_bytes))
        missing = (extent for extent in looked.survey.missing if extent.file in on_storage)
        pieces = () if tried is None else tried.trial.pieces
        extents = tuple(within(without(missing, pieces), cut))
    meant = sum(extent.length for extent in within(wanted.share.extents, cut))
    beside = options.beside_command and not wanted.kind.awaited
    return Decided(
        wanted.kind,
        decided,
        Plan(
            extents=extents,
            cut=cut,
            already_resident_bytes=meant - sum(extent.length for extent in extents),
            threads=wanted.threads,
            block_size_bytes=options.block_size_bytes,
            engine=options.engine,
            max_bytes_per_second=options.max_bytes_per_second,
            yielding=options.background or beside,
        ),
    )


def taken_bytes(wanted: Wanted, decided: Decided) -> int:
    """Return how much of a limit on all parts this one takes, whatever is resident already."""
    if decided.decision.reason in NOTHING_MEANT:
        return 0
    sizes = _sizes_on_storage(wanted)
    kept = within(whole(sizes, range(len(sizes))), decided.plan.cut)
    return sum(extent.length for extent in kept)


def read(wanted: Wanted, decided: Decided, monitor: Monitor, stop: Stop) -> Read:
    """Return what came of reading the plan."""
    with monitor.reading_part(wanted.kind.name):
        return Read(wanted.kind, job.read(decided.plan, targets(wanted), monitor, stop))


def targets(wanted: Wanted) -> list[Target]:
    """Return all files as a reader needs to know them."""
    media = {one: medium(one) for one in set(wanted.filesystems)}
    return [
        Target(file.path, media[one])
        for file, one in zip(wanted.found.files, wanted.filesystems, strict=True)
    ]


def drop(wanted: Wanted, monitor: Monitor, stop: Stop) -> Evicted:
    """Return what came of dropping the share."""
    extents = wanted.share.extents
    files, threads = wanted.found.files, wanted.threads
    return Evicted(
        wanted.kind, evict.evict(files, extents, threads=threads, monitor=monitor, stop=stop)
    )


def prove_evicted(wanted: Wanted, monitor: Monitor) -> Proven:
    """Return what is resident behind an eviction."""
    return Proven(wanted.kind, _survey(wanted, monitor))


def prove_read(
    wanted: Wanted, looked: Looked, decided: Decided, read: Read, monitor: Monitor, stop: Stop
) -> Proven | None:
    """Return what stayed of what was read, or None where someone interrupts the wait for it."""
    if read.result.bytes_read > 0:
        numbers = {extent.file for extent in decided.plan.extents}
        used = {one for number, one in wanted.on_storage.items() if number in numbers}
        stop.pause(max((one.late_close_seconds for one in used), default=0.0))
        if stop.interrupted:
            return None
    after = _survey(wanted, monitor, reads_in_flight=not read.result.complete)
    cut_short = stop.requested
    return Proven(
        wanted.kind, after, _doubt(wanted, looked, decided, read, after, cut_short=cut_short)
    )


def _doubt(
    wanted: Wanted,
    looked: Looked,
    decided: Decided,
    read: Read,
    after: Survey,
    *,
    cut_short: bool,
) -> str | None:
    """Return a warning where much of what was read did not stay."""
    files, before, result = wanted.found.files, looked.survey, read.result
    paths = {
        *(one.path for one in wanted.found.failed),
        *(path for path, _ in (*result.failed, *after.failed)),
    }
    failed = {number for number, file in enumerate(files) if file.path in paths}
    planned = _bytes_without(failed, decided.plan.extents)
    lost = decided.plan.size_bytes - planned
    # We do not count bytes per file. If the run finished, every healthy file was read to its end.
    # Otherwise the failed files may have been read as far as they were planned.
    done = max(0, result.bytes_read - lost) if cut_short else min(result.bytes_read, planned)
    return doubt.doubt(
        read_bytes=done,
        before_bytes=before.resident_bytes_without(failed) if before.method.exact else None,
        after_bytes=after.resident_bytes_without(failed),
        reclaimed_bytes=doubt.reclaimed_since(
            before, after, failed=failed, whole=result.complete and decided.plan.cut is None
        ),
        share_bytes=_bytes_without(failed, wanted.share.extents),
        filesystems=list(wanted.on_storage.values()),
        memory=wanted.memory,
    )


def _bytes_without(files: Collection[int], extents: Sequence[Extent]) -> int:
    return sum(extent.length for extent in extents if extent.file not in files)


def _cut(wanted: Wanted, limit_bytes: int) -> Extent | None:
    # The limit is on the whole checkpoint, not on the share: the ranks of a node fill one page
    # cache, and together they keep its head.
    return head(_sizes_on_storage(wanted), limit_bytes, PAGE_BYTES)


def _sizes_on_storage(wanted: Wanted) -> list[int]:
    on_storage = wanted.on_storage
    files = enumerate(wanted.found.files)
    return [file.size_bytes if number in on_storage else 0 for number, file in files]


def _survey(wanted: Wanted, monitor: Monitor, *, reads_in_flight: bool = False) -> Survey:
    files, extents = wanted.found.files, wanted.share.extents
    found = survey.survey(
        files, extents, threads=wanted.threads, monitor=monitor, reads_in_flight=reads_in_flight
    )
    # What left tmpfs lies in swap, and what cachestat counts of DAX was never in the cache.
    return found if len(wanted.on_storage) == len(files) else replace(found, reclaimed_by_file={})


def _storage(filesystems: Collection[FileSystem]) -> Storage:
    """Return the farthest of what the file systems lie on."""
    if any(one.network_type for one in filesystems):
        return Storage.NETWORK
    if any(one.network_device for one in filesystems):
        return Storage.NETWORK_DEVICE
    if filesystems and not any(one.known for one in filesystems):
        return Storage.UNKNOWN
    return Storage.LOCAL


def medium(found: FileSystem) -> Medium:
    """Return what a reader needs to know of a file system."""
    return Medium(
        far=found.far,
        step_bytes=read_step_bytes(found),
        reads_ahead_little=reads_ahead_little(found),
        spins=found.storage is not None and found.storage.rotational,
    )
