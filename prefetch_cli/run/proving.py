"""What of a share is resident, and whether what was read stayed, or what was dropped is gone."""

import time
from collections.abc import Collection, Sequence

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.plan.decision import Reason
from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency import doubt, evict, survey
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.states import Decided, Evicted, Looked, Proven, Read, Wanted

_LOOKS_AGAIN = 2  # where a sample sees that something stayed


def survey_share(
    wanted: Wanted,
    monitor: Monitor,
    *,
    reads_in_flight: bool = False,
    before: Survey | None = None,
) -> Survey:
    """Return how much of the share is resident; a sample avoids the pages of one `before`."""
    files, extents = wanted.found.files, wanted.share.extents
    found = survey.survey(
        files,
        extents,
        threads=wanted.threads.first,
        monitor=monitor,
        reads_in_flight=reads_in_flight,
        avoid=() if before is None or before.sampled is None else before.sampled.drawn,
    )
    # What left tmpfs lies in swap, and what cachestat counts of DAX was never in the cache.
    return found if len(wanted.on_storage) == len(files) else found._replace(reclaimed_by_file={})


def prove_evicted(
    wanted: Wanted, looked: Looked, evicted: Evicted, monitor: Monitor, stop: Stop
) -> tuple[Evicted, Proven]:
    """Return what is resident behind an eviction, and what that says of it.

    What a sample sees once is dropped and looked at again: one in twenty is wrong, and the first
    try only starts the write-back of dirty pages.
    """
    began = time.monotonic()
    files, first = wanted.found.files, evicted.eviction
    after = survey_share(wanted, monitor, before=looked.survey)
    for _ in range(_LOOKS_AGAIN):
        left = evict.stayed(first, after)
        if not left or stop.requested:
            break
        extents = [extent for extent in wanted.share.extents if extent.file in left]
        evict.evict(files, extents, threads=wanted.threads.first, monitor=monitor, stop=stop)
        after = survey_share(wanted, monitor, before=after)
    seconds = first.elapsed_seconds + time.monotonic() - began
    done = evict.concluded(files, first, after, seconds)
    return Evicted(wanted.kind, done), Proven(wanted.kind, after)


def prove_read(
    wanted: Wanted, looked: Looked, decided: Decided, read: Read, monitor: Monitor, stop: Stop
) -> Proven | None:
    """Return what stayed of what was read, or None where someone interrupts the wait for it.

    What a window drops behind the loader is missed by nobody.
    """
    if decided.decision.reason is Reason.WINDOW:
        return Proven(wanted.kind, survey_share(wanted, monitor, before=looked.survey))
    if read.result.bytes_read > 0:
        numbers = {extent.file for extent in decided.plan.extents}
        used = {one for number, one in wanted.on_storage.items() if number in numbers}
        stop.pause(max((one.late_close_seconds for one in used), default=0.0))
        if stop.interrupted:
            return None
    after = survey_share(
        wanted, monitor, reads_in_flight=not read.result.complete, before=looked.survey
    )
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
    done = max(0, done - _read_again(looked, decided, failed))
    return doubt.doubt(
        read_bytes=done,
        before_bytes=before.resident_bytes_without(failed) if before.method.exact else None,
        after_bytes=_most_resident_bytes(after, failed, wanted),
        sampled_pages=None if after.sampled is None else after.sampled.pages,
        reclaimed_bytes=doubt.reclaimed_since(
            before, after, failed=failed, whole=result.complete and decided.plan.cut is None
        ),
        share_bytes=_bytes_without(failed, wanted.share.extents),
        filesystems=list(wanted.on_storage.values()),
        memory=wanted.memory,
    )


def _read_again(looked: Looked, decided: Decided, failed: Collection[int]) -> int:
    """Return how much of the plan was resident before, because it is read to be hashed."""
    hashed = decided.plan.digests.keys() - failed
    planned, missing = (
        sum(extent.length for extent in extents if extent.file in hashed)
        for extents in (decided.plan.extents, looked.survey.missing)
    )
    return planned - missing


def _most_resident_bytes(found: Survey, failed: Collection[int], wanted: Wanted) -> int | None:
    if found.sampled is None:
        return found.resident_bytes_without(failed)
    return min(found.sampled.high_bytes, _bytes_without(failed, wanted.share.extents))


def _bytes_without(files: Collection[int], extents: Sequence[Extent]) -> int:
    return sum(extent.length for extent in extents if extent.file not in files)
