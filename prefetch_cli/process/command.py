"""Finds COMMAND as a shell would, and becomes it."""

import errno
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import NoReturn

from prefetch_cli.base.errors import ExitCode, PrefetchError
from prefetch_cli.base.text import printable

_SCRIPTS = "a script needs its interpreter in a #! line, and chmod +x"


class CommandError(PrefetchError):
    """COMMAND cannot be run: with the exit codes that a shell gives."""

    def __init__(self, message: str, hint: str | None, exit_code: ExitCode) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def find(name: str, environ: Mapping[str, str]) -> str:
    """Return the path of a command as execvp(3) looks it up; raises CommandError."""
    if "/" in name:
        paths = [name]
    else:
        # An empty folder in PATH is the one that the process works in.
        folders = os.get_exec_path(dict(environ)) if name else []
        paths = [os.path.join(folder, name) for folder in folders]
    denied: CommandError | None = None
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            # As bash has it: in a folder of PATH, whatever else is wrong means that none is there.
            if error.errno == errno.EACCES or ("/" in name and error.errno != errno.ENOENT):
                denied = denied or _unable(path, str(error.strerror))
            continue
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            denied = denied or (_unable(path, kind) if "/" in name else None)
        elif os.access(path, os.X_OK, effective_ids=True):
            return path
        else:
            denied = denied or _unable(path, "a file without permission to execute it")
    raise denied or _missing(name, "nothing there" if "/" in name else "none in PATH")


def _missing(name: str, found: str, hint: str = "check what stands behind --") -> CommandError:
    message = f"expected COMMAND {printable(name)!r}, found {found}"
    return CommandError(message, hint, ExitCode.COMMAND_NOT_FOUND)


def _unable(path: str, found: str) -> CommandError:
    return CommandError(
        f"expected COMMAND to be executable, found {printable(path)}: {found}",
        _SCRIPTS,
        ExitCode.COMMAND_NOT_EXECUTABLE,
    )


def become(path: str, command: Sequence[str]) -> NoReturn:
    """Become the command; never returns. Raises CommandError where the kernel refuses it."""
    # Python ignores these two for itself, and nobody can ask it whether they were ignored before.
    # systemd ignores SIGPIPE for a service (IgnoreSIGPIPE=yes), and says whom it has started.
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(path, tuple(command), _initial_environment())  # noqa: S606 - no shell is the point
    except OSError as error:
        # The end of this process still writes, to a warmer or a log that may be gone.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if error.errno == errno.ENOENT:
            # A script's interpreter, or the loader of an ELF file: bash has 127 for it, too.
            raise _missing(path, "a file whose interpreter is missing", _SCRIPTS) from error
        raise _unable(path, str(error.strerror)) from error


def _initial_environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with.

    Python may have added LC_CTYPE to its own (PEP 538), which is not COMMAND's.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return dict(os.environb)
    parts = (entry.partition(b"=") for entry in entries)
    return {_Name(name): value for name, equals, value in parts if name and equals}


class _Name(bytes):
    """A variable's name that equals itself only: an environment may have two of the same.

    Of these getenv(3) sees the first and bash the last.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other
