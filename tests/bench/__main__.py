"""Measure prefetch-cli beside its peers: `python -m tests.bench --help`."""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from prefetch_cli.base.amounts import format_size, parse_size
from tests.bench import (
    after,
    environment,
    figures,
    overlap,
    scale,
    spared,
    throughput,
    trial,
    verify,
)
from tests.bench.contenders import Contender, contenders, missing_programs
from tests.bench.machine import machine_shape
from tests.bench.run import ROOT
from tests.bench.table import Report, as_json, print_report
from tests.bench.throttle import ThrottleError, own_disk
from tests.helpers import oracle

PARTS = (
    "throughput",
    "after",
    "memory",
    "resident",
    "start",
    "dry-run",
    "scale",
    "spared",
    "trial",
    "verify",
)
# Only on request: they install a server and its imports, about 1 GB, below build/.
SERVER_PARTS = ("overlap", "libraries")
_RATE = 400 << 20  # what one of many clients of a network share gets
_SMALLEST_BYTES = 128 << 20  # a smaller run ends before fio's jobs have begun


@dataclass(frozen=True)
class Options:
    """What to measure, where, and how often."""

    size_bytes: int  # weights in each layout
    resident_bytes: int
    rounds: int
    parts: tuple[str, ...]
    layouts: tuple[str, ...]
    contenders: tuple[str, ...]  # substrings of names; none means all
    directory: str
    read_ahead_bytes: int | None  # of a disk made for throughput; None: use the directory's disk
    json_path: str
    rates: tuple[int, ...]  # bytes a second; the disk is also measured without a limit
    torch: str  # what pip installs for the server


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if everything asked for ran, 1 if something failed.

    A missed target is a finding, not a failure.
    """
    options = _parse(arguments)
    chosen = list(_choose(options))
    missing = missing_programs(chosen)
    present = [contender for contender in chosen if contender.name not in missing]
    os.makedirs(options.directory, exist_ok=True)
    _check_room(options)
    machine = machine_shape(options.directory)
    if options.read_ahead_bytes is not None:
        window = format_size(options.read_ahead_bytes)
        machine["throughput"] = f"on a loop device there with a read-ahead of {window}"
    place = tempfile.mkdtemp(prefix="run-", dir=options.directory)
    try:
        layouts = list(_measure_layouts(options, place, present))
        found = list(_measure_figures(options, place, present, layouts))
        comparisons = list(_measure_server(options, place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found += overlap.overlap_figures([one for one in comparisons if one.find(overlap.PLAIN)])
    report = Report(machine, asdict(options), missing, layouts, found, comparisons)
    print_report(report)
    os.makedirs(os.path.dirname(options.json_path) or ".", exist_ok=True)
    with open(options.json_path, "w", encoding="utf-8") as file:
        file.write(as_json(report) + "\n")
    print(f"\nas JSON: {options.json_path}")
    failed = any(sample.error for result in layouts for sample in result.samples)
    failed |= any(one.error for comparison in comparisons for one in comparison.starts)
    failed |= any(not comparison.starts for comparison in comparisons)
    return int(failed or any(figure.value is None for figure in found))


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", type=_size, default="4GiB", help="of each layout (4GiB)")
    parser.add_argument(
        "--resident-size", type=_size, default="8000000000", help="of the second run (8 GB)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (5)")
    parser.add_argument(
        "--only",
        action="append",
        choices=(*PARTS, *SERVER_PARTS),
        help=f"this part; repeatable ({', '.join(PARTS)})",
    )
    parser.add_argument(
        "--layout", action="append", choices=list(throughput.LAYOUTS), help="repeatable"
    )
    parser.add_argument(
        "--contender", action="append", metavar="NAME", help="a part of its name; repeatable"
    )
    parser.add_argument(
        "--rate",
        action="append",
        type=_size,
        metavar="SIZE",
        help="a second of a slow disk, for overlap and libraries; repeatable (400MiB)",
    )
    parser.add_argument(
        "--torch", default=environment.TORCH, help=f"for pip, in the server ({environment.TORCH})"
    )
    build = os.path.join(ROOT, "build")
    parser.add_argument(
        "--directory", default=os.path.join(build, "bench"), help="on the disk to measure"
    )
    parser.add_argument(
        "--read-ahead",
        type=_size,
        metavar="SIZE",
        help="of a disk made for the throughput, as root; Linux' default is 128KiB",
    )
    parser.add_argument(
        "--json", default=os.path.join(build, "bench.json"), metavar="PATH", help="where to write"
    )
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {given.rounds}")
    if given.size < _SMALLEST_BYTES:
        parser.error(f"--size: expected at least {format_size(_SMALLEST_BYTES)}")
    return Options(
        size_bytes=given.size,
        resident_bytes=given.resident_size,
        rounds=given.rounds,
        parts=tuple(given.only or PARTS),
        layouts=tuple(given.layout or throughput.LAYOUTS),
        contenders=tuple(given.contender or ()),
        directory=os.path.abspath(given.directory),
        read_ahead_bytes=given.read_ahead,
        json_path=given.json,
        rates=tuple(given.rate or (_RATE,)),
        torch=given.torch,
    )


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choose(options: Options) -> Iterator[Contender]:
    for contender in contenders():
        wanted = any(part in contender.name for part in options.contenders)
        if wanted or not options.contenders:
            yield contender


def _check_room(options: Options) -> None:
    """Exit with one line if the disk or memory is too small for the measurements."""
    sizes = {
        "throughput": options.size_bytes,
        "after": options.size_bytes,
        "memory": min(options.size_bytes, figures.MEMORY_BYTES),
        "resident": options.resident_bytes,
        "overlap": options.size_bytes,
        "trial": options.size_bytes,
        "verify": options.size_bytes,
    }
    largest = max((size for part, size in sizes.items() if part in options.parts), default=0)
    for name, free in (
        ("disk", shutil.disk_usage(options.directory).free),
        ("memory", oracle.available_bytes()),
    ):
        if free < largest * 5 // 4:
            sys.exit(
                f"{name}: expected {format_size(largest * 5 // 4)} free, found "
                f"{format_size(free)}; give a smaller --size or --resident-size"
            )


def _measure_layouts(
    options: Options, place: str, present: Sequence[Contender]
) -> Iterator[throughput.LayoutResult]:
    if "throughput" not in options.parts:
        return
    window = options.read_ahead_bytes
    with contextlib.ExitStack() as stack:
        folder = place
        if window is not None:
            disk = own_disk(place, options.size_bytes, read_ahead_bytes=window)
            folder = stack.enter_context(disk)
        for layout in options.layouts:
            yield throughput.measure_layout(
                layout, folder, present, _say, size_bytes=options.size_bytes, rounds=options.rounds
            )
            shutil.rmtree(os.path.join(folder, layout))


def _measure_figures(
    options: Options,
    place: str,
    present: Sequence[Contender],
    layouts: Sequence[throughput.LayoutResult],
) -> Iterator[figures.Figure]:
    yield from figures.throughput_figures(layouts)
    if "after" in options.parts:
        yield from after.after_figures(
            place, present, options.size_bytes, _say, rounds=options.rounds
        )
        _clear(place)
    if "memory" in options.parts:
        yield from figures.memory_figures(place, options.size_bytes, _say)
        _clear(place)
    if "resident" in options.parts:
        yield from figures.resident_figures(place, options.resident_bytes, _say)
        _clear(place)
    if "start" in options.parts:
        yield from figures.start_figures(place, _say)
        _clear(place)
    if "dry-run" in options.parts:
        yield from figures.dry_run_figures(place, _say)
    if "scale" in options.parts:
        yield from scale.scale_figures(place, _say)
    if "spared" in options.parts:
        yield from spared.spared_figures(place, options.size_bytes, _say)
        _clear(place)
    if "trial" in options.parts:
        yield from trial.trial_figures(place, options.size_bytes, _say, rounds=options.rounds)
        _clear(place)
    if "verify" in options.parts:
        yield from verify.verify_figures(place, options.size_bytes, _say, rounds=options.rounds)


def _measure_server(options: Options, place: str) -> Iterator[overlap.Comparison]:
    if not set(SERVER_PARTS) & set(options.parts):
        return
    server = overlap.prepare(os.path.join(ROOT, "build", "bench-server"), _say, torch=options.torch)
    if isinstance(server, str):
        yield overlap.Comparison("a server's start", "nowhere", (), (server,))
        return
    if "overlap" in options.parts:
        yield from overlap.overlap_comparisons(
            place,
            server,
            _say,
            size_bytes=options.size_bytes,
            rounds=options.rounds,
            rates=options.rates,
        )
        _clear(place)
    if "libraries" in options.parts:
        yield from overlap.library_comparisons(
            server, _say, rounds=options.rounds, rates=options.rates
        )


def _clear(place: str) -> None:
    """Free one part's disk space before the next begins."""
    shutil.rmtree(place)
    os.mkdir(place)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (oracle.OracleError, ThrottleError) as cause:
        sys.exit(f"bench: {cause}")
    except KeyboardInterrupt:
        sys.exit(130)
