"""Daemon threads for all work on the storage, so that a hanging mount cannot hold the process."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

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

_SPARE_DESCRIPTORS = 3  # other threads briefly open the mount table, a directory, /proc


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Start and return a daemon thread with a small stack; raises RuntimeError if refused."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def spawn_many(target: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
    """Start and return up to `count` threads, fewer if the system refuses more.

    Raises RuntimeError if it refuses even the first.
    """
    threads = [spawn(target, f"{name}-0")]
    for number in range(1, count):
        try:
            threads.append(spawn(target, f"{name}-{number}"))
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
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
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
    `descriptors` files open. If the function raised, raises the exception of the first such item.
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
        for thread in _spawn_as_needed(work, threads, lambda: started, len(items)):
            thread.join()
    if failures:
        raise failures[min(failures)]
    return cast("list[Result]", results)


def _spawn_as_needed(
    work: Callable[[], None], most: int, started: Callable[[], int], items: int
) -> list[threading.Thread]:
    """Start one thread, double their number while items start too slowly, and return them."""
    threads = [spawn(work, "map-0")]
    check_seconds = _CHECK_SECONDS
    while len(threads) < most and threads[0].is_alive() and started() < items:
        before, since = started(), time.monotonic()
        threads[0].join(check_seconds)
        if (started() - before) * _QUICK_SECONDS >= time.monotonic() - since:
            check_seconds = min(2 * check_seconds, _LATEST_CHECK_SECONDS)
            continue
        check_seconds = _CHECK_SECONDS
        try:
            threads += spawn_many(work, min(len(threads), most - len(threads)), "map")
        except RuntimeError:
            break  # a limit, as in `spawn_many`
    return threads
