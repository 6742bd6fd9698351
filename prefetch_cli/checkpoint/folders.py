"""A folder -> the manifest of its checkpoint: the paths that a loader reads there and below."""

import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint import gguf, index, layouts, metadata, selection, snapshots
from prefetch_cli.checkpoint.examine import UNFINISHED_SUFFIX, examine
from prefetch_cli.checkpoint.files import File, Skipped
from prefetch_cli.checkpoint.index import Index
from prefetch_cli.checkpoint.names import natural_path_key
from prefetch_cli.checkpoint.selection import Filters, Selection
from prefetch_cli.checkpoint.servers import Rules
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.walk import walk

_READ_BYTES = 64 * 1024  # of an index at a time


@dataclass(frozen=True)
class Terms:
    """By which terms a checkpoint is looked for."""

    shown: str  # what the user called it
    load_format: LoadFormat
    rules: Rules
    filters: Filters


@dataclass(frozen=True)
class Folder:
    """The paths that a loader reads in one folder, whether they exist or not."""

    load_format: LoadFormat  # resolved
    side: tuple[str, ...]  # config and tokenizer files
    weights: tuple[str, ...]  # in load order
    index: Index | None = None
    absent: tuple[str, ...] = ()  # unusable indexes and missing folders
    specials: tuple[str, ...] = ()  # FIFOs, sockets and devices: kept for their warnings


@dataclass(frozen=True)
class Manifest:
    """The paths that a loader reads of one checkpoint."""

    root: str  # the folder that holds all others
    folders: tuple[Folder, ...]  # `root` first
    warnings: tuple[str, ...] = ()
    failed: tuple[Skipped, ...] = ()  # folders that cannot be listed
    # In bytes: those that a manifest of Ollama promises.
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def load_format(self) -> LoadFormat:
        """The load format of the checkpoint, never AUTO."""
        return self.folders[0].load_format

    @property
    def weights(self) -> list[str]:
        """The weight files of all folders, in load order."""
        return [path for folder in self.folders for path in folder.weights]


