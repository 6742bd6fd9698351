"""Lets one system call of a run fail, or hang, in a child that has imported everything already.

The kernel asks us about each system call of the child's threads and of their forks (seccomp(2),
SECCOMP_RET_USER_NOTIF); we count them by name, and answer one of them in the kernel's place. What
execs another program is no longer counted. The numbers come from include/uapi/linux/seccomp.h and
arch/x86/entry/syscalls/syscall_64.tbl.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.helpers.command import ROOT

CALLS = {
    "read": 0,
    "write": 1,
    "open": 2,
    "close": 3,
    "stat": 4,
    "fstat": 5,
    "lstat": 6,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "ioctl": 16,
    "pread64": 17,
    "readv": 19,
    "writev": 20,
    "access": 21,
    "pipe": 22,
    "select": 23,
    "mremap": 25,
    "mincore": 27,
    "madvise": 28,
    "dup": 32,
    "dup2": 33,
    "sendfile": 40,
    "socket": 41,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "socketpair": 53,
    "clone": 56,
    "fork": 57,
    "vfork": 58,
    "execve": 59,
    "wait4": 61,
    "kill": 62,
    "uname": 63,
    "fcntl": 72,
    "getcwd": 79,
    "chdir": 80,
    "rename": 82,
    "link": 86,
    "unlink": 87,
    "readlink": 89,
    "fchmod": 91,
    "getrlimit": 97,
    "getrusage": 98,
    "sysinfo": 99,
    "setpgid": 109,
    "setsid": 112,
    "rt_sigtimedwait": 128,
    "sigaltstack": 131,
    "statfs": 137,
    "fstatfs": 138,
    "getpriority": 140,
    "setpriority": 141,
    "mlock": 149,
    "prctl": 157,
    "readahead": 187,
    "tgkill": 234,
    "sched_getaffinity": 204,
    "getdents64": 217,
    "fadvise64": 221,
    "ioprio_set": 251,
    "ioprio_get": 252,
    "openat": 257,
    "newfstatat": 262,
    "unlinkat": 263,
    "linkat": 265,
    "readlinkat": 267,
    "faccessat": 269,
    "pselect6": 270,
    "ppoll": 271,
    "splice": 275,
    "fsync": 74,
    "dup3": 292,
    "pipe2": 293,
    "preadv": 295,
    "prlimit64": 302,
    "getrandom": 318,
    "memfd_create": 319,
    "mlock2": 325,
    "preadv2": 327,
    "statx": 332,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "faccessat2": 439,
    "cachestat": 451,
}
_NAMES = {number: name for name, number in CALLS.items()}

_SECCOMP, _PIDFD_GETFD = 317, 438
_SET_FILTER, _NEW_LISTENER = 1, 8
_NO_NEW_PRIVS = 38
_LOAD_NUMBER, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
KILL_THREAD = 0
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_LISTENER = 3  # its number in the child
_OUT, _ERR = "out", "err"
_LISTEN_SECONDS = 10.0
_HANG_SECONDS = 0.1  # before the signal
_GETSID = 124  # counting begins with the second: nothing else asks for the session of process 0

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Fault:
    """The `at`-th call of this name, from 1, returns an error, or with None it hangs."""

    call: str
    at: int
    error: int | None
    lasting: bool = False  # each call after it returns that error, too

    def __str__(self) -> str:
        error = "hang" if self.error is None else errno.errorcode[self.error]
        return f"{self.call}#{self.at}{'+' if self.lasting else ''}={error}"

    def meets(self, call: str, at: int) -> bool:
        """Whether this call is to fail."""
        return self.call == call and (self.at == at or (self.lasting and self.at < at))


@dataclass
class Ran:
    """A run that has ended, or has been ended."""

    code: int | None = None  # None: it did not end in time
    seconds: float = 0.0
    reached: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    left: bool = False  # a process of it was still there
    output: str = ""
    errors: str = ""
    held_seconds: float | None = None  # from SIGTERM to the end, where a call hung


def why_not() -> str | None:
    """Return why calls cannot be answered here, None where they can."""
    if os.uname().machine != "x86_64":
        return "needs x86_64, whose numbers of system calls it knows"
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int(minor)) < (5, 6):
        return "needs Linux 5.6, for pidfd_getfd(2)"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.inject"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    return f"needs seccomp's user_notif and pidfd_getfd(2): {done.stderr.strip()[-200:]}"


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _listen(fault: Fault | None) -> None:
    """Have the kernel ask about each call that a fault needs, without one of CALLS.

    Each question takes two changes of process. Raises OSError.
    """
    asked = CALLS if fault is None else {fault.call, "execve"}
    answer([*(CALLS[name] for name in asked), _GETSID], _ASK, _NEW_LISTENER)


def answer(numbers: Sequence[int], action: int, flags: int = 0) -> None:
    """Have the kernel answer these calls, from now on, by an action of seccomp's.

    Raises OSError.
    """
    code = struct.pack("=HBBI", _LOAD_NUMBER, 0, 0, 0)
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        code += struct.pack("=HBBI", _JUMP_EQUAL, left, 0, number)
    code += struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)
    code += struct.pack("=HBBI", _RETURN, 0, 0, action)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(instructions, ctypes.c_void_p))
    word = ctypes.c_ulong
    _libc.prctl(_NO_NEW_PRIVS, word(1), word(0), word(0), word(0))
    if _libc.syscall(_SECCOMP, _SET_FILTER, flags, ctypes.byref(program)) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _get_descriptor(pid: int, number: int) -> int:
    """Return a copy of another process's descriptor once it is the one that asks."""
    pidfd = os.pidfd_open(pid)
    until = time.monotonic() + _LISTEN_SECONDS
    try:
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                if "seccomp" in os.readlink(f"/proc/{pid}/fd/{number}"):
                    found = int(_libc.syscall(_PIDFD_GETFD, pidfd, number, 0))
                    if found < 0:
                        raise OSError(ctypes.get_errno(), "pidfd_getfd")
                    return found
            time.sleep(0.0002)
        raise TimeoutError("the child does not let itself be asked about")
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(pidfd)


