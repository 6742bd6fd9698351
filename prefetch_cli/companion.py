"""Warming beside a command: this process becomes COMMAND, and another one does the warming.

The process that the user started keeps its pid, its streams and everything else that a command
inherits, and execs COMMAND as soon as the warmer gives the word. The warmer is forked before any
thread is started, and twice: it is nobody's child that COMMAND could wait for, be signalled about,
or leave behind as a defunct entry, unless COMMAND is the one that orphans go to (the first process
of a container). So PR_SET_PDEATHSIG, which knows parents only, would not tell it that COMMAND has
ended; a pidfd does, which was opened before the fork and so is of that process and no other.

The two talk through a pair of sockets that closes by itself at the exec.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from prefetch_cli.decision import Action as Verdict
from prefetch_cli.display import Audience, Display
from prefetch_cli.errors import CheckpointError, ExitCode, PrefetchError
from prefetch_cli.errors import interrupted_exit_code as interrupted
from prefetch_cli.progress import Snapshot
from prefetch_cli.report import Report
from prefetch_cli.sizes import Amount, format_size
from prefetch_cli.text import printable
from prefetch_cli.workers import spawn

Warm = Callable[[Audience], int]

# From the warmer: COMMAND may start; any other byte is the exit code to end with instead.
_START = 0
# To the warmer: end without a word; any other byte is a signal that came here.
_LEAVE = 0

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_LAST_SECONDS = 0.9  # for the warmer to end; it does so by itself after 0.8 (see `supervisor`)
_SCRIPTS = "a script needs its interpreter in a #! line, and chmod +x"
_LOOK_SECONDS = 0.1  # between looks at COMMAND where the kernel has no pidfd


@dataclass(frozen=True)
class Terms:
    """What is to run beside the warming, and when it starts."""

    command: tuple[str, ...]  # at least the name
    lead: Amount
    best_effort: bool


class CommandError(PrefetchError):
    """COMMAND cannot be run: with the exit codes that a shell gives."""

    def __init__(self, message: str, hint: str | None, exit_code: ExitCode) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def accompany(terms: Terms, display: Display, warm: Warm) -> int:
    """Become COMMAND, with `warm` under way in another process.

    Returns in the warmer, with what `warm` returned, and here where COMMAND does not start.
    Raises CommandError where it cannot be run. Only for a process that has one thread.
    """
    path = find(terms.command[0], os.environ)
    try:
        channel = _part()
    except OSError as error:
        display.warn(f"nothing is warmed: {error.strerror}; COMMAND starts all the same")
        _exec(path, terms.command)
    if isinstance(channel, _Warmer):
        channel.settle()
        return warm(_Beside(display, terms, channel))
    with channel:
        code = _await_word(channel, display)
    if code is not None:
        return code
    number, _ = channel.news(0)  # of a signal that came meanwhile; the next one ends the process
    if number is not None:
        channel.send(number)
        _await_end(channel)
        return interrupted(number)
    try:
        _exec(path, terms.command)
    except CommandError:
        channel.send(_LEAVE)
        _await_end(channel)
        raise


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


def _exec(path: str, command: Sequence[str]) -> NoReturn:
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


class _Channel:
    """The one end of the pair of sockets, in the process that becomes COMMAND."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self._taken: list[signal.Signals] = []
        self._woken, self._wake = socket.socketpair()
        self._before = -1

    def send(self, byte: int) -> None:
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


def _await_word(channel: _Channel, display: Display) -> int | None:
    """Return None as soon as COMMAND may start, else the exit code to end with."""
    while True:
        number, said = channel.news(None)
        if number is not None:
            channel.send(number)
            _await_end(channel)
            return interrupted(number)
        if said == b"":
            display.warn("the warming has ended before its time; COMMAND starts all the same")
            return None
        if said is not None:
            if said[0] == _START:
                return None
            _await_end(channel)
            return said[0]


def _await_end(channel: _Channel) -> None:
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


def _part() -> "_Channel | _Warmer":
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
        return _Channel(ours)
    ours.close()
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)  # the channel is closed, which says all
    return _Warmer(theirs, command)


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


class _Warmer:
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
            if self._command.ended or said == bytes([_LEAVE]):
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


class _Beside:
    """Shows the run in the manner of a server's log, and gives the word."""

    def __init__(self, display: Display, terms: Terms, warmer: _Warmer) -> None:
        self._display = display
        self._terms = terms
        self._warmer = warmer
        self._warm_bytes = self._resident_bytes = 0
        self._lead_bytes: int | None = None  # not known before the decision
        self._said = False

    def decided(self, report: Report) -> None:
        """Show the decision, and give the word where nothing is to be waited for."""
        self._display.decided(report)
        plan, decision = report.plan, report.decision
        if plan is None or decision is None or decision.action is Verdict.SKIP:
            if report.signal is None:
                self._say(_START)
            return
        self._resident_bytes = plan.already_resident_bytes
        self._lead_bytes = self._terms.lead.of(plan.size_bytes + plan.already_resident_bytes)
        self._look(0)

    def gathered(self, report: Report) -> None:
        """Show what was found of the libraries."""
        self._display.gathered(report)

    def progress(self, snapshot: Snapshot) -> None:
        """Show how far it has come, and give the word where that is far enough."""
        self._display.progress(snapshot)
        self._look(snapshot.last_part_bytes)
        if snapshot.ended:
            self._start_short()

    def finished(self, report: Report, shown: Report | None) -> None:
        """Show what came of it, unless COMMAND has ended; it starts now at the latest."""
        if self._warmer.dismissed:
            return
        error = report.error
        if error is None:
            if report.signal is None:
                self._start_short()
            self._display.finished(report, shown)
        elif isinstance(error, CheckpointError) and self._terms.best_effort:
            hint = "" if error.hint is None else f"; {error.hint}"
            self._display.warn(f"{error.message}{hint}; COMMAND starts all the same")
            self._say(_START)
        else:
            self._display.finished(report, shown)
            if isinstance(error, CheckpointError):
                self._say(int(error.exit_code))
            else:
                self._start("nothing is warm")

    def stop_bar(self) -> None:
        """Do nothing: a log has no bar."""

    def _look(self, done_bytes: int) -> None:
        self._warm_bytes = self._resident_bytes + done_bytes
        if self._lead_bytes is not None and self._warm_bytes >= self._lead_bytes:
            self._say(_START)

    def _start_short(self) -> None:
        """Give the word where no more is to come."""
        found = format_size(self._warm_bytes)
        self._start(f"expected {format_size(self._lead_bytes or 0)} warm (--lead), found {found}")

    def _start(self, why: str) -> None:
        if not self._said:
            self._display.warn(f"{why}; COMMAND starts all the same")
            self._say(_START)

    def _say(self, word: int) -> None:
        if not self._said:
            self._said = True
            self._warmer.say(word)
