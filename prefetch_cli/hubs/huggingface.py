"""The Hugging Face cache: a repo id -> the directory of its snapshot.

Mirrors huggingface_hub 2.4 (constants.py, _snapshot_download.py, utils/_validators.py) as it
resolves `snapshot_download(repo_id, local_files_only=True)`.
"""

import os
import re
from collections.abc import Mapping, Sequence

from prefetch_cli.base.errors import CheckpointError, PrefetchError
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import Hub
from prefetch_cli.hubs.hub_cache import (
    COMMIT,
    Query,
    Snapshot,
    excerpt,
    expand_user,
    is_folder,
    names_in,
    unreadable,
)
from prefetch_cli.linux.files import read_head

_ABBREVIATED_COMMIT = re.compile(r"[0-9a-f]{4,40}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_REF_BYTES = 4096  # a file this long is no ref


def default_caches(environ: Mapping[str, str]) -> tuple[str]:
    """Return `HF_HUB_CACHE` as huggingface_hub's constants.py computes it.

    There, an empty variable counts as set and names the working directory.
    """
    user_cache = os.path.join(expand_user("~", environ), ".cache")
    default_home = os.path.join(environ.get("XDG_CACHE_HOME", user_cache), "huggingface")
    home = _expand(environ.get("HF_HOME", default_home), environ)
    older = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return (_expand(environ.get("HF_HUB_CACHE", older), environ),)


def find(query: Query) -> Snapshot:
    """Return the snapshot that a query names; raises CheckpointError."""
    repo = _repo(query)
    commits = _commits(repo)
    commit = _commit(query, repo, commits)
    if commit in commits:
        return Snapshot(os.path.join(repo, "snapshots", commit), Hub.HUGGINGFACE, commit)
    if query.revision is None or not commits:
        raise _not_cached(query)
    raise query.no_such_revision(repo, _described(repo, commits))


def holds(query: Query) -> bool:
    """Return whether the cache has the repo, at whatever revision; raises CheckpointError."""
    return bool(_commits(_repo(query)))


def _repo(query: Query) -> str:
    return os.path.join(query.cache, _repo_folder(query.repo_id))


def _commits(repo: str) -> list[str]:
    """Return the commits of which a repo's folder has snapshots."""
    snapshots = os.path.join(repo, "snapshots")
    return [
        name
        for name in names_in(snapshots)
        if COMMIT.fullmatch(name) and is_folder(os.path.join(snapshots, name))
    ]


def _commit(query: Query, repo: str, commits: Sequence[str]) -> str | None:
    """Return the commit that the revision names, or None if the cache does not know it."""
    if query.revision is not None and COMMIT.fullmatch(query.revision):
        return query.revision
    ref = "main" if query.revision is None else query.revision
    commit = _read_ref(repo, ref)
    if commit is None:
        if query.revision is None:
            return _only_commit(query.repo_id, repo, commits)
        return _abbreviated_commit(query.repo_id, query.revision, commits)
    if commit not in commits:
        raise CheckpointError(
            f"the ref {printable(ref)} of {query.repo_id} points to commit {commit}, whose "
            f"snapshot is not in {printable(repo)}: found {_described(repo, commits)}",
            query.download_hint,
        )
    return commit


def _only_commit(repo_id: str, repo: str, commits: Sequence[str]) -> str | None:
    # A download at a pinned commit writes no ref, so its cache has no `main`.
    if len(commits) > 1:
        raise CheckpointError(
            f"expected a ref main or a single snapshot of {repo_id} in {printable(repo)}, "
            f"found {_described(repo, commits)}",
            "choose one with --revision",
        )
    return commits[0] if commits else None


def _abbreviated_commit(repo_id: str, revision: str, commits: Sequence[str]) -> str | None:
    prefix = revision.lower()
    if not _ABBREVIATED_COMMIT.fullmatch(prefix):
        return None
    matching = [commit for commit in commits if commit.startswith(prefix)]
    if len(matching) > 1:
        raise CheckpointError(
            f"{revision} is short for {counted(len(matching), 'commit')} of {repo_id}: "
            f"{listing(matching)}",
            "give more digits to --revision",
        )
    return matching[0] if matching else None


def _read_ref(repo: str, ref: str) -> str | None:
    """Return the commit that a ref file holds, or None if there is no such ref."""
    path = os.path.join(repo, "refs", ref)
    try:
        head = read_head(path, _REF_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    if head is None:
        return None
    # huggingface_hub writes no newline; other tools do.
    text = head.decode("utf-8", "surrogateescape").strip()
    if len(head) == _REF_BYTES or not COMMIT.fullmatch(text):
        raise CheckpointError(
            f"expected a commit of 40 hex digits in {printable(path)}, found {excerpt(text)}",
            "choose a snapshot with --revision COMMIT, or download the repo again",
        )
    return text


def _described(repo: str, commits: Sequence[str]) -> str:
    """Return the refs and snapshots in a repo's folder, in words."""
    refs = os.path.join(repo, "refs")
    names = sorted(
        os.path.relpath(os.path.join(folder, name), refs)
        for folder, _, files in os.walk(refs)
        for name in files
    )
    return "; ".join(
        f"{noun} {listing(found)}" if found else f"no {noun}"
        for noun, found in (("refs", names), ("snapshots", commits))
    )


def _repo_folder(repo_id: str) -> str:
    return "--".join(("models", *repo_id.split("/")))


def _not_cached(query: Query) -> PrefetchError:
    folder = _repo_folder(query.repo_id)
    try:
        names = os.listdir(query.cache)
    except OSError:
        return query.not_cached()
    if folder in names:
        return query.not_cached("its folder without a snapshot")
    # The hub ignores the case of a repo id, the cache does not.
    similar = [name for name in names if name.casefold() == folder.casefold()]
    ids = [name.removeprefix("models--").replace("--", "/") for name in similar]
    return query.not_cached(hint=f"did you mean {listing(ids)}?" if ids else None)


def _expand(path: str, environ: Mapping[str, str]) -> str:
    """Return `path` with `~` and then variables expanded; unknown variables stay."""
    return _VARIABLE.sub(
        lambda match: environ.get(match[1] or match[2] or "", match[0]),
        expand_user(path, environ),
    )
