"""What a server opens before it reads a weight -> the files, in the order of warming."""

import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.files import File, Skipped
from prefetch_cli.libraries import distributions
from prefetch_cli.libraries.distributions import Interpreter
from prefetch_cli.linux.files import kind
from prefetch_cli.linux.threads import map_threads

RealFolder = Callable[[str], str]


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    paths: tuple[str, ...]  # files and directories
    packages: tuple[str, ...]  # names of distributions
    python: str | None  # whose they are; None: COMMAND's interpreter, else that of PATH
    command: tuple[str, ...]  # what runs beside the warming, its first word as a path
    of_command: bool  # the distribution that COMMAND belongs to, too


@dataclass(frozen=True)
class Located:
    """What is there by name; its files have not been looked for."""

    paths: tuple[str, ...]
    packages: tuple[str, ...]
    interpreter: Interpreter | None  # None where no package was asked for


@dataclass(frozen=True)
class Libraries:
    """The files, each physical one once."""

    names: tuple[str, ...]  # of the distributions, those that were asked for first
    files: tuple[File, ...]
    failed: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)


def locate(wanted: Wanted, environ: Mapping[str, str], monitor: Monitor, stop: Stop) -> Located:
    """Return where the libraries are; raises CheckpointError where one of them is not there."""
    for path in wanted.paths:
        with monitor.waiting(path):
            _assert_there(path)
    if not wanted.packages and not wanted.of_command:
        return Located(wanted.paths, (), None)
    with monitor.waiting(wanted.python or "the Python interpreter"):
        found = distributions.find_interpreter(wanted.python, wanted.command, environ, stop)
        packages = [distributions.canonical(name, found) for name in wanted.packages]
        if wanted.of_command:
            packages.append(distributions.owner(wanted.command, found))
    return Located(wanted.paths, tuple(dict.fromkeys(packages)), found)


def places(located: Located) -> tuple[str, ...]:
    """Return the real paths of the folders that the libraries lie in or below, or of the files."""
    searched = () if located.interpreter is None else located.interpreter.search_path
    return tuple(map(os.path.realpath, filter(None, (*located.paths, *searched))))


def gather(located: Located, monitor: Monitor, threads: int) -> Libraries:
    """Return the files of the distributions, shared libraries first, then those of the paths."""
    found = []
    if located.interpreter is not None:
        found = distributions.closure(located.packages, located.interpreter, monitor, threads)
    named: dict[str, set[str]] = {}
    for path in (path for one in found for path in one.paths):
        folder, name = os.path.split(path)
        named.setdefault(folder, set()).add(name)
    real_folder = functools.cache(os.path.realpath)

    def look(folder: str) -> list[File | Skipped]:
        with monitor.waiting(folder):
            return list(_present(folder, named[folder], real_folder))

    looked = [one for part in map_threads(look, sorted(named), threads) for one in part]
    looked.sort(key=lambda one: distributions.place(one.path))
    for path in located.paths:
        looked += _below(os.path.abspath(path), monitor, real_folder)
    files: dict[tuple[int, int], File] = {}
    for one in looked:
        if isinstance(one, File):
            files.setdefault((one.device, one.inode), one)
    return Libraries(
        names=tuple(one.name for one in found),
        files=tuple(files.values()),
        failed=tuple(_outermost([one for one in looked if isinstance(one, Skipped)])),
        warnings=tuple(one.warning for one in found if one.warning is not None),
    )


def _outermost(skipped: Sequence[Skipped]) -> Iterator[Skipped]:
    """Yield what failed, less what lies below a folder that did."""
    paths = {one.path for one in skipped}
    for one in skipped:
        path, above = one.path, os.path.dirname(one.path)
        while above != path and above not in paths:
            path, above = above, os.path.dirname(above)
        if above not in paths:
            yield one


def _assert_there(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        found = kind(mode)
    except (OSError, ValueError) as error:  # ValueError: a character that no path has
        mode, found = 0, getattr(error, "strerror", None) or str(error)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(
            f"--also {printable(path) or repr(path)}: expected a file or a directory, "
            f"found: {found}",
            "check the path",
        )


def _present(
    folder: str, names: Iterable[str], real_folder: RealFolder
) -> Iterator[File | Skipped]:
    """Yield the files of these names that are in a folder, of which some may not be."""
    try:
        # One question for all names: on a network each would be a round trip.
        there = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield _skipped(folder, error)
        return
    for name in sorted(there.intersection(names)):
        yield from _file(os.path.join(folder, name), real_folder)


def _below(path: str, monitor: Monitor, real_folder: RealFolder) -> Iterator[File | Skipped]:
    """Yield the file, or those of the directory and of all below it; links are followed."""
    pending = [path]
    seen: set[tuple[int, int]] = set()
    while pending:
        path = pending.pop()
        try:
            with monitor.waiting(path):
                status = os.stat(path)
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder and (status.st_dev, status.st_ino) in seen:
                    continue  # a link that leads back
                names = sorted(os.listdir(path), reverse=True) if is_folder else []
                seen.add((status.st_dev, status.st_ino))
        except FileNotFoundError:
            continue  # a link to nothing, or gone since
        except OSError as error:
            yield _skipped(path, error)
            continue
        pending += [os.path.join(path, name) for name in names]
        if not is_folder:
            yield from _file(path, real_folder)


def _file(path: str, real_folder: RealFolder) -> Iterator[File | Skipped]:
    """Yield the file at a path, unless there is none, or something else."""
    try:
        status = os.stat(path)
        folder, name = os.path.split(path)
        # The links in a folder's path are resolved once for all of its files.
        is_link = os.path.islink(path)
        real_path = os.path.realpath(path) if is_link else os.path.join(real_folder(folder), name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield _skipped(path, error)
        return
    if stat.S_ISREG(status.st_mode):
        yield File(
            path, real_path, status.st_size, weight=False, device=status.st_dev, inode=status.st_ino
        )


def _skipped(path: str, error: OSError) -> Skipped:
    return Skipped(path, error.strerror or str(error), failed=True)
