"""The stages of a run: each takes a part from one state to the next."""

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Split
from prefetch_cli.checkpoint.digests import Digest
from prefetch_cli.checkpoint.files import File, each_once
from prefetch_cli.linux import memory, mounts
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.memory import Memory
from prefetch_cli.linux.pagecache import PAGE_BYTES, Method
from prefetch_cli.plan import budget as plan_budget
from prefetch_cli.plan import decision
from prefetch_cli.plan.budget import Budget
from prefetch_cli.plan.decision import (
    NOTHING_MEANT,
    Decision,
    Facts,
    Sample,
    Storage,
    Verdict,
)
from prefetch_cli.plan.extents import Extent, head, needed, within, without
from prefetch_cli.plan.ranks import LocalRank
from prefetch_cli.plan.share import partition
from prefetch_cli.plan.window import Ahead, Wish
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Plan
from prefetch_cli.residency import evict, keep
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run import hints, media, proving
from prefetch_cli.run.options import Options
from prefetch_cli.run.parts import Part
from prefetch_cli.run.states import Decided, Evicted, Looked, Read, Tried, Wanted
from prefetch_cli.run.verification import to_hash

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
        threads = threads.at_least(_SMALL_FILES_FACTOR * threads.first)
    found = part.find(threads.first)
    files = each_once(found.files, known=known)
    filesystems = mounts.inspect(
        [file.real_path for file in files], monitor, [file.device for file in files]
    )
    files = media.in_pages(files, filesystems)
    available = memory.measure()
    return Wanted(
        kind=part.kind,
        found=replace(found, files=files),
        filesystems=filesystems,
        memory=available,
        budget=budget(available, filesystems, options),
        share=partition(
            list(needed(files)),
            [file.weight for file in files],
            rank=rank.rank,
            world_size=rank.world_size,
            split=_split(files, options),
            block_size_bytes=options.block_size_bytes,
        ),
        launcher=rank.launcher,
        threads=threads,
        advice=hints.advise(files, filesystems, options),
    )


def _split(files: Sequence[File], options: Options) -> Split:
    # Only a rank that reads a whole file can hash it.
    if options.verifies or not any(file.weight for file in files):
        return Split.FILES
    return options.split


def budget(available: Memory, filesystems: Sequence[FileSystem], options: Options) -> Budget:
    """Return how much of the checkpoint this node's page cache may take."""
    return plan_budget.budget(
        available.available_bytes,
        available.limited_by,
        options.ram_threshold_percent,
        options.max_bytes,
        available.shared_with_gpu,
        hints.most_cached_bytes(filesystems),
    )


def look(wanted: Wanted, monitor: Monitor) -> Looked:
    """Return how much of the share is resident."""
    return Looked(wanted.kind, proving.survey_share(wanted, monitor))


def decide(part: Part, wanted: Wanted, looked: Looked, tried: Tried | None = None) -> Decision:
    """Return what to do about the share."""
    facts = _facts(wanted, looked)
    if tried is not None:
        facts = facts._replace(forecast=tried.forecast)
    return decision.decide(facts, wanted.budget, part.overrule, _ahead(part, wanted))


def _ahead(part: Part, wanted: Wanted) -> Ahead | None:
    """Return the window that could move ahead of COMMAND's loader."""
    if part.window is None:
        return None
    wish = Wish.NONE if wanted.memory.shared_with_gpu is None else Wish.DEFAULT
    most = wanted.budget.size_bytes
    size = most // 2 if part.window.size_bytes is None else part.window.size_bytes
    return Ahead(min(size, most), Wish.GIVEN if part.window.given else wish)


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
        total_bytes=sum(wanted.found.files[number].needed_bytes for number in on_storage),
        share_bytes=wanted.share.size_bytes,
        resident_bytes=looked.survey.exact_bytes,
        in_memory=on_storage.keys().isdisjoint(extent.file for extent in wanted.share.extents),
        bypasses_cache=all(one.bypasses_cache for one in on_storage.values()),
        storage=_storage(on_storage.values()),
        sample=_sample(looked.survey),
        cold_bytes=wanted.share.world_size * sum(extent.length for extent in cold(wanted, looked)),
    )


def _sample(found: Survey) -> Sample | None:
    if found.method is not Method.TIMED or found.sampled is None:
        return None
    return Sample(found.sampled.low_bytes, found.sampled.pages)


