"""The stage behind the proof: what is warm stays so, until COMMAND has loaded it or time is up."""

import os
import time
from collections.abc import Callable, Iterable

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.progress import Aside, Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import locking, memory
from prefetch_cli.linux.locking import Locks, Range
from prefetch_cli.linux.memory import Memory
from prefetch_cli.plan.extents import Extent, within
from prefetch_cli.reading import job
from prefetch_cli.residency import survey
from prefetch_cli.residency.keep import Ended, Keeper, losses
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run import media, stages
from prefetch_cli.run.loading import Watch
from prefetch_cli.run.options import Keep, Options
from prefetch_cli.run.states import (
    Decided,
    Keeping,
    Kept,
    Tally,
    Wanted,
)

_LOOK_SECONDS = 2.0
_ESTIMATE_SECONDS = 10.0  # a sample starts reads of its own
_BUSY = 0.05  # the most of the time that is spent looking
_POLL_SECONDS = 0.25
# Of what was available when pages were locked: with less left, they are unlocked.
_RESERVE = 0.05

Publish = Callable[[Keeping | Kept], None]


class Stage:
    """One part that is kept."""

    def __init__(
        self,
        keep: Keep,
        wanted: Wanted,
        decided: Decided,
        options: Options,
        loading: Watch | None,
        monitor: Monitor,
        stop: Stop,
        publish: Publish,
    ) -> None:
        self._keep = keep
        self._wanted = wanted
        self._plan = decided.plan
        self._options = options
        self._loading = loading
        self._monitor = monitor
        self._stop = stop
        self._publish = publish
        self._keeper = Keeper(())
        self._tally = Tally(0, 0, None)
        self._began = time.monotonic()
        self._look_seconds = _LOOK_SECONDS
        self._said: set[str] = set()

    def run(self, held: tuple[Extent, ...]) -> None:
        """Keep what is held, and publish how that goes and how it ends.

        The time limit is one of reading, and has no say here.
        """
        self._stop.lift_time_limit()
        self._began = time.monotonic()
        self._keeper = Keeper(held)
        self._tally = self._tally._replace(held_bytes=_bytes(held))
        if not held:
            self._end(Ended.NOTHING_HELD, "nothing of it is resident: nothing is kept")
            return
        with Locks() as locks:
            ended, note = self._locked(locks) if self._keep.lock else self._read_again()
            if ended is not Ended.INTERRUPTED and self._keeper.held:
                after = self._survey(self._keeper.held).resident_bytes
                self._tally = self._tally._replace(resident_bytes=after)
            self._end(ended, note)

    def _read_again(self) -> tuple[Ended, str | None]:
        """Look every few seconds, and read again what was dropped."""
        self._tell()
        next_look = time.monotonic() + self._look_seconds
        while (ended := self._is_over()) is None:
            if time.monotonic() >= next_look:
                began = time.monotonic()
                if (over := self._look()) is not None:
                    return over
                took = time.monotonic() - began
                next_look = began + took + max(self._look_seconds, took / _BUSY)
            self._stop.sleep(_POLL_SECONDS)
        return ended, None

    def _look(self) -> tuple[Ended, str | None] | None:
        """Return how keeping ends, None where it goes on."""
        held = self._within_budget(memory.measure())
        found = self._survey(held)
        if not found.method.exact:
            self._look_seconds = _ESTIMATE_SECONDS
        lost = losses(found, held)
        if lost is None:
            return Ended.UNKNOWN, (
                "no method tells this user what was dropped, so nothing is read again"
            )
        turn = self._keeper.record(lost)
        again = self._of_same_files(turn.again)
        done_bytes = self._read(again)
        self._tally = self._tally._replace(
            looks=self._tally.looks + 1,
            resident_bytes=found.resident_bytes,
            bytes_read_again=self._tally.bytes_read_again + done_bytes,
            bytes_given_up=self._tally.bytes_given_up + _bytes(turn.given_up),
        )
        if not self._keeper.held:
            return Ended.GIVEN_UP, _given_up(self._tally) if turn.given_up else None
        if turn.given_up:
            self._note("given up", _given_up(self._tally))
        elif done_bytes:
            self._tell()
        return None

    def _locked(self, locks: Locks) -> tuple[Ended, str | None]:
        """Lock what is held, and watch that memory does not become short because of it."""
        available = memory.measure()
        least_bytes = int(_RESERVE * available.available_bytes)
        failed: dict[str, str] = {}
        for extent in self._within_budget(available)[: locking.MOST_RANGES]:
            file = self._wanted.found.files[extent.file]
            if file.path in failed:
                continue
            try:
                with self._monitor.waiting(file.path, extent.offset):
                    for size_bytes in locks.add(
                        Range(file.path, file.identity, extent.offset, extent.length)
                    ):
                        locked_bytes = self._tally.locked_bytes + size_bytes
                        self._tally = self._tally._replace(locked_bytes=locked_bytes)
                        if self._stop.interrupted:
                            return Ended.INTERRUPTED, None
                        if memory.measure().available_bytes < least_bytes:
                            return self._released(locks)
            except OSError as error:
                failed[file.path] = error.strerror or str(error)
        self._tell(
            *(f"{path} is not locked: {error}" for path, error in failed.items()),
        )
        while (ended := self._is_over()) is None:
            if memory.measure().available_bytes < least_bytes:
                return self._released(locks)
            self._stop.sleep(_POLL_SECONDS)
        return ended, None

    def _released(self, locks: Locks) -> tuple[Ended, str | None]:
        locks.release()
        return Ended.RELEASED, (
            f"memory became short: {format_size(self._tally.locked_bytes)} were unlocked early"
        )

    def _is_over(self) -> Ended | None:
        if self._stop.interrupted:
            return Ended.INTERRUPTED
        if self._keep.seconds is not None:
            over = time.monotonic() - self._began >= self._keep.seconds
            return Ended.DURATION if over else None
        if self._loading is not None:
            if self._loading.is_over:
                return Ended.LOADED
            if (doubt := self._loading.doubt) is not None:
                self._note(doubt, doubt)
        return None

    def _within_budget(self, available: Memory) -> tuple[Extent, ...]:
        """Return the head of what is held that may stay in the memory that is available now.

        What is resident already counts as available, since the kernel may drop it.
        """
        budget = stages.budget(available, self._wanted.filesystems, self._options)
        cut = stages.cut_at(self._wanted, budget.size_bytes)
        kept = tuple(within(self._keeper.held, cut))
        if cut is not None and _bytes(kept) < _bytes(self._keeper.held):
            by = "--max-bytes" if budget.limited_by == "max-bytes" else "memory is short"
            self._note(
                "budget",
                f"only the first {format_size(_bytes(kept))} of "
                f"{format_size(_bytes(self._keeper.held))} are kept: {by}, the budget is "
                f"{format_size(budget.size_bytes)} now",
            )
        return kept

    def _of_same_files(self, extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
        """Return what may be read again: of files that are still those that were warmed."""
        changed = {
            number
            for number in {extent.file for extent in extents}
            if not self._is_same(number, max(one.end for one in extents if one.file == number))
        }
        if changed:
            self._keeper.forget(changed)
            paths = [self._wanted.found.files[number].path for number in sorted(changed)]
            for path in paths:
                self._note(path, f"{path} was removed, replaced or cut short: it is not kept")
        return tuple(extent for extent in extents if extent.file not in changed)

    def _is_same(self, number: int, least_bytes: int) -> bool:
        file = self._wanted.found.files[number]
        try:
            with self._monitor.waiting(file.path):
                status = os.stat(file.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == file.identity and status.st_size >= least_bytes

    def _read(self, extents: tuple[Extent, ...]) -> int:
        """Return how much of the extents was read again; files that fail are kept no more."""
        if not extents:
            return 0
        plan = self._plan._replace(extents=extents, cut=None, already_resident_bytes=0)
        targets = media.targets(self._wanted)
        result = job.read(plan, targets, Aside(self._monitor), self._stop)
        numbers = {file.path: number for number, file in enumerate(self._wanted.found.files)}
        for path, error in result.failed:
            self._keeper.forget([numbers[path]])
            self._note(path, f"{path} is not kept: {error}")
        return result.bytes_read

    def _survey(self, held: tuple[Extent, ...]) -> Survey:
        return survey.survey(
            self._wanted.found.files,
            held,
            threads=self._wanted.threads.first,
            monitor=self._monitor,
        )

    def _note(self, key: str, text: str) -> None:
        """Warn of something once."""
        if key not in self._said:
            self._said.add(key)
            self._tell(text)

    def _tell(self, *notes: str) -> None:
        self._publish(Keeping(self._wanted.kind, self._keep, self._timed(), notes))

    def _end(self, ended: Ended, note: str | None = None) -> None:
        notes = () if note is None else (note,)
        self._publish(Kept(self._wanted.kind, self._keep, self._timed(), ended, notes))

    def _timed(self) -> Tally:
        return self._tally._replace(elapsed_seconds=time.monotonic() - self._began)


def _given_up(tally: Tally) -> str:
    return (
        f"{format_size(tally.bytes_given_up)} were dropped three times and are not read again: "
        "memory is too short for them, or a program drops them"
    )


def _bytes(extents: Iterable[Extent]) -> int:
    return sum(extent.length for extent in extents)