def of_folder(root: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return what the loader of the checkpoint in the folder `root` reads.

    Raises CheckpointError if there is nothing to read, if several models fit, or if an index or
    a layout file is malformed.
    """
    if terms.load_format is LoadFormat.ALL:
        return _everything(root, terms, monitor)
    top = _FolderReader(root, "", terms, monitor)
    components = [top.component(name) for name in top.component_names()]
    manifest = Manifest(root, (top.selected(), *components))
    if layouts.DIFFUSERS_LAYOUT in top.names and any(folder.weights for folder in components):
        manifest = _without_single_files(manifest)
    if not any(folder.weights or folder.absent for folder in manifest.folders):
        raise top.no_weights()
    return manifest


def of_index(path: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return what a loader reads given the index file at `path`; raises as `of_folder`."""
    root, name = os.path.split(path)
    reader = _FolderReader(root, "", terms, monitor)
    found = reader.read_index(name)
    if found is None:
        raise CheckpointError(
            f"{printable(terms.shown)}: expected an index, found an incomplete file",
            "finish its download",
        )
    return Manifest(
        root, (reader.folder(selection.select_by_index(name, found, terms.rules, reader.want)),)
    )


def of_file(path: str, load_format: LoadFormat, terms: Terms) -> Manifest:
    """Return what a loader reads given one file: all parts of a split GGUF."""
    root, name = os.path.split(path)
    names = gguf.parts(name) if load_format is LoadFormat.GGUF else [name]
    weights = tuple(os.path.join(root, part) for part in names if terms.filters.want(part))
    return Manifest(root, (Folder(load_format, (), weights),))


def _everything(root: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return every file below a folder."""
    below = os.path.join(root, "")
    walked = list(walk(root, monitor))
    found = [path.removeprefix(below) for path, error in walked if error is None]
    wanted = sorted(filter(terms.filters.want, found), key=natural_path_key)
    failed = [
        Skipped(path, error.strerror or str(error), failed=True)
        for path, error in walked
        if error is not None and terms.filters.want(path.removeprefix(below))
    ]
    if not wanted and not failed:
        raise _FolderReader(root, "", terms, monitor).no_weights()
    side = set(selection.side_files(name for name in wanted if "/" not in name))
    return Manifest(
        root,
        (
            Folder(
                LoadFormat.ALL,
                tuple(below + name for name in wanted if name in side),
                tuple(below + name for name in wanted if name not in side),
            ),
        ),
        failed=tuple(failed),
    )


def _without_single_files(manifest: Manifest) -> Manifest:
    """Return a diffusers layout without the weights beside its components: nobody reads them."""
    top, *components = manifest.folders
    if not top.weights:
        return manifest
    warning = (
        f"{listing([os.path.basename(path) for path in top.weights])}: left out, since "
        f"{layouts.DIFFUSERS_LAYOUT} names folders with the weights; give the file itself to "
        "warm it too"
    )
    top = replace(top, weights=(), index=None, load_format=components[0].load_format)
    return Manifest(manifest.root, (top, *components), (warning,))


@dataclass(frozen=True)
class _Names:
    """The sorted names in a folder."""

    files: tuple[str, ...]  # and symbolic links, which may lead to anything
    specials: tuple[str, ...]  # those of `files` that are FIFOs, sockets or devices
    folders: tuple[str, ...]


def _list(path: str, shown: str) -> _Names:
    """Return the names in a folder; raises CheckpointError if it cannot be listed."""
    files: set[str] = set()
    specials: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                # Links to component folders have no suffix. Asking where every link leads would
                # take a round trip for each file of a hub's snapshot.
                linked = "." not in entry.name and os.path.isdir(entry.path)
                if linked or entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                    continue
                files.add(entry.name.removesuffix(UNFINISHED_SUFFIX))
                if not entry.is_symlink() and not entry.is_file(follow_symlinks=False):
                    specials.append(entry.name)
    except OSError as error:
        raise CheckpointError(
            f"{printable(shown)}: expected a directory that can be listed, found: {error.strerror}",
            "check its permissions and its mount",
        ) from None
    return _Names(tuple(sorted(files)), tuple(sorted(specials)), tuple(sorted(folders)))


class _FolderReader:
    """Finds what a loader reads in one folder of a checkpoint."""

    def __init__(
        self,
        root: str,
        below: str,  # the folder's path below `root`; empty: `root` itself
        terms: Terms,
        monitor: Monitor,
    ) -> None:
        self._path = os.path.join(root, below) if below else root
        self._below = below
        self._terms = terms
        self._monitor = monitor
        self._found = _list(self._path, terms.shown)
        self._unusable: list[str] = []  # index and layout files
        self.names = self._found.files

    def want(self, name: str) -> bool:
        """Return whether the user's globs keep this file."""
        return self._terms.filters.want(os.path.join(self._below, name))

    def component_names(self) -> list[str]:
        """Return the folders that layout files name, each once."""
        named = (layouts.DIFFUSERS_LAYOUT, layouts.SENTENCE_TRANSFORMERS_LAYOUT)
        found = [
            layouts.component_folders(os.path.join(self._path, layout), content)
            for layout in named
            if layout in self.names and (content := self._read_layout(layout)) is not None
        ]
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def component(self, name: str) -> Folder:
        """Return what a loader reads in the component folder of this name."""
        path = os.path.join(self._path, name)
        if os.path.isdir(path):
            terms = replace(self._terms, shown=path)
            return _FolderReader(self._path, name, terms, self._monitor).selected()
        # With a slash at the end, the path cannot be a file.
        absent = (os.path.join(path, ""),) if self.want(os.path.join(name, "")) else ()
        return Folder(LoadFormat.HF, (), (), absent=absent)

    def read_index(self, name: str) -> Index | None:
        """Return an index, or None if its file is unusable."""
        with self._opened(name) as file:
            if file is None:
                return None
            pieces = iter(lambda: file.read(_READ_BYTES), b"")
            return index.parse_index(os.path.join(self._path, name), pieces)

    def selected(self) -> Folder:
        """Return what a loader reads in this folder."""
        selected = selection.select(
            self.names,
            self._terms.load_format,
            self._terms.rules,
            self.want,
            self.read_index,
            component=bool(self._below),
        )
        if selected.load_format is LoadFormat.GGUF:
            self._refuse_several(selected)
        return self.folder(selected)

    def folder(self, selected: Selection) -> Folder:
        """Return the paths of the selected weights and of the other files that go with them."""
        chosen = set(selected.weights)
        side = selection.side_files(self.names)
        return Folder(
            load_format=selected.load_format,
            side=self._paths([name for name in side if self.want(name) and name not in chosen]),
            weights=self._paths(selected.weights),
            index=selected.index,
            absent=self._paths(self._unusable),
            specials=self._paths([name for name in self._found.specials if self.want(name)]),
        )

    def no_weights(self) -> CheckpointError:
        """Return the error for a folder without weights for the load format."""
        shown, folders = printable(self._terms.shown), self._found.folders
        if not self.names and not folders:
            return CheckpointError(
                f"{shown}: expected a checkpoint, found an empty directory",
                "check the path, and that its file system is mounted",
            )
        weights = [name for name in self.names if name.endswith(selection.WEIGHT_SUFFIXES)]
        hint = "check the path"
        if weights:
            hint = "check --load-format, --include and --exclude; --load-format all takes every one"
        elif cause := snapshots.elsewhere(self._path, ()):
            hint = cause
        elif "snapshots" in folders:
            hint = "this is a folder of a hub cache: give its repo id, or a path in its snapshots/"
        others = f"{counted(len(self.names), 'other file')} and {counted(len(folders), 'folder')}"
        return CheckpointError(
            f"{shown}: expected weight files for --load-format {self._terms.load_format.value}, "
            f"found {listing(weights) if weights else others}",
            hint,
        )

    def _paths(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(os.path.join(self._path, name) for name in names)

    def _read_layout(self, name: str) -> bytes | None:
        """Return a layout file up to its largest size, or None if it is unusable."""
        with self._opened(name) as file:
            return None if file is None else file.read(metadata.MOST_BYTES + 1)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO | None]:
        """Yield a metadata file, or note that it is unusable and yield None.

        Raises CheckpointError if it cannot be read.
        """
        path = os.path.join(self._path, name)
        with self._monitor.waiting(path):
            if not isinstance(examine(path, weight=False), File):
                self._unusable.append(name)
                yield None
                return
            try:
                with os.fdopen(open_to_read(path), "rb") as file:
                    yield file
            except OSError as error:
                raise CheckpointError(
                    f"{printable(path)}: expected a readable file, found: {error.strerror}",
                    "check its permissions",
                ) from None

    def _refuse_several(self, selected: Selection) -> None:
        models = gguf.models(selected.weights)
        if len(models) > 1:
            glob = printable(shlex.quote(next(iter(models))))
            raise CheckpointError(
                f"{printable(self._terms.shown)}: expected one GGUF model, found {len(models)}: "
                f"{listing(list(models.values()))}",
                f"choose one: --include {glob}, or give the file itself",
            )
