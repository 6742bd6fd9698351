"""The engines: how one call brings bytes into the page cache, what each needs, what replaces it.

To add one: name it in `base.words.Engine`, write its class, and list it in REGISTRY; the contract
test runs whatever is listed. If `auto` is to try it, `reading.prior` says where.
"""

import errno
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from prefetch_cli.base.words import Engine
from prefetch_cli.checkpoint.digests import Digest
from prefetch_cli.linux import mapping, pagecache
from prefetch_cli.linux.files import close
from prefetch_cli.plan.extents import Extent
from prefetch_cli.reading.plan import Hashed, Medium

_BUFFER_BYTES = 1024 * 1024  # per thread; the kernel's read-ahead gains nothing from more
_BUFFERS_BYTES = 16 * 1024 * 1024  # all threads together
MOST_THREADS = _BUFFERS_BYTES // pagecache.PAGE_BYTES  # each needs one page at least
WINDOW_BYTES = 16 * 1024 * 1024  # advised at a time, then drained


class Shared:
    """What the engines of all threads share."""

    def __init__(self, threads: Callable[[], int], window_bytes: int) -> None:
        self.sink = _sink()
        self.window_bytes = window_bytes
        self._threads = threads

    @property
    def buffer_bytes(self) -> int:
        """The size of each thread's buffer, with as many threads as read now."""
        pages = _BUFFERS_BYTES // self._threads() // pagecache.PAGE_BYTES
        return min(_BUFFER_BYTES, pages * pagecache.PAGE_BYTES)

    def close(self) -> None:
        """Close the sink; no thread may still read."""
        if self.sink is not None:
            close(self.sink)


def _sink() -> int | None:
    """Return a descriptor of /dev/null, None where there is none, as in a chroot without /dev."""
    try:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


class Tools:
    """What the engines of one thread share."""

    def __init__(self, shared: Shared) -> None:
        self.sink = shared.sink
        self.window_bytes = shared.window_bytes
        self._shared = shared
        self._buffer: mmap.mmap | None = None

    @property
    def buffer_bytes(self) -> int:
        """The size of the buffer now."""
        return self._shared.buffer_bytes

    def buffer(self) -> mmap.mmap:
        """Return this thread's buffer, allocated on first use and when its size changes."""
        size = self.buffer_bytes
        if self._buffer is None or len(self._buffer) != size:
            self._buffer = mmap.mmap(-1, size)
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
        self._within = Extent(0, 0, 0)  # nothing outside it may be asked for
        self._replacement: AbstractEngine | None = None

    @property
    def used(self) -> Engine:
        """The engine that reads: this one, or its replacement."""
        return self.name if self._replacement is None else self._replacement.used

    @property
    def most_bytes(self) -> int | None:
        """The most that one step reads, in bytes; None where nothing limits it."""
        return None if self._replacement is None else self._replacement.most_bytes

    def start(self, descriptor: int, offset: int, end: int, within: Extent | None = None) -> None:
        """Prepare for steps from `offset` to `end`, a part of `within`; raises nothing."""
        self._end = end
        self._within = within or Extent(0, offset, end - offset)
        if self._replacement is not None:
            self._replacement.start(descriptor, offset, end, within)

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
            self._replacement.start(descriptor, offset, self._end, self._within)
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
        return len(self._content(descriptor, offset, size))

    def _content(self, descriptor: int, offset: int, size: int) -> memoryview:
        """Return what was read, until the next step."""
        # Asked for once: where the number of threads changes, the next answer is another buffer.
        view = memoryview(self._tools.buffer())[:size]
        return view[: os.preadv(descriptor, [view], offset)]


class SpliceEngine(AbstractEngine):
    """sendfile(2) to /dev/null: no copy, no buffer."""

    name = Engine.SPLICE
    # A file system without splice_read (EINVAL), a container's seccomp profile (EPERM), or no sink.
    # EPERM cannot mean the file: its open would have failed.
    refused_with = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
    instead = Engine.READ

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        if self._tools.sink is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return os.sendfile(self._tools.sink, descriptor, offset, size)


