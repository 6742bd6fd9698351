"""A snapshot that lacks files -> where the rest of its repo in a hub's cache has them."""

import itertools
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from prefetch_cli.base.text import counted, printable
from prefetch_cli.checkpoint.selection import WEIGHT_SUFFIXES
from prefetch_cli.linux.files import read_head

_SNAPSHOTS = "snapshots"
_UNFINISHED = ".incomplete"
_MOST_SNAPSHOTS = 100  # the newest ones are looked into
_MOST_NAMES = 100_000  # in a folder
_LOCAL_DOWNLOADS = os.path.join(".cache", "huggingface", "download")  # of `hf download --local-dir`


def elsewhere(snapshot: str, missing: Sequence[str]) -> str | None:
    """Return in words what the repo has of a snapshot's missing files, None where it has nothing.

    `missing` are paths below the snapshot; none stands for all weights. The layout is that of
    huggingface_hub's cache, whose `snapshots/` ModelScope has too; a folder that
    `hf download --local-dir` filled has its downloads below itself.
    """
    folder, revision = os.path.split(snapshot)
    repo, name = os.path.split(folder)
    if name != _SNAPSHOTS:
        unfinished = _unfinished(os.path.join(snapshot, _LOCAL_DOWNLOADS))
        return _finish(unfinished, "this directory", "`hf download`") if unfinished else None
    causes = []
    if unfinished := _unfinished(os.path.join(repo, "blobs")):
        causes.append(_finish(unfinished, "this repo", f"`{_download(repo, revision)}`"))
    if other := _other_snapshot(snapshot, missing):
        causes.append(
            f"snapshot {printable(other)} of this repo has them: give --revision or its path"
        )
    return "; ".join(causes) or None


def _finish(unfinished: int, where: str, command: str) -> str:
    have = "has" if unfinished == 1 else "have"
    return f"{counted(unfinished, 'download')} of {where} {have} not ended: run {command} again"


def _unfinished(folder: str) -> int:
    """Return the number of files that huggingface_hub has begun to download into a folder."""
    return sum(name.endswith(_UNFINISHED) for name in _names(folder))


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, _MOST_NAMES)]
    except OSError:
        return []  # what cannot be read explains nothing


def _download(repo: str, commit: str) -> str:
    """Return the command that downloads a snapshot again."""
    name = printable(os.path.basename(repo).removeprefix("models--").replace("--", "/"))
    head = None
    with suppress(OSError):
        head = read_head(os.path.join(repo, "refs", "main"), len(commit) + 1)
    if head is None or head.strip() != os.fsencode(commit):
        return f"hf download {name} --revision {printable(commit)}"
    return f"hf download {name}"


def _other_snapshot(snapshot: str, missing: Sequence[str]) -> str | None:
    """Return the newest snapshot that has all missing files, None where none has."""
    folder = os.path.dirname(snapshot)
    paths = [os.path.join(folder, name) for name in _names(folder)]
    newest = sorted(paths, key=_changed, reverse=True)[:_MOST_SNAPSHOTS]
    return next((os.path.basename(path) for path in newest if _has(path, snapshot, missing)), None)


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0


def _has(other: str, snapshot: str, missing: Sequence[str]) -> bool:
    """Return whether another snapshot has what is missing: not the same files cut short."""
    if missing:
        pairs = ((os.path.join(other, name), os.path.join(snapshot, name)) for name in missing)
        return all(os.path.exists(one) and not _is_same(one, own) for one, own in pairs)
    weights: Iterable[str] = (name for name in _names(other) if name.endswith(WEIGHT_SUFFIXES))
    return any(os.path.exists(os.path.join(other, name)) for name in weights)


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
