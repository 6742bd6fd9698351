"""A repo id or a model's name -> what a hub's cache has of it. Read-only; no network."""

import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError, PrefetchError
from prefetch_cli.base.text import printable, stays_below
from prefetch_cli.base.words import Hub, Server
from prefetch_cli.hubs import huggingface, modelscope, ollama
from prefetch_cli.hubs.hub_cache import (
    CACHE_NAMES,
    Query,
    Snapshot,
    excerpt,
    expand_user,
)

_REPO_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)


def is_repo_id(text: str) -> bool:
    """Return whether `text` is `org/name` or a bare `name` in the hub's grammar.

    These are the rules of huggingface_hub's `validate_repo_id`; ModelScope's ids obey them too.
    """
    parts = text.split("/")
    return (
        len(parts) <= 2
        and all(_REPO_PART.fullmatch(part) for part in parts)
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )


class _Caches(NamedTuple):
    """The caches of one hub: what a name is, where they lie, and how they are searched."""

    is_name: Callable[[str], bool]
    default: Callable[[Mapping[str, str]], tuple[str, ...]]
    find: Callable[[Query], Snapshot]
    holds: Callable[[Query], bool]
    hosts: tuple[str, ...] = ()  # by which Ollama pulls from this hub


_CACHES = {
    Hub.HUGGINGFACE: _Caches(
        is_repo_id,
        huggingface.default_caches,
        huggingface.find,
        huggingface.holds,
        ("hf.co", "huggingface.co"),
    ),
    Hub.MODELSCOPE: _Caches(
        is_repo_id,
        modelscope.default_caches,
        modelscope.find,
        modelscope.holds,
        ("modelscope.cn",),
    ),
    Hub.OLLAMA: _Caches(ollama.is_name, ollama.default_caches, ollama.find, ollama.holds),
}


def chosen_hub(asked: Hub | None, server: Server, environ: Mapping[str, str]) -> Hub:
    """Return the hub that was asked for, else the one that the server would use.

    The values are those that vLLM's envs.py and SGLang's EnvBool (srt/environ.py) take as true.
    """
    if asked is not None:
        return asked
    if server is Server.OLLAMA:
        return Hub.OLLAMA
    wants_modelscope = False
    if server is Server.SGLANG:
        value = environ.get("SGLANG_USE_MODELSCOPE", "").lower()
        wants_modelscope = value in {"true", "1", "yes", "y"}
    elif server in (Server.AUTO, Server.VLLM):
        wants_modelscope = environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in {"true", "1"}
    return Hub.MODELSCOPE if wants_modelscope else Hub.HUGGINGFACE


def is_name(text: str, hub: Hub) -> bool:
    """Return whether `text` can name something in this hub's cache."""
    return _CACHES[hub].is_name(text)


def find_snapshot(
    repo_id: str,
    *,
    hub: Hub,
    revision: str | None,
    cache_dir: str | None,
    environ: Mapping[str, str],
) -> Snapshot:
    """Return the cached snapshot of a repo at a revision, by default the hub's main branch.

    A Hugging Face revision is a branch or tag (`refs/pr/1` too) or a commit. This function
    accepts more than huggingface_hub: a commit may be abbreviated to 4 or more digits, and a
    cache without the ref `main` (filled at a pinned commit) yields its only snapshot. It does
    not check that the snapshot is complete.

    Raises CheckpointError if the repo or the revision is not cached or is ambiguous, or if the
    cache is malformed or cannot be read.
    """
    if not is_name(repo_id, hub):
        expected = "a repo id such as org/name"
        if hub is Hub.OLLAMA:
            expected = "a model such as name:tag or user/name:tag"
        raise CheckpointError(f"expected {expected}, found {printable(repo_id)}")
    if revision is not None and not _can_be_a_revision(revision):
        raise CheckpointError(
            f"expected a branch, a tag or a commit as revision, found {excerpt(revision)}"
        )
    query = _query(hub, repo_id, revision, cache_dir, environ)
    try:
        return _CACHES[hub].find(query)
    except CheckpointError as error:
        hint = None
        if not _CACHES[hub].holds(query):
            hint = elsewhere(repo_id, hub=hub, cache_dir=cache_dir, environ=environ)
        if hint is None:
            raise
        raise CheckpointError(error.message, hint) from None


def elsewhere(
    name: str, *, hub: Hub, cache_dir: str | None, environ: Mapping[str, str]
) -> str | None:
    """Return in words which other hub's cache has what this name stands for, None if none has."""
    # A cache of one hub may have been given as that of another.
    places = [cache_dir, None] if cache_dir is not None else [None]
    for other in Hub:
        for place in places if other is not hub else ():
            for known_as in _names_elsewhere(name, hub, other):
                query = _query(other, known_as, None, place, environ)
                if not _holds(query):
                    continue
                flags = f"--hub {other.value}"
                if place is None and cache_dir is not None:
                    flags += ", without --cache-dir"
                named = f" as {known_as}" if known_as != name else ""
                return f"the {CACHE_NAMES[other]} has it{named}: give {known_as} {flags}"
    return None


def _names_elsewhere(name: str, hub: Hub, other: Hub) -> Iterator[str]:
    """Yield the names that a model may have in another hub's cache."""
    names: list[str] = [name]
    if other is Hub.OLLAMA:
        names += [f"{host}/{name}" for host in _CACHES[hub].hosts]
    elif hub is Hub.OLLAMA and (parts := ollama.parse_name(name)) is not None:
        of_other = parts.host in (ollama.DEFAULT_HOST, *_CACHES[other].hosts)
        names = [f"{parts.namespace}/{parts.model}"] if of_other else []
        if of_other and parts.namespace == ollama.DEFAULT_NAMESPACE:
            names = [parts.model]
    yield from filter(_CACHES[other].is_name, names)


def _holds(query: Query) -> bool:
    try:
        return _CACHES[query.hub].holds(query)
    except PrefetchError:
        return False  # what cannot be read is no help


def _query(
    hub: Hub,
    repo_id: str,
    revision: str | None,
    cache_dir: str | None,
    environ: Mapping[str, str],
) -> Query:
    asked: Sequence[str] = (cache_dir,) if cache_dir is not None else _CACHES[hub].default(environ)
    # The hubs' libraries expand `~` once more here, and resolve links.
    caches = tuple(os.path.realpath(expand_user(each, environ)) for each in asked)
    return Query(hub, repo_id, revision, caches)


def _can_be_a_revision(text: str) -> bool:
    return stays_below(text) and posixpath.normpath(text) == text
