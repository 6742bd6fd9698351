"""Which files a process and its descendants have mapped or open. It only looks.

Sources: proc(5), show_map_vma() in fs/proc/task_mmu.c. /proc/PID/maps and /proc/PID/fd tell about
processes of the same user that have not given up privileges (ptrace(2), PTRACE_MODE_READ_FSCREDS).
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from prefetch_cli.linux import procfs

# What these lead to is no file of a checkpoint.
_ELSEWHERE = ("/dev/", "/proc/", "/sys/", "/memfd:")

# What comes of a file in /proc that ends early, as that of a process that has just ended may.
_CUT_SHORT = (ValueError, IndexError, KeyError)

_LIST_SECONDS = 1.0  # between looks for new processes: a machine may run thousands
# A process that has none of the files mapped, and whose memory has not changed, still has none: the
# kernel takes 1 ms to write 1,700 mappings. It may have mapped as much anew as it has unmapped, so
# that counts for a while only; and not for a loader, whose files often are of one size.
_SAME_SECONDS = 1.0

Name = tuple[int, int]  # of a process: its pid, and its start time in clock ticks


class Place(NamedTuple):
    """Where a file lies: two of the ways to know it again."""

    real_path: str
    identity: tuple[int, int]  # device and inode


class Uses(NamedTuple):
    """What was seen at one look.

    For each process that could be looked into: the files that it has mapped or open, by their
    numbers, and the offset in bytes up to which it has read each, 0 for one that is mapped.
    """

    held: Mapping[Name, Mapping[int, int]]

    @property
    def processes(self) -> int:
        """How many processes could be looked into."""
        return len(self.held)

    @property
    def files(self) -> frozenset[int]:
        """The files that are mapped or open in one of them, by their numbers."""
        return frozenset(number for held in self.held.values() for number in held)


class _Process(NamedTuple):
    """What a look has found of a process, for the next one."""

    memory: bytes  # its /proc/PID/statm
    seen_at: float  # when its maps were read
    mapped: frozenset[int]
    links: Mapping[str, frozenset[int]]  # which of the files each open path leads to


class Tree:
    """A process, its descendants, and those that were its descendants once."""

    def __init__(self, pid: int, places: Sequence[Place], *, without: int) -> None:
        """Take the first process, the files to look for, and a process that does not count."""
        self._pid = pid
        self._without = without
        self._known: set[Name] = set()
        self._by_identity: dict[tuple[int, int], set[int]] = {}
        self._by_path: dict[bytes, set[int]] = {}
        # Words of a line in /proc/PID/maps that names one of the files.
        self._words: set[bytes] = set()
        self._listed: list[Name] = []
        self._listed_at = -math.inf
        self._processes: dict[Name, _Process] = {}
        for number, place in enumerate(places):
            path = os.fsencode(place.real_path)
            self._by_identity.setdefault(place.identity, set()).add(number)
            self._by_path.setdefault(path, set()).add(number)
            self._words |= {str(place.identity[1]).encode(), *path.split()[-1:]}

    def look(self) -> Uses:
        """Return which files are mapped or open now. May touch the storage."""
        held: dict[Name, dict[int, int]] = {}
        if time.monotonic() >= self._listed_at + _LIST_SECONDS:
            self._listed, self._listed_at = self._members(), time.monotonic()
        before, self._processes = self._processes, {}
        for name in self._listed:
            # It may end while we look, or be another user's.
            with suppress(OSError, *_CUT_SHORT):
                if (process := self._look_at(name[0], before.get(name))) is None:
                    continue
                files = dict.fromkeys(process.mapped, 0)
                links: dict[str, frozenset[int]] = {}
                for number, offset in self._open(name[0], process.links, links):
                    files[number] = min(offset, files.get(number, offset))
                held[name] = files
                self._processes[name] = process._replace(links=links)
        return Uses(held)

    def _look_at(self, pid: int, before: _Process | None) -> _Process | None:
        """Return what a process has mapped; None: it has exited."""
        # Before the maps: what changes while they are read shows at the next look.
        memory, now = procfs.read(f"/proc/{pid}/statm"), time.monotonic()
        if (
            before is not None
            and not before.mapped
            and memory == before.memory
            and now < before.seen_at + _SAME_SECONDS
        ):
            return before
        if not (maps := procfs.read(f"/proc/{pid}/maps")):
            return None  # a process that has exited maps nothing
        links = {} if before is None else before.links
        return _Process(memory, now, frozenset(self._mapped(maps)), links)

    def _members(self) -> list[Name]:
        parents: dict[int, int] = {}
        starts: dict[int, int] = {}
        for pid in _pids():
            with suppress(OSError, *_CUT_SHORT):
                # The name in brackets may hold anything, brackets too.
                fields = procfs.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
                parents[pid], starts[pid] = int(fields[1]), int(fields[19])
        known = {pid for pid, start in self._known if starts.get(pid) == start} | {self._pid}
        found = {pid for pid in parents if not known.isdisjoint(_line(pid, parents))}
        found.discard(self._without)
        self._known = {(pid, starts[pid]) for pid in found}
        return sorted(self._known)

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

    def _open(
        self, pid: int, known: Mapping[str, frozenset[int]], links: dict[str, frozenset[int]]
    ) -> Iterator[tuple[int, int]]:
        """Yield each file that is open, and the offset of the next read(2).

        Fills `links` with the files that each path leads to: those `known` are not looked at again.
        Raises PermissionError where what is open is hidden: the maps alone may not be.
        """
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                link = f"/proc/{pid}/fd/{name}"
                target = os.readlink(link)
                if not target.startswith("/") or target.startswith(_ELSEWHERE):
                    continue
                numbers = known.get(target)
                if numbers is None:
                    status = os.stat(link)
                    identity = status.st_dev, status.st_ino
                    numbers = frozenset(self._by_identity.get(identity, ()))
                links[target] = numbers
                if numbers:
                    offset = int(procfs.fields(f"/proc/{pid}/fdinfo/{name}")["pos:"])
                    yield from ((number, offset) for number in numbers)


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
