"""A folder -> the manifest of its checkpoint: the paths that a loader reads there and below."""

import fnmatch
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import gguf, layouts, quantisations, selection, surroundings
from prefetch_cli.checkpoint.companions import companions
from prefetch_cli.checkpoint.components import Components, components_of, lacking
from prefetch_cli.checkpoint.examine import is_unfinished
from prefetch_cli.checkpoint.files import Skipped
from prefetch_cli.checkpoint.folder import FolderReader
from prefetch_cli.checkpoint.holdings import no_weights
from prefetch_cli.checkpoint.manifest import Folder, Manifest, Terms
from prefetch_cli.checkpoint.names import natural_path_key
from prefetch_cli.checkpoint.selection import Selection, Want, in_order
from prefetch_cli.checkpoint.servers import Extra
from prefetch_cli.linux.walk import walk

_NP_FOLDER = "np"
# Who reads a format that vLLM itself does not, where no server is known.
_READERS = {
    LoadFormat.GGUF: Server.LLAMA_CPP,
    LoadFormat.ENGINE: Server.TENSORRT_LLM,
    LoadFormat.DCP: None,
    LoadFormat.ONNX: None,
    LoadFormat.NPZ: None,
}


def of_folder(root: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return what the loader of the checkpoint in the folder `root` reads.

    Raises CheckpointError if there is nothing to read, if several models fit, or if an index or
    a layout file is malformed.
    """
    if terms.load_format is LoadFormat.ALL:
        return _everything(root, terms, monitor)
    top = FolderReader(root, "", terms, monitor)
    components = Components() if quantisations.is_asked(terms) else components_of(top)
    manifest = Manifest(root, terms.rules.server, (top.selected(), *components.folders))
    if components.needs_weights_at_top and not manifest.folders[0].weights:
        manifest = manifest._replace(folders=(lacking(top), *components.folders))
    if not _has_any(manifest):
        manifest = manifest._replace(folders=top.selected_below() or manifest.folders)
    layout = next((name for name in layouts.OF_PIPELINES if name in top.names), None)
    has_weights = any(folder.weights for folder in components.folders)
    if layout and manifest.weights and not has_weights:
        # Its components are configs for the single file.
        manifest = _with_single_files(manifest)
    elif layout and has_weights:
        if not components.has_some_at_top:
            manifest = _without_single_files(manifest, layout)
        if not terms.server_known:
            manifest = manifest._replace(server=Server.DIFFUSERS)
    elif has_weights and not manifest.folders[0].weights and not terms.server_known:
        manifest = manifest._replace(server=Server.SENTENCE_TRANSFORMERS)
    elif top.is_component and not terms.server_known:
        manifest = manifest._replace(server=Server.DIFFUSERS)
    elif manifest.load_format in _READERS and not terms.server_known:
        manifest = manifest._replace(server=_READERS[manifest.load_format])
    if terms.load_format is LoadFormat.NPCACHE:
        manifest = _with_np_cache(manifest, top)
    for extra in terms.rules.extras:
        manifest = _with_extra(manifest, extra, top)
    if terms.rules.of_format(terms.load_format) and not _has_any(manifest):
        raise no_weights(top, monitor, components.repos)
    warnings = (
        *manifest.warnings,
        *top.warnings,
        *surroundings.about_other_places(terms.shown, components.repos),
        *_warnings(manifest, top, monitor),
    )
    return manifest._replace(warnings=warnings)


def side_of_folder(root: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return the config and tokenizer files of a folder; raises CheckpointError."""
    folder = FolderReader(root, "", terms, monitor).folder(Selection(LoadFormat.HF, (), None))
    return Manifest(root, terms.rules.server, (folder,))


def of_index(path: str, terms: Terms, monitor: Monitor) -> Manifest:
    """Return what a loader reads given the index file at `path`; raises as `of_folder`."""
    root, name = os.path.split(path)
    reader = FolderReader(root, "", terms, monitor)
    found = reader.read_index(name)
    if found is None:
        raise CheckpointError(
            f"{printable(terms.shown)}: expected an index, found an incomplete file",
            "finish its download",
        )
    return Manifest(
        root,
        None,
        (reader.folder(selection.select_by_index(name, found, terms.rules, reader.want)),),
    )


def of_file(path: str, load_format: LoadFormat, terms: Terms, monitor: Monitor) -> Manifest:
    """Return what a loader reads given one file: all parts of a split GGUF, an ONNX model's data.

    Raises CheckpointError if an ONNX model names files outside of its folder.
    """
    root, name = os.path.split(path)
    names = gguf.parts(name) if load_format is LoadFormat.GGUF else [name]
    if load_format is LoadFormat.ONNX:
        with monitor.waiting(path), suppress(OSError):  # reading it reports the error
            names = [name, *companions(path)]
    weights = tuple(os.path.join(root, part) for part in names if terms.filters.want(part))
    unfinished = tuple(filter(is_unfinished, weights))
    return Manifest(root, None, (Folder(load_format, (), weights, unfinished=unfinished),))


def _has_any(manifest: Manifest) -> bool:
    return any(one.weights or one.absent or one.incomplete for one in manifest.folders)


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
        raise no_weights(FolderReader(root, "", terms, monitor), monitor)
    side = set(selection.side_files(name for name in wanted if "/" not in name))
    return Manifest(
        root,
        terms.rules.server,
        (
            Folder(
                LoadFormat.ALL,
                tuple(below + name for name in wanted if name in side),
                tuple(below + name for name in wanted if name not in side),
            ),
        ),
        failed=tuple(failed),
    )


def _with_single_files(manifest: Manifest) -> Manifest:
    """Return a diffusers layout whose weights lie beside its components."""
    top, *components = manifest.folders
    emptied = (replace(folder, incomplete=(), hint=None) for folder in components)
    return manifest._replace(folders=(top, *emptied))


def _without_single_files(manifest: Manifest, layout: str) -> Manifest:
    """Return a diffusers layout without the weights beside its components: nobody reads them."""
    top, *components = manifest.folders
    if not top.weights:
        return manifest
    warning = (
        f"{listing([os.path.basename(path) for path in top.weights])}: left out, since "
        f"{layout} names folders with the weights; give the file itself to "
        "warm it too"
    )
    top = replace(top, weights=(), index=None, load_format=components[0].load_format)
    return manifest._replace(folders=(top, *components), warnings=(*manifest.warnings, warning))


def _with_np_cache(manifest: Manifest, top: FolderReader) -> Manifest:
    """Return the manifest with the arrays that vLLM and SGLang have once made of the weights."""
    if _NP_FOLDER not in top.folders or not manifest.weights:
        return manifest
    arrays = top.below(_NP_FOLDER, component=False).np_arrays()
    if arrays is None:
        return manifest
    emptied = (replace(folder, weights=(), index=None) for folder in manifest.folders)
    folders = (*emptied, Folder(manifest.load_format, (), arrays))
    return manifest._replace(folders=folders)


def _with_extra(manifest: Manifest, extra: Extra, top: FolderReader) -> Manifest:
    """Return the manifest with what the server reads beside it, or instead of it, if anything."""
    inside = [
        top.below(name, component=False) for name in fnmatch.filter(top.folders, extra.folder)
    ]
    here = [] if extra.folder else top.matching(extra.pattern)
    # config.json is read only where it matters.
    if not (inside or here) or not extra.applies(top.config, top.terms.load_format):
        return manifest
    known = manifest.weights
    if not known and not extra.instead:
        return manifest  # without the others, the server does not start
    if extra.instead:
        emptied = (
            replace(folder, weights=(), index=None, incomplete=()) for folder in manifest.folders
        )
        found = [path for one in inside for path in one.matching(extra.pattern)]
        weights = in_order(found, top.terms.rules.order)
        added = (Folder(manifest.load_format, (), weights),)
        return manifest._replace(folders=(*emptied, *added))
    if inside:
        return manifest._replace(folders=(*manifest.folders, *(one.selected() for one in inside)))
    if extra.for_next_layers and not any(path.endswith(".safetensors") for path in known):
        return manifest
    more = tuple(path for path in here if path not in known)
    return manifest._replace(folders=(*manifest.folders, Folder(manifest.load_format, (), more)))


def _of_interest(manifest: Manifest, terms: Terms) -> Want:
    """Return which files a user would not want to be passed over."""
    if manifest.load_format is not LoadFormat.GGUF:
        return terms.filters.want
    # Where one of several quantisations was chosen, the others are left out on purpose.
    chosen = terms.quantisation is not None or any(
        os.path.dirname(path) != manifest.root for path in manifest.weights
    )
    return lambda path: terms.filters.want(path) and not (chosen and path.endswith(gguf.SUFFIX))


def _warnings(manifest: Manifest, top: FolderReader, monitor: Monitor) -> Iterator[str]:
    """Yield what a user should know of what lies beside the files that are read."""
    terms, rules = top.terms, top.terms.rules
    below = os.path.join(manifest.root, "")
    read = {
        path.removeprefix(below).partition("/")[0]
        for folder in manifest.folders
        for path in (*folder.side, *folder.weights, *folder.absent)
    }
    unnamed = [name for name in top.folders if name not in read]
    unread = surroundings.unread_weights(
        manifest.root, unnamed, _of_interest(manifest, terms), monitor
    )
    yield from surroundings.about_unread(terms.shown, manifest, unread)
    # Of GGUF files one model is chosen, if need be by the user.
    is_flat = read.isdisjoint(top.folders) and manifest.load_format is not LoadFormat.GGUF
    if not terms.server_known and terms.load_format is LoadFormat.AUTO and is_flat:
        taken = [os.path.basename(path) for path in manifest.weights]
        yield from surroundings.about_other_sets(
            terms.shown, top.names, taken, top.want, top.read_index
        )
    decides = manifest.folders[0].index
    shards = decides.shards if decides else ()
    yield from surroundings.about_failing(top.names, terms.load_format, rules, unread, shards)
    yield from surroundings.about_lone([path for one in manifest.folders for path in one.lone])
    yield from surroundings.about_format(terms.load_format)
    if rules.loads_other_repos:
        yield from surroundings.about_other_repos(terms.shown, top.config.other_repos)
