"""Ollama's store: a model's name -> the manifest file that lists its blobs.

Mirrors Ollama's types/model/name.go, envconfig/config.go and, of its newest versions,
manifest/paths.go.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import Hub
from prefetch_cli.hubs.hub_cache import Query, Snapshot, excerpt, is_file, names_in

DEFAULT_HOST = "registry.ollama.ai"
_NEWER_HOST = "ollama.com"  # the same registry
DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_HOST = re.compile(r"\w[\w.:-]{0,349}", re.ASCII)
_NAMESPACE = re.compile(r"\w[\w-]{0,79}", re.ASCII)
_PART = re.compile(r"\w[\w.-]{0,79}", re.ASCII)

_USERS_STORE = os.path.join("~", ".ollama", "models")
# The home of the user `ollama`, as whom install.sh lets systemd run the server.
_SERVICES_STORE = "/usr/share/ollama/.ollama/models"


class Name(NamedTuple):
    """The parts of a model's name, all of them valid."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        namespace = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}"
        return f"{namespace}{self.model}"


def parse_name(text: str) -> Name | None:
    """Return the parts of `[[HOST/]NAMESPACE/]MODEL[:TAG]`, None where that is no name."""
    rest, tag = text, _DEFAULT_TAG
    if text.rfind(":") > text.rfind("/"):  # a host may have a port
        rest, _, tag = text.rpartition(":")
    *front, model = rest.rsplit("/", 2)
    host = front[0] if len(front) > 1 else DEFAULT_HOST
    namespace = front[-1] if front else DEFAULT_NAMESPACE
    valid = (
        _HOST.fullmatch(host)
        and _NAMESPACE.fullmatch(namespace)
        and _PART.fullmatch(model)
        and _PART.fullmatch(tag)
    )
    return Name(host, namespace, model, tag) if valid else None


def is_name(text: str) -> bool:
    """Return whether this is a name by Ollama's grammar."""
    return parse_name(text) is not None


def default_caches(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return `OLLAMA_MODELS`, else the stores of this user and of the systemd service."""
    asked = environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    return (asked,) if asked else (_USERS_STORE, _SERVICES_STORE)


def find(query: Query) -> Snapshot:
    """Return the manifest of the model that a query names; raises CheckpointError.

    As in Ollama, upper and lower case are the same, and the newer manifests win.
    """
    if query.revision is not None:
        raise CheckpointError(
            f"{query.repo_id}: expected no --revision, found {excerpt(query.revision)}",
            "an Ollama model has tags: give NAME:TAG",
        )
    name = _name(query)
    tags: dict[str, None] = {}
    for folder in _folders(query, name):
        found = {tag: os.path.join(folder, tag) for tag in _names(folder)}
        # A newer manifest is a link to a blob, which an older Ollama may have removed.
        found = {tag: path for tag, path in found.items() if is_file(path)}
        if (same := _same(name.tag, found)) is not None:
            return Snapshot(found[same], Hub.OLLAMA, None)
        tags |= dict.fromkeys(found)
    if not tags:
        raise query.not_cached()
    raise CheckpointError(
        f"{query.repo_id}: expected the tag {name.tag} in the Ollama store "
        f"{' or '.join(map(printable, query.caches))}, found {listing(list(tags))}",
        f"give {name}:{next(iter(tags))}, or fetch it: `ollama pull {name}:{name.tag}`",
    )


def holds(query: Query) -> bool:
    """Return whether a store has the model, with whatever tag; raises CheckpointError."""
    return any(_names(folder) for folder in _folders(query, _name(query)))


def _name(query: Query) -> Name:
    name = parse_name(query.repo_id)
    if name is None:
        raise CheckpointError(
            f"expected a name such as model, model:tag or user/model:tag, found "
            f"{excerpt(query.repo_id)}"
        )
    return name


def _folders(query: Query, name: Name) -> Iterator[str]:
    """Yield the folders with the manifests of a model's tags, in Ollama's order."""
    newer: tuple[str, ...] = (name.host,)
    older = newer
    if name.host.lower() in (DEFAULT_HOST, _NEWER_HOST):
        newer, older = (_NEWER_HOST,), (DEFAULT_HOST, _NEWER_HOST)
    for store in query.caches:
        for tree, hosts in (("manifests-v2", newer), ("manifests", older)):
            for host in hosts:
                folder: str | None = os.path.join(store, tree)
                for part in (host, name.namespace, name.model):
                    if folder is not None:
                        same = _same(part, _names(folder))
                        folder = None if same is None else os.path.join(folder, same)
                if folder is not None:
                    yield folder


def _names(folder: str) -> list[str]:
    try:
        return names_in(folder)
    except CheckpointError as error:
        # install.sh leaves the service's store closed to all but its group.
        hint = "run this as a user who may read the store: root, or one in the group ollama"
        raise CheckpointError(error.message, hint) from None


def _same(wanted: str, names: Iterable[str]) -> str | None:
    """Return which of the names is the wanted one, if need be in another case."""
    names = sorted(names, key=lambda name: name != wanted)
    return next((name for name in names if name.lower() == wanted.lower()), None)
