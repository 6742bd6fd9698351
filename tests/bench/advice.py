"""Which flags to use, given what each combination reached: pure functions."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.pieces import DEFAULT, GIB, Combination
from tests.bench.throughput import GB


@dataclass(frozen=True)
class Sample:
    """One piece read by one combination; `error` says why it does not count, or is None."""

    combination: Combination
    round: int  # from 1
    size_bytes: int
    wall_seconds: float
    mapping_seconds: float | None  # of MAP_POPULATE behind it; None: it cannot be mapped
    cpu_seconds: float  # of this process, all threads, without mapping
    resident_share: float | None  # of the piece afterwards, 0 to 1; None: unknown
    engine: str  # as used: another if the requested one was refused
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """One combination's pieces: medians, with the slowest and fastest.

    The rates count reading and mapping: whoever waits for a server waits for both.
    """

    combination: Combination
    runs: int
    gb_per_second: float
    gb_per_second_min: float
    gb_per_second_max: float
    mapping_ms_per_gib: float | None
    cpu_seconds_per_gb: float
    resident_share: float | None  # the smallest of all
    engines: tuple[str, ...]  # as used


@dataclass(frozen=True)
class Advice:
    """The flags to use: none if the defaults are as good."""

    combination: Combination
    message: str

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags for the tool's command line."""
        return self.combination.flags


def rows(samples: Sequence[Sample]) -> list[Row]:
    """Return one row for each combination with a sample that counts, fastest first."""
    found = []
    for combination in dict.fromkeys(sample.combination for sample in samples):
        own = [one for one in samples if one.combination == combination and one.error is None]
        if not own:
            continue
        rates = [
            one.size_bytes / GB / (one.wall_seconds + (one.mapping_seconds or 0)) for one in own
        ]
        mapping = [
            1000 * one.mapping_seconds * GIB / one.size_bytes
            for one in own
            if one.mapping_seconds is not None
        ]
        shares = [one.resident_share for one in own if one.resident_share is not None]
        found.append(
            Row(
                combination=combination,
                runs=len(own),
                gb_per_second=statistics.median(rates),
                gb_per_second_min=min(rates),
                gb_per_second_max=max(rates),
                mapping_ms_per_gib=statistics.median(mapping) if mapping else None,
                cpu_seconds_per_gb=statistics.median(
                    one.cpu_seconds / (one.size_bytes / GB) for one in own
                ),
                resident_share=min(shares, default=None),
                engines=tuple(sorted({one.engine for one in own})),
            )
        )
    return sorted(found, key=lambda row: row.gb_per_second, reverse=True)


def advise(found: Sequence[Row]) -> Advice | None:
    """Return the fewest flags among the combinations as fast as the best, within the noise.

    The defaults need no flags. None if they could not be measured, or nothing else was.
    """
    best = max(found, key=lambda row: row.gb_per_second, default=None)
    own = next((row for row in found if row.combination == DEFAULT), None)
    if best is None or own is None or len(found) == 1:
        return None
    as_good = [row for row in found if row.gb_per_second_max >= best.gb_per_second_min]
    chosen = min(as_good, key=lambda row: (len(row.combination.flags), row.cpu_seconds_per_gb))
    if chosen is own:
        message = f"the defaults are as good as any flags here: {_rate(own)}"
        if best is not own:
            message += (
                f"; no better beyond the noise: {' '.join(best.combination.flags)}, {_rate(best)}"
            )
    else:
        ratio = chosen.gb_per_second / own.gb_per_second
        message = (
            f"use {' '.join(chosen.combination.flags)}: {_rate(chosen)}, {ratio:.2f} x the defaults"
        )
    return Advice(chosen.combination, message)


def _rate(row: Row) -> str:
    return (
        f"{row.gb_per_second:.2f} GB/s ({row.gb_per_second_min:.2f} to {row.gb_per_second_max:.2f})"
    )
