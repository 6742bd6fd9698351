"""sentence-transformers' own choice of files: functions of its wheel, among stubs."""

import abc
import functools
import json
import os
from pathlib import Path, PureWindowsPath
from types import CodeType
from typing import Any

from tests.peers import cutting, transformers
from tests.peers.outcomes import Outcome, Shelf, Silent, outcome_of
from tests.peers.wheels import SENTENCE_TRANSFORMERS, source_of

# Modules whose `load` calls load_torch_weights; the others have a configuration only.
WITH_WEIGHTS = ("CNN", "Dense", "LSTM", "LayerNorm", "StaticEmbedding", "WordEmbeddings")


def outcome(directory: str, _load_format: str) -> Outcome:
    """Return what SentenceTransformer does with a directory."""
    return outcome_of(directory, _load)


def modules_with_weights() -> set[str]:
    """Return which of the modules in WITH_WEIGHTS load weights in this version."""
    folder = "sentence_transformers.sentence_transformer.modules."
    modules = {
        "CNN": folder + "cnn",
        "Dense": "sentence_transformers.base.modules.dense",
        "LSTM": folder + "lstm",
        "LayerNorm": folder + "layer_norm",
        "StaticEmbedding": folder + "static_embedding",
        "WordEmbeddings": folder + "word_embeddings",
    }
    return {
        name
        for name, module in modules.items()
        if "cls.load_torch_weights(" in source_of(SENTENCE_TRANSFORMERS, module)
    }


def _load(directory: str, shelf: Shelf) -> None:
    """Load the modules in the order of the layout."""
    with open(os.path.join(directory, "modules.json"), encoding="utf-8") as file:
        modules: list[dict[str, str]] = json.load(file)
    for module in modules:
        _load_module(directory, module["path"], module["type"], shelf)


def _load_module(directory: str, folder: str, kind: str, shelf: Shelf) -> None:
    """Load one module; a Router loads those that it names."""
    names = _namespace(shelf)
    name = kind.rpartition(".")[2]
    if name == "Transformer":
        transformers.load(os.path.join(directory, folder), shelf)
    elif name == "Router":
        config = names.load_file_path(directory, "router_config.json", subfolder=folder)
        with open(config, encoding="utf-8") as file:
            types: dict[str, str] = json.load(file)["types"]
        for below, nested in types.items():
            _load_module(directory, os.path.join(folder, below), nested, shelf)
    elif name in WITH_WEIGHTS:
        names.Module.load_file_path = staticmethod(names.load_file_path)
        names.Module.load_torch_weights(directory, subfolder=folder)


@functools.cache
def _parts() -> list[CodeType]:
    """Return all that is cut out of the wheel."""
    return [
        cutting.cut(
            source_of(SENTENCE_TRANSFORMERS, "sentence_transformers.util.file_io"),
            ["_validate_relative_path", "load_file_path"],
        ),
        cutting.cut(
            source_of(SENTENCE_TRANSFORMERS, "sentence_transformers.base.modules.module"),
            ["Module.load_torch_weights"],
        ),
    ]


def _namespace(shelf: Shelf) -> Any:
    stubs = {
        "ABC": abc.ABC,
        "Path": Path,
        "PureWindowsPath": PureWindowsPath,
        "load_safetensors_file": shelf.safe_open,
        "logger": Silent(),
        "torch": shelf.torch,
    }
    return cutting.run(_parts(), stubs, {})
