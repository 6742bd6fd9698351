"""The ModelScope cache: a repo id -> the directory of its snapshot.

Mirrors modelscope 1.40 with modelscope-hub 0.5 (hub/utils/utils.py, _download.py) as it resolves
`snapshot_download(repo_id, local_files_only=True)`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import Hub
from prefetch_cli.hubs.hub_cache import COMMIT, Query, Snapshot, names_in
from prefetch_cli.linux.files import read_head

_VERSION = re.compile(r"Revision:(.+),CreatedAt:")
_VERSION_BYTES = 4096  # far more than a version file has
_METADATA = frozenset((".mdl", ".msc", ".mv"))
_DEFAULT_BRANCHES = ("master", "main")


class _Copy(NamedTuple):
    """A directory with a copy of the repo, and the revision that it records, if any."""

    path: str
    revision: str | None


def default_caches(environ: Mapping[str, str]) -> tuple[str]:
    """Return `MODELSCOPE_CACHE`; unlike Hugging Face, empty counts as unset, `$` stays."""
    return (environ.get("MODELSCOPE_CACHE") or os.path.join("~", ".cache", "modelscope"),)


def find(query: Query) -> Snapshot:
    """Return the copy that modelscope would use; raises CheckpointError.

    A copy in an older layout that records another revision is passed over; modelscope itself
    uses it whatever revision is asked for.
    """
    revision = query.revision
    snapshots = _snapshots(query)
    copies = _all_copies(query, snapshots)
    if not copies:
        raise query.not_cached()
    matching = [copy for copy in copies if revision is None or copy.revision in (None, revision)]
    recorded = dict.fromkeys(copy.revision for copy in copies if copy.revision is not None)
    found = f"revisions {listing(list(recorded))}"
    if not matching:
        raise query.no_such_revision(query.cache, found)
    chosen = matching[0]
    ambiguous = len(snapshots) > 1 and snapshots[0].revision not in _DEFAULT_BRANCHES
    if revision is None and chosen in snapshots and ambiguous:
        raise CheckpointError(
            f"expected {' or '.join(_DEFAULT_BRANCHES)} or a single revision of {query.repo_id} "
            f"in {printable(query.cache)}, found {found}",
            "choose one with --revision",
        )
    is_commit = chosen.revision is not None and COMMIT.fullmatch(chosen.revision)
    return Snapshot(chosen.path, Hub.MODELSCOPE, chosen.revision if is_commit else None)


def holds(query: Query) -> bool:
    """Return whether the cache has the repo, at whatever revision; raises CheckpointError."""
    return bool(_all_copies(query, _snapshots(query)))


def _snapshots(query: Query) -> list[_Copy]:
    """Return the copies in the layout of modelscope 1.38 and later, the default branch first."""
    folder = os.path.join(_repo_folder(query), "snapshots")
    names = names_in(folder)
    if query.revision is not None and query.revision not in names:
        names.append(query.revision)  # `feature/x` lies one folder deeper
    names.sort(key=lambda name: (name != "master", name != "main"))
    copies = (_Copy(os.path.join(folder, name), name) for name in names)
    return [copy for copy in copies if _holds_files(copy.path)]


def _all_copies(query: Query, snapshots: Sequence[_Copy]) -> list[_Copy]:
    """Return the copies of a repo in every layout, in modelscope's order of preference."""
    owner, _, name = query.repo_id.rpartition("/")
    if not owner:
        return list(snapshots)
    safe_name = name.replace(".", "___")
    hub = os.path.join(query.cache, "hub")
    models = os.path.join(query.cache, "models")
    # Up to 1.37, with and without MODELSCOPE_CACHE.
    in_models = [os.path.join(models, owner, safe_name)]
    in_hub_models = [os.path.join(hub, "models", owner, safe_name)]
    # Up to 1.22, and later with `cache_dir=`; last, the link from the name to the safe name.
    flat = [
        os.path.join(root, owner, each) for root in (query.cache, hub) for each in (name, safe_name)
    ]
    flat.append(os.path.join(models, owner, name))
    is_current = bool(names_in(_repo_folder(query)))
    older = [*in_models, *([] if is_current else flat), *in_hub_models]
    recorded = [_Copy(path, _recorded_revision(path)) for path in older if _holds_files(path)]
    return [*recorded, *snapshots]


def _repo_folder(query: Query) -> str:
    return os.path.join(query.cache, "models", query.repo_id.replace("/", "--"))


def _recorded_revision(directory: str) -> str | None:
    """Return the branch, tag or commit that `.mv` records, or None if it records none.

    The other two metadata files are not read: they are pickles, which can run code, and they
    record commits of single files only, not of the repo.
    """
    try:
        head = read_head(os.path.join(directory, ".mv"), _VERSION_BYTES)
    except OSError:
        return None
    recorded = _VERSION.match((head or b"").decode("utf-8", "surrogateescape"))
    return recorded[1] if recorded else None


def _holds_files(directory: str) -> bool:
    # Before 1.38, a mere look-up leaves a folder with nothing but metadata.
    return any(name not in _METADATA for name in names_in(directory))
