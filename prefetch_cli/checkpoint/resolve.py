"""Arguments -> Checkpoint: the files that the loader will read, in its order."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.checkpoint import excerpt as excerpts
from prefetch_cli.checkpoint import snapshots
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.files import File, Finding, Found, Incomplete, Skipped, each_once
from prefetch_cli.checkpoint.locate import Source, locate
from prefetch_cli.checkpoint.manifest import Manifest
from prefetch_cli.checkpoint.placement import EVERYTHING, Needs
from prefetch_cli.checkpoint.request import Reference, Request, Role
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.linux import namespaces
from prefetch_cli.linux.threads import map_threads

_MOST_REASONS = 5
_ALLOW = "give --allow-incomplete to warm what is there"
_FIRST_ONLY = (
    "read for all stages and experts: --stage and --experts are about the first CHECKPOINT"
)
_HINT = f"finish the download, or {_ALLOW}"


@dataclass(frozen=True)
class Checkpoint(Found):
    """The files of all arguments, in load order; its names are the arguments."""

    sources: tuple[Source, ...]


def resolve(
    request: Request, environ: Mapping[str, str], monitor: Monitor, threads: int
) -> Checkpoint:
    """Return the checkpoint that the arguments name.

    Up to `threads` threads examine every file before it counts. Raises CheckpointError if an
    argument names nothing, or nothing complete and unambiguous.
    """
    parts = []
    notes = list(request.notes)
    environ = environ if request.environ is None else request.environ
    model = next((one for one in request.references if one.role is Role.MODEL), None)
    for reference in request.references:
        try:
            source, manifest = locate(reference, request, environ, monitor)
        except CheckpointError as error:
            # The server may fetch what its command names beside the model.
            if reference is model or not reference.inferred:
                raise
            notes.append(f"{error.message}; left out, since COMMAND names it beside its model")
            continue
        needs = request.needs if reference is model else _needs_of_another(reference, request.needs)
        if request.needs is not None and needs != request.needs and not reference.inferred:
            notes.append(f"{printable(reference.argument)}: {_FIRST_ONLY}")
        parts.append(_examined(source, manifest, request, needs, environ, monitor, threads))
    return Checkpoint(
        files=each_once(file for part in parts for file in part.files),
        failed=tuple(dict.fromkeys(one for part in parts for one in part.failed)),
        warnings=tuple(
            dict.fromkeys((*notes, *(text for part in parts for text in part.warnings)))
        ),
        names=tuple(reference.argument for reference in request.references),
        sources=tuple(source for part in parts for source in part.sources),
    )


def _needs_of_another(reference: Reference, needs: Needs | None) -> Needs | None:
    """Return what is needed of a checkpoint behind the first.

    Nobody knows where draft models lie, and adapters lie on every node.
    """
    if needs is None or reference.inferred or reference.role is not Role.MODEL:
        return None
    return Needs(needs.globs)


def _examined(
    source: Source,
    manifest: Manifest,
    request: Request,
    needs: Needs | None,
    environ: Mapping[str, str],
    monitor: Monitor,
    threads: int,
) -> Checkpoint:
    """Return the checkpoint of one source, with each of its files examined.

    Raises CheckpointError if files are missing or cut short, unless the request allows that,
    and if no weight is left to read.
    """
    shown = printable(source.argument)
    found = [*manifest.incomplete, *_findings(manifest, request, monitor, threads)]
    incomplete = [one for one in found if isinstance(one, Incomplete)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    present = (one.file if isinstance(one, Incomplete) else one for one in found)
    files = [one for one in present if isinstance(one, File)]
    failed = (*manifest.failed, *(one for one in skipped if one.failed))
    warnings = [*manifest.warnings, *_size_warnings(shown, manifest, files, request)]
    warnings += [
        f"{printable(one.path)}: left out: {one.reason}" for one in skipped if not one.failed
    ]
    if incomplete:
        problem = f"{shown}: {_incomplete(manifest.root, incomplete)}"
        if not request.allow_incomplete:
            # Whether another snapshot has more of a folder that is there is not known.
            files_missing = [one for one in incomplete if one not in manifest.incomplete]
            cause = files_missing and _cause(manifest.root, files_missing, monitor)
            cause = cause or manifest.hint
            raise CheckpointError(problem, f"{cause}; or {_ALLOW}" if cause else _HINT)
        warnings.append(problem)
    weightless = not manifest.weights and not incomplete  # a format without weights
    if not weightless and not failed and not any(file.weight for file in files):
        reasons = "; ".join(warnings[:_MOST_REASONS])
        raise CheckpointError(
            f"{shown}: expected readable weight files, found none: {reasons}", "check the path"
        )
    if needs not in (None, EVERYTHING):
        cut_short = {one.path for one in incomplete}
        files, excerpt, notes = excerpts.excerpt(
            files,
            cut_short,
            manifest.root,
            needs,
            manifest.server,
            environ,
            monitor,
            threads,
        )
        source = source._replace(excerpt=excerpt)
        warnings += notes
    return Checkpoint(tuple(files), failed, tuple(warnings), (source.argument,), (source,))


def _findings(
    manifest: Manifest, request: Request, monitor: Monitor, threads: int
) -> list[Finding]:
    """Return the finding for each path, config and tokenizer files before the weights."""
    weights = set(manifest.weights)
    others = (
        path
        for folder in manifest.folders
        for path in (
            *(() if request.weights_only else folder.side),
            *folder.absent,
            *folder.specials,
        )
        if path not in weights
    )
    named = {path for one in manifest.folders if one.index is not None for path in one.weights}
    unfinished = {path for folder in manifest.folders for path in folder.unfinished}
    real_folder = functools.cache(namespaces.real_path)

    def look(path: str) -> Finding:
        with monitor.waiting(path):
            return examine(
                path,
                weight=path in weights,
                unfinished=path in unfinished,
                named=path in named or path in manifest.sizes,
                promised_bytes=manifest.sizes.get(path),
                real_folder=real_folder,
            )

    return map_threads(look, list(dict.fromkeys((*others, *manifest.weights))), threads)


def _cause(root: str, incomplete: Sequence[Incomplete], monitor: Monitor) -> str | None:
    """Return in words why files are not there, None where that is not known."""
    below = os.path.join(root, "")
    with monitor.waiting(root):
        return snapshots.elsewhere(root, [one.path.removeprefix(below) for one in incomplete])


def _incomplete(root: str, incomplete: Sequence[Incomplete]) -> str:
    below = os.path.join(root, "")
    named = [f"{one.path.removeprefix(below)} ({one.reason})" for one in incomplete]
    return (
        "expected a complete checkpoint, found "
        f"{counted(len(incomplete), 'file')} missing or cut short: {listing(named)}"
    )


def _size_warnings(
    shown: str, manifest: Manifest, files: Sequence[File], request: Request
) -> list[str]:
    """Return a warning for each index that claims more bytes than its shards have."""
    if request.filters != Filters():
        return []  # the user left some out
    sizes = {file.path: file.size_bytes for file in files}
    return [
        f"{shown}: its index claims {format_size(claimed)}, "
        f"the files have {format_size(found)}: the index may be stale"
        for folder in manifest.folders
        if folder.index is not None and sizes.keys() >= set(folder.weights)
        if (claimed := folder.index.total_size_bytes or 0)
        > (found := sum(sizes[path] for path in folder.weights))
    ]
