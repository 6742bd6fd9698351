"""Forks the warmer off the process that becomes COMMAND, and carries signals between the two."""

import fcntl
import os
import select
import signal
import socket
import time
from contextlib import suppress

from prefetch_cli.linux.threads import spawn

# From the warmer: COMMAND may start; any other byte is the exit code to end with instead.
START = 0
# To the warmer: end without a word; any other byte is a signal that came here.
LEAVE = 0

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_LAST_SECONDS = 0.9  # for the warmer to end; it does so by itself after 0.8 (see `supervisor`)

_LOOK_SECONDS = 0.1  # between looks at COMMAND where the kernel has no pidfd


class Channel:
    """The one end of the pair of sockets, in the process that becomes COMMAND."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self._taken: list[signal.Signals] = []
        self._woken, self._wake = socket.socketpair()
        self._before = -1

    def send(self, byte: int) -> None:
        """Send the warmer a byte."""
        with suppress(OSError):  # it may have ended
            self.socket.send(bytes([byte]))

    def __enter__(self) -> None:
        """Take signals as news from now on."""
        for end in (self._woken, self._wake):
            os.set_blocking(end.fileno(), False)
        self._before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            # What the parent ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._taken.append(number)
                signal.signal(number, lambda _number, _frame: None)

    def __exit__(self, *_: object) -> None:
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(self._before)

    def news(self, seconds: float | None) -> tuple[int | None, bytes | None]:
        """Return a signal that came, and what the warmer said: b"" where it has ended."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        poll.poll(None if seconds is None else max(0, seconds) * 1000)
        number = said = None
        with suppress(BlockingIOError):
            number = self._woken.recv(1)[0]
        with suppress(BlockingIOError):
            said = _received(self.socket)
        return number, said


def await_end(channel: Channel) -> None:
    """Wait until the warmer has ended, but no longer than it takes by itself."""
    until = time.monotonic() + _LAST_SECONDS
    while (left := until - time.monotonic()) > 0:
        number, said = channel.news(left)
        if said == b"":
            return
        if number is not None:  # a second Ctrl-C ends it at once
            channel.send(number)


def _received(end: socket.socket) -> bytes:
    """Return a byte from the other end, b"" where that is closed; raises BlockingIOError."""
    try:
        return end.recv(1, socket.MSG_DONTWAIT)
    except ConnectionError:
        return b""


def fork() -> "Channel | Warmer":
    """Fork: return the one end in the process that becomes COMMAND, the other in the warmer.

    Raises OSError where the system refuses another process.
    """
    ours, theirs = (_above_streams(end) for end in socket.socketpair())
    command = _Life()
    pending = signal.sigpending()
    middle = os.fork()
    if middle:
        theirs.close()
        command.close()
        with suppress(ChildProcessError):  # where SIGCHLD is ignored, there is none to wait for
            os.waitpid(middle, 0)
        # Where the parent blocks it, COMMAND would be told of a child that is not its own.
        if signal.SIGCHLD in signal.sigpending() - pending:
            signal.sigtimedwait({signal.SIGCHLD}, 0)
        return Channel(ours)
    ours.close()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)  # the channel is closed, which says all
    return Warmer(theirs, command)


def _above_streams(end: socket.socket) -> socket.socket:
    """Return a socket whose number is none of a standard stream's, should one be closed."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))


class _Life:
    """Whether this process still runs, whatever it is by then, as a child of it can tell."""

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._pid = os.getpid()
        self._birth = self._looked()
        # Before Linux 5.3, or where a filter of system calls refuses it; and Python lacks the
        # function where it was built with older headers.
        with suppress(OSError, AttributeError):
            low = os.pidfd_open(self._pid)
            self.descriptor = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)

    @property
    def ended(self) -> bool:
        """Whether it has ended; a defunct entry of it may be left."""
        if self.descriptor is None:
            return self._looked() != self._birth
        return bool(select.select([self.descriptor], [], [], 0)[0])

    def _looked(self) -> str:
        """Return when the process of this number began, empty where none runs."""
        try:
            with open(f"/proc/{self._pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return ""
        # The first thread may have ended before others, and is defunct until they end.
        over = fields[0] in "ZX" and int(fields[17]) <= 1
        return "" if over else fields[19]


class Warmer:
    """The other end, in the process that warms."""

    def __init__(self, theirs: socket.socket, command: _Life) -> None:
        self._socket = theirs
        self._command = command
        self.dismissed = False  # COMMAND has ended, so nobody is interested any more

    def settle(self) -> None:
        """Become a process of its own, which nobody notices, and follow COMMAND.

        Raises RuntimeError where the system refuses a thread.
        """
        # A group of its own: Ctrl-C is COMMAND's. In the background of the terminal then, whose
        # `stty tostop` must not stop what writes a line.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which `_follow` ends it
        _let_go({self._socket.fileno(), self._command.descriptor})
        spawn(self._follow, "command")

    def say(self, byte: int) -> None:
        """Send a byte to the process that becomes COMMAND."""
        with suppress(OSError):  # it may have ended, or have become COMMAND
            self._socket.send(bytes([byte]))

    def _follow(self) -> None:
        """Take COMMAND's end, and signals that came to it before its start, as signals here."""
        # Else this thread, which is older than those of the run, would take them by itself.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if self._command.descriptor is not None:
            poll.register(self._command.descriptor, select.POLLIN)
        seconds = _LOOK_SECONDS if self._command.descriptor is None else None
        while True:
            poll.poll(None if seconds is None else seconds * 1000)
            said = None
            with suppress(BlockingIOError, OSError):
                said = _received(self._socket)
            if self._command.ended or said == bytes([LEAVE]):
                self.dismissed = True
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if said == b"":
                with suppress(KeyError):  # it has become COMMAND
                    poll.unregister(self._socket)
            elif said is not None:
                os.kill(os.getpid(), said[0])


def _let_go(kept: set[int | None]) -> None:
    """Close what this process inherited for COMMAND, all but the stream that it writes to.

    Whoever reads the other end of a pipe, or waits for a lock, waits for COMMAND alone.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # that of the listing is closed by now
                os.close(descriptor)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fstat(2)
    except OSError:
        os.dup2(null, 2)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if null > 2:
        os.close(null)