def plan(
    wanted: Wanted,
    looked: Looked,
    decided: Decision,
    options: Options,
    taken_bytes: int,
    tried: Tried | None = None,
    digests: Mapping[int, Digest] | None = None,
) -> Decided:
    """Return the plan of a decision, where other parts take so many bytes of the limit.

    What a trial has brought in is not read again. A file whose digest is known is read whole, even
    what is resident of it, unless the limit cuts it.
    """
    on_storage = wanted.on_storage
    extents: tuple[Extent, ...] = ()
    cut = None
    hashed: dict[int, Digest] = {}
    if decided.action is not Verdict.SKIP:
        limit_bytes = decided.limit_bytes
        if limit_bytes is None and taken_bytes > 0:
            limit_bytes = options.max_bytes  # a bound of all parts together
        if limit_bytes is not None:
            cut = cut_at(wanted, max(0, limit_bytes - taken_bytes))
        missing = (extent for extent in looked.survey.missing if extent.file in on_storage)
        pieces = () if tried is None else tried.trial.pieces
        cold = within(without(missing, pieces), cut)
        mine = list(within(wanted.share.extents, cut))
        hashed = to_hash(wanted.found.files, mine, digests or {})
        whole_files = (extent for extent in mine if extent.file in hashed)
        rest = (extent for extent in cold if extent.file not in hashed)
        extents = tuple(heapq.merge(whole_files, rest))
    meant = sum(extent.length for extent in within(wanted.share.extents, cut))
    beside = options.beside_command and not wanted.kind.awaited
    return Decided(
        wanted.kind,
        decided,
        Plan(
            extents=extents,
            cut=cut,
            already_resident_bytes=meant - sum(extent.length for extent in extents),
            threads=wanted.threads.none_join() if options.background else wanted.threads,
            block_size_bytes=options.block_size_bytes,
            engine=options.engine,
            max_bytes_per_second=options.max_bytes_per_second,
            yielding=options.background or beside,
            digests=hashed,
            parted=frozenset(
                number for number, file in enumerate(wanted.found.files) if file.parts is not None
            ),
        ),
    )


def taken_bytes(wanted: Wanted, decided: Decided) -> int:
    """Return how much of a limit on all parts this one takes, whatever is resident already."""
    if decided.decision.reason in NOTHING_MEANT:
        return 0
    kept = within(_needed_of_storage(wanted), decided.plan.cut)
    return sum(extent.length for extent in kept)


def read(wanted: Wanted, decided: Decided, monitor: Monitor, stop: Stop) -> Read:
    """Return what came of reading the plan."""
    with monitor.reading_part(wanted.kind.name):
        return Read(wanted.kind, job.read(decided.plan, media.targets(wanted), monitor, stop))


def drop(wanted: Wanted, monitor: Monitor, stop: Stop) -> Evicted:
    """Return what came of dropping the share."""
    extents = wanted.share.extents
    files, threads = wanted.found.files, wanted.threads.first
    return Evicted(
        wanted.kind, evict.evict(files, extents, threads=threads, monitor=monitor, stop=stop)
    )


def held(wanted: Wanted, found: Survey, meant: Iterable[Extent]) -> tuple[Extent, ...]:
    """Return what is to stay of a share: all that is resident, and what was meant to be read."""
    share, on_storage = wanted.share.extents, wanted.on_storage
    lost = keep.losses(found, share)
    missing = found.missing if lost is None else [one.extent for one in lost]
    stored = (extent for extent in share if extent.file in on_storage)
    return tuple(without(stored, tuple(without(missing, tuple(meant)))))


def cut_at(wanted: Wanted, limit_bytes: int) -> Extent | None:
    """Return the head of the file in which a limit ends, None where all files fit."""
    # The limit is on the whole checkpoint, not on the share: the ranks of a node fill one page
    # cache, and together they keep its head.
    return head(_needed_of_storage(wanted), limit_bytes, PAGE_BYTES)


def _needed_of_storage(wanted: Wanted) -> Iterator[Extent]:
    on_storage = wanted.on_storage
    return (extent for extent in needed(wanted.found.files) if extent.file in on_storage)


def _storage(filesystems: Collection[FileSystem]) -> Storage:
    """Return the farthest of what the file systems lie on."""
    if any(one.network_type for one in filesystems):
        return Storage.NETWORK
    if any(one.network_device for one in filesystems):
        return Storage.NETWORK_DEVICE
    if filesystems and not any(one.known for one in filesystems):
        return Storage.UNKNOWN
    return Storage.LOCAL
