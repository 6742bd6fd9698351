"""Arguments -> Checkpoint: the files that the loader will read, in its order."""

import errno
import functools
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint import blobs, folders, hub, selection, snapshots
from prefetch_cli.checkpoint.examine import examine, is_gguf
from prefetch_cli.checkpoint.files import File, Finding, Found, Incomplete, Skipped, each_once
from prefetch_cli.checkpoint.hub_cache import Snapshot
from prefetch_cli.checkpoint.manifest import Manifest, Terms
from prefetch_cli.checkpoint.redirect import redirected
from prefetch_cli.checkpoint.request import Reference, Request
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.checkpoint.servers import rules_of
from prefetch_cli.linux.files import file_type
from prefetch_cli.linux.threads import map_threads

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FORMAT_OF_A_FILE = {
    ".safetensors": LoadFormat.SAFETENSORS,
    ".gguf": LoadFormat.GGUF,
    ".bin": LoadFormat.NPCACHE,
    ".pt": LoadFormat.PT,
    ".pth": LoadFormat.PT,
    ".onnx": LoadFormat.ONNX,
}
_MOST_REASONS = 5
_ALLOW = "give --allow-incomplete to warm what is there"
_HINT = f"finish the download, or {_ALLOW}"


@dataclass(frozen=True)
class Source:
    """One argument, and what it was resolved to."""

    argument: str
    kind: str  # "directory", "file", "huggingface", "modelscope" or "ollama"
    path: str
    revision: str | None  # the commit if a hub's cache records it
    load_format: LoadFormat  # resolved
    server: Server | None  # by whose rules; None for a single file
    redirect: str | None = None  # what VLLM_MODEL_REDIRECT_PATH leads to, in place of the argument


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
    for reference in request.references:
        source, manifest = _locate(reference, request, environ, monitor)
        parts.append(_examined(source, manifest, request, monitor, threads))
    return Checkpoint(
        files=each_once(file for part in parts for file in part.files),
        failed=tuple(dict.fromkeys(one for part in parts for one in part.failed)),
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
        names=tuple(reference.argument for reference in request.references),
        sources=tuple(source for part in parts for source in part.sources),
    )


def _locate(
    reference: Reference, request: Request, environ: Mapping[str, str], monitor: Monitor
) -> tuple[Source, Manifest]:
    """Return what a reference stands for, and the paths that its loader reads."""
    redirect = redirected(reference.argument, request.server, environ)
    argument = reference.argument if redirect is None else redirect
    if _URI.match(argument):
        raise CheckpointError(
            f"{printable(argument)}: expected a path or a repo id, found an object store's URI",
            "mount the store or download the checkpoint, then give its path",
        )
    with monitor.waiting(argument):
        existing = _existing(argument)
        if existing is None:
            snapshot = _cached(replace(reference, argument=argument), request, environ)
            kind, path, revision = snapshot.hub.value, snapshot.path, snapshot.revision
        else:
            path, mode = existing
            kind, revision = "directory" if stat.S_ISDIR(mode) else "file", None
        terms = Terms(
            shown=argument,
            load_format=request.load_format,
            rules=rules_of(request.server),
            server_known=request.server is not Server.AUTO,
            filters=request.filters,
        )
        if kind == "file":
            manifest = _of_file(path, mode, terms, monitor)
        elif kind == Hub.OLLAMA.value:
            manifest = blobs.of_manifest(path, terms)
        else:
            manifest = folders.of_folder(path, terms, monitor)
    load_format, server = manifest.load_format, manifest.server
    source = Source(reference.argument, kind, path, revision, load_format, server, redirect)
    return source, manifest


def _existing(argument: str) -> tuple[str, int] | None:
    """Return the absolute path and the mode of what exists at `argument`, or None."""
    try:
        return _absolute(argument), os.stat(argument).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(argument):
            raise _no_checkpoint(argument, "a symbolic link to nothing") from None
        return None
    except ValueError:
        return None  # a NUL byte, or a character that no path has
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        if error.errno == errno.ELOOP:
            raise _no_checkpoint(argument, "a symbolic link that leads to itself") from None
        raise _no_checkpoint(argument, error.strerror) from None


def _no_checkpoint(argument: str, found: str | None) -> CheckpointError:
    return CheckpointError(
        f"{printable(argument)}: expected a checkpoint, found: {found}", "check the path"
    )


def _absolute(argument: str) -> str:
    """Return the absolute path, with as many of its links as possible kept."""
    if ".." not in argument.split("/"):
        return os.path.abspath(argument)
    # After a symbolic link, `..` is the parent of the link's target.
    folder, name = os.path.split(argument)
    if name in ("", ".", ".."):
        return os.path.realpath(argument)
    return os.path.join(os.path.realpath(folder), name)


def _cached(reference: Reference, request: Request, environ: Mapping[str, str]) -> Snapshot:
    """Return the snapshot of a repo id."""
    argument = reference.argument
    chosen = hub.chosen_hub(request.hub, request.server, environ)
    if not hub.is_name(argument, chosen):
        cause = hub.elsewhere(argument, hub=chosen, cache_dir=request.cache_dir, environ=environ)
        raise CheckpointError(
            f"{printable(argument) or repr(argument)}: expected a file, a directory or a repo id "
            "in the local cache, found no such path",
            cause or "check the path",
        )
    return hub.find_snapshot(
        argument,
        hub=chosen,
        revision=reference.revision,
        cache_dir=request.cache_dir,
        environ=environ,
    )


def _of_file(path: str, mode: int, terms: Terms, monitor: Monitor) -> Manifest:
    """Return the manifest of a file that is named: an index stands for its shards."""
    shown = printable(terms.shown)
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            f"{shown}: expected a file or a directory, found {file_type(mode)}",
            "give the checkpoint's directory",
        )
    if path.endswith(selection.INDEX_SUFFIX):
        manifest = folders.of_index(path, terms, monitor)
    else:
        load_format = _FORMAT_OF_A_FILE.get(os.path.splitext(path)[1])
        if load_format is None:
            load_format = LoadFormat.GGUF if is_gguf(path) else LoadFormat.ALL
        manifest = folders.of_file(path, load_format, terms, monitor)
    if not manifest.weights:
        raise CheckpointError(
            f"{shown}: expected weight files, found none that the globs leave in",
            "check --include and --exclude",
        )
    return manifest


def _examined(
    source: Source, manifest: Manifest, request: Request, monitor: Monitor, threads: int
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
    unfinished = {path for folder in manifest.folders for path in folder.unfinished}
    real_folder = functools.cache(os.path.realpath)

    def look(path: str) -> Finding:
        with monitor.waiting(path):
            return examine(
                path,
                weight=path in weights,
                unfinished=path in unfinished,
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
