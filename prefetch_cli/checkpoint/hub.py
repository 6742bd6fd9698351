"""A repo id -> the directory of its snapshot in a hub's cache. Read-only; no network."""

import os
import posixpath
import re
from collections.abc import Mapping

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Hub, Server
from prefetch_cli.checkpoint import huggingface, modelscope
from prefetch_cli.checkpoint.files import stays_below
from prefetch_cli.checkpoint.hub_cache import Query, Snapshot, excerpt, expand_user

_CACHES = {  # each with its default directory and its look-up
    Hub.HUGGINGFACE: (huggingface.default_cache, huggingface.find),
    Hub.MODELSCOPE: (modelscope.default_cache, modelscope.find),
}
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


def chosen_hub(asked: Hub | None, server: Server, environ: Mapping[str, str]) -> Hub:
    """Return the hub that was asked for, else the one that the server would use.

    As in vLLM's envs.py, only `true`, in any case, sets `VLLM_USE_MODELSCOPE`; SGLang's
    get_bool_env_var() takes `1` too.
    """
    if asked is not None:
        return asked
    if server is Server.SGLANG:
        wants_modelscope = environ.get("SGLANG_USE_MODELSCOPE", "").lower() in {"true", "1"}
    else:
        wants_modelscope = environ.get("VLLM_USE_MODELSCOPE", "").lower() == "true"
    return Hub.MODELSCOPE if wants_modelscope else Hub.HUGGINGFACE


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
    if not is_repo_id(repo_id):
        raise CheckpointError(f"expected a repo id such as org/name, found {printable(repo_id)}")
    if revision is not None and not _can_be_a_revision(revision):
        raise CheckpointError(
            f"expected a branch, a tag or a commit as revision, found {excerpt(revision)}"
        )
    default_cache, find = _CACHES[hub]
    asked = default_cache(environ) if cache_dir is None else cache_dir
    # Both hubs expand `~` once more here, and resolve links.
    cache = os.path.realpath(expand_user(asked, environ))
    return find(Query(hub, repo_id, revision, cache))


def _can_be_a_revision(text: str) -> bool:
    return stays_below(text) and posixpath.normpath(text) == text