class PopulateEngine(AbstractEngine):
    """MADV_POPULATE_READ on a mapping for huge pages, one at a time.

    A loader maps data that lie in the cache in huge pages in a hundredth of the time.
    """

    name = Engine.POPULATE
    # An old kernel, a profile, a mount that cannot be mapped, or not for huge pages, a limit on the
    # address space; and storage that fails (EFAULT), of which `splice` says how. After a failure
    # the kernel asks once more, and then it waits with the address space locked: no second chance.
    refused_with = frozenset(errno.errorcode)
    instead = Engine.SPLICE

    def __init__(self, tools: Tools, medium: Medium) -> None:
        super().__init__(tools, medium)
        self._drain = SpliceEngine(tools, medium)

    @property
    def most_bytes(self) -> int | None:
        """A huge page: what is mapped counts as memory of this process."""
        return mapping.HUGE_PAGE_BYTES if self._replacement is None else super().most_bytes

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        start = offset // mapping.HUGE_PAGE_BYTES * mapping.HUGE_PAGE_BYTES
        size = min(size, start + mapping.HUGE_PAGE_BYTES - offset)
        if self._may_fault(descriptor, start):
            mapping.populate(descriptor, offset, size)
            return size
        return self._drain.step(descriptor, offset, min(size, self._drain.most_bytes or size))

    def _may_fault(self, descriptor: int, start: int) -> bool:
        """Return whether a fault in this huge page reads nothing that is not to be read."""
        within, end = self._within, start + mapping.HUGE_READ_BYTES
        if start < within.offset:
            return False
        # The kernel reads nothing behind the end of the file.
        return end <= within.end or os.fstat(descriptor).st_size <= within.end


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

    def start(self, descriptor: int, offset: int, end: int, within: Extent | None = None) -> None:
        """Forget the last window."""
        super().start(descriptor, offset, end, within)
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

    def start(self, descriptor: int, offset: int, end: int, within: Extent | None = None) -> None:
        """Switch read-ahead off for the descriptor."""
        pagecache.read_only_what_is_asked(descriptor)
        super().start(descriptor, offset, end, within)


class HashingEngine(ReadEngine):
    """Reads one file from front to end, and hashes what it reads.

    Far storage is asked for a window ahead: the kernel's read-ahead is too little to keep it busy,
    and a file that is hashed has a single thread. On a FUSE mount at 10 ms that read one file at
    4.8 times the rate. Near storage needs none: on a fast disk it made hashing slower.
    """

    def __init__(self, tools: Tools, medium: Medium, digest: Digest, size_bytes: int) -> None:
        super().__init__(tools, medium)
        self._hasher = digest.hasher(size_bytes)
        self._size_bytes = size_bytes
        self._hashed_bytes = 0
        self._advised = 0
        self.result: Hashed | None = None  # None until all of the file has come

    def _read(self, descriptor: int, offset: int, size: int) -> int:
        self._ask_ahead(descriptor, offset)
        content = self._content(descriptor, offset, size)
        self._hasher.update(content)
        self._hashed_bytes += len(content)
        if self._hashed_bytes == self._size_bytes:
            self.result = Hashed(self._hasher.hexdigest(), os.fstat(descriptor).st_size)
        return len(content)

    def _ask_ahead(self, descriptor: int, offset: int) -> None:
        window = self._tools.window_bytes
        # A smaller window means a limited rate: nothing may be advised ahead of that.
        if not self._medium.far or window < WINDOW_BYTES:
            return
        # A little at each step: what comes at once overruns the requests of a FUSE mount.
        start, end = max(offset, self._advised), min(offset + window, self._size_bytes)
        if start < end:
            pagecache.advise(descriptor, start, end - start, self._medium.step_bytes)
            self._advised = end


Registry = Mapping[Engine, type[AbstractEngine]]
REGISTRY: Registry = {
    engine.name: engine for engine in (PopulateEngine, AdviseEngine, SpliceEngine, ReadEngine)
}


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

    def hashing(self, medium: Medium, digest: Digest, size_bytes: int) -> HashingEngine:
        """Return an engine for one file of this size, which it also hashes."""
        return HashingEngine(self._tools, medium, digest, size_bytes)

    def _of(self, kind: type[AbstractEngine], medium: Medium) -> AbstractEngine:
        engine = self._made.get((kind, medium))
        if engine is None:
            engine = self._made[kind, medium] = kind(self._tools, medium)
        return engine
