"""`org/name[:QUANT]` -> the files that llama.cpp reads of its cache, as `-hf` finds them offline.

Read in llama.cpp (common/download.cpp, common/hf-cache.cpp). Its cache is laid out like Hugging
Face's; builds of before 2026 kept `org_name_FILE.gguf` in ~/.cache/llama.cpp.
"""

import os
import re
from collections.abc import Mapping, Sequence

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint import gguf, hub
from prefetch_cli.checkpoint.hub_cache import names_in
from prefetch_cli.checkpoint.manifest import Folder, Manifest, Terms
from prefetch_cli.checkpoint.names import NUMBERED
from prefetch_cli.checkpoint.request import Pick, Reference

_DEFAULT_QUANTISATIONS = ("Q4_K_M", "Q8_0")
_PROJECTOR = "mmproj"
_NO_MODELS = (_PROJECTOR, "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_QUANTISATION = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9]+")


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
        files = _files_below(snapshot.path)
    names = chosen(list(filter(terms.filters.want, files)), quantisation, pick)
    if not names:
        wanted = pick.file or quantisation or "a model"
        models = [name for name in files if name.endswith(".gguf")]
        raise CheckpointError(
            f"{printable(reference.argument)}: expected {printable(wanted)} in "
            f"{printable(snapshot.path)}, found {listing(models) or 'no GGUF file'}",
            "name one of them in COMMAND, or give the file itself as CHECKPOINT",
        )
    manifest = _manifest(snapshot.path, names)
    return Hub.HUGGINGFACE.value, snapshot.path, snapshot.revision, manifest


def chosen(names: Sequence[str], quantisation: str, pick: Pick) -> list[str]:
    """Return those of the sorted paths of a repo that llama.cpp reads: model, then projector."""
    model = _model(names, quantisation, pick)
    if model is None:
        return []
    folder, name = os.path.split(model)
    found = [os.path.join(folder, part) for part in gguf.parts(name)]
    projector = _projector(names, model) if pick.projector else None
    return found if projector is None else [*found, projector]


def _model(names: Sequence[str], quantisation: str, pick: Pick) -> str | None:
    if pick.file is not None:
        wanted = pick.file.lower()
        return next((name for name in names if name.lower() == wanted), None)
    models = [name for name in names if _is_model(name)]
    for one in (quantisation,) if quantisation else _DEFAULT_QUANTISATIONS:
        pattern = re.compile(re.escape(one) + "[.-]", re.IGNORECASE)
        for name in models:
            if pattern.search(name):
                return name
    return models[0] if models and not quantisation else None


def _is_model(name: str) -> bool:
    last = os.path.basename(name)
    part = NUMBERED.fullmatch(last)
    is_first = part is None or int(part["number"]) == 1
    return last.endswith(".gguf") and is_first and not any(word in last for word in _NO_MODELS)


def _projector(names: Sequence[str], model: str) -> str | None:
    """Return the projector nearest to the model: the deepest folder, then the closest bits."""
    folder = os.path.dirname(model)
    near = [
        name
        for name in names
        if name.endswith(".gguf")
        and _PROJECTOR in name
        and os.path.join(folder, "").startswith(_folder(name))
    ]
    bits = _bits(model)
    return min(near, key=lambda name: (-len(_folder(name)), abs(_bits(name) - bits)), default=None)


def _folder(name: str) -> str:
    """Return the folder of a name with its slash; empty for the top."""
    folder = os.path.dirname(name)
    return f"{folder}/" if folder else ""


def _bits(name: str) -> int:
    """Return the bits of a weight as the name says, 0 if it does not."""
    stem = os.path.basename(name).removesuffix(".gguf")
    part = NUMBERED.fullmatch(os.path.basename(name))
    quantisation = _QUANTISATION.search(part["base"].rstrip("-") if part else stem)
    digits = _DIGITS.search(quantisation[1]) if quantisation else None
    return int(digits[0][:4]) if digits else 0


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


def _files_below(root: str) -> list[str]:
    """Return the sorted paths of the files below a folder; links to folders are not followed."""
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(os.path.relpath(path, root) for path in paths)


def _manifest(root: str, names: Sequence[str]) -> Manifest:
    weights = tuple(os.path.join(root, name) for name in names)
    return Manifest(root, Server.LLAMA_CPP, (Folder(LoadFormat.GGUF, (), weights),))
