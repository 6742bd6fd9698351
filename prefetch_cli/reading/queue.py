"""The queue of blocks: deals them out in load order, with the file that each thread opens."""

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.digests import Digest
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Plan, Target

# On near media a thread takes so many adjacent bytes at a time: each seek resets the kernel's
# read-ahead to small requests and small folios, which hurts whoever relies on it.
_NEAR_RUN_BYTES = 128 * 1024 * 1024
# Read-ahead that starts before the cut never reaches further than this behind it.
_LARGEST_READ_AHEAD_BYTES = 64 * 1024 * 1024
_STRIKES = 3  # read errors after which the rest of a file is skipped


class SharedFile:
    """A file that several threads read, each by a descriptor of its own."""

    def __init__(
        self,
        target: Target,
        cut_bytes: int | None,
        digest: Digest | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self.path = target.path
        self.medium = target.medium
        self.digest = digest  # None: it is not to be hashed
        self.users = 0
        self.exhausted = False  # its last block has been taken
        self.given_up = False
        self._cut_bytes = cut_bytes
        self._exact = exact  # a limit counts, and behind each part lies what is not needed
        self._strikes = 0
        self._open: list[int] = []  # all of the same inode
        self._inode = (0, 0)
        self._lock = threading.Lock()

    def open(self) -> int:
        """Return a descriptor for one thread; raises OSError.

        If the path leads elsewhere by now, or nowhere, the thread shares one of those that read it.
        On FUSE all share the first: without FOPEN_KEEP_CACHE each open(2) drops what the others
        have read, and waits for what they are reading (fuse_finish_open() in fs/fuse/file.c).
        """
        if self.medium.fuse:
            with self._lock:
                return self._duplicate() if self._open else self._first()
        try:
            descriptor, inode = self._open_path()
        except OSError:
            with self._lock:
                if not self._open:
                    raise
                return self._duplicate()
        with self._lock:
            if self._open and inode != self._inode:
                os.dup2(self._open[0], descriptor, inheritable=False)
            self._inode = self._inode if self._open else inode
            self._open.append(descriptor)
        if self.medium.reads_ahead_little:
            pagecache.read_ahead_twice_as_far(descriptor)
        return descriptor

    def _first(self) -> int:
        descriptor, self._inode = self._open_path()
        self._open.append(descriptor)
        if self.medium.reads_ahead_little:
            pagecache.read_ahead_twice_as_far(descriptor)
        return descriptor

    def _duplicate(self) -> int:
        descriptor = os.dup(self._open[0])
        self._open.append(descriptor)
        return descriptor

    def _open_path(self) -> tuple[int, tuple[int, int]]:
        descriptor = open_to_read(self.path)
        try:
            status = os.fstat(descriptor)
        except BaseException:
            close(descriptor)
            raise
        return descriptor, (status.st_dev, status.st_ino)

    def close(self, descriptor: int) -> None:
        """Close a descriptor that `open` returned; its thread no longer reads."""
        with self._lock:
            self._open.remove(descriptor)
        close(descriptor)

    def near_cut(self, block: Extent) -> bool:
        """Return whether read-ahead from this block could bring in what is not to be read."""
        cut = self._cut_bytes
        return self._exact or (cut is not None and block.end + _LARGEST_READ_AHEAD_BYTES > cut)

    def fail(self, error: OSError) -> None:
        """Count an error; give the file up after a few bad blocks, or at once for other errors."""
        self._strikes += 1
        if error.errno != errno.EIO or self._strikes >= _STRIKES:
            self.given_up = True


class OwnDescriptor:
    """What one thread reads by: a descriptor that it shares with nobody, of one file at a time.

    The kernel keeps read-ahead, and with it the size of folios, by descriptor: threads that share
    one start it anew for each other.
    """

    def __init__(self) -> None:
        self._file: SharedFile | None = None
        self._descriptor = -1

    def of(self, file: SharedFile) -> int:
        """Return the descriptor of this file, opened on first use; raises OSError."""
        if self._file is not file:
            self.close()
            self._descriptor = file.open()
            self._file = file
        return self._descriptor

    def close_unless(self, file: SharedFile) -> None:
        """Close that of any other file."""
        if self._file is not file:
            self.close()

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close(self._descriptor)


class Taken(NamedTuple):
    """What a thread reads next."""

    run: Extent  # of blocks
    file: SharedFile
    extent: Extent  # of the plan, that the run is a part of


class Queue:
    """Deals out blocks in load order, and knows when a file has been read."""

    def __init__(
        self,
        plan: Plan,
        targets: Sequence[Target],
        monitor: Monitor,
        threads: Callable[[], int],
    ) -> None:
        self._runs = _runs_of_blocks(plan, targets, threads)
        self._plan = plan
        self._targets = targets
        self._monitor = monitor
        self._lock = threading.Lock()
        self._current: tuple[int, SharedFile] | None = None
        self._left: deque[Taken] = deque()  # behind those who stood back; each counts as a user

    def take(self) -> Taken | None:
        """Return the next run of blocks with its file, or None when all are taken."""
        with self._lock:
            while self._left:
                taken = self._left.popleft()
                if not taken.file.given_up:
                    return taken
                self._release(taken.file)
            for run, extent in self._runs:
                file = self._file(run.file)
                if not file.given_up:
                    file.users += 1
                    return Taken(run, file, extent)
            self._retire()
            return None

    def give_back(self, taken: Taken, left: Extent | None = None) -> None:
        """Take back the file that came with a run, and what is left of that for another thread."""
        with self._lock:
            if left is None:
                self._release(taken.file)
            else:
                self._left.append(taken._replace(run=left))

    def _release(self, file: SharedFile) -> None:
        file.users -= 1
        self._finish_if_done(file)

    def _file(self, number: int) -> SharedFile:
        if self._current is None or self._current[0] != number:
            self._retire()
            cut = self._plan.cut
            cut_bytes = cut.length if cut is not None and cut.file == number else None
            digest = self._plan.digests.get(number)
            exact = cut is not None and number in self._plan.parted
            file = SharedFile(self._targets[number], cut_bytes, digest, exact=exact)
            self._current = (number, file)
        return self._current[1]

    def _retire(self) -> None:
        if self._current is not None:
            file = self._current[1]
            self._current = None
            file.exhausted = True
            self._finish_if_done(file)

    def _finish_if_done(self, file: SharedFile) -> None:
        if file.exhausted and file.users == 0:
            self._monitor.finish_file()


def _runs_of_blocks(
    plan: Plan, targets: Sequence[Target], threads: Callable[[], int]
) -> Iterator[tuple[Extent, Extent]]:
    """Yield runs of blocks, each with its extent; `threads` says how many read now.

    They get shorter towards the end, so that no thread ends with a long one.
    """
    block_bytes = plan.block_size_bytes
    left = plan.size_bytes
    for extent in plan.extents:
        if extent.file in plan.digests:  # a digest is computed from front to end
            yield extent, extent
            left -= extent.length
            continue
        # Single blocks keep a limited rate even, and a reader behind us finds its next bytes first.
        single = plan.max_bytes_per_second is not None or plan.yielding
        far = targets[extent.file].medium.far
        longest = 1 if single or far else -(-_NEAR_RUN_BYTES // block_bytes)
        offset = extent.offset
        while offset < extent.end:
            fair = left // (2 * threads() * block_bytes)
            size = max(1, min(longest, fair)) * block_bytes
            end = min(extent.end, offset // block_bytes * block_bytes + size)
            yield Extent(extent.file, offset, end - offset), extent
            left -= end - offset
            offset = end
