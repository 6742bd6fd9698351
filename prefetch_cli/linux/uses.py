"""Which files a process and its descendants have mapped or open. It only looks.

Sources: proc(5), show_map_vma() in fs/proc/task_mmu.c. /proc/PID/maps and /proc/PID/fd tell about
processes of the same user that have not given up privileges (ptrace(2), PTRACE_MODE_READ_FSCREDS).
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from prefetch_cli.linux import procfs

# What these lead to is no file of a checkpoint.
_ELSEWHERE = ("/dev/", "/proc/", "/sys/", "/memfd:")

_LIST_SECONDS = 1.0  # between looks for new processes: a machine may run thousands

_Name = tuple[int, int]  # of a process: its pid, and its start time in clock ticks


class Place(NamedTuple):
    """Where a file lies: two of the ways to know it again."""

    real_path: str
    identity: tuple[int, int]  # device and inode


class Uses(NamedTuple):
    """What was seen at one look."""

    processes: int  # that could be looked into
    files: frozenset[int]  # mapped or open in one of them, by their numbers


class Tree:
    """A process, its descendants, and those that were its descendants once."""

    def __init__(self, pid: int, places: Sequence[Place], *, without: int) -> None:
        """Take the first process, the files to look for, and a process that does not count."""
        self._pid = pid
        self._without = without
        self._known: set[_Name] = set()
        self._by_identity: dict[tuple[int, int], set[int]] = {}
        self._by_path: dict[bytes, set[int]] = {}
        # Words of a line in /proc/PID/maps that names one of the files.
        self._words: set[bytes] = set()
        self._listed: list[int] = []
        self._listed_at = -math.inf
        for number, place in enumerate(places):
            path = os.fsencode(place.real_path)
            self._by_identity.setdefault(place.identity, set()).add(number)
            self._by_path.setdefault(path, set()).add(number)
            self._words |= {str(place.identity[1]).encode(), *path.split()[-1:]}

    def look(self) -> Uses:
        """Return which files are mapped or open now. May touch the storage."""
        processes, found = 0, set[int]()
        if time.monotonic() >= self._listed_at + _LIST_SECONDS:
            self._listed, self._listed_at = self._members(), time.monotonic()
        for pid in self._listed:
            # It may end while we look, or be another user's.
            with suppress(OSError):
                maps = procfs.read(f"/proc/{pid}/maps")
                processes += bool(maps)  # a process that has exited maps nothing
                found |= self._mapped(maps)
                found |= self._open(pid)
        return Uses(processes, frozenset(found))

    def _members(self) -> list[int]:
        parents: dict[int, int] = {}
        starts: dict[int, int] = {}
        for pid in _pids():
            with suppress(OSError):
                # The name in brackets may hold anything, brackets too.
                fields = procfs.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
                parents[pid], starts[pid] = int(fields[1]), int(fields[19])
        known = {pid for pid, start in self._known if starts.get(pid) == start} | {self._pid}
        found = {pid for pid in parents if not known.isdisjoint(_line(pid, parents))}
        found.discard(self._without)
        self._known = {(pid, starts[pid]) for pid in found}
        return sorted(found)

    def _mapped(self, maps: bytes) -> set[int]:
        found: set[int] = set()
        if self._words.isdisjoint(maps.split()):
            return found  # ten times as fast as to look at each of thousands of lines
        for line in maps.split(b"\n"):
            # address, access, offset, device, inode, path
            fields = line.split(None, 5)
            if len(fields) < 6 or not fields[5].startswith(b"/"):
                continue
            major, _, minor = fields[3].partition(b":")
            identity = os.makedev(int(major, 16), int(minor, 16)), int(fields[4])
            # On btrfs and overlays, stat(2) tells another device than this.
            found |= self._by_identity.get(identity, set()) | self._by_path.get(fields[5], set())
        return found

    def _open(self, pid: int) -> set[int]:
        found: set[int] = set()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                link = f"/proc/{pid}/fd/{name}"
                target = os.readlink(link)
                if target.startswith("/") and not target.startswith(_ELSEWHERE):
                    status = os.stat(link)
                    found |= self._by_identity.get((status.st_dev, status.st_ino), set())
        return found


def _pids() -> list[int]:
    """Return all processes; none without /proc."""
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return []


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    """Yield a process, its parent, and so on; the look at them may have caught a pid twice."""
    for _ in range(len(parents) + 1):
        if pid not in parents:
            return
        yield pid
        pid = parents[pid]
