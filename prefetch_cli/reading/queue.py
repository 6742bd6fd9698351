"""The queue of blocks: deals them out in load order, opens each file and closes it at its end."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence

from prefetch_cli.base.progress import Monitor
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Plan, Target

# On near media a thread takes several adjacent blocks at a time: each seek resets the kernel's
# read-ahead to small requests, which hurts whoever relies on it.
_NEAR_RUN = 8
# Read-ahead that starts before the cut never reaches further than this behind it.
_LARGEST_READ_AHEAD_BYTES = 64 * 1024 * 1024
_STRIKES = 3  # read errors after which the rest of a file is skipped


class SharedFile:
    """A file, opened on first use, and shared by the threads that read it."""

    def __init__(self, target: Target, cut_bytes: int | None) -> None:
        self.path = target.path
        self.medium = target.medium
        self.users = 0
        self.exhausted = False  # its last block has been taken
        self.given_up = False
        self._cut_bytes = cut_bytes
        self._strikes = 0
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def descriptor(self) -> int:
        """Return the descriptor, opened by whoever asks first; raises OSError."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = open_to_read(self.path)
                if self.medium.reads_ahead_little:
                    pagecache.read_ahead_twice_as_far(self._descriptor)
            return self._descriptor

    def near_cut(self, block: Extent) -> bool:
        """Return whether read-ahead from this block could pass the cut."""
        cut = self._cut_bytes
        return cut is not None and block.end + _LARGEST_READ_AHEAD_BYTES > cut

    def fail(self, error: OSError) -> None:
        """Count an error; give the file up after a few bad blocks, or at once for other errors."""
        self._strikes += 1
        if error.errno != errno.EIO or self._strikes >= _STRIKES:
            self.given_up = True

    def close(self) -> None:
        """Close it; no thread may still read it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Queue:
    """Deals out blocks in load order, and closes each file after its last block."""

    def __init__(self, plan: Plan, targets: Sequence[Target], monitor: Monitor) -> None:
        self._runs = _runs_of_blocks(plan, targets)
        self._plan = plan
        self._targets = targets
        self._monitor = monitor
        self._lock = threading.Lock()
        self._current: tuple[int, SharedFile] | None = None

    def take(self) -> tuple[Extent, SharedFile] | None:
        """Return the next run of blocks with its file, or None when all are taken."""
        with self._lock:
            for run in self._runs:
                file = self._file(run.file)
                if not file.given_up:
                    file.users += 1
                    return run, file
            self._retire()
            return None

    def give_back(self, file: SharedFile) -> None:
        """Take back the file that came with a run."""
        with self._lock:
            file.users -= 1
            self._close_if_done(file)

    def close(self) -> None:
        """Close what a stop left open; no thread may still read."""
        if self._current is not None:
            self._current[1].close()

    def _file(self, number: int) -> SharedFile:
        if self._current is None or self._current[0] != number:
            self._retire()
            cut = self._plan.cut
            cut_bytes = cut.length if cut is not None and cut.file == number else None
            self._current = (number, SharedFile(self._targets[number], cut_bytes))
        return self._current[1]

    def _retire(self) -> None:
        if self._current is not None:
            file = self._current[1]
            self._current = None
            file.exhausted = True
            self._close_if_done(file)

    def _close_if_done(self, file: SharedFile) -> None:
        if file.exhausted and file.users == 0:
            file.close()
            self._monitor.finish_file()


def _runs_of_blocks(plan: Plan, targets: Sequence[Target]) -> Iterator[Extent]:
    """Yield runs of blocks, shorter towards the end so that no thread ends with a long one."""
    block_bytes = plan.block_size_bytes
    left = plan.size_bytes
    for extent in plan.extents:
        # Single blocks keep a limited rate even, and a reader behind us finds its next bytes first.
        single = plan.max_bytes_per_second is not None or plan.yielding
        longest = 1 if single or targets[extent.file].medium.far else _NEAR_RUN
        offset = extent.offset
        while offset < extent.end:
            fair = left // (2 * plan.threads * block_bytes)
            size = max(1, min(longest, fair)) * block_bytes
            end = min(extent.end, offset // block_bytes * block_bytes + size)
            yield Extent(extent.file, offset, end - offset)
            left -= end - offset
            offset = end
