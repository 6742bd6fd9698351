"""What is left to do where Python finds no memory to run us: say so, and start COMMAND anyway.

Imported when there is none, so it imports only what Python has loaded already, and does in a simple
way what `command` does. One thing is left out: in a C locale COMMAND sees the LC_CTYPE that Python
has set (PEP 538).
"""

import _signal  # type: ignore[import-not-found]
import errno
import os
import sys

MESSAGE = "expected more memory, found none"
HINT = "raise the limit (ulimit -v, or the cgroup's), or give fewer --threads"
# As `ExitCode` has them: enum is not loaded.
_FAILED, _NOT_EXECUTABLE, _NOT_FOUND = 1, 126, 127


def end(words: list[str], *, beside: bool) -> int:
    """Say that there is no memory and become COMMAND; return the exit code where that is not to be.

    `beside`: another process becomes COMMAND.
    """
    place = words.index("--") if "--" in words else len(words)
    given, command = words[:place], words[place + 1 :]
    if not command or beside:
        _say(f"error: {MESSAGE}; {HINT}")
        return _FAILED
    verify = "--verify" in given or "PREFETCH_CLI_VERIFY" in os.environ
    if verify and "--best-effort" not in given:
        _say(f"error: cannot verify: {MESSAGE}; {HINT}, or --best-effort to start COMMAND anyway")
        return _FAILED
    _say(f"warning: {MESSAGE}; {HINT}; starting COMMAND anyway")
    return _execute(command)


def _execute(command: list[str]) -> int:
    """Become COMMAND; return a shell's exit code where the kernel refuses."""
    # Python ignores these two; systemd ignores SIGPIPE for its services, and names their pid.
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_DFL)
    name, found = command[0], errno.ENOENT
    folders = [""] if "/" in name else os.environ.get("PATH", os.defpath).split(":")
    for folder in folders:
        try:
            os.execv(os.path.join(folder, name), command)  # noqa: S606 - no shell is the point
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                found = error.errno or found
    _say(f"error: expected COMMAND to be executable, found {name!r}: {os.strerror(found)}")
    return _NOT_FOUND if found == errno.ENOENT else _NOT_EXECUTABLE


def _say(text: str) -> None:
    if sys.stderr is not None:
        try:  # noqa: SIM105 - contextlib is not loaded
            os.write(sys.stderr.fileno(), f"prefetch-cli: {text}\n".encode(errors="replace"))
        except (OSError, ValueError):
            pass
