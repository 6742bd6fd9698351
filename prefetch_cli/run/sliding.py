"""The stage behind the first reading: a window moves with COMMAND's loader, to its end."""

import time
from collections.abc import Callable, Sequence

from prefetch_cli.base.errors import error_words
from prefetch_cli.base.progress import Aside, Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import memory, pagecache
from prefetch_cli.linux.files import close, open_to_read
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.plan.decision import Reason
from prefetch_cli.plan.extents import Extent, without
from prefetch_cli.plan.loaders import Lost, Patience
from prefetch_cli.plan.window import Position, Window
from prefetch_cli.reading import job
from prefetch_cli.run import media, stages
from prefetch_cli.run.following import Follower
from prefetch_cli.run.loading import NOBODY_LOOKS
from prefetch_cli.run.options import Options
from prefetch_cli.run.states import Decided, Looked, Read, Slid, Slide, SlideEnded, Sliding, Wanted

_POLL_SECONDS = 0.1
_MEASURE_SECONDS = 1.0  # between looks at the memory where nothing is read
# What is read at once: less than the window, so that it begins anew where the loader is by then.
_STRETCHES = 4
_MOST_STRETCH_BYTES = 1024 * 1024 * 1024

_WHY_LOST = {
    Lost.HIDDEN: "COMMAND's processes are hidden from this user (they are another user's, or not "
    "COMMAND's children)",
    Lost.UNUSED: "COMMAND has opened none of the weight files so far",
    Lost.ORDER: "COMMAND does not read the weight files in the order in which they are warmed",
    Lost.SPREAD: "COMMAND has weight files open or mapped at once that lie farther apart than the "
    "window reaches",
    Lost.KILLED: NOBODY_LOOKS,
}

Publish = Callable[[Sliding | Slid], None]


def follow(
    options: Options,
    wanted: Wanted,
    looked: Looked,
    decided: Decided,
    stop: Stop,
    patience: Patience | None = None,
) -> "Stage | None":
    """Return the window that the decision opens, None where it opens none.

    It has begun to look where COMMAND's loader is: that may load faster than we read.
    """
    window, size_bytes = options.window, decided.decision.limit_bytes
    if decided.decision.reason is not Reason.WINDOW or window is None or size_bytes is None:
        return None
    files = wanted.found.files
    stored = [extent for extent in wanted.share.extents if extent.file in wanted.on_storage]
    order = [extent for extent in stored if files[extent.file].weight] or stored
    follower = Follower(window.command_pid, files, order, size_bytes, stop, patience or Patience())
    resident = without(order, sorted(looked.survey.missing))
    stage = Stage(
        options, wanted, decided, follower, Window(order, size_bytes, PAGE_BYTES, resident)
    )
    follower.start()
    return stage


class Stage:
    """One part that a window moves over."""

    def __init__(
        self,
        options: Options,
        wanted: Wanted,
        decided: Decided,
        follower: Follower,
        window: Window,
    ) -> None:
        self._options = options
        self._wanted = wanted
        self._plan = decided.plan
        self._follower = follower
        self._window = window
        self._read_bytes = 0
        self._began = time.monotonic()
        self._room_bytes = 0
        self._measured = -_MEASURE_SECONDS
        self._notes: list[str] = []

    def run(self, read: Read | None, monitor: Monitor, stop: Stop, publish: Publish) -> None:
        """Move the window from what was read to the loader's end, and publish how that went."""
        self._began = time.monotonic()
        if read is not None:
            self._begin(read)
        publish(Sliding(self._wanted.kind, self._slide()))
        ended, lost = self._move(monitor, stop)
        if lost is not None:
            room = self._room(at_once=True)
            had = self._follower.where().had
            self._read(self._window.rest_of_head(had, room), None, None, monitor, stop)
            self._notes.append(f"{_WHY_LOST[lost]}: only the head is read")
        publish(Slid(self._wanted.kind, self._slide(), ended, lost, tuple(self._notes)))

    def _begin(self, read: Read) -> None:
        """Take what was read before the window could move."""
        of_window = {extent.file for extent in self._window.order}
        mine = [extent for extent in self._plan.extents if extent.file in of_window]
        if read.result.complete:
            self._window.record_read(mine, Position(self._window.order[0].file, 0))

    def _move(self, monitor: Monitor, stop: Stop) -> tuple[SlideEnded, Lost | None]:
        while True:
            if stop.interrupted:
                return SlideEnded.INTERRUPTED, None
            if stop.requested:
                return SlideEnded.TIME_LIMIT, None
            if (lost := self._follower.lost) is not None:
                return SlideEnded.HEAD, lost
            where = self._follower.where()
            if where.over:
                return SlideEnded.LOADED, None
            turn = self._window.turn(where, self._room(), self._stretch_bytes)
            self._drop(turn.drop, monitor)
            self._read(turn.read, turn.cut, where.at, monitor, stop)
            if not turn.read:
                stop.sleep(_POLL_SECONDS)

    @property
    def _stretch_bytes(self) -> int:
        return max(
            self._plan.block_size_bytes,
            min(self._window.size_bytes // _STRETCHES, _MOST_STRETCH_BYTES),
        )

    def _room(self, *, at_once: bool = False) -> int:
        """Return what the page cache may hold: what it holds already counts as available."""
        now = time.monotonic()
        if at_once or now - self._measured >= _MEASURE_SECONDS:
            found = stages.budget(memory.measure(), self._wanted.filesystems, self._options)
            self._room_bytes, self._measured = found.size_bytes, now
        return self._room_bytes

    def _drop(self, extents: Sequence[Extent], monitor: Monitor) -> None:
        for extent in extents:
            path = self._wanted.found.files[extent.file].path
            try:
                with monitor.waiting(path):
                    descriptor = open_to_read(path)
                    try:
                        pagecache.drop(descriptor, extent.offset, extent.length)
                    finally:
                        close(descriptor)
            except OSError as error:
                self._notes.append(f"{path} is not dropped: {error_words(error)}")
        self._window.record_dropped(extents)

    def _read(
        self,
        extents: Sequence[Extent],
        cut: Extent | None,
        at: Position | None,
        monitor: Monitor,
        stop: Stop,
    ) -> None:
        """Read a stretch, and nothing behind the cut.

        A file that fails counts as read: the loader will say what it lacks.
        """
        if not extents:
            return
        plan = self._plan._replace(extents=tuple(extents), cut=cut, already_resident_bytes=0)
        result = job.read(plan, media.targets(self._wanted), Aside(monitor), stop)
        self._read_bytes += result.bytes_read
        self._notes += (f"{path} is not read: {error}" for path, error in result.failed)
        self._window.record_read(extents, at)

    def _slide(self) -> Slide:
        return Slide(
            size_bytes=self._window.size_bytes,
            furthest_bytes=self._window.furthest_bytes,
            bytes_read=self._read_bytes,
            dropped_bytes=self._window.dropped_bytes,
            elapsed_seconds=time.monotonic() - self._began,
        )
