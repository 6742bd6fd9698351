"""The results on the user's own storage, as a table and as one JSON document."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.text import listing, printable
from tests.bench.advice import Advice, Row, Sample
from tests.bench.pieces import DEFAULT, GRIDS, Combination, Deal
from tests.bench.storage import Storage

_WIDTH = 100
_LITTLE_STAYED = 0.9


@dataclass(frozen=True)
class OwnReport:
    """Everything one run found; `deal` is None if too little is cold."""

    machine: Mapping[str, str]
    storage: Storage
    deal: Deal | None
    samples: Sequence[Sample]
    rows: Sequence[Row]
    advice: Advice | None
    message: str


def print_own(report: OwnReport) -> None:
    """Print the report to standard output, at most 100 columns wide."""
    console = Console(highlight=False)
    if not console.is_terminal or console.width > _WIDTH:
        console.width = _WIDTH
    shape = Table.grid(padding=(0, 2))
    for name, value in report.machine.items():
        shape.add_row(name, escape(value))
    console.print(shape)
    if report.deal is not None:
        console.print()
        console.print(_table(report.deal, report.rows))
        for text in _notes(report.deal, report):
            console.print(escape(text), style="dim")
    console.print(f"\n{escape(report.message)}", style="bold")


def as_json(report: OwnReport) -> str:
    """Return the report as one JSON document; sizes in bytes, times in seconds, GB decimal."""
    storage, deal = report.storage, report.deal
    document = {
        "machine": dict(report.machine),
        "checkpoint": {
            "argument": printable(storage.argument),
            "path": printable(storage.path),
            "filesystems": storage.types,
            "weight_bytes": storage.weight_bytes,
            "cold_bytes": storage.cold_bytes if storage.method.exact else None,
            "method": storage.method.value,
        },
        "deal": None
        if deal is None
        else {
            "combinations": len(deal.combinations),
            "rounds": deal.rounds,
            "piece_bytes": deal.piece_bytes,
            "total_bytes": deal.size_bytes,
        },
        "rows": [
            {**asdict(row), "combination": _combination(row.combination)} for row in report.rows
        ],
        "samples": [
            {**asdict(sample), "combination": _combination(sample.combination)}
            for sample in report.samples
        ],
        "flags": None if report.advice is None else list(report.advice.flags),
        "message": report.message,
    }
    return json.dumps(document, indent=2)


def _combination(one: Combination) -> dict[str, object]:
    return {
        "engine": one.engine.value,
        "threads": one.threads,
        "block_bytes": one.block_bytes,
        "flags": list(one.flags),
    }


def _table(deal: Deal, rows: Sequence[Row]) -> Table:
    table = Table(
        title=f"Cold pieces of {format_size(deal.piece_bytes)}, read and mapped, "
        f"median of {deal.rounds}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("engine", no_wrap=True)
    for heading in ("threads", "block", "GB/s", "min", "max", "map ms/GiB", "CPU s/GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        one = row.combination
        used = "" if row.engines == (one.engine.value,) else f" ({', '.join(row.engines)})"
        table.add_row(
            f"{one.engine.value}{used}",
            str(one.threads),
            format_size(one.block_bytes),
            f"{row.gb_per_second:.2f}",
            f"{row.gb_per_second_min:.2f}",
            f"{row.gb_per_second_max:.2f}",
            "" if row.mapping_ms_per_gib is None else f"{row.mapping_ms_per_gib:.1f}",
            f"{row.cpu_seconds_per_gb:.3f}",
            "" if one.flags else "the defaults",
            style="bold" if one == DEFAULT else "",
        )
    return table


def _notes(deal: Deal, report: OwnReport) -> Iterator[str]:
    """Yield the notes below the table."""
    everyone = GRIDS[0].combinations()
    missing = [one for one in everyone if one not in deal.combinations]
    if deal.grid in GRIDS and missing:
        yield (
            f"Left out: {len(missing)} of {len(everyone)} combinations, for which too little is "
            f"cold, or may be read (memory, --size): {_words(missing)}"
        )
    elif left_out := deal.grid.left_out():
        yield f"Left out, since a piece has no block for each thread: {_words(left_out)}"
    for sample in report.samples:
        if sample.error is not None:
            words = sample.combination.words
            yield f"Does not count: round {sample.round}, {words}: {sample.error}"
    shares = [row.resident_share for row in report.rows if row.resident_share is not None]
    if shares and min(shares) < _LITTLE_STAYED:
        yield (
            f"Only {100 * min(shares):.0f} % of a piece stayed in the page cache after it was read"
        )


def _words(combinations: Sequence[Combination]) -> str:
    return listing([f"({one.words})" for one in combinations], most=4)
