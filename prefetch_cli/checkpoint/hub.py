"""Hub caches: a repo id -> the directory of its snapshot. Only reads; no network.

Mirrors huggingface_hub 2.4 (constants.py, _snapshot_download.py, utils/_validators.py) and
modelscope 1.40 with modelscope-hub 0.5 (hub/utils/utils.py, _download.py), each as it resolves
`snapshot_download(repo_id, local_files_only=True)`. Where this goes further, it says so.
"""

import os
import pwd
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import Hub

_REPO_PART = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ABBREVIATED_COMMIT = re.compile(r"[0-9a-f]{4,40}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)
_MODELSCOPE_VERSION = re.compile(r"Revision:(.+),CreatedAt:")
_MODELSCOPE_METADATA = frozenset((".mdl", ".msc", ".mv"))
_MODELSCOPE_DEFAULTS = ("master", "main")
_HEAD_BYTES = 4096  # far more than a ref or a version file needs, so a longer one is no such file
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Snapshot:
    """The directory with one revision of a repo.

    `path` is absolute; `revision` is the full commit (40 hex digits) where the layout tells it.
    """

    path: str
    hub: Hub
    revision: str | None


@dataclass(frozen=True)
class _Copy:
    """One directory of a ModelScope repo, and what it says of its revision (None: nothing)."""

    path: str
    revision: str | None


def is_repo_id(text: str) -> bool:
    """Return whether `text` is `org/name` or a bare `name` in the hub's grammar.

    The rules of huggingface_hub's `validate_repo_id`; ModelScope's ids follow them too.
    """
    parts = text.split("/")
    return (
        len(parts) <= 2
        and all(_REPO_PART.fullmatch(part) for part in parts)
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )


def chosen_hub(asked: Hub | None, environ: Mapping[str, str]) -> Hub:
    """Return the hub that was asked for, else the one that the environment names for vLLM.

    `VLLM_USE_MODELSCOPE` counts as set only with `true`, in any case, as in vLLM's envs.py: what
    vLLM would not load must not be warmed.
    """
    if asked is not None:
        return asked
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

    A Hugging Face revision is a branch or tag (`refs/pr/1` too) or a commit. Beyond
    huggingface_hub, the commit may be abbreviated to 4 digits or more, and a cache without the
    ref `main` (one that was filled at a pinned commit) gives its only snapshot. Whether all
    files of a snapshot are there is not asked here.

    Raises CheckpointError where the repo or the revision is not in the cache, is ambiguous, or
    the cache is malformed or cannot be read.
    """
    if not is_repo_id(repo_id):
        raise CheckpointError(f"expected a repo id such as org/name, found {printable(repo_id)}")
    if revision is not None and not _stays_below(revision):
        raise CheckpointError(
            f"expected a branch, a tag or a commit as revision, found {_excerpt(revision)}"
        )
    if hub is Hub.MODELSCOPE:
        cache = _directory(cache_dir, _modelscope_cache(environ), environ)
        return _find_modelscope(repo_id, revision, cache)
    cache = _directory(cache_dir, _huggingface_cache(environ), environ)
    return _find_huggingface(repo_id, revision, cache)


def _directory(asked: str | None, default: str, environ: Mapping[str, str]) -> str:
    # Both hubs expand `~` in the result once more and resolve links.
    return os.path.realpath(_expand_user(default if asked is None else asked, environ))


def _huggingface_cache(environ: Mapping[str, str]) -> str:
    """Return `HF_HUB_CACHE` as huggingface_hub's constants.py computes it.

    A variable that is set but empty counts as set there, and names the working directory.
    """
    user_cache = os.path.join(_expand_user("~", environ), ".cache")
    default_home = os.path.join(environ.get("XDG_CACHE_HOME", user_cache), "huggingface")
    home = _expand(environ.get("HF_HOME", default_home), environ)
    older = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return _expand(environ.get("HF_HUB_CACHE", older), environ)


def _find_huggingface(repo_id: str, revision: str | None, cache: str) -> Snapshot:
    repo = os.path.join(cache, _huggingface_folder(repo_id))
    snapshots = os.path.join(repo, "snapshots")
    commits = [
        name
        for name in _names(snapshots)
        if _COMMIT.fullmatch(name) and os.path.isdir(os.path.join(snapshots, name))
    ]
    commit = _huggingface_commit(repo_id, revision, repo, commits)
    if commit in commits:
        return Snapshot(os.path.join(snapshots, commit), Hub.HUGGINGFACE, commit)
    if revision is None or not commits:
        raise _not_cached(Hub.HUGGINGFACE, repo_id, revision, cache)
    found = _described(repo, commits)
    raise _other_revisions(Hub.HUGGINGFACE, repo_id, revision, repo, found)


def _huggingface_commit(
    repo_id: str, revision: str | None, repo: str, commits: Sequence[str]
) -> str | None:
    """Return the commit that a revision names, or None where nothing here knows the revision."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    name = "main" if revision is None else revision
    commit = _read_ref(repo, name)
    if commit is not None:
        if commit not in commits:
            raise CheckpointError(
                f"the ref {printable(name)} of {repo_id} points to commit {commit}, whose snapshot "
                f"is not in {printable(repo)}: found {_described(repo, commits)}",
                _download_hint(Hub.HUGGINGFACE, repo_id, revision),
            )
        return commit
    if revision is None:
        return _only_commit(repo_id, repo, commits)
    return _abbreviated_commit(repo_id, revision, commits)


def _only_commit(repo_id: str, repo: str, commits: Sequence[str]) -> str | None:
    # A download at a pinned commit writes no ref, so such a cache has no `main`.
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


def _read_ref(repo: str, name: str) -> str | None:
    """Return the commit that a ref file holds, or None where there is no such ref."""
    path = os.path.join(repo, "refs", name)
    try:
        head = _head(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if head is None:
        return None
    # huggingface_hub writes no line end; other tools do.
    text = head.decode("utf-8", "surrogateescape").strip()
    if len(head) == _HEAD_BYTES or not _COMMIT.fullmatch(text):
        raise CheckpointError(
            f"expected a commit of 40 hex digits in {printable(path)}, found {_excerpt(text)}",
            "choose a snapshot with --revision COMMIT, or download the repo again",
        )
    return text


def _described(repo: str, commits: Sequence[str]) -> str:
    """Return in words the refs and the snapshots that a repo folder has."""
    refs = os.path.join(repo, "refs")
    names = sorted(
        os.path.relpath(os.path.join(folder, name), refs)
        for folder, _, files in os.walk(refs)
        for name in files
    )
    return "; ".join(
        f"{kind} {listing(found)}" if found else f"no {kind}"
        for kind, found in (("refs", names), ("snapshots", commits))
    )


def _huggingface_folder(repo_id: str) -> str:
    return "--".join(("models", *repo_id.split("/")))


def _modelscope_cache(environ: Mapping[str, str]) -> str:
    # Unlike with Hugging Face, an empty variable counts as unset, and `$` is not expanded.
    return environ.get("MODELSCOPE_CACHE") or os.path.join("~", ".cache", "modelscope")


def _find_modelscope(repo_id: str, revision: str | None, cache: str) -> Snapshot:
    """Return the copy that modelscope takes, passing over one that records another revision.

    modelscope itself takes a copy in an older layout whatever revision is asked for.
    """
    snapshots = _modelscope_snapshots(repo_id, revision, cache)
    copies = _modelscope_copies(repo_id, cache, snapshots)
    if not copies:
        raise _not_cached(Hub.MODELSCOPE, repo_id, revision, cache)
    fitting = [copy for copy in copies if revision is None or copy.revision in (None, revision)]
    recorded = dict.fromkeys(copy.revision for copy in copies if copy.revision is not None)
    found = f"revisions {listing(list(recorded))}"
    if revision is not None and not fitting:
        raise _other_revisions(Hub.MODELSCOPE, repo_id, revision, cache, found)
    chosen = fitting[0]
    undecided = len(snapshots) > 1 and snapshots[0].revision not in _MODELSCOPE_DEFAULTS
    if revision is None and chosen in snapshots and undecided:
        raise CheckpointError(
            f"expected {' or '.join(_MODELSCOPE_DEFAULTS)} or a single revision of {repo_id} in "
            f"{printable(cache)}, found {found}",
            "choose one with --revision",
        )
    is_commit = chosen.revision is not None and _COMMIT.fullmatch(chosen.revision)
    return Snapshot(chosen.path, Hub.MODELSCOPE, chosen.revision if is_commit else None)


def _modelscope_snapshots(repo_id: str, revision: str | None, cache: str) -> list[_Copy]:
    """Return the snapshots in the layout of modelscope 1.38 and later, the default branch first."""
    folder = os.path.join(_modelscope_folder(repo_id, cache), "snapshots")
    names = _names(folder)
    if revision is not None and revision not in names:
        names.append(revision)  # `feature/x` lies one folder deeper
    names.sort(key=lambda name: (name != "master", name != "main"))
    copies = (_Copy(os.path.join(folder, name), name) for name in names)
    return [copy for copy in copies if _holds_files(copy.path)]


def _modelscope_copies(repo_id: str, cache: str, snapshots: Sequence[_Copy]) -> list[_Copy]:
    """Return all copies of a repo in the order in which modelscope takes them."""
    owner, _, name = repo_id.rpartition("/")
    if not owner:
        return list(snapshots)
    safe_name = name.replace(".", "___")
    hub = os.path.join(cache, "hub")
    models = os.path.join(cache, "models")
    # Up to 1.37, with and without MODELSCOPE_CACHE.
    in_models = [os.path.join(models, owner, safe_name)]
    in_hub_models = [os.path.join(hub, "models", owner, safe_name)]
    # Up to 1.22, and later with `cache_dir=`; last, the link from the name to the safe name.
    flat = [os.path.join(root, owner, each) for root in (cache, hub) for each in (name, safe_name)]
    flat.append(os.path.join(models, owner, name))
    is_current = bool(_names(_modelscope_folder(repo_id, cache)))
    older = [*in_models, *([] if is_current else flat), *in_hub_models]
    recorded = [_Copy(path, _recorded_revision(path)) for path in older if _holds_files(path)]
    return [*recorded, *snapshots]


def _modelscope_folder(repo_id: str, cache: str) -> str:
    return os.path.join(cache, "models", repo_id.replace("/", "--"))


def _recorded_revision(directory: str) -> str | None:
    """Return the branch, tag or commit that `.mv` records, or None where it records none.

    The other two metadata files are pickles, which can run code, and know only the last commit
    of each file, so that no commit of the repo could be told from them.
    """
    try:
        head = _head(os.path.join(directory, ".mv"))
    except OSError:
        return None
    recorded = _MODELSCOPE_VERSION.match((head or b"").decode("utf-8", "surrogateescape"))
    return recorded[1] if recorded else None


def _holds_files(directory: str) -> bool:
    # Versions before 1.38 leave a folder with nothing but metadata behind when they only look.
    return any(name not in _MODELSCOPE_METADATA for name in _names(directory))


def _stays_below(revision: str) -> bool:
    parts = revision.split("/")
    return not {"", ".", ".."}.intersection(parts) and "\0" not in revision


def _names(directory: str) -> list[str]:
    """Return the sorted names in a directory, none where it does not exist."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:  # a lone surrogate: no file has such a name
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error


def _head(path: str) -> bytes | None:
    """Return the first `_HEAD_BYTES` of a regular file, or None where there is none.

    Raises OSError where the file is there and cannot be read.
    """
    try:
        # Opening a FIFO would wait, and opening a device may act on it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, _HEAD_BYTES)
    finally:
        os.close(descriptor)


def _expand_user(path: str, environ: Mapping[str, str]) -> str:
    """Return `path` as os.path.expanduser would, by the given environment."""
    if path != "~" and not path.startswith("~/"):
        return os.path.expanduser(path)
    home = environ.get("HOME")
    if home is None:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a container may run a user that no table lists
            return path
    return home.rstrip("/") + path[1:] or "/"


def _expand(path: str, environ: Mapping[str, str]) -> str:
    """Return `path` with `~` and then variables expanded; an unknown variable stays as it is."""
    return _VARIABLE.sub(
        lambda match: environ.get(match[1] or match[2] or "", match[0]),
        _expand_user(path, environ),
    )


def _excerpt(text: str) -> str:
    return printable(text[:_SHOWN_CHARACTERS]) or "nothing"


def _download_hint(hub: Hub, repo_id: str, revision: str | None) -> str:
    command = "hf download" if hub is Hub.HUGGINGFACE else "modelscope download --model"
    option = "" if revision is None else f" --revision {_excerpt(revision)}"
    return f"`{command} {repo_id}{option}` fetches it; or give a path, or another --cache-dir"


def _unreadable(path: str, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {printable(path)}: {error.strerror}")


def _other_revisions(
    hub: Hub, repo_id: str, revision: str, place: str, found: str
) -> CheckpointError:
    return CheckpointError(
        f"revision {_excerpt(revision)} of {repo_id} is not in {printable(place)}: found {found}",
        _download_hint(hub, repo_id, revision),
    )


def _not_cached(hub: Hub, repo_id: str, revision: str | None, cache: str) -> CheckpointError:
    named = "Hugging Face" if hub is Hub.HUGGINGFACE else "ModelScope"
    message = (
        f"{repo_id}: expected a path that exists or a repo in the {named} cache "
        f"{printable(cache)}, found"
    )
    hint = _download_hint(hub, repo_id, revision)
    try:
        names = os.listdir(cache)
    except FileNotFoundError:
        return CheckpointError(f"{message} no such path and no such cache", hint)
    except OSError as error:
        return CheckpointError(
            f"{message} no such path and a cache that cannot be listed: {error.strerror}", hint
        )
    if hub is Hub.HUGGINGFACE:
        folder = _huggingface_folder(repo_id)
        if folder in names:
            return CheckpointError(f"{message} its folder without a snapshot", hint)
        # The hub takes an id in any case, the cache does not.
        similar = [name for name in names if name.casefold() == folder.casefold()]
        if similar:
            ids = [name.removeprefix("models--").replace("--", "/") for name in similar]
            hint = f"did you mean {listing(ids)}?"
    return CheckpointError(f"{message} neither", hint)
