"""Names of distributions and paths -> the files that a server opens first, in warming order."""

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError, error_words, is_of_the_path
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.examine import file_at
from prefetch_cli.checkpoint.files import File, Found, Skipped, each_once
from prefetch_cli.libraries import distributions, interpreters
from prefetch_cli.libraries.distributions import Distribution
from prefetch_cli.libraries.interpreters import Interpreter, OutOfReachError, unreadable
from prefetch_cli.linux.files import RealFolder, file_type
from prefetch_cli.linux.threads import map_threads
from prefetch_cli.linux.walk import walk


class Request(NamedTuple):
    """The libraries that the user asks for."""

    paths: tuple[str, ...]  # files and directories
    packages: tuple[str, ...]  # names of distributions
    python: str | None  # their interpreter; None: COMMAND's, else the one on PATH
    command: tuple[str, ...]  # what runs beside the warming; its first word is a path
    of_command: bool  # include the distribution that COMMAND belongs to


class Located(NamedTuple):
    """Paths that exist and distributions that are installed; their files are not looked up yet."""

    paths: tuple[str, ...]
    packages: tuple[str, ...]
    interpreter: Interpreter | None  # None if there are no packages


def locate(request: Request, environ: Mapping[str, str], monitor: Monitor, stop: Stop) -> Located:
    """Return where the libraries are; raises CheckpointError if one of them is missing."""
    for path in request.paths:
        with monitor.waiting(path):
            _assert_exists(path)
    if not request.packages and not request.of_command:
        return Located(request.paths, (), None)
    with monitor.waiting(request.python or "the Python interpreter"):
        found = interpreters.find_interpreter(request.python, request.command, environ, stop)
        packages = [distributions.canonical(name, found) for name in request.packages]
        if request.of_command:
            packages.append(distributions.owner(request.command, found))
    return Located(request.paths, tuple(dict.fromkeys(packages)), found)


def places(located: Located) -> tuple[str, ...]:
    """Return the real paths that all files of the libraries are at or below."""
    searched = () if located.interpreter is None else located.interpreter.search_path
    return tuple(map(os.path.realpath, filter(None, (*located.paths, *searched))))


def gather(located: Located, monitor: Monitor, threads: int) -> Found:
    """Return the files of the distributions, shared libraries first, then those of the paths."""
    packages = []
    unread: list[File | Skipped] = []
    if located.interpreter is not None:
        packages = distributions.closure(located.packages, located.interpreter, monitor, threads)
        unread += _unread(packages, located.interpreter)
    real_folder = functools.cache(os.path.realpath)
    looked = unread + _of_packages(packages, monitor, threads, real_folder)
    for path in located.paths:
        looked += _walk(os.path.abspath(path), monitor, real_folder)
    return Found(
        files=each_once(one for one in looked if isinstance(one, File)),
        failed=tuple(_outermost([one for one in looked if isinstance(one, Skipped)])),
        warnings=tuple(one.warning for one in packages if one.warning is not None),
        names=tuple(one.name for one in packages),
    )


def out_of_reach(error: OutOfReachError) -> Found:
    """Return what is left of the libraries where the system did not say which they are."""
    return Found((), (Skipped(error.path, error.reason, failed=True),), (), ())


def _unread(packages: Iterable[Distribution], interpreter: Interpreter) -> Iterator[Skipped]:
    """Yield what may hold, or name, more of the libraries and cannot be read.

    Python itself passes over a folder that the user may not list: the server opens nothing there.
    """
    for folder, error in unreadable(interpreter):
        if not is_of_the_path(error):
            yield _failure(folder, error)
    for one in packages:
        yield from one.failed


def _of_packages(
    packages: Iterable[Distribution], monitor: Monitor, threads: int, real_folder: RealFolder
) -> list[File | Skipped]:
    """Return the files of distributions, sorted by kind."""
    names: dict[str, set[str]] = {}
    for path in (path for one in packages for path in one.paths):
        folder, name = os.path.split(path)
        names.setdefault(folder, set()).add(name)

    def look(folder: str) -> list[File | Skipped]:
        with monitor.waiting(folder):
            return list(_present(folder, names[folder], real_folder))

    looked = [one for part in map_threads(look, sorted(names), threads) for one in part]
    return sorted(looked, key=lambda one: distributions.position(one.path))


def _outermost(skipped: Sequence[Skipped]) -> Iterator[Skipped]:
    """Yield what failed, except what lies below a folder that failed."""
    paths = {one.path for one in skipped}
    for one in skipped:
        path, above = one.path, os.path.dirname(one.path)
        while above != path and above not in paths:
            path, above = above, os.path.dirname(above)
        if above not in paths:
            yield one


def _assert_exists(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        found = file_type(mode)
    except OSError as error:
        reason = f"expected a file or a directory, found: {error_words(error)}"
        if not is_of_the_path(error):
            raise OutOfReachError(path, reason) from None
        raise CheckpointError(f"--also {printable(path)}: {reason}", "check the path") from None
    except ValueError as error:  # a character that no path has
        mode, found = 0, str(error)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(
            f"--also {printable(path) or repr(path)}: expected a file or a directory, "
            f"found: {found}",
            "check the path",
        )


def _present(
    folder: str, names: Iterable[str], real_folder: RealFolder
) -> Iterator[File | Skipped]:
    """Yield those of these names that exist in a folder."""
    try:
        # One listing for all names: on a network each stat would be a round trip.
        existing = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield _failure(folder, error)
        return
    for name in sorted(existing.intersection(names)):
        yield from _file(os.path.join(folder, name), real_folder)


def _walk(path: str, monitor: Monitor, real_folder: RealFolder) -> Iterator[File | Skipped]:
    """Yield the file at `path`, or all files below that directory; links are followed."""
    for found, error in walk(path, monitor):
        if error is not None:
            yield _failure(found, error)
        else:
            yield from _file(found, real_folder)


def _file(path: str, real_folder: RealFolder) -> Iterator[File | Skipped]:
    """Yield the regular file at a path, if there is one."""
    try:
        found = file_at(path, weight=False, real_folder=real_folder)
    except FileNotFoundError:
        return
    except OSError as error:
        yield _failure(path, error)
        return
    if isinstance(found, File):
        yield found


def _failure(path: str, error: OSError) -> Skipped:
    return Skipped(path, error.strerror or str(error), failed=True)