def run(
    main: Callable[[], object],
    fault: Fault | None,
    folder: str,
    *,
    most_seconds: float,
    grace_seconds: float,
) -> Ran:
    """Return what came of `main` in a child, whose output goes to files in a folder."""
    sys.stdout.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_child(main, fault, folder)
    listener = _get_descriptor(pid, _LISTENER)
    supervisor = _Supervisor(pid, listener, fault)
    ran = supervisor.follow(began, most_seconds, grace_seconds)
    os.close(listener)
    ran.output, ran.errors = (_text(os.path.join(folder, name)) for name in (_OUT, _ERR))
    return ran


def seconds_to_first(command: list[str], call: str, folder: str) -> float | None:
    """Return the time from a program's execve(2) to its first call of this name, then end it.

    None where it ends without one. The call is of any thread, and not carried out. What it says
    goes to files in a folder.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _become_child(folder)
        answer([CALLS["execve"], CALLS[call]], _ASK, _NEW_LISTENER)
        os.execv(command[0], command)
    listener = _get_descriptor(pid, _LISTENER)
    poller, ended = select.poll(), os.pidfd_open(pid)
    poller.register(listener, select.POLLIN)
    poller.register(ended, select.POLLIN)
    began = None
    try:
        while ended not in (ready := dict(poller.poll())):
            now = time.monotonic()
            if not ready.get(listener, 0) & select.POLLIN:
                poller.unregister(listener)
                continue
            asked = bytearray(80)
            fcntl.ioctl(listener, _RECEIVE, asked, True)
            identity, _, _, number = struct.unpack_from("=QIIi", asked)
            if number == CALLS[call] and began is not None:
                return now - began
            began = now
            fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", identity, 0, 0, _CONTINUE))
        return None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ended)
        os.close(listener)


def _be_child(main: Callable[[], object], fault: Fault | None, folder: str) -> None:
    code = 70
    try:
        _become_child(folder)
        _listen(fault)
        os.getsid(0)  # waits until our parent has the listener
        os.close(_LISTENER)  # else the child would wait for answers for ever after our end
        os.getsid(0)
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _become_child(folder: str) -> None:
    os.setsid()
    for number, name in ((1, _OUT), (2, _ERR)):
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND
        descriptor = os.open(os.path.join(folder, name), flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(_LISTENER, 1000)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class _Supervisor:
    def __init__(self, pid: int, listener: int, fault: Fault | None) -> None:
        self._pid = pid
        self._listener = listener
        self._fault = fault
        self._ran = Ran()
        self._has_listener = self._armed = False
        self._others: set[int] = set()  # processes that have become another program
        self._held: int | None = None  # the thread whose call hangs
        self._held_since: float | None = None
        self._signalled: float | None = None

    def follow(self, began: float, most_seconds: float, grace_seconds: float) -> Ran:
        """Answer until all processes have ended, or until time is up."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        ended = os.pidfd_open(self._pid)
        poller.register(ended, select.POLLIN)
        try:
            return self._follow(poller, ended, began, most_seconds, grace_seconds)
        finally:
            os.close(ended)

    def _follow(
        self,
        poller: select.poll,
        ended: int,
        began: float,
        most_seconds: float,
        grace_seconds: float,
    ) -> Ran:
        code = None
        while True:
            now = time.monotonic()
            events = poller.poll(20)
            asked = dict(events).get(self._listener, 0)
            if asked & select.POLLHUP:  # nobody is left who could ask
                poller.unregister(self._listener)
            if asked & select.POLLIN:
                self._answer()
                if now - began < most_seconds:
                    continue
            if code is None:
                code = self._code()
                if code is not None:
                    poller.unregister(ended)
                    self._ran.code, self._ran.seconds = code, time.monotonic() - began
                    if self._signalled is not None:
                        self._ran.held_seconds = time.monotonic() - self._signalled
            if code is not None and (self._signalled is not None or self._closes):
                # Where a call hangs, the process leaves another one behind, until it ends. And
                # where close(2) fails, as we cannot let it close, too.
                self._end(code)
                self._ran.left = False
                return self._ran
            if code is not None and not any(_session(self._pid)):
                return self._ran
            hangs = self._held_since is not None and now - self._held_since > _HANG_SECONDS
            if hangs and self._signalled is None and code is None:
                self._signalled = now
                os.kill(self._pid, signal.SIGTERM)
            if now - began > most_seconds + (grace_seconds if code is not None else 0):
                self._end(code)
                return self._ran

    @property
    def _closes(self) -> bool:
        return self._fault is not None and self._fault.call == "close"

    def _code(self) -> int | None:
        found, status = os.waitpid(self._pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None

    def _end(self, code: int | None) -> None:
        self._ran.left = code is not None
        for pid in _session(self._pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self._pid, 0)

    def _answer(self) -> None:
        asked = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, asked, True)
        except OSError:  # whoever asked has been interrupted
            return
        identity, pid, _, number = struct.unpack_from("=QIIi", asked)
        error = self._error(pid, number)
        if pid == self._held:
            return  # never answered; after a signal it asks again
        answer = struct.pack("=QqiI", identity, 0, error, 0 if error else _CONTINUE)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._listener, _SEND, answer)

    def _error(self, pid: int, number: int) -> int:
        """Return the negative error of this call, 0 to let the kernel go on."""
        if number == _GETSID:
            self._armed, self._has_listener = self._has_listener, True
            return 0
        if not self._armed or pid in self._others or pid == self._held:
            return 0
        name = _NAMES[number]
        if name == "execve":
            self._others.add(pid)
        self._ran.calls[name] += 1
        fault = self._fault
        if fault is None or not fault.meets(name, self._ran.calls[name]):
            return 0
        self._ran.reached = True
        if name == "execve":
            self._others.discard(pid)
        if fault.error is None:
            self._held, self._held_since = pid, time.monotonic()
            return 0
        return -fault.error


def _session(leader: int) -> Iterator[int]:
    """Yield the processes of a session that have not ended."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getsid(int(name)) == leader and not _is_zombie(name):
                yield int(name)


def _is_zombie(pid: str) -> bool:
    # Those that the first process inherits may wait for seconds until it looks.
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"Z"


def _probe() -> None:
    """Exit with 0 if a call can be answered here."""

    def main() -> None:
        try:
            os.getcwd()
        except PermissionError:
            sys.exit(7)

    with tempfile.TemporaryDirectory() as folder:
        fault = Fault("getcwd", 1, errno.EPERM)
        ran = run(main, fault, folder, most_seconds=10, grace_seconds=1)
    sys.exit(0 if (ran.code, ran.reached) == (7, True) else f"found {ran}")


if __name__ == "__main__":
    _probe()
