"""The main thread: runs the pipeline in another thread, renders, and answers signals in time."""

import gc
import queue
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from prefetch_cli.base import limits
from prefetch_cli.base.errors import PrefetchError, interrupted_exit_code
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import SIGNALS, Stop
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Action
from prefetch_cli.linux.exit import leave
from prefetch_cli.linux.processes import set_handler
from prefetch_cli.linux.threads import Thread, spawn
from prefetch_cli.run.options import Options
from prefetch_cli.run.outcome import (
    Event,
    Interrupted,
    Outcome,
    Refused,
    cut_short,
    evicted_so_far,
    exit_code,
    fold,
)
from prefetch_cli.run.pipeline import run
from prefetch_cli.run.states import Keeping, Read, Slid, Sliding, State
from prefetch_cli.show.audience import Audience

# 100,000 files are a million small values, none of them garbage: to look through them again and
# again, as with Python's 700, takes a tenth of the run.
_GARBAGE_THRESHOLD = 50_000


class _Job:
    """The pipeline in its thread, and the outcome so far."""

    def __init__(self, options: Options, environ: Mapping[str, str], stop: Stop) -> None:
        self.monitor = Monitor()
        self.outcome = Outcome(options.action, options.min_resident_percent)
        self.ended = False
        self._began = time.monotonic()
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._options = options
        self._environ = environ
        self._stop = stop
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = spawn(self._work)

    def news(self, seconds: float) -> Iterator[State]:
        """Yield newly published states, waiting up to `seconds` for the first.

        Re-raises an unexpected exception of the pipeline.
        """
        while not self.ended:
            try:
                event = self._events.get(timeout=seconds)
            except queue.Empty:
                if self._thread is not None and self._thread.killed:
                    self.outcome, self.ended = fold(self.outcome, Refused(self._killed())), True
                return
            seconds = 0
            if event is None:
                self.ended = True
            elif isinstance(event, BaseException):
                raise event
            else:
                self.outcome = fold(self.outcome, event)
                if isinstance(event, State):
                    yield event

    @property
    def hangs_in_proof(self) -> bool:
        """Whether reads failed and the storage has not answered the proof for too long."""
        parts = self.outcome.parts
        if any(part.is_due or part.get(Keeping) for part in parts):
            return False
        if any(part.get(Sliding) and not part.get(Slid) for part in parts):
            return False
        reads = (part.get(Read) for part in parts)
        if not any(read.result.failed for read in reads if read is not None):
            return False
        return self.monitor.snapshot().idle_seconds > limits.PROOF_IDLE_SECONDS

    def outcome_by(self, received: int | None) -> Outcome:
        """Return the outcome as far as known, after a signal or None."""
        outcome = self.outcome
        if outcome.error is not None:
            return outcome
        if received is not None:
            outcome = fold(outcome, Interrupted(received))
        if self.ended:
            return outcome
        # Both leave alone what has its result: of such a part only the proof hangs.
        if self.monitor.reading:
            return cut_short(outcome, self.monitor.snapshot())
        if outcome.action is Action.EVICT and outcome.is_ready(outcome.checkpoint):
            return evicted_so_far(outcome, time.monotonic() - self._began)
        return outcome if received is not None else fold(outcome, Refused(self._no_answer()))

    def _no_answer(self) -> PrefetchError:
        return PrefetchError(
            f"expected an answer within --time-limit, found none from {self._awaited}",
            "check the mount",
        )

    def _killed(self) -> PrefetchError:
        return PrefetchError(
            f"the system killed a thread at work on {self._awaited}, as a seccomp filter may",
            "the kernel's log (audit, type=1326) names the system call",
        )

    @property
    def _awaited(self) -> str:
        wait = self.monitor.snapshot().longest_wait
        return "the storage" if wait is None else printable(wait.path)

    def _work(self) -> None:
        try:
            run(self._options, self._environ, self.monitor, self._stop, self._events.put)
        except PrefetchError as error:
            if not self._stop.interrupted:  # else the interruption may have caused it
                self._events.put(Refused(error))
        except BaseException as error:  # noqa: BLE001 - a defect: the main thread re-raises it
            self._events.put(error)
        finally:
            self._events.put(None)


