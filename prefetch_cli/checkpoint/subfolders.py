"""The files in the folders of a checkpoint, as far as one may look."""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.contents import listed
from prefetch_cli.checkpoint.names import is_hidden, natural_path_key
from prefetch_cli.checkpoint.selection import Filters

# They may hold anything, and over a network each costs a round trip.
_MOST_FOLDERS = 200
_MOST_ENTRIES = 20_000
_DEPTH = 2  # `gguf/Q4_K_M/`
_DEEPEST = 8  # however many slashes a glob has

_WILDCARD = re.compile(r"[*?[]")


class Below(NamedTuple):
    """What lies in the folders of a checkpoint."""

    files: Mapping[str, tuple[str, ...]]  # the sorted names by folder, in natural order
    unfinished: tuple[str, ...]  # paths of files whose download has not ended
    unlisted: tuple[str, ...]  # folders that could not be listed, or were too many

    @property
    def paths(self) -> list[str]:
        """The paths of all files, relative to the checkpoint."""
        return [
            posixpath.join(folder, name) for folder, names in self.files.items() for name in names
        ]


def below(root: str, folders: Iterable[str], filters: Filters, monitor: Monitor) -> Below:
    """Return the files in these folders of `root` and below, where `filters` may want any.

    Looks at two levels of folders, or at as many as an `--include` glob names.
    """
    depth = min(max(_DEPTH, *(glob.count("/") for glob in ("", *filters.include))), _DEEPEST)
    starts = [_WILDCARD.split(glob)[0] for glob in filters.include] or [""]
    files: dict[str, tuple[str, ...]] = {}
    unfinished: list[str] = []
    unlisted: list[str] = []
    pending = sorted(folders, key=natural_path_key)
    looked = entries = 0
    while pending:
        folder = pending.pop(0)
        if is_hidden(posixpath.basename(folder)) or not _may_hold(folder, starts):
            continue
        if looked == _MOST_FOLDERS or entries >= _MOST_ENTRIES:
            unlisted.append(folder)
            break
        looked += 1
        path = os.path.join(root, folder)
        try:
            with monitor.waiting(path):
                found = listed(path, _MOST_ENTRIES - entries)
        except OSError:
            unlisted.append(folder)
            continue
        entries += len(found.files) + len(found.folders)
        files[folder] = found.files
        unfinished += [posixpath.join(folder, name) for name in found.unfinished]
        if folder.count("/") + 1 < depth:
            deeper = sorted(found.folders, key=natural_path_key)
            pending += [posixpath.join(folder, name) for name in deeper]
    ordered = {folder: files[folder] for folder in sorted(files, key=natural_path_key)}
    return Below(ordered, tuple(unfinished), tuple(unlisted))


def _may_hold(folder: str, starts: Iterable[str]) -> bool:
    """Return whether a path below this folder can begin with one of these texts."""
    inside = f"{folder}/"
    return any(start.startswith(inside) or inside.startswith(start) for start in starts)
