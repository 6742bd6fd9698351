"""The stages in their order: the table of contents of this package."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.words import Action, Overrule, Split
from prefetch_cli.checkpoint import resolve
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.libraries import gather
from prefetch_cli.libraries.gather import Located
from prefetch_cli.linux import memory, mounts, priority, readahead
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan import ranks
from prefetch_cli.plan.decision import Budget, Facts, Verdict, budget, decide
from prefetch_cli.plan.extents import Extent, head, whole, within
from prefetch_cli.plan.share import Share, partition
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Medium, Plan, Target
from prefetch_cli.residency import doubt, evict
from prefetch_cli.residency.survey import Survey, survey
from prefetch_cli.run.options import Options
from prefetch_cli.run.outcome import Report

_THREADS_FOR_ONE = 4  # that look at and read small files over a network

Value = TypeVar("Value")
Publish = Callable[[Report], None]


def run(
    options: Options,
    environ: Mapping[str, str],
    monitor: Monitor,
    stop: Stop,
    publish: Publish,
) -> None:
    """Publish the report anew after each stage; the last one is whole.

    Raises PrefetchError where the run cannot go on. Touches the storage: not for a thread that
    must never hang.
    """
    report = Report(options.action, options.min_resident_percent)

    if options.background:
        report = _give_way(report)
    report = _resolve(report, options, environ, monitor)
    located = _locate(options, environ, monitor, stop)
    report = _inspect(report, options, monitor)
    report = _partition(report, options, environ)
    publish(report)
    report = _survey(report, options, monitor)
    if options.action in {Action.PREFETCH, Action.DRY_RUN}:
        report = _decide(report, options.overrule)
        report = _plan(report, options)
    publish(report)
    if located is not None:
        report = _with_libraries(report, located, options, monitor)
        publish(report)
    if options.action is Action.DRY_RUN:
        return
    if options.action is Action.EVICT:
        report = _of_both(report, lambda part: _evict(part, options, monitor, stop))
    else:
        _announce(report, monitor)
        report = _of_libraries(report, lambda part: _read(part, monitor, stop))
        publish(report)
        report = _read(report, monitor, stop)
        publish(report)
    publish(_of_both(report, lambda part: _prove(part, options, monitor, stop)))


def _give_way(report: Report) -> Report:
    refused = priority.give_way()
    return report if refused is None else replace(report, warnings=(*report.warnings, refused))


def _resolve(
    report: Report, options: Options, environ: Mapping[str, str], monitor: Monitor
) -> Report:
    found = resolve.resolve(options.request, environ, monitor, options.threads)
    return replace(report, checkpoint=found, warnings=(*report.warnings, *found.warnings))


def _locate(
    options: Options, environ: Mapping[str, str], monitor: Monitor, stop: Stop
) -> Located | None:
    # What was named wrongly is said before anything is read; the many files are found later,
    # when a COMMAND has started that should not wait for them.
    if options.libraries is None:
        return None
    return gather.locate(options.libraries, environ, monitor, stop)


def _inspect(report: Report, options: Options, monitor: Monitor) -> Report:
    measured = memory.measure()
    return replace(
        report,
        filesystems=mounts.inspect([file.real_path for file in _files(report)], monitor),
        memory=measured,
        budget=budget(
            measured.available_bytes,
            measured.limited_by,
            options.ram_threshold_percent,
            options.max_bytes,
        ),
    )


def _partition(report: Report, options: Options, environ: Mapping[str, str]) -> Report:
    rank, world_size, named = options.rank, options.world_size, None
    if rank is None or world_size is None:
        found = ranks.detect(environ)
        rank, world_size, named = found.rank, found.world_size, found.launcher
        if found.warning is not None:
            report = replace(report, warnings=(*report.warnings, found.warning))
    share = partition(
        [file.size_bytes for file in _files(report)],
        [file.weight for file in _files(report)],
        rank=rank,
        world_size=world_size,
        split=options.split,
        block_size_bytes=options.block_size_bytes,
    )
    return replace(report, share=share, launcher=named)


def _survey(report: Report, options: Options, monitor: Monitor) -> Report:
    return replace(report, before=_look(report, options, monitor, settled=True))


def _decide(report: Report, overrule: Overrule) -> Report:
    share, before, limit = _share(report), _before(report), _budget(report)
    on_storage = _on_storage(report)
    here = {extent.file for extent in share.extents}
    facts = Facts(
        total_bytes=sum(_files(report)[file].size_bytes for file in on_storage),
        share_bytes=share.size_bytes,
        resident_bytes=before.exact_bytes,
        in_memory=not here & on_storage.keys(),
        bypasses_cache=all(found.bypasses_cache for found in on_storage.values()),
        network=any(found.network for found in on_storage.values()),
    )
    decision = decide(facts, limit, overrule)
    warnings = report.warnings
    if decision.warning:
        warnings = (*warnings, decision.message)
    return replace(report, decision=decision, warnings=warnings)


def _plan(report: Report, options: Options, taken_bytes: int = 0) -> Report:
    """Add the plan, `taken_bytes` of whose limit something else takes."""
    share, before, decision = _share(report), _before(report), report.decision
    on_storage = _on_storage(report)
    extents: tuple[Extent, ...] = ()
    cut = None
    if decision is not None and decision.action is not Verdict.SKIP:
        limit_bytes = decision.limit_bytes
        if limit_bytes is None and taken_bytes > 0:
            limit_bytes = options.max_bytes  # it is never passed, by whatever is read
        if limit_bytes is not None:
            cut = _cut(report, max(0, limit_bytes - taken_bytes), on_storage)
        missing = (extent for extent in before.missing if extent.file in on_storage)
        extents = tuple(within(missing, cut))
    meant = sum(extent.length for extent in within(share.extents, cut))
    plan = Plan(
        extents=extents,
        cut=cut,
        already_resident_bytes=meant - sum(extent.length for extent in extents),
        threads=options.threads,
        block_size_bytes=options.block_size_bytes,
        engine=options.engine,
        max_bytes_per_second=options.max_bytes_per_second,
        yielding=options.background or options.beside_command,
    )
    return replace(report, plan=plan)


def _cut(report: Report, limit_bytes: int, on_storage: Mapping[int, FileSystem]) -> Extent | None:
    # The first bytes of the whole checkpoint, not of the share: the ranks of a node fill one
    # page cache, and together they keep its head.
    sizes = [
        file.size_bytes if number in on_storage else 0 for number, file in enumerate(_files(report))
    ]
    return head(sizes, limit_bytes, PAGE_BYTES)


def _with_libraries(report: Report, located: Located, options: Options, monitor: Monitor) -> Report:
    """Add the libraries, which have been through all stages up to the plan."""
    small = _for_small_files(options, located, monitor)
    found = gather.gather(located, monitor, small.threads)
    known = {(file.device, file.inode) for file in _files(report)}
    files = tuple(file for file in found.files if (file.device, file.inode) not in known)
    part = Report(
        options.action,
        checkpoint=Checkpoint((), files, found.failed, ()),
        names=found.names,
        warnings=found.warnings,
    )
    part = _inspect(part, small, monitor)
    part = replace(part, share=_library_share(files, _share(report), small))
    part = _survey(part, small, monitor)
    taken_bytes = 0
    if options.action in {Action.PREFETCH, Action.DRY_RUN}:
        # Who names them wants them read, as far as they fit.
        part = _decide(part, Overrule.FORCE | Overrule.PARTIAL)
        # It is these that COMMAND waits for: nothing of them gives way to it.
        part = _plan(part, replace(small, beside_command=False))
        everything = whole([file.size_bytes for file in files], range(len(files)))
        kept = within(everything, _filled(part.plan).cut)
        taken_bytes = sum(extent.length for extent in kept)
        report = _plan(report, options, taken_bytes)
    return replace(report, libraries=part, warnings=(*report.warnings, *part.warnings))


def _for_small_files(options: Options, located: Located, monitor: Monitor) -> Options:
    """Return the options for many small files: where each takes round trips, more wait at once."""
    far = any(found.far for found in mounts.inspect(gather.places(located), monitor))
    return replace(options, threads=_THREADS_FOR_ONE * options.threads) if far else options


def _library_share(files: Sequence[File], share: Share, options: Options) -> Share:
    return partition(
        [file.size_bytes for file in files],
        [False] * len(files),
        rank=share.rank,
        world_size=share.world_size,
        split=Split.FILES,
        block_size_bytes=options.block_size_bytes,
    )


def _of_libraries(report: Report, stage: Callable[[Report], Report]) -> Report:
    """Return the report with its libraries one stage further."""
    before = report.libraries
    if before is None:
        return report
    after = stage(before)
    news = after.warnings[len(before.warnings) :]
    return replace(report, libraries=after, warnings=(*report.warnings, *news))


def _of_both(report: Report, stage: Callable[[Report], Report]) -> Report:
    return stage(_of_libraries(report, stage))


def _announce(report: Report, monitor: Monitor) -> None:
    plans = [_filled(one.plan) for one in (report.libraries, report) if one and _is_read(one)]
    if len(plans) > 1:
        monitor.announce(
            sum(plan.size_bytes for plan in plans), sum(plan.files for plan in plans), len(plans)
        )


def _is_read(report: Report) -> bool:
    return report.decision is not None and report.decision.action is not Verdict.SKIP


def _read(report: Report, monitor: Monitor, stop: Stop) -> Report:
    if not _is_read(report) or report.plan is None or report.filesystems is None:
        return report
    media = {found: _medium(found) for found in set(report.filesystems)}
    targets = [
        Target(file.path, media[found])
        for file, found in zip(_files(report), report.filesystems, strict=True)
    ]
    return replace(report, result=job.read(report.plan, targets, monitor, stop))


def _medium(found: FileSystem) -> Medium:
    return Medium(
        far=found.far,
        step_bytes=readahead.read_step_bytes(found),
        reads_ahead_little=readahead.reads_ahead_little(found),
    )


def _evict(report: Report, options: Options, monitor: Monitor, stop: Stop) -> Report:
    extents = _share(report).extents
    done = evict.evict(_files(report), extents, threads=options.threads, monitor=monitor, stop=stop)
    return replace(report, eviction=done)


def _prove(report: Report, options: Options, monitor: Monitor, stop: Stop) -> Report:
    if stop.interrupted:
        return report  # whoever interrupts does not wait for a proof
    result = report.result
    if result is None and report.eviction is None:
        return replace(report, after=report.before)  # nothing has changed
    if result is not None and result.bytes_read > 0:
        stop.pause(_late_close_seconds(report))
        if stop.interrupted:
            return report
    settled = result is None or result.complete
    report = replace(report, after=_look(report, options, monitor, settled=settled))
    warning = _doubt(report, cut_short=stop.requested)
    return report if warning is None else replace(report, warnings=(*report.warnings, warning))


def _late_close_seconds(report: Report) -> float:
    read = {extent.file for extent in _filled(report.plan).extents}
    found = (one for file, one in _on_storage(report).items() if file in read)
    return max((one.late_close_seconds for one in set(found)), default=0.0)


def _doubt(report: Report, *, cut_short: bool) -> str | None:
    result, before, after = report.result, _before(report), report.after
    if result is None or after is None:
        return None
    paths = {path for path, _ in report.failed}
    failed = {number for number, file in enumerate(_files(report)) if file.path in paths}
    extents = _filled(report.plan).extents
    planned = sum(extent.length for extent in extents if extent.file not in failed)
    lost = sum(extent.length for extent in extents if extent.file in failed)
    # How much was read of the files that failed is not known: where nothing cut the run short, all
    # that is over, since the others were read to their ends; else at most all that was planned.
    read = max(0, result.bytes_read - lost) if cut_short else min(result.bytes_read, planned)
    share = sum(extent.length for extent in _share(report).extents if extent.file not in failed)
    return doubt.doubt(
        read_bytes=read,
        before_bytes=before.resident_bytes_without(failed) if before.method.exact else None,
        after_bytes=after.resident_bytes_without(failed),
        share_bytes=share,
        filesystems=list(_on_storage(report).values()),
        memory=_filled(report.memory),
    )


def _look(report: Report, options: Options, monitor: Monitor, *, settled: bool) -> Survey:
    return survey(
        _files(report),
        _share(report).extents,
        threads=options.threads if report.plan is None else report.plan.threads,
        monitor=monitor,
        reads_in_flight=not settled,
    )


def _on_storage(report: Report) -> dict[int, FileSystem]:
    """Return the file systems of the files, by their place, that are not in memory anyway."""
    found = enumerate(report.filesystems or ())
    return {number: one for number, one in found if not one.in_memory}


# Each of these is asked for by a stage behind the one that fills it in.
def _files(report: Report) -> tuple[File, ...]:
    return _filled(report.checkpoint).files


def _share(report: Report) -> Share:
    return _filled(report.share)


def _before(report: Report) -> Survey:
    return _filled(report.before)


def _budget(report: Report) -> Budget:
    return _filled(report.budget)


def _filled(value: Value | None) -> Value:
    assert value is not None, "a stage before this one fills it in"  # noqa: S101
    return value