class _Signals:
    """Turns a signal into a stop. A second signal, or output that hangs, ends the process."""

    def __init__(self, stop: Stop) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._stop = stop
        # A signal that the parent ignores (nohup) stays ignored.
        self._awaited = {
            number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._thread: Thread | None = None
        try:
            # Block the signals here and in every thread started later; one thread waits for them.
            # A Python handler would run in the main thread, which may be stuck in a write.
            signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
            self._thread = spawn(self._await)
        except (OSError, RuntimeError):
            self._default()

    def look(self) -> None:
        """Let each signal end the process by default where the thread that waits was killed."""
        if self._thread is not None and self._thread.killed:
            self._thread = None
            self._default()

    def _default(self) -> None:
        for number in self._awaited:
            set_handler(number, signal.SIG_DFL)
        with suppress(OSError):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._awaited)

    @property
    def waited_seconds(self) -> float:
        """Seconds since the signal; zero if there was none."""
        return 0.0 if self.received is None else time.monotonic() - self._since

    def _await(self) -> None:
        while (number := self._receive(None)) is None:
            pass
        self._since = time.monotonic()
        self.received = number
        self._stop.request()
        while (left := limits.LAST_SECONDS - self.waited_seconds) > 0:
            again = self._receive(left)
            if again is not None and self.waited_seconds > limits.SAME_SIGNAL_SECONDS:
                break
        leave(interrupted_exit_code(number))

    def _receive(self, seconds: float | None) -> int | None:
        """Return a signal, None where there was none for so long or the system refused to wait."""
        try:
            if seconds is None:
                return signal.sigwait(self._awaited)
            found = signal.sigtimedwait(self._awaited, seconds)
        except OSError:
            time.sleep(limits.POLL_SECONDS)
            pending = set() if self.received else signal.sigpending() & self._awaited
            return min(pending, default=None)
        return None if found is None else found.si_signo


def supervise(options: Options, environ: Mapping[str, str], display: Audience, stop: Stop) -> int:
    """Return the exit code of a run, after showing all of it.

    Only other threads touch the storage, so a hung mount cannot stop this one from rendering, nor
    delay its end at the time limit or within a second of a signal. Those threads may still hang:
    end the process with `leave`. Raises RuntimeError where no thread can be started, and
    re-raises an unexpected exception of the pipeline.
    """
    gc.freeze()  # what was imported stays
    gc.set_threshold(_GARBAGE_THRESHOLD)
    gc.enable()
    signals = _Signals(stop)
    job = _Job(options, environ, stop)
    try:
        return _follow(job, stop, signals, display)
    finally:
        display.stop_bar()


def _follow(job: _Job, stop: Stop, signals: _Signals, display: Audience) -> int:
    """Return the exit code of a run, after showing it from start to end."""
    job.start()
    while not job.ended:
        _tell(job, display, limits.POLL_SECONDS)
        snapshot = job.monitor.snapshot()
        _tell(job, display, 0)  # show each decision before any progress that follows from it
        display.progress(snapshot)
        signals.look()
        if signals.waited_seconds > limits.PIPELINE_GRACE_SECONDS or job.hangs_in_proof:
            break
        if stop.overdue_seconds > limits.OVERDUE_SECONDS:
            break
    outcome = job.outcome_by(signals.received)
    display.progress(job.monitor.snapshot())
    display.finished(outcome)
    return exit_code(outcome)


def _tell(job: _Job, display: Audience, seconds: float) -> None:
    for state in job.news(seconds):
        if isinstance(state, Read):
            display.progress(job.monitor.snapshot())  # its last steps, before what follows it
        display.learned(job.outcome, state.kind)
