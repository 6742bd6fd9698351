"""Forks the warmer off the process that becomes COMMAND, and carries signals between the two."""

import fcntl
import os
import select
import signal
import socket
import time
from contextlib import suppress

from prefetch_cli.base import limits
from prefetch_cli.base.errors import interrupted_exit_code
from prefetch_cli.base.stop import SIGNALS
from prefetch_cli.linux.exit import leave
from prefetch_cli.linux.processes import Pidfd, close_fds, set_handler
from prefetch_cli.linux.threads import Thread, spawn

# From the warmer: exec COMMAND now. Any other byte is the code to exit with instead.
START = 0
# To the warmer: exit silently. Any other byte is the number of a signal received here.
QUIT = 0

_POLL_SECONDS = 0.1  # how often to look for COMMAND's exit where there is no pidfd


class Channel:
    """The connection to the warmer, in the process that becomes COMMAND."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._handled: list[signal.Signals] = []
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._previous_wakeup_fd = -1

    def send(self, byte: int) -> None:
        """Send the warmer a byte."""
        with suppress(OSError):  # it may have exited
            self._socket.send(bytes([byte]))

    def __enter__(self) -> None:
        """Deliver signals through `receive` from now on."""
        for end in (self._wakeup, self._wakeup_writer):
            os.set_blocking(end.fileno(), False)
        self._previous_wakeup_fd = signal.set_wakeup_fd(
            self._wakeup_writer.fileno(), warn_on_full_buffer=False
        )
        for number in SIGNALS:
            # A signal that the parent ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handled.append(number)
                signal.signal(number, lambda _number, _frame: None)

    def __exit__(self, *_: object) -> None:
        for number in self._handled:
            set_handler(number, signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_wakeup_fd)

    def receive(self, timeout_seconds: float | None) -> tuple[int | None, bytes | None]:
        """Return a signal received here, and a byte from the warmer: b"" once it has exited."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        poll.poll(None if timeout_seconds is None else max(0, timeout_seconds) * 1000)
        number = byte = None
        with suppress(BlockingIOError):
            number = self._wakeup.recv(1)[0]
        with suppress(BlockingIOError):
            byte = _receive_byte(self._socket)
        return number, byte

    def close(self) -> None:
        """Close it: COMMAND does not start."""
        for end in (self._socket, self._wakeup, self._wakeup_writer):
            end.close()

    def await_exit(self) -> None:
        """Wait for the warmer to exit, but no longer than it takes by itself."""
        deadline = time.monotonic() + limits.WARMER_LAST_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            number, byte = self.receive(left)
            if byte == b"":
                return
            if number is not None:  # a second Ctrl-C ends it at once
                self.send(number)


class Warmer:
    """The process that warms, and its connection to the one that becomes COMMAND."""

    def __init__(self, theirs: socket.socket, command: Pidfd) -> None:
        self._socket = theirs
        self._command = command
        self._poll = select.poll()
        self._thread: Thread | None = None
        self.dismissed = False  # COMMAND has exited or cannot start: nobody needs the warming

    def detach(self) -> None:
        """Leave COMMAND's process group, descriptors and signals, and exit when COMMAND exits.

        Raises RuntimeError where no thread can be started.
        """
        # In a process group of its own, Ctrl-C goes to COMMAND only. That makes it a background
        # job of the terminal, which `stty tostop` must not stop when it writes.
        os.setpgid(0, 0)
        set_handler(signal.SIGTTOU, signal.SIG_IGN)
        set_handler(signal.SIGTERM, signal.SIG_DFL)  # `_follow_command` sends it
        # COMMAND's pipes and locks must end with COMMAND, not with the warmer.
        close_fds({self._socket.fileno(), self._command.descriptor})
        _redirect_streams()
        for descriptor in (self._socket.fileno(), self._command.descriptor):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)
        self._thread = spawn(self._follow_command)

    def send(self, byte: int) -> None:
        """Send a byte to the process that becomes COMMAND."""
        with suppress(OSError):  # it may have exited, or be COMMAND already
            self._socket.send(bytes([byte]))

    def look(self) -> None:
        """End with COMMAND where the system has killed the thread that follows it."""
        # Not by the calls that it was killed for: nobody looks after this thread.
        if self._thread is not None and self._thread.killed and self._command.is_gone():
            leave(interrupted_exit_code(signal.SIGTERM))

    def close(self) -> None:
        """Close it: this process is about to exit."""
        self._socket.close()

    def _follow_command(self) -> None:
        # This thread is older than the run's, which block them: unblocked, it would die of one.
        with suppress(OSError):
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        timeout_ms = _POLL_SECONDS * 1000 if self._command.descriptor is None else None
        while not self.dismissed:
            number = self._next(timeout_ms)
            if number is None:
                continue
            try:
                os.kill(os.getpid(), number)
            except OSError:  # a sandbox refuses it: end as the signal would have it by default
                leave(interrupted_exit_code(number))

    def _next(self, timeout_ms: float | None) -> int | None:
        """Return the next signal for us: one that COMMAND got before its exec, or for its exit."""
        end = self._socket.fileno()  # -1 once the main thread has closed it
        try:
            self._poll.poll(timeout_ms)
        except OSError:  # no memory for it: whatever happens, COMMAND's exit must be seen
            time.sleep(_POLL_SECONDS)
        byte = None
        with suppress(BlockingIOError, OSError):
            byte = _receive_byte(self._socket)
        if self._command.exited or byte == bytes([QUIT]):
            self.dismissed = True
            return signal.SIGTERM
        if byte == b"":
            with suppress(KeyError, ValueError):  # the exec closed the other end
                self._poll.unregister(end)
        return byte[0] if byte else None


def fork() -> Channel | Warmer:
    """Fork: return a Channel in the process that becomes COMMAND, a Warmer in the other one.

    Raises OSError where the system refuses another process.
    """
    ours, theirs = (_above_streams(end) for end in socket.socketpair())
    command = Pidfd()
    pending = signal.sigpending()
    # Fork twice, so that the warmer is not a child of COMMAND.
    middle = os.fork()
    if middle:
        theirs.close()
        command.close()
        with suppress(ChildProcessError):  # if SIGCHLD is ignored, the kernel reaps it
            os.waitpid(middle, 0)
        # If the parent blocks SIGCHLD, take ours, or COMMAND would find it pending.
        if signal.SIGCHLD in signal.sigpending() - pending:
            signal.sigtimedwait({signal.SIGCHLD}, 0)
        return Channel(ours)
    ours.close()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)  # this closes the channel, and the other end reports it
    return Warmer(theirs, command)


def _above_streams(end: socket.socket) -> socket.socket:
    """Return the socket at a descriptor above the standard streams, any of which may be closed."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))


def _receive_byte(end: socket.socket) -> bytes:
    """Return a byte from the other end, b"" if that is closed; raises BlockingIOError."""
    try:
        return end.recv(1, socket.MSG_DONTWAIT)
    except ConnectionError:
        return b""


def _redirect_streams() -> None:
    """Read nothing from standard input, and write standard output to standard error."""
    null = _nothing()
    try:
        os.fstat(2)
    except OSError:
        os.dup2(null, 2)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if null > 2:
        os.close(null)


def _nothing() -> int:
    """Return a descriptor that is at its end; what is written to it is lost."""
    try:
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # there need not be a /dev
        end, other = os.pipe()
        os.close(other)
        return end
