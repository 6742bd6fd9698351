"""A layout file -> the component folders that it names: pure.

The layouts are diffusers' `model_index.json` and `modular_model_index.json`, and
sentence-transformers' `modules.json` and `router_config.json`. Read in diffusers 0.42
(pipelines/pipeline_utils.py, modular_pipelines/modular_pipeline.py) and sentence-transformers 6.2
(base/model.py, base/modules/router.py).
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.metadata import AGAIN, bounded_json, names_below, parsed, shown
from prefetch_cli.checkpoint.scanner import TooLargeError

DIFFUSERS_LAYOUT = "model_index.json"
MODULAR_LAYOUT = "modular_model_index.json"
SENTENCE_TRANSFORMERS_LAYOUT = "modules.json"
ROUTER_LAYOUT = "router_config.json"
# A Router wrote this before it was called so: Asym.
OLD_ROUTER_LAYOUT = "config.json"

OF_PIPELINES = (DIFFUSERS_LAYOUT, MODULAR_LAYOUT)
OF_WHOLE_MODELS = (*OF_PIPELINES, SENTENCE_TRANSFORMERS_LAYOUT)

# Older releases of sentence-transformers write no file for these modules, and git keeps no empty
# folder.
_MODULES_WITHOUT_FILES = ("Normalize", "Identity")
# Modules that always load weights of their own; what a custom one loads is not known.
_MODULES_WITH_WEIGHTS = {
    *("Transformer", "MLMTransformer", "CLIPModel", "Dense", "LSTM", "CNN", "LayerNorm"),
    *("WeightedLayerPooling", "WordEmbeddings", "WordWeights", "StaticEmbedding"),
    *("SparseAutoEncoder", "CSRSparsity"),
}
_LIBRARIES_OF_MODELS = ("diffusers", "transformers")
_WITHOUT_WEIGHTS = re.compile(
    r".*(?:Scheduler|Tokenizer|Extractor|Processor|Guidance|Guider)(?:Fast|Legacy)?"
)


class Origin(NamedTuple):
    """Where a component comes from that need not be here."""

    repo: str | None  # None: it is not loaded then


class Component(NamedTuple):
    """A part of a model that has a folder of its own."""

    folder: str  # below that of the layout file; empty: this itself, or the whole of another repo
    has_weights: bool = False  # its class always does; else they are read where they are
    origin: Origin | None = None  # where it comes from if it is not here; None: it must be here
    is_module: bool = False  # of sentence-transformers, which may have modules in it again
    may_be_absent: bool = False


def components(path: str, content: bytes) -> list[Component]:
    """Return the components that the layout file at `path` names, each once.

    One without a folder lies beside the file, or is the whole of another repo.
    Raises CheckpointError if it is not JSON, or names a folder outside its own.
    """
    document = parsed(path, lambda: bounded_json(content))
    name = posixpath.basename(path)
    found: dict[str, Component] = {}
    for folder, component in _COMPONENTS[name](path, document):
        if folder == "":
            found.setdefault(f"{component.origin}", component)
        for below in names_below(path, "folders", [folder] if folder != "" else []):
            found.setdefault(below, component._replace(folder=below))
    return list(found.values())


def is_old_router(content: bytes) -> bool:
    """Return whether a config.json is that of a router, as it was written before 5.0."""
    try:
        document = bounded_json(content)
    except (ValueError, RecursionError, TooLargeError):
        return False
    return isinstance(document, dict) and all(
        isinstance(document.get(key), dict) for key in ("types", "structure")
    )


_Found = Iterator[tuple[object, Component]]  # each with its folder as the file names it


def _of_pipeline(path: str, document: object) -> _Found:
    """Yield the components of model_index.json: name -> [library, class]."""
    for name, value in _items(path, document):
        # [null, null] means that the pipeline has no such component.
        if (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(part, str) for part in value)
        ):
            yield name, Component(name, _is_model(*value))


def _of_modular_pipeline(path: str, document: object) -> _Found:
    """Yield the components of modular_model_index.json: name -> [library, class, where from]."""
    for _, value in _items(path, document):
        if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], dict):
            continue
        origin = value[2]
        hint = origin.get("type_hint")
        repo = origin.get("pretrained_model_name_or_path", origin.get("repo"))
        folder = origin.get("subfolder") or ""
        has_weights = isinstance(hint, list) and len(hint) == 2 and _is_model(*hint)
        # Without a folder and a repo, it has no files of its own.
        if folder or isinstance(repo, str):
            repo = repo if isinstance(repo, str) else None
            yield folder, Component("", has_weights, origin=Origin(repo))


def _of_modules(path: str, document: object) -> _Found:
    """Yield the components of modules.json: a list of objects with a path and a type."""
    if not isinstance(document, list):
        raise CheckpointError(
            f"{printable(path)}: expected a list of modules, found {shown(document)}", AGAIN
        )
    for module in document:
        if isinstance(module, dict):
            folder = module.get("path", "")
            yield "" if folder == "." else folder, _module(module.get("type"))


def _of_router(path: str, document: object) -> _Found:
    """Yield the components of a router's config: `types` is an object folder -> class."""
    types = document.get("types") if isinstance(document, dict) else None
    if not isinstance(types, dict):
        raise CheckpointError(
            f"{printable(path)}: expected an object `types`, found {shown(types)}", AGAIN
        )
    for folder, kind in types.items():
        yield folder, _module(kind)


def _items(path: str, document: object) -> Iterator[tuple[str, object]]:
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{printable(path)}: expected an object of components, found {shown(document)}", AGAIN
        )
    yield from ((name, value) for name, value in document.items() if not name.startswith("_"))


def _is_model(library: object, kind: object) -> bool:
    return library in _LIBRARIES_OF_MODELS and not _WITHOUT_WEIGHTS.fullmatch(str(kind))


def _module(kind: object) -> Component:
    package, _, name = str(kind).rpartition(".")
    has_weights = package.startswith("sentence_transformers.") and name in _MODULES_WITH_WEIGHTS
    return Component(
        "", has_weights, is_module=True, may_be_absent=name.endswith(_MODULES_WITHOUT_FILES)
    )


_COMPONENTS: Mapping[str, Callable[[str, object], _Found]] = {
    DIFFUSERS_LAYOUT: _of_pipeline,
    MODULAR_LAYOUT: _of_modular_pipeline,
    SENTENCE_TRANSFORMERS_LAYOUT: _of_modules,
    ROUTER_LAYOUT: _of_router,
    OLD_ROUTER_LAYOUT: _of_router,
}
