"""A folder with layout files -> what a loader reads in the folders of its components."""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint import selection
from prefetch_cli.checkpoint.config import CONFIG
from prefetch_cli.checkpoint.files import Incomplete
from prefetch_cli.checkpoint.folder import FolderReader
from prefetch_cli.checkpoint.layouts import Component
from prefetch_cli.checkpoint.manifest import Folder
from prefetch_cli.hubs.hub_cache import is_folder
from prefetch_cli.linux import namespaces

# What diffusers looks for in the layout's own folder if a component has none.
_AT_TOP = {
    *(CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}
# Other formats are asked for to read one kind of file only.
_WHOLE_FORMATS = {LoadFormat.AUTO, LoadFormat.HF, LoadFormat.SAFETENSORS}


class Components(NamedTuple):
    """What a loader reads of the components of a model."""

    folders: tuple[Folder, ...] = ()
    has_some_at_top: bool = False  # a component with weights lies in the layout's own folder
    needs_weights_at_top: bool = False  # the first module of sentence-transformers lies there
    repos: tuple[str, ...] = ()  # that hold those which are not here


def components_of(top: FolderReader) -> Components:
    """Return what a loader reads of the components that layout files in a folder name."""
    found = top.components()
    roots = [one for one in found if one.is_module and not one.folder]
    named = [one for one in found if one not in roots]
    elsewhere = [one for one in named if one.origin is not None and not _is_here(top, one)]
    at_top = [one for one in named if _is_at_top(top, one)]
    here = [one for one in named if one not in elsewhere and one not in at_top]
    repos = [one.origin.repo for one in elsewhere if one.origin and one.origin.repo]
    return Components(
        folders=tuple(folder for one in here for folder in _folders(top, one, set())),
        has_some_at_top=any(one.has_weights for one in at_top),
        needs_weights_at_top=any(one.has_weights for one in roots),
        repos=tuple(dict.fromkeys(repos)),
    )


def lacking(top: FolderReader) -> Folder:
    """Return the folder of a model whose first module should have weights there, and has none."""
    component = Component("", has_weights=True, is_module=True)
    return _without_weights(top, top.selected(), component)


def _is_here(top: FolderReader, component: Component) -> bool:
    """Return whether diffusers finds a component here, of which it knows another place."""
    if not component.folder:
        return any(name.endswith(selection.WEIGHT_SUFFIXES) for name in top.names)
    path = os.path.join(top.path, component.folder)
    if not is_folder(path):
        return False
    names = top.below(component.folder).names
    return not component.has_weights or any(
        name.endswith(selection.WEIGHT_SUFFIXES) for name in names
    )


def _is_at_top(top: FolderReader, component: Component) -> bool:
    if not component.folder:
        return _is_here(top, component)
    return (
        not component.is_module
        and component.origin is None
        and not _AT_TOP.isdisjoint(top.names)
        and not os.path.lexists(os.path.join(top.path, component.folder))
    )


def _folders(reader: FolderReader, component: Component, seen: set[str]) -> Iterator[Folder]:
    """Yield what a loader reads in the folder of a component, then in those of its own parts."""
    path = os.path.join(reader.path, component.folder)
    below = posixpath.join(reader.name, component.folder)
    if not is_folder(path):
        if component.may_be_absent:
            return
        # With a slash at the end, the path cannot be a file.
        absent = () if reader.terms.filters.leaves_out(below, ()) else (os.path.join(path, ""),)
        yield Folder(LoadFormat.HF, (), (), absent=absent)
        return
    inner = reader.below(component.folder)
    found = inner.selected()
    yield found if found.weights else _without_weights(inner, found, component)
    real_path = namespaces.real_path(path)
    if component.is_module and real_path not in seen:  # links may lead in circles
        seen.add(real_path)
        for part in inner.components():
            yield from _folders(inner, part, seen)


def _without_weights(reader: FolderReader, found: Folder, component: Component) -> Folder:
    """Return a folder of which nothing is selected, as incomplete if its loader needs weights."""
    filters = reader.terms.filters
    weights = [name for name in reader.names if name.endswith(selection.WEIGHT_SUFFIXES)]
    needed = weights or (component.has_weights and CONFIG in reader.names)
    if (
        not needed
        or found.absent
        or reader.terms.load_format not in _WHOLE_FORMATS
        or filters.leaves_out(reader.name, weights)
    ):
        return found
    if weights:
        reason = f"the globs leave none of its weights in: {listing(weights)}"
        glob = printable(f"{reader.name}/*")
        hint = f"--exclude '{glob}' leaves it out, --include '{glob}' takes what it has"
    else:
        reason, hint = "it has no weights", None
    path = os.path.join(reader.path, "")
    return replace(found, incomplete=(Incomplete(path, reason, None),), hint=hint)
