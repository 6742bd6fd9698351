"""What a folder without weights for the load format does hold, and where they may be."""

import os
import posixpath
import shlex
from collections import Counter
from collections.abc import Sequence

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.checkpoint import selection, snapshots
from prefetch_cli.checkpoint.folder import FolderReader
from prefetch_cli.checkpoint.layouts import MODULAR_LAYOUT
from prefetch_cli.checkpoint.names import natural_path_key
from prefetch_cli.checkpoint.surroundings import unread_weights

_MOST_KINDS = 4
_MOST_SIZES = 1000  # files whose size is asked for
_LEAST_LARGE_BYTES = 1024 * 1024  # less is hardly a weight


def no_weights(top: FolderReader, monitor: Monitor, repos: Sequence[str] = ()) -> CheckpointError:
    """Return the error for a folder without weights for the load format.

    Its components may come from other `repos`.
    """
    shown = printable(top.terms.shown)
    if not top.names and not top.folders:
        return CheckpointError(
            f"{shown}: expected a checkpoint, found an empty directory",
            "check the path, and that its file system is mounted",
        )
    weights = [name for name in top.names if name.endswith(selection.WEIGHT_SUFFIXES)]
    largest = None if weights else _largest(top, monitor)
    if weights:
        hint = "check --load-format, --include and --exclude; --load-format all takes every one"
    elif repos:
        hint = f"{MODULAR_LAYOUT} takes the components from {listing(repos)}: give that instead"
    elif cause := snapshots.elsewhere(top.path, ()):
        hint = cause
    elif "snapshots" in top.folders:
        hint = "this is a folder of a hub cache: give its repo id, or a path in its snapshots/"
    else:
        hint = _folders_to_give(top, monitor) or (
            "--load-format all takes every file" if largest else "check the path"
        )
    return CheckpointError(
        f"{shown}: expected weight files for --load-format {top.terms.load_format.value}, "
        f"found {listing(weights) if weights else _kinds(top, largest)}",
        hint,
    )


def _kinds(top: FolderReader, largest: tuple[int, str] | None) -> str:
    """Return how many files there are of each kind, the largest, and how many folders."""
    counts = Counter(os.path.splitext(name)[1] for name in top.names)
    common = counts.most_common(_MOST_KINDS)
    found = [f"{count:,} {printable(suffix) or 'without a suffix'}" for suffix, count in common]
    if rest := counts.total() - sum(count for _, count in common):
        found.append(counted(rest, "other file"))
    files = ", ".join(found) or "no files"
    if largest:
        files += f" (largest: {printable(largest[1])}, {format_size(largest[0])})"
    return f"{files} and {counted(len(top.folders), 'folder')}"


def _largest(top: FolderReader, monitor: Monitor) -> tuple[int, str] | None:
    """Return size and name of the largest file, if it may be a weight."""
    sizes = []
    with monitor.waiting(top.path):
        for name in top.names[:_MOST_SIZES]:
            try:
                sizes.append((os.stat(os.path.join(top.path, name)).st_size, name))
            except (OSError, ValueError):
                continue  # a link to nothing
    largest = max(sizes, default=None)
    return largest if largest and largest[0] >= _LEAST_LARGE_BYTES else None


def _folders_to_give(top: FolderReader, monitor: Monitor) -> str | None:
    """Return a hint that names the folders below that do hold weights."""
    unread = unread_weights(top.path, top.folders, top.terms.filters.want, monitor)
    folders: Sequence[str] = sorted(
        {posixpath.dirname(path) for path in unread.paths}, key=natural_path_key
    )
    if not folders:
        return None
    if len(folders) == 1:
        path = printable(shlex.quote(os.path.join(top.path, folders[0])))
        return f"its weights are in a folder below: give {path}"
    names = listing([f"{name}/" for name in folders])
    return f"there are weights in folders below: give the path of one of {names}"
