"""A folder -> the paths that a loader reads there, and in the folders that it names below it."""

import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint import index, selection
from prefetch_cli.checkpoint.examine import UNFINISHED_SUFFIX, examine
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.index import Index
from prefetch_cli.checkpoint.selection import Filters, Selection
from prefetch_cli.linux.files import open_to_read

_PIECE_BYTES = 64 * 1024  # of an index that is read


@dataclass(frozen=True)
class Wish:
    """Which files the user wants."""

    load_format: LoadFormat
    filters: Filters
    weights_only: bool


@dataclass(frozen=True)
class Folder:
    """What a loader reads of one folder: paths, whether they are there or not."""

    load_format: LoadFormat  # resolved
    side: tuple[str, ...]
    weights: tuple[str, ...]
    index: Index | None = None
    absent: tuple[str, ...] = ()  # indexes that cannot be used, folders that are not there
    specials: tuple[str, ...] = ()  # FIFOs, sockets and devices: looked at, so that it is said


@dataclass(frozen=True)
class Gathered:
    """The folders of a checkpoint, its own first, and what is to be said of them."""

    folders: tuple[Folder, ...]
    warnings: tuple[str, ...] = ()


def gather(root: str, shown: str, wish: Wish, monitor: Monitor) -> Gathered:
    """Return what the loader of the checkpoint in the folder `root` reads.

    Raises CheckpointError where there is nothing to read, where it is ambiguous, or where an
    index or a layout file is malformed.
    """
    top = _Place(root, "", shown, wish, monitor)
    components = [_component(root, name, wish, monitor) for name in top.components()]
    gathered = Gathered((top.selected(), *components))
    if index.DIFFUSERS_LAYOUT in top.names and any(folder.weights for folder in components):
        gathered = _without_single_files(gathered, wish)
    if not any(folder.weights or folder.absent for folder in gathered.folders):
        raise _no_weights(top, wish)
    return gathered


def gather_index(root: str, name: str, shown: str, wish: Wish, monitor: Monitor) -> Gathered:
    """Return what a loader reads of the folder `root` by its index file `name`."""
    place = _Place(root, "", shown, wish, monitor)
    index = place.read_index(name)
    if index is None:
        raise CheckpointError(
            f"{printable(shown)}: expected an index, found a file that is not wholly there",
            "finish its download",
        )
    return Gathered((place.folder(selection.select_by_index(name, index, place.want)),))


def gather_file(path: str, load_format: LoadFormat, wish: Wish) -> Gathered:
    """Return what a loader reads by one weight file: all the parts of a split GGUF."""
    folder, name = os.path.split(path)
    names = selection.gguf_parts(name) if load_format is LoadFormat.GGUF else [name]
    weights = tuple(os.path.join(folder, part) for part in names if wish.filters.want(part))
    return Gathered((Folder(load_format, (), weights),))


def _component(root: str, name: str, wish: Wish, monitor: Monitor) -> Folder:
    path = os.path.join(root, name)
    if os.path.isdir(path):
        return _Place(root, name, path, wish, monitor).selected()
    # Only a folder can be found under a path that ends with a slash.
    absent = (os.path.join(path, ""),) if wish.filters.want(os.path.join(name, "")) else ()
    return Folder(LoadFormat.HF, (), (), absent=absent)


def _without_single_files(gathered: Gathered, wish: Wish) -> Gathered:
    """Return a diffusers layout without the weights beside its components: nobody reads them."""
    top, *components = gathered.folders
    if not top.weights or wish.load_format is LoadFormat.ALL:
        return gathered
    warning = (
        f"{listing([os.path.basename(path) for path in top.weights])}: left out, since "
        f"{index.DIFFUSERS_LAYOUT} names folders with the weights; give the file itself to "
        "warm it too"
    )
    top = replace(top, weights=(), index=None, load_format=components[0].load_format)
    return Gathered((top, *components), (warning,))


@dataclass(frozen=True)
class _Listing:
    """The names in a folder, sorted."""

    files: tuple[str, ...]  # and links, which may lead to anything
    specials: tuple[str, ...]  # those of `files` that are FIFOs, sockets and devices
    folders: tuple[str, ...]


def _listed(path: str, shown: str) -> _Listing:
    """Return what a folder holds; raises CheckpointError where it cannot be listed."""
    files: set[str] = set()
    specials: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                # Links to folders of components have no suffix; to ask where each link leads
                # would take a round trip for each file of a hub's snapshot.
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
    return _Listing(tuple(sorted(files)), tuple(sorted(specials)), tuple(sorted(folders)))


