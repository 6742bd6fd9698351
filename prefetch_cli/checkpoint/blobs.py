"""A manifest of Ollama's store -> the blobs that Ollama reads.

Mirrors Ollama's manifest/manifest.go and GetModel() (server/images.go). A manifest may come from
anywhere, so it is read in pieces and within bounds, and a digest must be one.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.manifest import Folder, Manifest, Terms
from prefetch_cli.checkpoint.metadata import parsed, shown
from prefetch_cli.checkpoint.scanner import Json, Scanner, TooLargeError
from prefetch_cli.hubs.hub_cache import unreadable
from prefetch_cli.linux.files import read_head

_LIST = "application/vnd.ollama.manifest.list.v2+json"
_KIND = "application/vnd.ollama.image."
# In the order in which llama.cpp's server, which Ollama starts, opens them (server-context.cpp,
# load_model()). A model for MLX has tensors, each a safetensors file, in place of a model.
_WEIGHTS = ("model", "tensor", "adapter", "draft", "projector")
_IGNORED = "embed"  # by every Ollama since 0.1.3
_RUNNERS = ("ollama", "llamacpp", "mlx")  # in Ollama's order on Linux
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_FOLDERS_ABOVE = 5  # manifests/HOST/NAMESPACE/MODEL/TAG

# A model of 10,000 tensors has one layer for each, of 250 bytes.
_MOST_BYTES = 16 * 1024 * 1024
_MOST_LAYERS = 100_000
_LARGEST_FILE = 2**63 - 1
_PULL = "`ollama pull` it again"


class _Layer(NamedTuple):
    """A blob, and what it is for."""

    kind: str  # the last word of its media type
    digest: Json
    size_bytes: int | None


class _Document(NamedTuple):
    """A manifest, or a list of them, or a reference in such a list to a blob with one."""

    media_type: Json
    runner: Json
    digest: Json
    layers: tuple[_Layer, ...]  # the config first
    manifests: tuple["_Document", ...]


def of_manifest(path: str, terms: Terms) -> Manifest:
    """Return what Ollama reads of the model whose manifest is at `path`.

    Raises CheckpointError if the manifest cannot be read, is malformed, or names no weights.
    """
    store = path
    for _ in range(_FOLDERS_ABOVE):
        store = os.path.dirname(store)
    document = _read(path)
    if document.media_type == _LIST:
        document = _chosen(path, store, document)
    side: dict[str, None] = {}
    weights: dict[str, None] = {}
    sizes: dict[str, int] = {}
    warnings = []
    layers = sorted(document.layers, key=_rank)
    for layer in layers:
        blob = _blob(layer.digest)
        if blob is None and layer.kind in _WEIGHTS:
            raise CheckpointError(
                f"{printable(path)}: expected sha256 and 64 hex digits as digest, found "
                f"{shown(layer.digest)}",
                _PULL,
            )
        if blob is None:
            warnings.append(
                f"{printable(path)}: its {printable(layer.kind)} is left out: expected a digest, "
                f"found {shown(layer.digest)}"
            )
        elif terms.filters.want(blob) and layer.kind != _IGNORED:
            full = os.path.join(store, blob)
            (weights if layer.kind in _WEIGHTS else side)[full] = None
            if layer.size_bytes is not None:
                sizes[full] = layer.size_bytes
    if not weights:
        raise _without_weights(path, terms, layers)
    kinds = {layer.kind for layer in layers}
    is_gguf = "model" in kinds or "tensor" not in kinds
    load_format = LoadFormat.GGUF if is_gguf else LoadFormat.SAFETENSORS
    folder = Folder(load_format, tuple(side), tuple(weights))
    return Manifest(store, Server.OLLAMA, (folder,), tuple(warnings), sizes=sizes)


def _rank(layer: _Layer) -> int:
    """Return the place of a layer among the kinds; what is small comes first."""
    return _WEIGHTS.index(layer.kind) if layer.kind in _WEIGHTS else -1


def _blob(digest: Json) -> str | None:
    """Return the path of a blob below the store, None where the digest is none."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    return os.path.join("blobs", digest.replace(":", "-"))


