"""The tensors of a checkpoint that a node needs -> the parts of its files that hold them.

A safetensors header and a GGUF table say where each tensor lies. Other files have no such table,
and are needed whole, as is whatever lies before the first tensor of a file.

vLLM's and SGLang's loaders get every tensor of a safetensors file as torch's, and a model copies
those of its stage. torch reads the first byte of each, and a loader waits for it: that byte is
needed of the tensors of other stages, too.
"""

import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint import headers, safetensors
from prefetch_cli.checkpoint.config import CONFIG, Config, parse_config
from prefetch_cli.checkpoint.examine import glance
from prefetch_cli.checkpoint.files import File, Range
from prefetch_cli.checkpoint.headers import GGUF_MAGIC, Tensor, WrongError
from prefetch_cli.checkpoint.metadata import MOST_BYTES
from prefetch_cli.checkpoint.placement import Needs, Numbers, Place, Placement, place_of, placement
from prefetch_cli.linux.files import read_head
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.threads import map_threads

_TOUCHING = (Server.VLLM, Server.SGLANG)
_WHOLE = "leave out --tensors, --stage and --experts to read it whole"


class Excerpt(NamedTuple):
    """Which tensors of a checkpoint are needed."""

    needs: Needs
    layers: Numbers | None  # None: those of all stages
    experts: Numbers | None  # None: all
    tensors: int  # that are needed
    total_tensors: int
    whole_bytes: int  # of all files, with what is not needed


class _Run(NamedTuple):
    """Tensors in a row whose names say the same of them, in bytes from the start of the file."""

    start: int
    end: int
    place: Place
    starts: "array[int]"  # of each

    @property
    def tensors(self) -> int:
        """How many there are."""
        return len(self.starts)


class _Table(NamedTuple):
    """The tensors of a file."""

    runs: tuple[_Run, ...]
    touched: bool  # a loader reads the first byte of each, also of those that it leaves to others


def excerpt(
    files: Sequence[File],
    cut_short: Collection[str],
    root: str,
    needs: Needs,
    server: Server | None,
    environ: Mapping[str, str],
    monitor: Monitor,
    threads: int,
) -> tuple[list[File], Excerpt, list[str]]:
    """Return the files with what is needed of them, what that is, and what a user should know.

    The files of the paths `cut_short` end before their headers say, and are needed whole. Up to
    `threads` threads read headers, and leave the page cache as it was. Raises CheckpointError where
    a header is wrong or the globs leave in no tensor, and UsageError where a variable partitions
    other layers.
    """

    def look(file: File) -> _Table | None:
        if not file.weight or file.path in cut_short:
            return None
        with monitor.waiting(file.path):
            return _table(file, needs, server)

    tables = map_threads(look, files, threads)
    runs = [run for table in tables if table is not None for run in table.runs]
    config = _config(root, monitor)
    found = placement(needs, dict.fromkeys(run.place for run in runs), config, server, environ)
    wanted = sum(run.tensors for run in runs if found.needs(run.place))
    total = sum(run.tensors for run in runs)
    if total and not any(run.place.wanted for run in runs):
        raise CheckpointError(
            f"{printable(root)}: expected tensors that {' '.join(map(_shown, needs.globs))} leave "
            f"in, found none of {counted(total, 'tensor')}",
            "check --tensors: a glob is about whole names, as in '*.mlp.*'",
        )
    parted = [
        file._replace(parts=tuple(_parts(table, found))) if table and table.runs else file
        for file, table in zip(files, tables, strict=True)
    ]
    whole = [
        os.path.basename(file.path)
        for file, table in zip(files, tables, strict=True)
        if file.weight and table is None
    ]
    notes = [f"{printable(root)}: {doubt}" for doubt in found.doubts]
    if whole:
        notes.append(
            f"{printable(root)}: {listing(whole)}: only whole safetensors and GGUF files say where "
            "their tensors lie: read whole"
        )
    size = sum(file.size_bytes for file in files)
    return parted, Excerpt(needs, found.layers, found.experts, wanted, total, size), notes


def _table(file: File, needs: Needs, server: Server | None) -> _Table | None:
    """Return the tensors of a weight file, None where it has no table of them."""
    try:
        with glance(file.path) as looked:
            first = looked.read(0, PAGE_BYTES)
            if first.startswith(GGUF_MAGIC):
                tensors = headers.gguf_tensors(file.size_bytes, first, looked.read)
                touched = False
            elif file.path.endswith(safetensors.SUFFIX):
                tensors = safetensors.tensors(file.size_bytes, looked.read)
                touched = needs.touched and server in _TOUCHING
            else:
                return None
    except WrongError as wrong:
        raise CheckpointError(f"{printable(file.path)}: {wrong}", _WHOLE) from None
    except OSError:
        return None  # reading it will fail too, and report the error
    return _Table(tuple(_runs(tensors, needs.globs, os.path.dirname(file.path))), touched)


def _runs(tensors: Iterable[Tensor], globs: Collection[str], folder: str) -> Iterator[_Run]:
    last: _Run | None = None
    for tensor in tensors:
        place = place_of(tensor.name, globs, folder)
        if last is not None and last.place == place:
            last = last._replace(end=tensor.end)
            last.starts.append(tensor.start)
            continue
        if last is not None:
            yield last
        last = _Run(tensor.start, tensor.end, place, array("Q", [tensor.start]))
    if last is not None:
        yield last


def _parts(table: _Table, found: Placement) -> Iterator[Range]:
    """Yield what is needed of a file: its header, and the tensors that are."""
    start, end = 0, table.runs[0].start
    for needed_start, needed_end in _needed(table, found):
        if needed_start > end:
            yield Range(start, end - start)
            start = needed_start
        end = needed_end
    yield Range(start, end - start)


def _needed(table: _Table, found: Placement) -> Iterator[tuple[int, int]]:
    """Yield from where to where tensors are needed, in order."""
    for run in table.runs:
        if found.needs(run.place):
            yield run.start, run.end
        elif table.touched and found.is_of_other_stages(run.place):
            # An empty tensor has no byte.
            yield from ((start, start + 1) for start in run.starts if start < run.end)


def _config(root: str, monitor: Monitor) -> Config:
    """Return what the checkpoint's config.json says."""
    path = os.path.join(root, CONFIG)
    try:
        with monitor.waiting(path):
            content = read_head(path, MOST_BYTES + 1)
    except OSError:
        content = None  # it is reported as a file that cannot be read
    return parse_config(content or b"{}")


def _shown(glob: str) -> str:
    return f"--tensors {printable(glob)}"
