"""The names in one folder, by what they lead to."""

import itertools
import os
import stat
from typing import NamedTuple

from prefetch_cli.base.errors import error_words, unreachable
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.examine import UNFINISHED_SUFFIXES
from prefetch_cli.linux.files import mode_of


class Contents(NamedTuple):
    """The names in one folder, sorted."""

    files: tuple[str, ...]  # and symbolic links, which may lead to anything
    specials: tuple[str, ...]  # those of `files` that are FIFOs, sockets or devices
    folders: tuple[str, ...]
    unfinished: tuple[str, ...]  # those of `files` whose download has not ended


def contents_of(path: str, shown: str) -> Contents:
    """Return the names in a folder; raises PrefetchError if it cannot be listed."""
    try:
        return listed(path)
    except OSError as error:
        raise unreachable(
            error,
            f"{printable(shown)}: expected a directory that can be listed, "
            f"found: {error_words(error)}",
            "check its permissions and its mount",
        ) from None


def listed(path: str, most: int | None = None) -> Contents:
    """Return the names in a folder, the first `most` of them if that is given; raises OSError."""
    files: set[str] = set()
    specials: list[str] = []
    folders: list[str] = []
    unfinished: list[str] = []
    with os.scandir(path) as entries:
        for entry in itertools.islice(entries, most):
            # Links to component folders have no suffix. Asking where every link leads would take a
            # round trip for each file of a hub's snapshot.
            linked = "." not in entry.name and stat.S_ISDIR(mode_of(entry.path))
            if linked or entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            name, suffix = os.path.splitext(entry.name)
            if suffix in UNFINISHED_SUFFIXES:
                unfinished.append(name)
                files.add(name)
                continue
            files.add(entry.name)
            if not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                specials.append(entry.name)
    return Contents(*(tuple(sorted(names)) for names in (files, specials, folders, unfinished)))
