"""Estimates, with their intervals, for files whose exact residency this process may not know."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.pagecache import PAGE_BYTES, Method, Sample
from prefetch_cli.plan.extents import Extent
from prefetch_cli.residency import timed
from prefetch_cli.residency.draw import Page, pages_of
from prefetch_cli.residency.interval import Interval, interval
from prefetch_cli.residency.timed import Timed
from prefetch_cli.residency.verdict import Verdict

# How to estimate one file. Each takes a descriptor, ranges of the numbers of its pages, and how
# many of these to look at, and returns None where it cannot tell. They are tried in the order of
# Method. Where none of them knows every file, all are timed.
SAMPLERS: Mapping[Method, Callable[[int, Sequence[range], int], Sample | None]] = {
    Method.NOWAIT: pagecache.sample,
}

_SAMPLED_PAGES = 1024  # of a checkpoint: each sampled page may start a read of its own
_ERROR = 0.05  # of the intervals: 95 %


class Sampled(NamedTuple):
    """How far an estimate can be trusted: with 95 % of all samples the truth lies between."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int
    pages: int  # that were looked at
    drawn: frozenset[Page] = frozenset()  # by a timed sample


class Estimate(NamedTuple):
    """What samples say of some files."""

    method: Method
    sampled: Sampled | None  # None where no method can tell
    resident_by_file: Mapping[int, int] = MappingProxyType({})  # bytes of the extents
    errors: Mapping[int, OSError] = MappingProxyType({})  # of files that cannot be opened


def estimate(
    files: Sequence[File],
    extents: Sequence[Extent],
    *,
    monitor: Monitor,
    avoid: Collection[Page] = (),
) -> Estimate:
    """Return how much of the extents is resident, as far as samples can tell."""
    wanted: dict[int, int] = defaultdict(int)
    pages: dict[int, list[range]] = defaultdict(list)
    for extent, numbers in zip(extents, pages_of(extents, PAGE_BYTES), strict=True):
        wanted[extent.file] += extent.length
        pages[extent.file].append(numbers)
    found = _by_file(files, wanted, pages, monitor)
    if found.sampled is not None:
        return found
    clocked = timed.estimate(files, extents, monitor=monitor, avoid=avoid)
    return found if clocked is None else _timed(clocked, wanted)


def _by_file(
    files: Sequence[File],
    wanted: Mapping[int, int],
    ranges: Mapping[int, Sequence[range]],
    monitor: Monitor,
) -> Estimate:
    total_bytes = sum(wanted.values())
    methods: list[Method] = []
    found: dict[int, Sample] = {}
    errors: dict[int, OSError] = {}
    for file in wanted:
        pages = max(1, _SAMPLED_PAGES * wanted[file] // max(1, total_bytes))
        try:
            with monitor.waiting(files[file].path):
                sampled = _sample(files[file].path, ranges[file], pages)
        except OSError as error:
            errors[file] = error
            continue
        if sampled is None:
            return Estimate(Method.UNKNOWN, None, errors=errors)
        methods.append(sampled[0])
        found[file] = sampled[1]
    hits = sum(one.hits for one in found.values())
    pages = sum(one.pages for one in found.values())
    size_bytes = sum(wanted[file] for file in found)
    of = max(pages, -(-size_bytes // PAGE_BYTES))
    return Estimate(
        method=max(methods, key=list(Method).index, default=Method.NOWAIT),
        sampled=_in_bytes(
            interval(hits, hits, pages, of, _ERROR), of, hits / max(1, pages), size_bytes, pages
        ),
        resident_by_file={
            file: wanted[file] * one.hits // max(1, one.pages) for file, one in found.items()
        },
        errors=errors,
    )


def _sample(path: str, ranges: Sequence[range], pages: int) -> tuple[Method, Sample] | None:
    descriptor = open_to_read(path)
    try:
        for method in Method:
            sampler = SAMPLERS.get(method)
            sample = None if sampler is None else sampler(descriptor, ranges, pages)
            if sample is not None:
                return method, sample
        return None
    finally:
        close(descriptor)


def _timed(found: Timed, wanted: Mapping[int, int]) -> Estimate:
    hits = Counter(page.file for page, one in found.found.items() if one is Verdict.HIT)
    pages = Counter(page.file for page in found.found)
    # Files without a page in the sample are like the others, as far as we know.
    rate = hits.total() / max(1, pages.total())
    size_bytes = sum(length for file, length in wanted.items() if file not in found.errors)
    return Estimate(
        method=Method.TIMED,
        sampled=_in_bytes(
            found.resident,
            found.pages,
            found.counts.likely,
            size_bytes,
            found.counts.pages,
            frozenset(found.found),
        ),
        resident_by_file={
            file: int(length * (hits[file] / pages[file] if pages[file] else rate))
            for file, length in wanted.items()
            if file not in found.errors
        },
        errors=found.errors,
    )


def _in_bytes(
    resident: Interval,
    of: int,
    likely: float,
    size_bytes: int,
    pages: int,
    drawn: frozenset[Page] = frozenset(),
) -> Sampled:
    of = max(1, of)
    low, high = resident.low * size_bytes // of, -(-resident.high * size_bytes // of)
    return Sampled(
        low_bytes=low,
        likely_bytes=min(max(int(likely * size_bytes), low), high),
        high_bytes=high,
        pages=pages,
        drawn=drawn,
    )
