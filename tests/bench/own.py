"""Find the best flags for your storage: `python -m tests.bench.own CHECKPOINT`.

Each combination of engine, threads and block size reads cold pieces of the checkpoint with the
tool's own reader; then the piece is mapped, as by a loader: how it was read decides how long
that takes. Nothing is evicted or written: a server may be using the checkpoint.
"""

import argparse
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import click
import psutil

from prefetch_cli.base.amounts import format_size, parse_size
from prefetch_cli.base.errors import ExitCode, PrefetchError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Engine
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX
from prefetch_cli.reading import job
from prefetch_cli.reading.plan import Plan, Threads
from tests.bench import pieces
from tests.bench.advice import Sample, advise, rows
from tests.bench.machine import machine_shape
from tests.bench.own_table import OwnReport, as_json, print_own
from tests.bench.pieces import GRIDS, Combination, Deal, Grid, Piece
from tests.bench.run import ROOT
from tests.bench.storage import Storage, look
from tests.bench.throughput import GB, in_turn
from tests.helpers import oracle

_LEAST_ROUNDS = 3
_TOUCHED_PER_READ = 3  # see tests.bench.run


@dataclass(frozen=True)
class Options:
    """What to measure, and how much of it may be read."""

    checkpoint: str
    grids: tuple[Grid, ...]
    rounds: int
    most_bytes: int
    json_path: str