class _Place:
    """One folder of a checkpoint, its names, and what the user wants of it."""

    def __init__(self, root: str, name: str, shown: str, wish: Wish, monitor: Monitor) -> None:
        self.path = os.path.join(root, name) if name else root
        self.shown = shown
        self.listing = _listed(self.path, shown)
        self.names = self.listing.files
        self.unusable: list[str] = []  # index and layout files
        self._name = name  # below `root`; empty: `root` itself
        self._wish = wish
        self._monitor = monitor

    def want(self, name: str) -> bool:
        """Whether the user's globs leave this file in."""
        return self._wish.filters.want(os.path.join(self._name, name))

    def components(self) -> list[str]:
        """Return the folders that layout files name, each once."""
        layouts = (index.DIFFUSERS_LAYOUT, index.SENTENCE_TRANSFORMERS_LAYOUT)
        found = [
            index.component_folders(os.path.join(self.path, layout), content)
            for layout in layouts
            if layout in self.names and (content := self._layout(layout)) is not None
        ]
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def read_index(self, name: str) -> Index | None:
        """Return an index, or None where it is no usable file."""
        with self._opened(name) as file:
            if file is None:
                return None
            pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
            return index.parse_index(os.path.join(self.path, name), pieces)

    def selected(self) -> Folder:
        """Return what a loader reads here."""
        selected = selection.select(
            self.names,
            self._wish.load_format,
            self.want,
            self.read_index,
            component=bool(self._name),
        )
        if selected.load_format is LoadFormat.GGUF:
            self._refuse_several(selected)
        return self.folder(selected)

    def folder(self, selected: Selection) -> Folder:
        """Return the paths of what was selected here, and of what goes with it."""
        chosen = set(selected.weights)
        side = [] if self._wish.weights_only else selection.side_files(self.names)
        return Folder(
            load_format=selected.load_format,
            side=self._paths([name for name in side if self.want(name) and name not in chosen]),
            weights=self._paths(selected.weights),
            index=selected.index,
            absent=self._paths(self.unusable),
            specials=self._paths([name for name in self.listing.specials if self.want(name)]),
        )

    def _paths(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(os.path.join(self.path, name) for name in names)

    def _layout(self, name: str) -> bytes | None:
        """Return a layout file, as far as one can be long, or None where it is no usable file."""
        with self._opened(name) as file:
            return None if file is None else file.read(index.MOST_LAYOUT_BYTES + 1)

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO | None]:
        """Yield a metadata file, or None, and note it, where it is no file that is all there.

        Raises CheckpointError where it cannot be read.
        """
        path = os.path.join(self.path, name)
        with self._monitor.waiting(path):
            if not isinstance(examine(path, weight=False), File):
                self.unusable.append(name)
                yield None
                return
            try:
                with os.fdopen(open_to_read(path), "rb") as file:
                    yield file
            except OSError as error:
                raise CheckpointError(
                    f"{printable(path)}: expected a file that can be read, found: {error.strerror}",
                    "check its permissions",
                ) from None

    def _refuse_several(self, selected: Selection) -> None:
        models = selection.gguf_models(selected.weights)
        if len(models) > 1:
            glob = printable(shlex.quote(next(iter(models))))
            raise CheckpointError(
                f"{printable(self.shown)}: expected one GGUF model, found {len(models)}: "
                f"{listing(list(models.values()))}",
                f"choose one: --include {glob}, or give the file itself",
            )


def _no_weights(place: _Place, wish: Wish) -> CheckpointError:
    shown = printable(place.shown)
    names, folders = place.names, place.listing.folders
    if not names and not folders:
        return CheckpointError(
            f"{shown}: expected a checkpoint, found an empty directory",
            "check the path, and that its file system is mounted",
        )
    weights = [name for name in names if name.endswith(selection.WEIGHT_SUFFIXES)]
    hint = "check the path"
    if weights:
        hint = "check --load-format, --include and --exclude; --load-format all takes every one"
    elif "snapshots" in folders:
        hint = "this is a folder of a hub's cache: give its repo id, or a path in its snapshots/"
    others = f"{counted(len(names), 'other file')} and {counted(len(folders), 'folder')}"
    return CheckpointError(
        f"{shown}: expected weight files for --load-format {wish.load_format.value}, "
        f"found {listing(weights) if weights else others}",
        hint,
    )