def _without_weights(path: str, terms: Terms, layers: Sequence[_Layer]) -> CheckpointError:
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    if any(kind in _WEIGHTS for kind in kinds):
        return CheckpointError(
            f"{printable(terms.shown)}: expected weight files, found none that the globs leave in",
            "check --include and --exclude",
        )
    return CheckpointError(
        f"{printable(terms.shown)}: expected a model in {printable(path)}, "
        f"found {listing(kinds) or 'no layers'}",
        f"a model that runs in the cloud has no weights here; else {_PULL}",
    )


def _chosen(path: str, store: str, document: _Document) -> _Document:
    """Return the manifest of a list that Ollama takes on Linux; raises CheckpointError."""
    for runner in _RUNNERS:
        for one in document.manifests:
            if isinstance(one.runner, str) and one.runner.lower() == runner:
                if one.layers or one.digest is None:
                    return one
                blob = _blob(one.digest)
                if blob is None:
                    raise CheckpointError(
                        f"{printable(path)}: expected sha256 and 64 hex digits as digest, found "
                        f"{shown(one.digest)}",
                        _PULL,
                    )
                return _read(os.path.join(store, blob))
    raise CheckpointError(
        f"{printable(path)}: expected a manifest for {', '.join(_RUNNERS)}, found "
        f"{listing([str(one.runner) for one in document.manifests]) or 'none'}",
        _PULL,
    )


def _read(path: str) -> _Document:
    """Return the manifest in a file; raises CheckpointError."""
    try:
        content = read_head(path, _MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if content is None:
        raise CheckpointError(f"{printable(path)}: expected a manifest, found no file", _PULL)

    def parse() -> _Document:
        if len(content) > _MOST_BYTES:
            raise TooLargeError
        scanner = Scanner([content])
        document = _document(scanner, is_list_allowed=True)
        scanner.end()
        return document

    return parsed(path, parse)


def _document(scanner: Scanner, *, is_list_allowed: bool) -> _Document:
    texts: dict[str, Json] = {}
    config: list[_Layer] = []
    layers: list[_Layer] = []
    manifests: list[_Document] = []
    if not scanner.is_object():
        scanner.value()
        return _Document(None, None, None, (), ())
    for key in scanner.members():
        if key == "config" and scanner.is_object():
            config = [_layer(scanner)._replace(kind="config")]
        elif key == "layers" and scanner.is_array():
            layers = [_layer(scanner) for _ in _bounded(scanner.elements())]
        elif key == "manifests" and scanner.is_array() and is_list_allowed:
            manifests = [
                _document(scanner, is_list_allowed=False) for _ in _bounded(scanner.elements())
            ]
        else:
            value = scanner.value()
            if key in ("mediaType", "runner", "digest"):
                texts[key] = value
    return _Document(
        texts.get("mediaType"),
        texts.get("runner"),
        texts.get("digest"),
        (*config, *layers),
        tuple(manifests),
    )


def _layer(scanner: Scanner) -> _Layer:
    if not scanner.is_object():
        return _Layer("", scanner.value(), None)
    found: dict[str, Json] = {}
    for key in scanner.members():
        value = scanner.value()
        if key in ("mediaType", "digest", "size"):
            found[key] = value
    media_type, size = found.get("mediaType"), found.get("size")
    kind = media_type.partition(";")[0].strip() if isinstance(media_type, str) else ""
    return _Layer(
        kind.removeprefix(_KIND),
        found.get("digest"),
        size if type(size) is int and 0 <= size <= _LARGEST_FILE else None,
    )


def _bounded(elements: Iterator[None]) -> Iterator[None]:
    """Yield as many as any model has; raises TooLargeError where there are more."""
    for number, _ in enumerate(elements):
        if number >= _MOST_LAYERS:
            raise TooLargeError
        yield
