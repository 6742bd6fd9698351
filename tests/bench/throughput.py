"""Rounds of cold runs over one layout, and their summary."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.bench.contenders import Contender, Role, Timed
from tests.bench.run import run_cold
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint, write_streamed

GB = 1e9  # rates are decimal, as disks are sold
LAYOUTS = {"4-files": 4, "1-file": 1}

Say = Callable[[str], None]
Entrant = TypeVar("Entrant")


@dataclass(frozen=True)
class Sample:
    """One run of one contender; `error` says why it does not count, or is None."""

    contender: str
    role: Role
    round: int  # from 1
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    resident_share: float  # of the weight files afterwards, by the oracle, 0 to 1
    reading_seconds: float | None  # without start-up and exit, if the contender reports it
    note: str
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """One contender's runs: medians, with the fastest and slowest run."""

    contender: str
    role: Role
    runs: int
    wall_seconds: float
    wall_seconds_min: float
    wall_seconds_max: float
    gb_per_second: float
    gb_per_second_min: float
    gb_per_second_max: float
    cpu_seconds_per_gb: float
    peak_rss_bytes: int  # the largest of all runs
    resident_share: float  # the smallest of all runs
    reading_gb_per_second: float | None  # without start-up and exit, if reported
    note: str


@dataclass(frozen=True)
class LayoutResult:
    """Everything measured on one layout."""

    layout: str
    files: int
    weight_bytes: int
    samples: tuple[Sample, ...]
    summaries: tuple[Summary, ...]  # of contenders with a run that counts

    def find(self, name: str) -> Summary | None:
        """Return the summary of the contender with this name, None if it did not run."""
        return next((one for one in self.summaries if one.contender == name), None)

    def best_peer(self) -> Summary | None:
        """Return the peer with the highest median throughput, None if no peer ran."""
        peers = [one for one in self.summaries if one.role is Role.PEER]
        return max(peers, key=lambda one: one.gb_per_second, default=None)


def measure_layout(
    layout: str,
    directory: str,
    contenders: Sequence[Contender],
    say: Say,
    *,
    size_bytes: int,
    rounds: int,
) -> LayoutResult:
    """Return what each contender reached on a checkpoint of `size_bytes` in this layout.

    Every run starts with the checkpoint proven cold. Raises oracle.OracleError if it cannot
    be made cold.
    """
    count = LAYOUTS[layout]
    say(f"{layout}: writing {size_bytes / GB:.2f} GB")
    checkpoint = write_streamed(
        os.path.join(directory, layout), shard_bytes=[size_bytes // count] * count
    )
    samples = []
    for number in range(1, rounds + 1):
        for contender in in_turn(contenders, number, rounds):
            sample = _measure(contender, checkpoint, number)
            samples.append(sample)
            say(f"{layout}: round {number}/{rounds}  {_line(sample, checkpoint)}")
    return LayoutResult(
        layout=layout,
        files=count,
        weight_bytes=checkpoint.weight_bytes,
        samples=tuple(samples),
        summaries=tuple(summarise(samples, contenders, checkpoint.weight_bytes)),
    )


def in_turn(contenders: Sequence[Entrant], number: int, rounds: int) -> list[Entrant]:
    """Return one round's order: no contender always goes first or follows the same neighbour."""
    step = max(1, len(contenders) // max(1, rounds))
    shift = (number - 1) * step % max(1, len(contenders))
    order = [*contenders[shift:], *contenders[:shift]]
    return order if number % 2 else [*order[:1], *order[:0:-1]]


def summarise(
    samples: Sequence[Sample], contenders: Sequence[Contender], weight_bytes: int
) -> list[Summary]:
    """Return one summary for each contender with a run that counts, in the order given."""
    summaries = []
    gigabytes = weight_bytes / GB
    for contender in contenders:
        own = [one for one in samples if one.contender == contender.name and one.error is None]
        if not own:
            continue
        walls = [one.wall_seconds for one in own]
        readings = [one.reading_seconds for one in own if one.reading_seconds]
        median = statistics.median(walls)
        summaries.append(
            Summary(
                contender=contender.name,
                role=contender.role,
                runs=len(own),
                wall_seconds=median,
                wall_seconds_min=min(walls),
                wall_seconds_max=max(walls),
                gb_per_second=gigabytes / median,
                gb_per_second_min=gigabytes / max(walls),
                gb_per_second_max=gigabytes / min(walls),
                cpu_seconds_per_gb=statistics.median(one.cpu_seconds for one in own) / gigabytes,
                peak_rss_bytes=max(one.peak_rss_bytes for one in own),
                resident_share=min(one.resident_share for one in own),
                reading_gb_per_second=(
                    gigabytes / statistics.median(readings) if readings else None
                ),
                note=", ".join(sorted({one.note for one in own} - {""})),
            )
        )
    return summaries


def _measure(contender: Contender, checkpoint: BuiltCheckpoint, number: int) -> Sample:
    usage = run_cold(
        contender.command(checkpoint),
        checkpoint.files,
        input_text=contender.input_text(checkpoint),
        discard_output=contender.discards_output,
    )
    resident_share = oracle.resident_bytes(checkpoint.weight_files) / checkpoint.weight_bytes
    error, timed = usage.error, Timed(usage.wall_seconds)
    if error is None:
        try:
            timed = contender.timed(usage, checkpoint)
        except (ValueError, KeyError, TypeError, json.JSONDecodeError, ZeroDivisionError) as cause:
            error = f"{type(cause).__name__}: {cause}"
    return Sample(
        contender=contender.name,
        role=contender.role,
        round=number,
        wall_seconds=timed.wall_seconds,
        cpu_seconds=usage.cpu_seconds,
        peak_rss_bytes=usage.peak_rss_bytes,
        resident_share=min(1.0, resident_share),  # the last page may reach beyond the file
        reading_seconds=timed.reading_seconds,
        note=timed.note,
        error=error,
    )


def _line(sample: Sample, checkpoint: BuiltCheckpoint) -> str:
    if sample.error is not None:
        return f"{sample.contender.strip():16} failed: {sample.error}"
    rate = checkpoint.weight_bytes / GB / sample.wall_seconds
    return (
        f"{sample.contender.strip():16} {sample.wall_seconds:7.3f} s  {rate:6.2f} GB/s  "
        f"{100 * sample.resident_share:5.1f} % resident  {sample.note}"
    )
