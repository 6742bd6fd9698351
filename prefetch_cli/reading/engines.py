"""The engines: how one call brings bytes into the page cache, what each needs, what replaces it.

To add one: name it in `base.words.Engine`, write its class, and list it in REGISTRY; the contract
test runs whatever is listed. If `auto` is to try it, `reading.tune.trial` says where.
"""

import errno
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from prefetch_cli.base.words import Engine
from prefetch_cli.linux import pagecache
from prefetch_cli.reading.plan import Medium

_BUFFER_BYTES = 1024 * 1024  # per thread; the kernel's read-ahead gains nothing from more
_BUFFERS_BYTES = 16 * 1024 * 1024  # all threads together
MOST_THREADS = _BUFFERS_BYTES // pagecache.PAGE_BYTES  # each needs one page at least
WINDOW_BYTES = 16 * 1024 * 1024  # advised at a time, then drained


class Shared:
    """What the engines of all threads share; raises OSError where /dev/null cannot be opened."""

    def __init__(self, threads: int, window_bytes: int) -> None:
        self.sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self.window_bytes = window_bytes
        pages = _BUFFERS_BYTES // threads // pagecache.PAGE_BYTES
        self.buffer_bytes = min(_BUFFER_BYTES, pages * pagecache.PAGE_BYTES)

    def close(self) -> None:
        """Close the sink; no thread may still read."""
        os.close(self.sink)


class Tools:
    """What the engines of one thread share."""

    def __init__(self, shared: Shared) -> None:
        self.sink = shared.sink
        self.window_bytes = shared.window_bytes
        self.buffer_bytes = shared.buffer_bytes
        self._buffer: mmap.mmap | None = None

    def buffer(self) -> mmap.mmap:
        """Return this thread's buffer, allocated on first use."""
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, self.buffer_bytes)
        return self._buffer


class AbstractEngine(ABC):
    """One way to read, used by one thread on one medium.

    If the kernel refuses its call, the engine hands this and all later steps to `instead`.
    """

    name: ClassVar[Engine]
    refused_with: ClassVar[frozenset[int]] = frozenset()  # the errors that mean "not here"
    instead: ClassVar[Engine | None] = None  # reads from then on

    def __init__(self, tools: Tools, medium: Medium) -> None:
        self._tools = tools
        self._medium = medium
        self._end = 0  # of the range that is being read
        self._replacement: AbstractEngine | None = None

    @property
    def used(self) -> Engine:
        """The engine that reads: this one, or its replacement."""
        return self.name if self._replacement is None else self._replacement.used

    @property
    def most_bytes(self) -> int | None:
        """The most that one step reads, in bytes; None where nothing limits it."""
        return None if self._replacement is None else self._replacement.most_bytes

    def start(self, descriptor: int, offset: int, end: int) -> None:
        """Prepare for steps from `offset` to `end`; raises nothing."""
        self._end = end
        if self._replacement is not None:
            self._replacement.start(descriptor, offset, end)

    def step(self, descriptor: int, offset: int, size: int) -> int:
        """Return how many bytes were read, at most `size`; 0 at the end of the file.

        Raises OSError.
        """
        if self._replacement is None:
            try:
                return self._read(descriptor, offset, size)
            except OSError as error:
                if self.instead is None or error.errno not in self.refused_with:
                    raise
            self._replacement = REGISTRY[self.instead](self._tools, self._medium)
            self._replacement.start(descriptor, offset, self._end)
        return self._replacement.step(descriptor, offset, size)

    @abstractmethod
    def _read(self, descriptor: int, offset: int, size: int) -> int:
        """Do the step by this engine's own call."""


class ReadEngine(AbstractEngine):
    """preadv(2) into the thread's buffer."""

    name = Engine.READ

    @property
    def most_bytes(self) -> int:
        """The size of the buffer."""
        return self._tools.buffer_bytes

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        view = memoryview(self._tools.buffer())[:size]
        return os.preadv(descriptor, [view], offset)


class SpliceEngine(AbstractEngine):
    """sendfile(2) to /dev/null: no copy, no buffer."""

    name = Engine.SPLICE
    # A file system without splice_read (EINVAL), or a container's seccomp profile (EPERM). EPERM
    # cannot mean the file: its open would have failed.
    refused_with = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
    instead = Engine.READ

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        return os.sendfile(self._tools.sink, descriptor, offset, size)


class AdviseEngine(AbstractEngine):
    """POSIX_FADV_WILLNEED for a window, which is then drained without another request."""

    name = Engine.ADVISE

    def __init__(self, tools: Tools, medium: Medium) -> None:
        super().__init__(tools, medium)
        self._drain = SpliceEngine(tools, medium)
        self._advised = 0

    @property
    def most_bytes(self) -> int | None:
        """What limits the draining."""
        return self._drain.most_bytes

    def start(self, descriptor: int, offset: int, end: int) -> None:
        """Forget the last window."""
        super().start(descriptor, offset, end)
        self._advised = offset

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        if offset >= self._advised:
            window = min(self._tools.window_bytes, self._end - offset)
            pagecache.advise(descriptor, offset, window, self._medium.step_bytes)
            self._advised = offset + window
        return self._drain.step(descriptor, offset, size)


class _ExactEngine(AdviseEngine):
    """Advise with the file's read-ahead off: reads no page outside its range.

    The other engines would fall to single pages or a pipe's 64 KiB without read-ahead.
    """

    def start(self, descriptor: int, offset: int, end: int) -> None:
        """Switch read-ahead off for everyone who reads by this descriptor."""
        pagecache.read_only_what_is_asked(descriptor)
        super().start(descriptor, offset, end)


Registry = Mapping[Engine, type[AbstractEngine]]
REGISTRY: Registry = {engine.name: engine for engine in (AdviseEngine, SpliceEngine, ReadEngine)}


class Engines:
    """The engines of one thread, each made on first use."""

    def __init__(self, shared: Shared, registry: Registry = REGISTRY) -> None:
        self._tools = Tools(shared)
        self._registry = registry
        self._made: dict[tuple[type[AbstractEngine], Medium], AbstractEngine] = {}

    def by_name(self, name: Engine, medium: Medium) -> AbstractEngine:
        """Return the engine of that name for a medium."""
        return self._of(self._registry[name], medium)

    def exact(self, medium: Medium) -> AbstractEngine:
        """Return the engine for ranges next to the cut, behind which nothing may be read."""
        return self._of(_ExactEngine, medium)

    def _of(self, kind: type[AbstractEngine], medium: Medium) -> AbstractEngine:
        engine = self._made.get((kind, medium))
        if engine is None:
            engine = self._made[kind, medium] = kind(self._tools, medium)
        return engine
