"""Errors that end a run early, and the one home of the exit codes."""

import enum
import errno
import os


class ExitCode(enum.IntEnum):
    """The exit codes; users script against the numbers."""

    OK = 0
    READ_FAILED = 1
    USAGE = 2
    CHECKPOINT = 3
    NOT_RESIDENT = 4
    COMMAND_NOT_EXECUTABLE = 126  # these two as in a shell
    COMMAND_NOT_FOUND = 127


def interrupted_exit_code(signal_number: int) -> int:
    """Return the exit code that a shell reports for a signal: 128 + its number."""
    return 128 + signal_number


class PrefetchError(Exception):
    """An error for the user: what was expected, what was found, what to do next.

    `message` is one line, already safe to show (see `text.printable`); `hint` is the next step, if
    there is one.
    """

    exit_code = ExitCode.READ_FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PrefetchError):
    """Options that exclude each other, or a value out of range."""

    exit_code = ExitCode.USAGE


class LimitError(UsageError):
    """What was asked for is over a limit that the system sets for this user."""


class CheckpointError(PrefetchError):
    """A checkpoint that is missing, empty, incomplete, malformed or ambiguous."""

    exit_code = ExitCode.CHECKPOINT


# What is wrong with a path, for the user to mend. Anything else is wrong with the system: too many
# open files, no memory, storage that does not answer.
_OF_THE_PATH = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOEXEC,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
    }
)
_SYSTEM_HINT = "this is no fault of the path: try again, or check its mount and the limits"


def is_of_the_path(error: OSError) -> bool:
    """Return whether the path is to blame, and not the system."""
    return error.errno in _OF_THE_PATH


def error_words(error: OSError) -> str:
    """Return what the system said."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))


def unreachable(
    error: OSError,
    message: str,
    hint: str | None = None,
    blamed: type[PrefetchError] = CheckpointError,
) -> PrefetchError:
    """Return the error for what the system does not give.

    `blamed` and `hint` are for a path that is to blame.
    """
    return blamed(message, hint) if is_of_the_path(error) else PrefetchError(message, _SYSTEM_HINT)
