"""Runs daemons in the foreground, one for each line of standard input, and ends with all of them.

A line is a JSON list: the file that takes the daemon's output, then its words. At the end of the
input, at the end of any of the daemons, or when it is told to end, everything that they started is
killed: what forks away from them comes here, since this process is the reaper of its descendants.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)
_daemons: set[int] = set()


class _EndedError(Exception):
    """One of the daemons is no more, or this process has to end."""


def main() -> int:
    """Run until the input ends: 0; until a daemon ends by itself, or a signal comes: 1."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGTERM, _stop)
    # Ctrl-C goes to the whole foreground group: the tests end this one in their own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for line in sys.stdin:
            output, *words = json.loads(line)
            _start(output, words)
    except _EndedError:
        return 1
    finally:
        _kill_all()
    return 0


def _start(output: str, words: list[str]) -> None:
    # Not between fork and the note of the number: _reap has to know a daemon that ends at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            # Where this process is killed with SIGKILL, the daemons go with it.
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, descriptor in enumerate((nothing, log, log)):
                os.dup2(descriptor, number)
            os.execvp(words[0], words)
        finally:
            os._exit(127)
    _daemons.add(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _EndedError


def _reap(_signal: int, _frame: FrameType | None) -> None:
    for pid in _ended(os.WNOHANG):
        if pid in _daemons:
            raise _EndedError


def _ended(how: int) -> Iterator[int]:
    """Yield the children that have ended, until none has, or none is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, how)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid


def _kill_all() -> None:
    """Kill the children, then what comes here for want of a parent, until there is none."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL)
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        # One at a time: those that it leaves behind are in the list of the next turn.
        next(_ended(0), None)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


if __name__ == "__main__":
    sys.exit(main())
