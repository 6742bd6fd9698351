"""Looks at single pages of many files, and drops those that it brought in."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from prefetch_cli.base.progress import Monitor
from prefetch_cli.checkpoint.files import File
from prefetch_cli.linux import pagecache
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.glance import Glance, ask_for_attributes, glance
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.linux.threads import affordable
from prefetch_cli.residency.draw import Page

_MOST_OPEN = 64
_CHUNK_BYTES = 1 << 20
_FRESH_SECONDS = 0.5  # attributes; most file systems believe them for a second or longer

_Result = TypeVar("_Result")


class Glances:
    """The open files of a sample; as a context manager it closes them.

    Each is opened once: on some file systems opening a file drops its pages. Of very many files
    only those with most pages stay open.
    """

    def __init__(self, files: Sequence[File], drawn: Sequence[Page], monitor: Monitor) -> None:
        self._files = files
        self._monitor = monitor
        pages = Counter(page.file for page in drawn)
        most = affordable(min(_MOST_OPEN, max(1, len(pages))))
        by_pages = sorted(pages, key=lambda file: pages[file], reverse=True)
        self._stay = {file: threading.Lock() for file in by_pages[:most]}
        self._open: dict[int, int] = {}
        self._quiet = True  # no read brings in more than its page
        self._asked: dict[int, float] = {}  # when for its attributes, by time.monotonic()
        self.may_wait = True  # for attributes; False where a wait is not taken for a miss
        self.errors: dict[int, OSError] = {}  # of files that cannot be opened

    def __enter__(self) -> "Glances":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file, descriptor in self._open.items():
            with self._monitor.waiting(self._files[file].path):
                close(descriptor)

    def at(self, page: Page) -> Glance | None:
        """Return what reading the page cost, None where that fails or would bring in others."""

        def look(file: int) -> Glance | None:
            if not self._quiet:
                return None
            # A glance must wait for the page only.
            now = time.monotonic()
            if self.may_wait and now - self._asked.get(page.file, 0.0) > _FRESH_SECONDS:
                self._asked[page.file] = now
                ask_for_attributes(file)
            return glance(file, page.number * PAGE_BYTES)

        return self._with(page, look)

    def drop(self, page: Page, length: int = PAGE_BYTES) -> None:
        """Drop the pages of the aligned stretch of `length` bytes around the page."""
        self._with(page, lambda file: pagecache.drop(file, _aligned(page, length), length))

    def read(self, page: Page, length: int) -> None:
        """Bring in all pages of the aligned stretch around the page."""
        start = _aligned(page, length)

        def read(file: int) -> None:
            for offset in range(start, start + length, _CHUNK_BYTES):
                os.pread(file, _CHUNK_BYTES, offset)

        self._with(page, read)

    def size_bytes(self, page: Page) -> int:
        """Return how much of the file the page holds."""
        return max(0, min(PAGE_BYTES, self._files[page.file].size_bytes - page.number * PAGE_BYTES))

    def _with(self, page: Page, act: Callable[[int], _Result]) -> _Result | None:
        """Return what came of it, None where the file cannot be opened or the call is refused."""
        if page.file in self.errors:
            return None
        path = self._files[page.file].path
        with self._monitor.waiting(path, page.number * PAGE_BYTES):
            try:
                descriptor, stays = self._descriptor(page.file), page.file in self._stay
            except OSError as error:
                self.errors[page.file] = error
                return None
            try:
                return act(descriptor)
            except OSError:
                return None
            finally:
                if not stays:
                    close(descriptor)

    def _descriptor(self, file: int) -> int:
        """Return a descriptor, which is the caller's to close unless the file stays open."""
        if file not in self._stay:
            return self._opened(file)
        with self._stay[file]:
            if file not in self._open:
                self._open[file] = self._opened(file)
            return self._open[file]

    def _opened(self, file: int) -> int:
        descriptor = open_to_read(self._files[file].path)
        taken = pagecache.read_only_what_is_asked(descriptor)
        self._quiet &= taken and not pagecache.reads_more(descriptor)
        return descriptor


def _aligned(page: Page, length: int) -> int:
    return page.number * PAGE_BYTES // length * length
