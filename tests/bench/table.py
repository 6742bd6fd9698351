"""The results as tables and as one JSON document."""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.contenders import VLLM, Role
from tests.bench.figures import MIB, Figure
from tests.bench.overlap import Comparison
from tests.bench.throughput import GB, LayoutResult, Summary

_WIDTH = 100
_ROLE_STYLES = {Role.OURS: "bold", Role.ENGINE: "", Role.PEER: "", Role.LIMIT: "dim"}


@dataclass(frozen=True)
class Report:
    """Everything one run of the bench found."""

    machine: Mapping[str, str]
    options: Mapping[str, object]
    missing: Mapping[str, str]  # why each contender did not run, by name
    layouts: Sequence[LayoutResult]
    figures: Sequence[Figure]
    comparisons: Sequence[Comparison] = ()


def print_report(report: Report) -> None:
    """Print the report to standard output, at most 100 columns wide."""
    console = Console(highlight=False)
    if not console.is_terminal or console.width > _WIDTH:
        console.width = _WIDTH
    shape = Table.grid(padding=(0, 2))
    for name, value in report.machine.items():
        shape.add_row(name, escape(value))
    console.print(shape)
    for result in report.layouts:
        console.print()
        console.print(_layout_table(result))
        for summary in result.summaries:
            if summary.note:
                console.print(f"  {escape(_footnote(summary))}", style="dim")
    for comparison in report.comparisons:
        console.print()
        console.print(_comparison_table(comparison))
        for note in comparison.notes:
            console.print(f"  {escape(note)}", style="dim")
    if report.figures:
        console.print()
        console.print(_figure_table(report.figures))
    for name, reason in report.missing.items():
        console.print(f"missing: {escape(name.strip())}: {escape(reason)}")
    for result in report.layouts:
        for sample in result.samples:
            if sample.error is not None:
                console.print(
                    f"failed: {result.layout}, round {sample.round}, "
                    f"{escape(sample.contender.strip())}: {escape(sample.error)}"
                )
    for comparison in report.comparisons:
        for start in comparison.starts:
            if start.error is not None:
                console.print(
                    f"failed: {escape(comparison.storage)}, {escape(start.name.strip())}: "
                    f"{escape(start.error)}"
                )


def as_json(report: Report) -> str:
    """Return the report as one JSON document; sizes in bytes, times in seconds, GB decimal."""
    document = {
        "machine": dict(report.machine),
        "options": dict(report.options),
        "missing": {name.strip(): reason for name, reason in report.missing.items()},
        "layouts": [asdict(result) for result in report.layouts],
        "comparisons": [asdict(comparison) for comparison in report.comparisons],
        "figures": [
            {**asdict(figure), "met": figure.met, "verdict": figure.verdict}
            for figure in report.figures
        ],
    }
    return json.dumps(document, indent=2, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"expected a value that JSON knows, found {type(value).__name__}")


def _layout_table(result: LayoutResult) -> Table:
    runs = max((summary.runs for summary in result.summaries), default=0)
    plural = "s" if result.files > 1 else ""
    table = Table(
        title=f"{result.files} file{plural}, {result.weight_bytes / GB:.2f} GB, cold, "
        f"median of {runs} (min to max)",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for heading in ("seconds", "GB/s", "x peer", "x vLLM", "CPU s/GB", "x vLLM"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("peak MiB", "resident"):
        table.add_column(heading, justify="right", no_wrap=True)
    peer, vllm = result.best_peer(), result.find(VLLM)
    peer_rate = peer.gb_per_second if peer else None
    vllm_rate, vllm_cpu = (vllm.gb_per_second, vllm.cpu_seconds_per_gb) if vllm else (None, None)
    for one in result.summaries:
        table.add_row(
            escape(one.contender),
            f"{one.wall_seconds:.2f} ({one.wall_seconds_min:.2f} to {one.wall_seconds_max:.2f})",
            f"{one.gb_per_second:.2f}",
            _ratio(one.gb_per_second, peer_rate),
            _ratio(one.gb_per_second, vllm_rate),
            f"{one.cpu_seconds_per_gb:.3f}",
            _ratio(one.cpu_seconds_per_gb, vllm_cpu),
            f"{one.peak_rss_bytes / MIB:.0f}",
            f"{100 * one.resident_share:.0f} %",
            style=_ROLE_STYLES[one.role],
        )
    return table


def _comparison_table(comparison: Comparison) -> Table:
    runs = max((start.runs for start in comparison.starts), default=0)
    table = Table(
        title=f"{comparison.title}, {comparison.storage}, cold, median of {runs} (min to max)",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for heading in ("seconds", "x first", "its imports", "its load"):
        table.add_column(heading, justify="right", no_wrap=True)
    first = comparison.starts[0].seconds if comparison.starts else None
    for start in comparison.starts:
        table.add_row(
            escape(start.name),
            f"{start.seconds:.2f} ({start.seconds_min:.2f} to {start.seconds_max:.2f})"
            if start.runs
            else "-",
            _ratio(start.seconds, first) if start.runs else "-",
            "" if start.import_seconds is None else f"{start.import_seconds:.2f}",
            "" if start.load_seconds is None else f"{start.load_seconds:.2f}",
        )
    return table


def _footnote(summary: Summary) -> str:
    rate = summary.reading_gb_per_second
    reading = "" if rate is None else f", {rate:.2f} GB/s while reading"
    return f"{summary.contender.strip()}: {summary.note}{reading}"


def _ratio(value: float, base: float | None) -> str:
    return f"{value / base:.2f}" if base else "-"


def _figure_table(figures: Sequence[Figure]) -> Table:
    table = Table(
        title="Figures", title_justify="left", title_style="bold", box=None, padding=(0, 1)
    )
    table.add_column("", overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("target", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for figure in figures:
        style = {True: "green", False: "red", None: "yellow"}[figure.met]
        measured = "-" if figure.value is None else f"{figure.value:.2f} {figure.unit}"
        table.add_row(
            f"{escape(figure.name)}\n  [dim]{escape(figure.detail)}[/]",
            measured,
            f"{figure.bound.value} {figure.target:g} {figure.unit}",
            f"[{style}]{figure.verdict}[/]",
        )
    return table
