"""A layout file -> the component folders that it names: pure.

The layouts are diffusers' `model_index.json` and sentence-transformers' `modules.json`.
"""

import posixpath

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.metadata import AGAIN, bounded_json, names_below, parsed, shown

DIFFUSERS_LAYOUT = "model_index.json"
SENTENCE_TRANSFORMERS_LAYOUT = "modules.json"

# sentence-transformers writes no file for these modules, and git keeps no empty folder.
_MODULES_WITHOUT_FILES = ("Normalize", "Identity")


def component_folders(path: str, content: bytes) -> list[str]:
    """Return the folders that the layout file at `path` names, except its own, each once.

    The file is diffusers' `model_index.json` (component -> [library, class]) or
    sentence-transformers' `modules.json` (a list of objects with a `path`). Raises
    CheckpointError if it is not JSON, or names a folder outside its own.
    """
    document = parsed(path, lambda: bounded_json(content))
    if posixpath.basename(path) == DIFFUSERS_LAYOUT:
        return names_below(path, "folders", _components(path, document))
    return names_below(path, "folders", _modules(path, document))


def _components(path: str, document: object) -> list[object]:
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{printable(path)}: expected an object of components, found {shown(document)}",
            AGAIN,
        )
    # [null, null] means that the pipeline has no such component.
    return [
        name
        for name, value in document.items()
        if isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and not name.startswith("_")
    ]


def _modules(path: str, document: object) -> list[object]:
    if not isinstance(document, list):
        raise CheckpointError(
            f"{printable(path)}: expected a list of modules, found {shown(document)}",
            AGAIN,
        )
    return [
        module["path"]
        for module in document
        if isinstance(module, dict)
        and module.get("path", "") not in ("", ".")
        and not str(module.get("type")).endswith(_MODULES_WITHOUT_FILES)
    ]
