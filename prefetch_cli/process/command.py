"""Finds COMMAND as a shell would, and executes it in place of this process."""

import errno
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from prefetch_cli.base.amounts import Amount
from prefetch_cli.base.errors import ExitCode, PrefetchError
from prefetch_cli.base.text import printable
from prefetch_cli.linux.processes import initial_environment, set_handler

_SCRIPT_HINT = "a script needs its interpreter in a #! line, and chmod +x"


class CommandError(PrefetchError):
    """COMMAND cannot be run; the exit codes are a shell's, 126 and 127."""

    def __init__(self, message: str, hint: str | None, exit_code: ExitCode) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Terms(NamedTuple):
    """The command that runs beside the warming, and when it starts."""

    command: tuple[str, ...]  # never empty
    lead: Amount
    best_effort: bool
    awaits_verdict: bool = False  # COMMAND must not start before all is verified


def which(name: str, environ: Mapping[str, str]) -> str:
    """Return the path of a command, looked up in PATH as execvp(3) does; raises CommandError."""
    if "/" in name:
        paths = [name]
    else:
        # An empty entry in PATH means the working directory.
        folders = os.get_exec_path(dict(environ)) if name else []
        paths = [os.path.join(folder, name) for folder in folders]
    denied: CommandError | None = None
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            # As in bash: in a directory of PATH, any other error counts as "not found".
            if error.errno == errno.EACCES or ("/" in name and error.errno != errno.ENOENT):
                denied = denied or _not_executable(path, str(error.strerror))
            continue
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            denied = denied or (_not_executable(path, kind) if "/" in name else None)
        elif os.access(path, os.X_OK, effective_ids=True):
            return path
        else:
            denied = denied or _not_executable(path, "a file without permission to execute it")
    raise denied or _not_found(name, "nothing there" if "/" in name else "none in PATH")


def _not_found(name: str, found: str, hint: str = "check the command after --") -> CommandError:
    message = f"expected COMMAND {printable(name)!r}, found {found}"
    return CommandError(message, hint, ExitCode.COMMAND_NOT_FOUND)


def _not_executable(path: str, found: str) -> CommandError:
    return CommandError(
        f"expected COMMAND to be executable, found {printable(path)}: {found}",
        _SCRIPT_HINT,
        ExitCode.COMMAND_NOT_EXECUTABLE,
    )


def execute(path: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by the command; raises CommandError if the kernel refuses."""
    # Python ignores these two signals, and does not tell whether its parent ignored them. systemd
    # ignores SIGPIPE for its services (IgnoreSIGPIPE=yes), and names their pid.
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        set_handler(signal.SIGPIPE, signal.SIG_DFL)
    set_handler(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(path, tuple(command), initial_environment())  # noqa: S606 - no shell is the point
    except OSError as error:
        # We still write, perhaps to a warmer or a log that is gone.
        set_handler(signal.SIGPIPE, signal.SIG_IGN)
        if error.errno == errno.ENOENT:
            # A script's interpreter or an ELF file's loader is missing: 127, as in bash.
            raise _not_found(path, "a file whose interpreter is missing", _SCRIPT_HINT) from error
        raise _not_executable(path, str(error.strerror)) from error
