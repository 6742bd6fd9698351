"""`org/name[:QUANT]` -> the files that llama.cpp reads of its cache, as `-hf` finds them offline.

Read in llama.cpp (common/download.cpp, common/hf-cache.cpp). Its cache is laid out like Hugging
Face's; builds of before 2026 kept `org_name_FILE.gguf` in ~/.cache/llama.cpp.
"""

import os
from collections.abc import Mapping, Sequence

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint import gguf, subfolders
from prefetch_cli.checkpoint.contents import contents_of
from prefetch_cli.checkpoint.manifest import Folder, Manifest, Terms
from prefetch_cli.checkpoint.request import Pick, Reference
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.hubs import hub
from prefetch_cli.hubs.hub_cache import names_in

Place = tuple[str, str, str | None, Manifest]  # its kind, its path, its commit, its files


def locate(
    reference: Reference, pick: Pick, terms: Terms, environ: Mapping[str, str], monitor: Monitor
) -> Place:
    """Return the files of a repo that llama.cpp would read.

    Raises CheckpointError if the repo is in neither cache, or has no such file.
    """
    repo, _, quantisation = reference.argument.partition(":")
    try:
        snapshot = hub.find_snapshot(
            repo,
            hub=Hub.HUGGINGFACE,
            revision=reference.revision,
            cache_dir=reference.cache_dir,
            environ=environ,
        )
    except CheckpointError:
        found = _in_old_cache(repo, quantisation, pick, terms, environ)
        if found is None:
            raise
        return found
    with monitor.waiting(snapshot.path):
        files = _files_below(snapshot.path, terms.filters, monitor)
    names = chosen(files, quantisation, pick)
    if not names:
        wanted = pick.file or quantisation or "a model"
        models = [name for name in files if name.endswith(gguf.SUFFIX)]
        raise CheckpointError(
            f"{printable(reference.argument)}: expected {printable(wanted)} in "
            f"{printable(snapshot.path)}, found {listing(models) or 'no GGUF file'}",
            "name one of them in COMMAND, or give the file itself as CHECKPOINT",
        )
    manifest = _manifest(snapshot.path, names)
    return Hub.HUGGINGFACE.value, snapshot.path, snapshot.revision, manifest


def chosen(names: Sequence[str], quantisation: str, pick: Pick) -> list[str]:
    """Return those of the paths of a repo that llama.cpp reads: model, then projector."""
    files = [name for name in names if name.endswith(gguf.SUFFIX)]
    if pick.file is None:
        model = gguf.llama_cpp_choice(gguf.models(files).values(), quantisation or None)
    else:
        wanted = pick.file.lower()
        model = next((name for name in names if name.lower() == wanted), None)
    if model is None:
        return []
    found = gguf.parts(model)
    projector = gguf.projector(filter(gguf.is_projector, files), model) if pick.projector else None
    return found if projector is None else [*found, projector]


def _in_old_cache(
    repo: str, quantisation: str, pick: Pick, terms: Terms, environ: Mapping[str, str]
) -> Place | None:
    """Return the files in the cache of older builds, None if there are none."""
    home = environ.get("HOME") or os.path.expanduser("~")
    below = environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    cache = environ.get("LLAMA_CACHE") or os.path.join(below, "llama.cpp")
    prefix = repo.replace("/", "_") + "_"
    names = [name.removeprefix(prefix) for name in names_in(cache) if name.startswith(prefix)]
    if pick.file is not None:
        pick = Pick(pick.file.replace("/", "_"), pick.projector)
    found = chosen(list(filter(terms.filters.want, names)), quantisation, pick)
    if not found:
        return None
    return "directory", cache, None, _manifest(cache, [prefix + name for name in found])


def _files_below(root: str, filters: Filters, monitor: Monitor) -> list[str]:
    """Return the paths of the wanted files of a repo, in its folders too, within bounds."""
    here = contents_of(root, root)
    inside = subfolders.below(root, here.folders, filters, monitor).files
    below = [os.path.join(folder, name) for folder, names in inside.items() for name in names]
    return sorted(filter(filters.want, (*here.files, *below)))


def _manifest(root: str, names: Sequence[str]) -> Manifest:
    weights = tuple(os.path.join(root, name) for name in names)
    return Manifest(root, Server.LLAMA_CPP, (Folder(LoadFormat.GGUF, (), weights),))