class TooLittleError(Exception):
    """There is too little to measure; says why in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if the table could be filled, 1 if too little is cold to tell.

    Like the tool, it exits with 3 if there is no such checkpoint.
    """
    options = _parse(arguments)
    try:
        storage = look(options.checkpoint)
    except PrefetchError as error:
        _end(f"{error.message}{f'; {error.hint}' if error.hint else ''}", error.exit_code)
    except click.ClickException as error:  # of the environment: PREFETCH_CLI_RANK=x
        _end(f"{ENVIRONMENT_PREFIX}_*: {error.format_message()}", ExitCode.USAGE)
    machine = machine_shape(os.path.dirname(storage.files[0].real_path))
    try:
        dealt = _deal(storage, options)
    except TooLittleError as cause:
        _write(options, OwnReport(machine, storage, None, (), (), None, str(cause)))
        _end(str(cause), 1)
    _say(
        f"{format_size(storage.cold_bytes)} cold; {len(dealt.combinations)} combinations, "
        f"{dealt.rounds} pieces of {format_size(dealt.piece_bytes)} each, "
        f"{format_size(dealt.size_bytes)} in all"
    )
    samples = tuple(_measure(storage, dealt))
    found = rows(samples)
    advice = advise(found)
    message = "nothing to hold the defaults against" if advice is None else advice.message
    report = OwnReport(machine, storage, dealt, samples, tuple(found), advice, message)
    print_own(report)
    _write(options, report)
    print(f"\nas JSON: {options.json_path}")
    return int(advice is None)


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.own", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="as the tool takes it")
    parser.add_argument(
        "--size", type=_size, default="64GiB", help="read at most this much in all (64GiB)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="pieces of each combination (3)")
    parser.add_argument("--piece", type=_size, help="what one of them reads at a time, at least")
    parser.add_argument(
        "--engine",
        action="append",
        choices=[engine.value for engine in pieces.ENGINES],
        help="repeatable",
    )
    parser.add_argument("--threads", action="append", type=int, metavar="N", help="repeatable")
    parser.add_argument("--block-size", action="append", type=_size, help="repeatable")
    parser.add_argument(
        "--json",
        default=os.path.join(ROOT, "build", "bench-own.json"),
        metavar="PATH",
        help="where to write",
    )
    given = parser.parse_args(arguments)
    if given.rounds < _LEAST_ROUNDS:
        parser.error(f"--rounds: expected at least {_LEAST_ROUNDS}, found {given.rounds}")
    if given.threads is not None and min(given.threads) < 1:
        parser.error(f"--threads: expected at least 1, found {min(given.threads)}")
    return Options(
        checkpoint=given.checkpoint,
        grids=_grids(given),
        rounds=given.rounds,
        most_bytes=given.size,
        json_path=given.json,
    )


def _grids(given: argparse.Namespace) -> tuple[Grid, ...]:
    """Return the grids to try, largest first, or the one that the command line asks for."""
    if not (given.engine or given.threads or given.block_size or given.piece):
        return GRIDS
    threads = tuple(given.threads or pieces.THREADS)
    blocks = tuple(given.block_size or pieces.BLOCKS)
    least = max(GRIDS[-1].piece_bytes, max(threads) * max(blocks))
    engines = tuple(map(Engine, given.engine or pieces.ENGINES))
    return (Grid(engines, threads, blocks, given.piece or least),)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _deal(storage: Storage, options: Options) -> Deal:
    """Return which combination reads which piece; raises TooLittleError if that tells nothing."""
    if not storage.weights:
        raise TooLittleError(
            f"expected files on storage, found that all lie in memory ({storage.types})"
        )
    if storage.failed:
        path, error = storage.failed[0]
        raise TooLittleError(f"{printable(path)}: {error}")
    if not storage.method.exact:
        raise TooLittleError(
            f"expected to know what is cold, found that {storage.types} tells this user nothing "
            "of these files; run it as their owner, or with permission to write them"
        )
    gap_bytes = storage.read_ahead_bytes
    limits = {"memory": storage.memory_bytes, "--size": options.most_bytes}
    dealt = pieces.deal(
        storage.cold,
        options.grids,
        rounds=options.rounds,
        most_bytes=min(limits.values()),
        gap_bytes=gap_bytes,
    )
    if dealt is not None:
        return dealt
    needed = pieces.needed_bytes(options.grids, rounds=options.rounds, gap_bytes=gap_bytes)
    for name, limit in limits.items():
        if limit < needed <= storage.cold_bytes:
            raise TooLittleError(
                f"too little may be read to tell: {format_size(limit)} by {name}, "
                f"{format_size(needed)} needed"
            )
    where = "" if storage.cold_bytes < needed else ", in runs that are too short"
    raise TooLittleError(
        f"too little is cold to tell: {format_size(storage.cold_bytes)} of "
        f"{format_size(storage.weight_bytes)} of weights{where}, {format_size(needed)} needed; "
        "evict it where no server uses it (prefetch-cli --evict), or give a larger checkpoint"
    )


def _measure(storage: Storage, dealt: Deal) -> Iterator[Sample]:
    """Yield a sample for each piece; each combination reads once per round."""
    everyone = range(len(dealt.combinations))
    for number in range(1, dealt.rounds + 1):
        for place, who in enumerate(in_turn(everyone, number, dealt.rounds)):
            combination = dealt.combinations[who]
            sample = _read(storage, combination, dealt.piece(number, place), number)
            _say(f"round {number}/{dealt.rounds}  {_line(sample)}")
            yield sample


def _read(storage: Storage, combination: Combination, piece: Piece, number: int) -> Sample:
    """Return what reading the piece cost this combination, and whether the piece was cold."""
    warm = storage.resident_share(piece) or 0.0
    # A virtual machine returns freed pages to its host and gets them back slowly, so touch them
    # first; only free ones, because what others have cached must stay.
    oracle.pretouch(min(piece.size_bytes * _TOUCHED_PER_READ, psutil.virtual_memory().free // 2))
    plan = Plan(
        extents=piece.extents,
        cut=None,
        already_resident_bytes=0,
        threads=Threads.fixed(combination.threads),
        block_size_bytes=combination.block_bytes,
        engine=combination.engine,
        max_bytes_per_second=None,
        yielding=False,
    )
    before = _cpu_seconds()
    result = job.read(plan, storage.targets, Monitor(), Stop())
    cpu_seconds = _cpu_seconds() - before
    error = None
    if warm > oracle.ALLOWED_WARM:
        error = f"no longer cold: {100 * warm:.0f} % had been read meanwhile"
    elif result.failed:
        error = f"{printable(result.failed[0][0])}: {result.failed[0][1]}"
    return Sample(
        combination=combination,
        round=number,
        size_bytes=result.bytes_read,
        wall_seconds=result.elapsed_seconds,
        mapping_seconds=storage.mapping_seconds(piece),
        cpu_seconds=cpu_seconds,
        resident_share=storage.resident_share(piece),
        engine=result.engine.value,
        error=error,
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _line(sample: Sample) -> str:
    words = f"{sample.combination.words:22}"
    if sample.error is not None:
        return f"{words} does not count: {sample.error}"
    rate = sample.size_bytes / GB / sample.wall_seconds
    return f"{words} {sample.wall_seconds:7.3f} s  {rate:6.2f} GB/s"


def _write(options: Options, report: OwnReport) -> None:
    os.makedirs(os.path.dirname(options.json_path) or ".", exist_ok=True)
    with open(options.json_path, "w", encoding="utf-8") as file:
        file.write(as_json(report) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(line: str, code: int) -> NoReturn:
    print(f"bench: {line}", file=sys.stderr)
    sys.exit(int(code))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
