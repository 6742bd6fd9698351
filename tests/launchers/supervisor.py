"""Runs daemons in the foreground, one per line of standard input, and takes them all down with it.

A line is a JSON list: the file for the daemon's output, then its command line. When the input ends,
a daemon exits or a signal comes, this process kills everything that the daemons started: it is a
child subreaper, so whatever forks away from them becomes its child.
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
    """A daemon has exited, or this process was told to."""


def main() -> int:
    """Return 0 when the input ends, 1 when a daemon exits by itself or a signal comes."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, _reap)
    signal.signal(signal.SIGTERM, _stop)
    # Ctrl-C reaches the whole foreground group, but the tests stop this process at their own time.
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
    # Block SIGCHLD until the pid is noted: _reap must recognize a daemon that exits at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            # If SIGKILL ends this process, it ends the daemons too.
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
    """Reap children and yield their pids, until no more have exited or none is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, how)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid


def _kill_all() -> None:
    """Kill the children, then the orphans that come here, until none is left."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM else signal.SIG_DFL)
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        # One at a time: the orphans that it leaves are in the next turn's list.
        next(_ended(0), None)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


if __name__ == "__main__":
    sys.exit(main())
