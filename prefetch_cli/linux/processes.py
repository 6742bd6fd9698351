"""Processes as /proc shows them: who maps a file, whether one has exited, what we inherited."""

import fcntl
import os
import select
import signal
from collections.abc import Container
from contextlib import suppress
from typing import NamedTuple

from prefetch_cli.linux import procfs
from prefetch_cli.linux.files import close

_MOST_DESCRIPTORS = 1024  # that a command has, where /proc does not tell


class Process(NamedTuple):
    """A running process; its name is whatever the process calls itself."""

    pid: int
    name: str


def mapping(real_path: str, inode: int) -> list[Process]:
    """Return the processes that map the file, as far as this user may look into them."""
    found = []
    needle, path = f" {inode} ".encode(), os.fsencode(real_path)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        # A process may end while we look, and may belong to another user.
        with suppress(OSError):
            lines = procfs.read(f"/proc/{pid}/maps").splitlines()
            if any(needle in line and path in line for line in lines):
                found.append(Process(int(pid), procfs.text(f"/proc/{pid}/comm")))
    return found


class Pidfd:
    """A pidfd of the calling process, for its children to tell when it has exited.

    Where there is no pidfd (before Linux 5.3, or refused by seccomp), `descriptor` is None and
    `exited` asks /proc instead.
    """

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._pid = os.getpid()
        self._start_time = self._read_start_time()
        # AttributeError: Python built against headers that lack the call.
        with suppress(OSError, AttributeError):
            low = os.pidfd_open(self._pid)
            # Above the standard streams, any of which may be closed.
            self.descriptor = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
            close(low)

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        if self.descriptor is not None:
            close(self.descriptor)

    @property
    def exited(self) -> bool:
        """Whether the process has exited; it may still be a zombie."""
        if self.descriptor is None:
            return self.is_gone()
        try:
            return bool(select.select([self.descriptor], [], [], 0)[0])
        except OSError:  # no memory for it: ask again
            return False

    def is_gone(self) -> bool:
        """Return whether /proc shows that it has exited: another process has its start time."""
        return self._read_start_time() != self._start_time

    def _read_start_time(self) -> str:
        """Return the start time of the process with this pid, "" where none runs."""
        try:
            stat = procfs.read(f"/proc/{self._pid}/stat")
        except OSError:
            return ""
        fields = os.fsdecode(stat).rpartition(")")[2].split()
        # The main thread may exit first; it is a zombie until the other threads exit.
        state, threads, start_time = fields[0], int(fields[17]), fields[19]
        return "" if state in "ZX" and threads <= 1 else start_time


def initial_environment() -> dict[bytes, bytes]:
    """Return the environment that this process was started with.

    os.environ may hold an LC_CTYPE that Python added (PEP 538). If a variable occurs twice, the
    first one counts, as for getenv(3) and Python itself.
    """
    try:
        entries = procfs.read("/proc/self/environ").split(b"\0")
    except OSError:
        return dict(os.environb)
    environment: dict[bytes, bytes] = {}
    for entry in entries:
        name, equals, value = entry.partition(b"=")
        if name and equals:
            environment.setdefault(name, value)
    return environment


def set_handler(number: int, action: signal.Handlers) -> None:
    """Ignore a signal or give it its default action, if the system (a sandbox) allows it."""
    with suppress(OSError):
        signal.signal(number, action)


def close_fds(keep: Container[int | None]) -> None:
    """Close every descriptor above standard error, except those in `keep`."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        descriptors = list(range(_MOST_DESCRIPTORS))
    for descriptor in descriptors:
        if descriptor > 2 and descriptor not in keep:
            close(descriptor)  # the listing's own is closed by now
