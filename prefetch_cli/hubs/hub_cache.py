"""What the hubs' caches share: the look-up of a repo id, its answer and its errors."""

import os
import pwd
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from prefetch_cli.base.errors import (
    CheckpointError,
    PrefetchError,
    error_words,
    is_of_the_path,
    unreachable,
)
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Hub
from prefetch_cli.linux.files import mode_of

COMMIT = re.compile(r"[0-9a-f]{40}")

CACHE_NAMES = {
    Hub.HUGGINGFACE: "Hugging Face cache",
    Hub.MODELSCOPE: "ModelScope cache",
    Hub.OLLAMA: "Ollama store",
}
_DOWNLOADS = {
    Hub.HUGGINGFACE: "hf download",
    Hub.MODELSCOPE: "modelscope download --model",
    Hub.OLLAMA: "ollama pull",
}
_EXCERPT_CHARACTERS = 60


class Snapshot(NamedTuple):
    """The directory that holds one revision of a repo; in Ollama's store, the manifest file."""

    path: str  # absolute
    hub: Hub
    revision: str | None  # the commit (40 hex digits) if the cache records it


class Query(NamedTuple):
    """A repo id to look up in the caches of one hub."""

    hub: Hub
    repo_id: str
    revision: str | None
    caches: tuple[str, ...]  # the preferred one first; only Ollama has two by default

    @property
    def cache(self) -> str:
        """The preferred cache."""
        return self.caches[0]

    @property
    def download_hint(self) -> str:
        """The command that downloads the repo."""
        option = "" if self.revision is None else f" --revision {excerpt(self.revision)}"
        return (
            f"`{_DOWNLOADS[self.hub]} {self.repo_id}{option}` fetches it; or give a path, or "
            "another --cache-dir"
        )

    def no_such_revision(self, folder: str, found: str) -> CheckpointError:
        """Return the error for a repo that is cached at other revisions only."""
        return CheckpointError(
            f"revision {excerpt(self.revision or '')} of {self.repo_id} is not in "
            f"{printable(folder)}: found {found}",
            self.download_hint,
        )

    def not_cached(self, found: str = "neither", hint: str | None = None) -> PrefetchError:
        """Return the error for a repo that is not in the cache, which may not exist either."""
        problems = [_listing_error(cache) for cache in self.caches]
        if all(isinstance(problem, FileNotFoundError) for problem in problems):
            found = "no such path and no such cache"
        else:
            for problem in problems:
                if problem is not None and not is_of_the_path(problem):
                    return unreadable(self.cache, problem)
                if problem is not None and not isinstance(problem, FileNotFoundError):
                    found = f"no such path and a cache that cannot be listed: {problem.strerror}"
        noun = "a model" if self.hub is Hub.OLLAMA else "a repo"
        return CheckpointError(
            f"{self.repo_id}: expected a path that exists or {noun} in the "
            f"{CACHE_NAMES[self.hub]} {' or '.join(map(printable, self.caches))}, found {found}",
            hint or self.download_hint,
        )


def _listing_error(directory: str) -> OSError | None:
    try:
        os.listdir(directory)
    except OSError as error:
        return error
    return None


def names_in(directory: str) -> list[str]:
    """Return the sorted names in a directory, none if there is no such directory."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(directory, error) from error


def is_folder(path: str) -> bool:
    """Return whether a path leads to a directory; raises PrefetchError if the system fails."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: str) -> bool:
    """Return whether a path leads to a regular file; raises PrefetchError if the system fails."""
    return stat.S_ISREG(_mode(path))


def _mode(path: str) -> int:
    try:
        return mode_of(path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> PrefetchError:
    """Return the error for a part of the cache that exists but cannot be read."""
    return unreachable(error, f"cannot read {printable(path)}: {error_words(error)}")


def excerpt(text: str) -> str:
    """Return the first characters of a text, safe to print."""
    return printable(text[:_EXCERPT_CHARACTERS]) or "nothing"


def expand_user(path: str, environ: Mapping[str, str]) -> str:
    """Return what os.path.expanduser returns, with HOME from the given environment."""
    if path != "~" and not path.startswith("~/"):
        return os.path.expanduser(path)
    home = environ.get("HOME")
    if home is None:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:  # a container may run as a user that has no entry
            return path
    return home.rstrip("/") + path[1:] or "/"
