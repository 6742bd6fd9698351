"""Exits at once, even if a file cannot be closed.

The last thread to exit drops the descriptor table and closes every file in it (exit_files() in
do_exit(), kernel/exit.c). FUSE then sends FLUSH, NFSv4 sends CLOSE, NFS writes back a log, and each
waits for the server. An exiting thread takes no signals: not even SIGKILL ends that wait. Threads
that hang in the storage keep their files open, so we share the table with a second process
(CLONE_FILES) that just sleeps: it drops the table last, and does the waiting.

A forked child would not do. It has a table of its own, so this process would still send each FLUSH;
and it would run Python, with our locks, hooks and threads half copied. The second process runs one
function of libc.
"""

import os
import signal
from contextlib import suppress
from typing import NoReturn

from prefetch_cli.base import limits

_NAME = b"prefetch-leave"

_CLONE_VM = 0x100
_CLONE_FS = 0x200
_CLONE_FILES = 0x400
# Memory is shared too. A copy takes mmap_lock (dup_mmap()), which a thread that hangs in mapping a
# file may hold (nfs_file_mmap()), and a strict memory limit may refuse it.
_FLAGS = _CLONE_VM | _CLONE_FILES | signal.SIGCHLD
_STACK_BYTES = 64 * 1024
_PR_SET_NAME = 15

# The kernel's names for descriptors whose close involves no storage (proc(5), `fd`).
_STREAMS = ("pipe:", "socket:", "/dev/")
_HARMLESS = (*_STREAMS, "anon_inode:", "/proc/")


def leave(code: int) -> NoReturn:
    """Exit with this code at once, even if threads hang in the storage.

    Any thread may call it. If files are still open, a process named `prefetch-leave` outlives this
    one and closes them; it exits a few seconds later, or as soon as the storage answers. After a
    normal run no files are open, and there is no such process.
    """
    try:
        targets = _targets()
        if any(_is_own_file(*item) for item in targets.items()):
            _close_streams(targets)
            _share_descriptors()
    finally:  # if something fails, exit without the other process, which may take longer
        os._exit(code)


def _targets() -> dict[int, str]:
    """Return what each descriptor is open on: a path, or `pipe:[7]`.

    Unlike fstat(2), readlink(2) does not ask the storage (d_path()). Empty without /proc: nothing
    else tells files from pipes as safely, and a pipe left open would keep its reader waiting.
    """
    targets = {}
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed meanwhile, like the listing's own
                targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return targets


def _is_own_file(descriptor: int, target: str) -> bool:
    """Whether this process opened the descriptor itself, on some storage.

    Python sets FD_CLOEXEC on what it opens; inherited descriptors lack it. An inherited log or lock
    file needs no other process: our parent expects it to be closed when we exit.
    """
    with suppress(OSError):
        return not target.startswith(_HARMLESS) and not os.get_inheritable(descriptor)
    return False


def _close_streams(targets: dict[int, str]) -> None:
    """Close pipes and terminals, so that nobody at their other end waits for the other process."""
    for descriptor, target in targets.items():
        # Threads still drain files into /dev/null.
        if target != os.devnull and (target.startswith(_STREAMS) or _is_pipe(descriptor)):
            with suppress(OSError):
                os.close(descriptor)


def _is_pipe(descriptor: int) -> bool:
    """Whether this is a pipe or a FIFO, which shows as a path."""
    import fcntl  # noqa: PLC0415 - only a hang needs it, and imports cost time

    try:
        fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return True


def _share_descriptors() -> None:
    """Start a process that shares the descriptor table and sleeps."""
    import ctypes  # noqa: PLC0415 - as in `_is_pipe`

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    # The process inherits this thread's name, working directory and signal mask. Block all signals:
    # Python's handlers must not run in two processes on the same memory.
    libc.prctl(_PR_SET_NAME, _NAME)
    if libc.unshare(_CLONE_FS) == 0:  # otherwise chdir would move all threads
        os.chdir("/")
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    stack = libc.malloc(_STACK_BYTES)  # never freed: in use until the end
    if stack is None:
        return
    # The stack grows downwards; this alignment suits every architecture.
    top = (stack + _STACK_BYTES) & ~63
    pid = libc.clone(
        ctypes.cast(libc.sleep, ctypes.c_void_p), top, _FLAGS, limits.DESCRIPTORS_KEPT_SECONDS
    )
    if pid > 0:
        # A signal to our process group (`timeout -s KILL`) must not kill it before us.
        with suppress(OSError):
            os.setpgid(pid, pid)
