"""Whether an exception means that there is no memory: Python says so in many ways.

Imported when there is none, so it imports only what Python has loaded already.
"""

import errno
import os

# What a call says whose own error found no memory.
_WITHOUT_AN_ERROR = ("without exception set", "without setting an exception")
_MOST_BYTES = 4096  # of a file in /proc

# Less than Python asks for at once: an arena of its own (1 MiB), a shared library of its own.
_AT_ONCE_BYTES = 2 * 1024 * 1024


def is_shortage(error: BaseException) -> bool:
    """Return whether this was raised because the system gave no memory."""
    if _says_so(error):
        return True
    # What handles such an error may find no memory either, and raise another.
    before = error.__context__
    while before is not None:
        if isinstance(before, MemoryError):
            return True
        before = before.__context__
    # A module that finds no memory while it is imported or compiled may raise anything, as
    # SyntaxError("expected ':'").
    return _has_run_out()


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error)
    return (
        isinstance(error, MemoryError)
        # A shared library, as ld.so(8) says it.
        or (
            isinstance(error, ImportError)
            and ("annot allocate memory" in said or "failed to map segment" in said)
        )
        # A lock that Python cannot allocate.
        or (isinstance(error, RuntimeError) and said.startswith("can't allocate"))
        or (isinstance(error, SystemError) and said.endswith(_WITHOUT_AN_ERROR))
    )


def _has_run_out() -> bool:
    """Return whether the address space was full at its peak, up to its limit (ulimit -v)."""
    try:
        peak = int(_value("/proc/self/status", b"VmPeak:")) * 1024
        limit = int(_value("/proc/self/limits", b"Max address space"))
    except (OSError, ValueError):
        return False  # no limit, or nobody tells
    return limit - peak < _AT_ONCE_BYTES


def _value(path: str, name: bytes) -> bytes:
    """Return the first word behind a name; raises OSError, and ValueError where it has none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, found, rest = os.read(descriptor, _MOST_BYTES).partition(name)
    finally:
        os.close(descriptor)
    if not found:
        raise ValueError(path)
    return rest.split(None, 1)[0]
