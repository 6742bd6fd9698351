"""One argument -> where its checkpoint lies, and the paths that its loader reads there."""

import errno
import os
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError, error_words, unreachable
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint import blobs, folders, llamacpp, quantisations, selection
from prefetch_cli.checkpoint.examine import is_gguf
from prefetch_cli.checkpoint.excerpt import Excerpt
from prefetch_cli.checkpoint.manifest import Manifest, Terms
from prefetch_cli.checkpoint.redirect import redirected
from prefetch_cli.checkpoint.request import Reference, Request, Role
from prefetch_cli.checkpoint.servers import rules_of
from prefetch_cli.hubs import hub
from prefetch_cli.hubs.hub_cache import Snapshot
from prefetch_cli.linux.files import file_type
from prefetch_cli.linux.namespaces import current_folder, real_path

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FORMAT_OF_A_FILE = {
    ".safetensors": LoadFormat.SAFETENSORS,
    ".gguf": LoadFormat.GGUF,
    ".bin": LoadFormat.NPCACHE,
    ".pt": LoadFormat.PT,
    ".pth": LoadFormat.PT,
    ".onnx": LoadFormat.ONNX,
}


class Source(NamedTuple):
    """One argument, and what it was resolved to."""

    argument: str
    kind: str  # "directory", "file", "huggingface", "modelscope" or "ollama"
    path: str
    revision: str | None  # the commit if a hub's cache records it
    load_format: LoadFormat  # resolved
    server: Server | None  # by whose rules; None for a single file
    redirect: str | None = None  # what VLLM_MODEL_REDIRECT_PATH leads to, in place of the argument
    role: Role = Role.MODEL
    inferred: bool = False  # from COMMAND
    excerpt: Excerpt | None = None  # None: all of it is needed


def locate(
    reference: Reference, request: Request, environ: Mapping[str, str], monitor: Monitor
) -> tuple[Source, Manifest]:
    """Return what a reference stands for, and the paths that its loader reads."""
    if reference.pick is not None:
        terms = _terms(reference, request)
        place = llamacpp.locate(reference, reference.pick, terms, environ, monitor)
        return _source(reference, *place), place[-1]
    redirect = redirected(reference.argument, request.server, environ)
    argument = reference.argument if redirect is None else redirect
    if is_uri(argument):
        raise CheckpointError(
            f"{printable(argument)}: expected a path or a repo id, found an object store's URI",
            "mount the store or download the checkpoint, then give its path",
        )
    with monitor.waiting(argument):
        existing, quantisation = _existing(argument), None
        if existing is None:
            argument, existing, quantisation = _quantised(argument, request, environ)
        if existing is None:
            snapshot = _cached(argument, reference, request, environ)
            kind, path, revision = snapshot.hub.value, snapshot.path, snapshot.revision
        else:
            path, mode = existing
            kind, revision = "directory" if stat.S_ISDIR(mode) else "file", None
        terms = _terms(reference, request)._replace(
            shown=argument,
            quantisation=quantisation,
            of_repo=existing is None,
        )
        if kind == "file":
            manifest = _of_file(path, mode, terms, monitor)
        elif kind == Hub.OLLAMA.value:
            manifest = blobs.of_manifest(path, terms)
        elif reference.role is Role.TOKENIZER:
            manifest = folders.side_of_folder(path, terms, monitor)
        else:
            manifest = folders.of_folder(path, terms, monitor)
    source = _source(reference, kind, path, revision, manifest)
    return source._replace(redirect=redirect), manifest


def is_uri(argument: str) -> bool:
    """Return whether an argument names something in an object store, such as s3://bucket/model."""
    return _URI.match(argument) is not None


def _terms(reference: Reference, request: Request) -> Terms:
    return Terms(
        shown=reference.argument,
        load_format=reference.load_format or request.load_format,
        rules=rules_of(request.server),
        server_known=request.server is not Server.AUTO,
        filters=request.filters,
    )


def _source(
    reference: Reference, kind: str, path: str, revision: str | None, manifest: Manifest
) -> Source:
    return Source(
        argument=reference.argument,
        kind=kind,
        path=path,
        revision=revision,
        load_format=manifest.load_format,
        server=manifest.server,
        role=reference.role,
        inferred=reference.inferred,
    )


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
        found = f"{printable(argument)}: expected a checkpoint, found: {error_words(error)}"
        raise unreachable(error, found, "check the path") from None


def _quantised(
    argument: str, request: Request, environ: Mapping[str, str]
) -> tuple[str, tuple[str, int] | None, str | None]:
    """Return the directory (with its path and mode) or the repo id of DIR:QUANT or org/name:QUANT.

    And QUANT; or the argument itself where it is neither, as a name of Ollama's store.
    """
    before, quantisation = quantisations.split(argument)
    existing = None if quantisation is None else _existing(before)
    if existing is not None and stat.S_ISDIR(existing[1]):
        return before, existing, quantisation
    if hub.chosen_hub(request.hub, request.server, environ) is Hub.OLLAMA:
        return argument, None, None
    if quantisation is None:
        before, quantisation = quantisations.split_file(argument)
    before = quantisations.without_host(before)
    return (before, None, quantisation) if hub.is_repo_id(before) else (argument, None, None)


def _no_checkpoint(argument: str, found: str | None) -> CheckpointError:
    return CheckpointError(
        f"{printable(argument)}: expected a checkpoint, found: {found}", "check the path"
    )


def _absolute(argument: str) -> str:
    """Return the absolute path, with as many of its links as possible kept."""
    if ".." not in argument.split("/"):
        return os.path.normpath(os.path.join(current_folder(), argument))
    # After a symbolic link, `..` is the parent of the link's target.
    folder, name = os.path.split(argument)
    if name in ("", ".", ".."):
        return real_path(argument)
    return os.path.join(real_path(folder), name)


def _cached(
    argument: str, reference: Reference, request: Request, environ: Mapping[str, str]
) -> Snapshot:
    """Return the snapshot of a repo id, which stands for the reference."""
    chosen = hub.chosen_hub(request.hub, request.server, environ)
    cache_dir = reference.cache_dir or request.cache_dir
    if not hub.is_name(argument, chosen):
        cause = hub.elsewhere(argument, hub=chosen, cache_dir=cache_dir, environ=environ)
        raise CheckpointError(
            f"{printable(argument) or repr(argument)}: expected a file, a directory or a repo id "
            "in the local cache, found no such path",
            cause or "check the path",
        )
    try:
        return hub.find_snapshot(
            argument,
            hub=chosen,
            revision=reference.revision,
            cache_dir=cache_dir,
            environ=environ,
        )
    except CheckpointError as error:
        # What looks like a quantisation may be a tag of Ollama's.
        given = reference.argument
        cause = hub.elsewhere(given, hub=chosen, cache_dir=cache_dir, environ=environ)
        if ":" not in given or cause is None:
            raise
        raise CheckpointError(error.message, cause) from None


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
