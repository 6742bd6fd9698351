"""Daemon threads for all work on the storage, so that a hanging mount cannot hold the process."""

import _thread
import errno
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TypeVar, cast

from prefetch_cli.linux import procfs

Item = TypeVar("Item")
Result = TypeVar("Result")

# Our threads run system calls and little Python. 64 threads with the default stack of 8 MiB would
# exhaust a limit on the address space.
_STACK_BYTES = 512 * 1024

# A thread's address space: its stack, and the arena that glibc's malloc(3) reserves for it.
_ADDRESSES_BYTES = 64 * 1024 * 1024 + _STACK_BYTES
_ADDRESSES_TAKEN_BYTES = 256 * 1024 * 1024  # by the rest of the process, if /proc does not tell

# If items start less often than this, threads are waiting for the storage: add threads. If not,
# Python's lock is busy, and more threads would only pass it around.
_QUICK_SECONDS = 0.0005
_CHECK_SECONDS = 0.002  # how soon to check that, and how late if items are quick
_LATEST_CHECK_SECONDS = 0.05

_BEGIN_SECONDS = 5.0  # a new thread that has not begun by then counts as refused
_BEGIN_LOOK_SECONDS = 0.1  # how often to look whether it still can

_KILLED_LOOK_SECONDS = 0.5  # how often to look whether a thread still exists
# What is said of it: seccomp(2) may end one thread for a system call, and nothing else tells.
KILLED = "the system killed the thread that was at work on it, as a seccomp filter may"

_begun: set[int] = set()  # the threads that have begun and not ended

_SPARE_DESCRIPTORS = 3  # other threads briefly open the mount table, a directory, /proc


class Thread:
    """A daemon thread whose start has an end.

    threading.Thread.start() waits until the new thread says that it runs. One that finds no memory
    for its first Python frame or its locks dies before that, and the wait never ends.
    """

    def __init__(self, target: Callable[[], None]) -> None:
        """Start to run `target`; raises RuntimeError if the system refuses."""
        self._target = target
        self._given_up = False
        self.native_id = 0
        self._killed = False
        self._look_at = time.monotonic() + _KILLED_LOOK_SECONDS
        self._begun, self._running = threading.Lock(), threading.Lock()
        self._begun.acquire()
        self._running.acquire()
        before = threading.stack_size(_STACK_BYTES)
        try:
            _thread.start_new_thread(self._run, ())
        finally:
            threading.stack_size(before)
        until = time.monotonic() + _BEGIN_SECONDS
        while not self._begun.acquire(timeout=_BEGIN_LOOK_SECONDS):
            if time.monotonic() >= until or _all_begun():
                self._given_up = True
                raise RuntimeError("can't start new thread: it did not begin")

    def join(self, timeout: float = inf) -> None:
        """Wait until the thread has ended, or so many seconds."""
        until = time.monotonic() + timeout
        while self.is_alive():
            seconds = min(until - time.monotonic(), _KILLED_LOOK_SECONDS)
            if seconds <= 0:
                return
            if self._running.acquire(timeout=seconds):
                self._running.release()

    def is_alive(self) -> bool:
        """Return whether the thread has not ended."""
        return self._running.locked() and not self.killed

    @property
    def killed(self) -> bool:
        """Whether it exists no more, although it never came to its end."""
        now = time.monotonic()
        if not self._killed and now >= self._look_at:
            self._look_at = now + _KILLED_LOOK_SECONDS
            # It says that it has ended before it does.
            self._killed = _is_gone(self.native_id) and self._running.locked()
        return self._killed

    def _run(self) -> None:
        self.native_id = threading.get_native_id()
        _begun.add(id(self))
        self._begun.release()
        try:
            if (trace := threading.gettrace()) is not None:
                sys.settrace(trace)  # whoever measures coverage expects it of every thread
            if not self._given_up:
                self._target()
        finally:
            _begun.discard(id(self))
            self._running.release()


def _is_gone(native_id: int) -> bool:
    # A /proc that was mounted for another PID namespace has other numbers than we have.
    try:
        os.sched_getaffinity(native_id)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _all_begun() -> bool:
    """Return whether no thread exists that has yet to begin: then a new one is dead already."""
    try:
        return len(os.listdir("/proc/self/task")) <= 1 + len(_begun)
    except OSError:
        return False


