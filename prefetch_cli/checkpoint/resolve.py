"""Argument -> Checkpoint: the files that the loader will read, in the order in which it does."""

import errno
import functools
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import Hub, LoadFormat
from prefetch_cli.checkpoint import folders, hub, selection
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.files import File, Finding, Incomplete, Skipped
from prefetch_cli.checkpoint.folders import Gathered, Wish
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.linux.files import kind
from prefetch_cli.linux.threads import map_threads

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FORMAT_OF_A_FILE = {
    ".safetensors": LoadFormat.SAFETENSORS,
    ".gguf": LoadFormat.GGUF,
    ".bin": LoadFormat.NPCACHE,
    ".pt": LoadFormat.PT,
    ".pth": LoadFormat.PT,
}
_MOST_REASONS = 5
_ALLOW = "finish the download, or give --allow-incomplete to warm what is there"


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    arguments: tuple[str, ...]
    hub: Hub | None
    revision: str | None
    cache_dir: str | None
    load_format: LoadFormat
    filters: Filters
    weights_only: bool
    allow_incomplete: bool


@dataclass(frozen=True)
class Source:
    """One argument, and what it stands for."""

    argument: str
    kind: str  # "directory", "file", "huggingface" or "modelscope"
    path: str
    revision: str | None  # the commit, where a hub's cache tells it
    load_format: LoadFormat  # resolved


