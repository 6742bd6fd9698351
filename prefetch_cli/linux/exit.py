"""The end of the process: at once, even where a file cannot be closed.

A process is gone when its last thread has put the table of descriptors (exit_files in do_exit,
kernel/exit.c), and who puts it last closes all that is open in it: FUSE's flush sends FLUSH,
NFSv4's release sends CLOSE, NFS's flush writes a log back, and each waits for the server. A thread
that exits takes no signal any more, so not even SIGKILL ends the wait. Threads that hang in the
storage keep files open to the end; so the table is shared with a second process, which does
nothing but outlive this one (CLONE_FILES): it is the last one then, and waits on its own.

Two things that look simpler do not do. A child by fork has a table of its own: this process would
still send each FLUSH. And it runs Python, whose locks, hooks and warnings about threads come
along; what is started here runs one function of libc.
"""

import os
import signal
from contextlib import suppress
from typing import NoReturn

# Much longer than threads take to die that can be killed; the rest nobody can help.
_KEPT_SECONDS = 5
_NAME = b"prefetch-leave"

_CLONE_VM = 0x100
_CLONE_FS = 0x200
_CLONE_FILES = 0x400
# The memory is shared too: to copy it takes mmap_lock (dup_mmap), which a thread may hold that
# hangs in mapping a file (nfs_file_mmap), and a strict limit may refuse the copy.
_FLAGS = _CLONE_VM | _CLONE_FILES | signal.SIGCHLD
_STACK_BYTES = 64 * 1024
_PR_SET_NAME = 15

# What the kernel calls a descriptor that is closed without any storage (proc(5), `fd`).
_STREAMS = ("pipe:", "socket:", "/dev/")
_HARMLESS = (*_STREAMS, "anon_inode:", "/proc/")


def leave(code: int) -> NoReturn:
    """End the process with this exit code, whatever its threads hang in; never returns.

    Any thread may call it. Files that this process has opened and not closed are closed behind
    it, by a process named `prefetch-leave` that is gone some seconds later, or as soon as the
    storage answers. Where there are none, as after a run that went well, there is no such process.
    """
    try:
        targets = _targets()
        if any(_is_own_file(*item) for item in targets.items()):
            _close_streams(targets)
            _share_descriptors()
    finally:  # whatever fails: without the other process the end may take longer
        os._exit(code)


def _targets() -> dict[int, str]:
    """Return the kernel's word for what each descriptor is open on: a path, or `pipe:[7]`.

    It is text that takes no look at the storage (d_path), as fstat(2) would. Empty without /proc:
    nothing else tells a file from a pipe as safely, and whoever reads a pipe would wait for the
    end of a process that holds it for nothing.
    """
    targets = {}
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed by now, as the one of the listing is
                targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return targets


def _is_own_file(descriptor: int, target: str) -> bool:
    """Whether this process opened it, somewhere in the storage.

    What it inherited has no FD_CLOEXEC, what Python opens has. A log or the file of a lock is no
    reason to leave another process behind: who started this one expects it closed at the end.
    """
    with suppress(OSError):
        return not target.startswith(_HARMLESS) and not os.get_inheritable(descriptor)
    return False


def _close_streams(targets: dict[int, str]) -> None:
    """Let nobody at the other end of a pipe, or of a terminal, wait for the other process."""
    for descriptor, target in targets.items():
        # Threads still write to /dev/null: they drain files into it.
        if target != os.devnull and (target.startswith(_STREAMS) or _is_pipe(descriptor)):
            with suppress(OSError):
                os.close(descriptor)


def _is_pipe(descriptor: int) -> bool:
    """Whether this is a pipe, perhaps one that has a path (a FIFO)."""
    import fcntl  # noqa: PLC0415 - `--help` need not pay for what a hang needs

    try:
        fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return True


def _share_descriptors() -> None:
    """Start the process that shares the table of descriptors and sleeps."""
    import ctypes  # noqa: PLC0415 - as in `_is_pipe`

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    # It has what this thread has: the name, the folder it works in, the signals it does not take.
    # Python's handlers must not run there, on memory that two processes share.
    libc.prctl(_PR_SET_NAME, _NAME)
    if libc.unshare(_CLONE_FS) == 0:  # else all threads would work in another folder
        os.chdir("/")
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stack = libc.malloc(_STACK_BYTES)  # never freed: it is in use until the end
    if stack is None:
        return
    # It grows downwards, from an address that is aligned as every architecture wants it.
    top = (stack + _STACK_BYTES) & ~63
    pid = libc.clone(ctypes.cast(libc.sleep, ctypes.c_void_p), top, _FLAGS, _KEPT_SECONDS)
    if pid > 0:
        # What is sent to the job (`timeout -s KILL`) must not end it before this process.
        with suppress(OSError):
            os.setpgid(pid, pid)