def spawn(target: Callable[[], None]) -> Thread:
    """Start and return a daemon thread with a small stack; raises RuntimeError if refused."""
    try:
        return Thread(target)
    except MemoryError as error:
        raise RuntimeError("no memory for a new thread") from error


def spawn_many(target: Callable[[], None], count: int) -> list[Thread]:
    """Start and return up to `count` threads, fewer if the system refuses more.

    Raises RuntimeError if it refuses even the first.
    """
    threads = [spawn(target)]
    for _ in range(1, count):
        try:
            threads.append(spawn(target))
        except RuntimeError:
            # A limit on processes (ulimit -u, pids.max): go on with fewer threads.
            break
    return threads


def affordable(threads: int, *, descriptors: int = 1) -> int:
    """Return how many of `threads` the limits allow, at least one.

    Each holds up to `descriptors` files open. A limit on open files or on address space (ulimit -n,
    -v) must only make a run slower, not fail files.
    """
    return max(1, min(threads, _by_descriptors(threads, descriptors), _by_addresses(threads)))


def _by_descriptors(threads: int, descriptors: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Counting takes a system call per possible descriptor, so skip it if the limit is far away.
    if limit == resource.RLIM_INFINITY or limit > 2 * threads * descriptors + 128:
        return threads
    free = limit - sum(map(_is_open, range(limit))) - _SPARE_DESCRIPTORS
    return free // descriptors


def _by_addresses(threads: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return threads
    try:
        taken = int(procfs.read("/proc/self/statm").split()[0]) * resource.getpagesize()
    except OSError:
        taken = _ADDRESSES_TAKEN_BYTES
    # Leave half of the rest for everything else.
    return (limit - taken) // 2 // _ADDRESSES_BYTES


def _is_open(descriptor: int) -> bool:
    try:
        os.get_inheritable(descriptor)
    except OSError:
        return False
    return True


def map_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    *,
    descriptors: int = 1,
) -> list[Result]:
    """Return `function` of each item, in order, computed by at most `threads` threads.

    Starts with one thread, and adds more while they wait for the storage. Each holds up to
    `descriptors` files open. If the function raised, raises the exception of the first such item;
    OSError if the system killed a thread.
    """
    threads = affordable(min(threads, len(items)), descriptors=descriptors)
    results: list[Result | None] = [None] * len(items)
    failures: dict[int, BaseException] = {}
    lock = threading.Lock()
    indexes: Iterator[int] = iter(range(len(items)))
    started = 0

    def work() -> None:
        nonlocal started
        while not failures:
            with lock:
                index = next(indexes, None)
                if index is None:
                    return
                started += 1
            try:
                results[index] = function(items[index])
            except BaseException as error:  # noqa: BLE001 - the caller raises it again
                failures[index] = error

    if threads <= 1:
        work()
    else:
        workers = _spawn_as_needed(work, threads, lambda: started, len(items))
        for thread in workers:
            thread.join()
        if not failures and any(thread.killed for thread in workers):
            raise OSError(errno.ECANCELED, KILLED)
    if failures:
        raise failures[min(failures)]
    return cast("list[Result]", results)


def _spawn_as_needed(
    work: Callable[[], None], most: int, started: Callable[[], int], items: int
) -> list[Thread]:
    """Start one thread, double their number while items start too slowly, and return them."""
    threads = [spawn(work)]
    check_seconds = _CHECK_SECONDS
    while len(threads) < most and threads[0].is_alive() and started() < items:
        before, since = started(), time.monotonic()
        threads[0].join(check_seconds)
        if (started() - before) * _QUICK_SECONDS >= time.monotonic() - since:
            check_seconds = min(2 * check_seconds, _LATEST_CHECK_SECONDS)
            continue
        check_seconds = _CHECK_SECONDS
        try:
            threads += spawn_many(work, min(len(threads), most - len(threads)))
        except RuntimeError:
            break  # a limit, as in `spawn_many`
    return threads