@dataclass(frozen=True)
class Checkpoint:
    """All sources, and their files in load order, each physical file once."""

    sources: tuple[Source, ...]
    files: tuple[File, ...]
    failed: tuple[Skipped, ...]  # files that should be read, but cannot even be looked at
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the user named."""
        return tuple(source.argument for source in self.sources)

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class _Wanted:
    """What a loader reads of one source."""

    source: Source
    root: str  # the folder that its files lie below
    gathered: Gathered


def resolve(
    request: Request, environ: Mapping[str, str], monitor: Monitor, threads: int
) -> Checkpoint:
    """Return the checkpoint that the arguments name.

    Every file is looked at by at most `threads` threads before it counts. Raises
    CheckpointError where an argument names nothing, or nothing complete and unambiguous.
    """
    parts = [
        _examined(_wanted(argument, request, environ, monitor), request, monitor, threads)
        for argument in request.arguments
    ]
    return Checkpoint(
        sources=tuple(part.sources[0] for part in parts),
        files=_each_once(file for part in parts for file in part.files),
        failed=tuple(dict.fromkeys(one for part in parts for one in part.failed)),
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _each_once(files: Iterable[File]) -> tuple[File, ...]:
    once: dict[tuple[int, int], File] = {}
    for file in files:
        once.setdefault((file.device, file.inode), file)
    return tuple(once.values())


def _wanted(
    argument: str, request: Request, environ: Mapping[str, str], monitor: Monitor
) -> _Wanted:
    """Return the paths that `argument` asks for."""
    if _URI.match(argument):
        raise CheckpointError(
            f"{printable(argument)}: expected a path or a repo id, found an object store's URI",
            "mount the store or download the checkpoint, then give its path",
        )
    wish = Wish(request.load_format, request.filters, request.weights_only)
    with monitor.waiting(argument):
        existing = _existing(argument)
        if existing is None:
            return _in_folder(_cached(argument, request, environ), wish, monitor)
        path, mode = existing
        if stat.S_ISDIR(mode):
            source = Source(argument, "directory", path, None, request.load_format)
            return _in_folder(source, wish, monitor)
        source = Source(argument, "file", path, None, request.load_format)
        return _by_file(source, mode, wish, monitor)


def _existing(argument: str) -> tuple[str, int] | None:
    """Return the absolute path and the mode of what the argument names, None where it is none."""
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
    """Return the absolute path, with its links as far as that is the same place."""
    if ".." not in argument.split("/"):
        return os.path.abspath(argument)
    # Behind a link, `..` is the parent of what it leads to, not of the link.
    folder, name = os.path.split(argument)
    if name in ("", ".", ".."):
        return os.path.realpath(argument)
    return os.path.join(os.path.realpath(folder), name)


def _cached(argument: str, request: Request, environ: Mapping[str, str]) -> Source:
    """Return the snapshot that a repo id stands for."""
    if not hub.is_repo_id(argument):
        raise CheckpointError(
            f"{printable(argument) or repr(argument)}: expected a file, a directory or a repo id "
            "in the local cache, found no such path",
            "check the path",
        )
    snapshot = hub.find_snapshot(
        argument,
        hub=hub.chosen_hub(request.hub, environ),
        revision=request.revision,
        cache_dir=request.cache_dir,
        environ=environ,
    )
    return Source(
        argument, snapshot.hub.value, snapshot.path, snapshot.revision, request.load_format
    )


def _in_folder(source: Source, wish: Wish, monitor: Monitor) -> _Wanted:
    gathered = folders.gather(source.path, source.argument, wish, monitor)
    return _resolved(source, source.path, gathered)


def _by_file(source: Source, mode: int, wish: Wish, monitor: Monitor) -> _Wanted:
    """Return what a weight file or an index file stands for."""
    shown = printable(source.argument)
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            f"{shown}: expected a file or a directory, found {kind(mode)}",
            "give the checkpoint's directory",
        )
    root, name = os.path.split(source.path)
    load_format = _FORMAT_OF_A_FILE.get(os.path.splitext(name)[1])
    if name.endswith(selection.INDEX_SUFFIX):
        gathered = folders.gather_index(root, name, source.argument, wish, monitor)
    elif load_format is not None:
        gathered = folders.gather_file(source.path, load_format, wish)
    else:
        raise CheckpointError(
            f"{shown}: expected a weight file ({', '.join(selection.WEIGHT_SUFFIXES)}) or an "
            f"index (*{selection.INDEX_SUFFIX}), found another file",
            "give the checkpoint's directory",
        )
    if not any(folder.weights for folder in gathered.folders):
        raise CheckpointError(
            f"{shown}: expected weight files, found none that the globs leave in",
            "check --include and --exclude",
        )
    return _resolved(source, root, gathered)


def _resolved(source: Source, root: str, gathered: Gathered) -> _Wanted:
    return _Wanted(replace(source, load_format=gathered.folders[0].load_format), root, gathered)


def _examined(wanted: _Wanted, request: Request, monitor: Monitor, threads: int) -> Checkpoint:
    """Return the checkpoint of one source, each of its files looked at.

    Raises CheckpointError where files are missing or cut short, unless that is allowed, and
    where nothing is left to read.
    """
    found = _findings(wanted.gathered, monitor, threads)
    incomplete = [one for one in found if isinstance(one, Incomplete)]
    skipped = [one for one in found if isinstance(one, Skipped)]
    there = (one.file if isinstance(one, Incomplete) else one for one in found)
    files = [one for one in there if isinstance(one, File)]
    failed = tuple(one for one in skipped if one.failed)
    warnings = [*wanted.gathered.warnings, *_size_warnings(wanted, files, request)]
    warnings += [
        f"{printable(one.path)}: left out: {one.reason}" for one in skipped if not one.failed
    ]
    if incomplete:
        problem = _incomplete(wanted, incomplete)
        if not request.allow_incomplete:
            raise CheckpointError(problem, _ALLOW)
        warnings.append(problem)
    if not failed and not any(file.weight for file in files):
        reasons = "; ".join(warnings[:_MOST_REASONS])
        raise CheckpointError(
            f"{printable(wanted.source.argument)}: expected weight files that can be read, "
            f"found none: {reasons}",
            "check the path",
        )
    return Checkpoint((wanted.source,), tuple(files), failed, tuple(warnings))


def _findings(gathered: Gathered, monitor: Monitor, threads: int) -> list[Finding]:
    """Return what is found at each path, config and tokenizer files before the weights."""
    weights = {path for folder in gathered.folders for path in folder.weights}
    side = [
        path
        for folder in gathered.folders
        for path in (*folder.side, *folder.absent, *folder.specials)
        if path not in weights
    ]
    real_folder = functools.cache(os.path.realpath)

    def look(path: str) -> Finding:
        with monitor.waiting(path):
            return examine(path, weight=path in weights, real_folder=real_folder)

    paths = [*side, *(path for folder in gathered.folders for path in folder.weights)]
    return map_threads(look, list(dict.fromkeys(paths)), threads)


def _incomplete(wanted: _Wanted, incomplete: Sequence[Incomplete]) -> str:
    below = os.path.join(wanted.root, "")
    named = [f"{one.path.removeprefix(below)} ({one.reason})" for one in incomplete]
    return (
        f"{printable(wanted.source.argument)}: expected a complete checkpoint, found "
        f"{counted(len(incomplete), 'file')} missing or cut short: {listing(named)}"
    )


def _size_warnings(wanted: _Wanted, files: Sequence[File], request: Request) -> list[str]:
    """Return a warning for each index that claims more bytes than there are."""
    if request.filters != Filters():
        return []  # what is filtered out is not missed
    sizes = {file.path: file.size_bytes for file in files}
    return [
        f"{printable(wanted.source.argument)}: its index claims {format_size(claimed)}, "
        f"the files have {format_size(found)}: the index may be stale"
        for folder in wanted.gathered.folders
        if folder.index is not None and sizes.keys() >= set(folder.weights)
        if (claimed := folder.index.total_size_bytes or 0)
        > (found := sum(sizes[path] for path in folder.weights))
    ]
