"""Daemon threads that touch the storage, so that a mount that hangs cannot hold the process."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")

# A thread here runs system calls and little Python; the default of 8 MiB would count
# against an address-space limit, 64 times over.
_STACK_BYTES = 512 * 1024

# What a thread takes of the addresses: its stack, and what malloc(3) of glibc sets aside for it.
_ADDRESSES_BYTES = 64 * 1024 * 1024 + _STACK_BYTES
_ADDRESSES_TAKEN_BYTES = 256 * 1024 * 1024  # by the rest, where /proc does not tell

# Items that are begun less often than this wait for the storage, and more of them can wait side by
# side. Else they keep Python's lock busy, and threads that pass it on to each other take longer.
_QUICK_SECONDS = 0.0005
_LOOK_SECONDS = 0.002  # how soon to look at that, and, where there is no hurry, how late
_LATE_LOOK_SECONDS = 0.05

# For what other threads open for a moment: the table of mounts, a folder, this very count.
_SPARE_DESCRIPTORS = 3


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    """Return a started daemon thread with a small stack.

    Raises RuntimeError where the system refuses another thread.
    """
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def spawn_many(target: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
    """Return up to `count` started threads: fewer where the system refuses more.

    Raises RuntimeError where it refuses even the first.
    """
    threads = [spawn(target, f"{name}-0")]
    for number in range(1, count):
        try:
            threads.append(spawn(target, f"{name}-{number}"))
        except RuntimeError:
            # A limit on processes (ulimit -u, pids.max): fewer threads are slower, not wrong.
            break
    return threads


def affordable(threads: int, *, descriptors: int = 1) -> int:
    """Return how many of these threads may hold so many files open each, at least one thread.

    A limit on open files or on addresses (ulimit -n, -v) makes a run slower, and fails no file.
    """
    return max(1, min(threads, _by_descriptors(threads, descriptors), _by_addresses(threads)))


def _by_descriptors(threads: int, descriptors: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # To count takes a call for each that could be open, so it is not done where it cannot matter.
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
    # Half of what is left, or this process has none for anything else.
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

    One thread begins, and more join it while they have to wait. Each holds at most so many
    `descriptors` open. Raises the exception of the first item, in order, whose function raised.
    """
    threads = affordable(min(threads, len(items)), descriptors=descriptors)
    results: list[Result | None] = [None] * len(items)
    failures: dict[int, BaseException] = {}
    lock = threading.Lock()
    turns: Iterator[int] = iter(range(len(items)))
    begun = 0

    def work() -> None:
        nonlocal begun
        while not failures:
            with lock:
                turn = next(turns, None)
                if turn is None:
                    return
                begun += 1
            try:
                results[turn] = function(items[turn])
            except BaseException as error:  # noqa: BLE001 - it is raised again by the caller
                failures[turn] = error

    if threads <= 1:
        work()
    else:
        for thread in _spawn_as_needed(work, threads, lambda: begun, len(items)):
            thread.join()
    if failures:
        raise failures[min(failures)]
    return cast("list[Result]", results)


def _spawn_as_needed(
    work: Callable[[], None], most: int, begun: Callable[[], int], items: int
) -> list[threading.Thread]:
    """Return the threads that do the work: twice as many again while too few items are begun."""
    threads = [spawn(work, "map-0")]
    look_seconds = _LOOK_SECONDS
    while len(threads) < most and threads[0].is_alive() and begun() < items:
        before, since = begun(), time.monotonic()
        threads[0].join(look_seconds)
        if (begun() - before) * _QUICK_SECONDS >= time.monotonic() - since:
            look_seconds = min(2 * look_seconds, _LATE_LOOK_SECONDS)
            continue
        look_seconds = _LOOK_SECONDS
        try:
            threads += spawn_many(work, min(len(threads), most - len(threads)), "map")
        except RuntimeError:
            break  # as in `spawn_many`
    return threads
