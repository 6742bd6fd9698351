"""The main thread: starts the pipeline in another, renders, answers signals, and ends in time."""

import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from prefetch_cli.base.errors import PrefetchError, interrupted_exit_code
from prefetch_cli.base.progress import Monitor, Snapshot
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Action, Engine
from prefetch_cli.linux.exit import leave
from prefetch_cli.linux.threads import spawn
from prefetch_cli.plan.decision import Verdict
from prefetch_cli.reading.plan import Plan, ReadResult
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.run.options import Options
from prefetch_cli.run.outcome import Report, exit_code
from prefetch_cli.run.pipeline import run
from prefetch_cli.show.audience import Audience
from prefetch_cli.show.lines import is_decided

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 0.5  # for the pipeline to come back after a signal
_LAST_SECONDS = 0.8  # after a signal the process ends by then, whatever its output does
# timeout(1) signals its child and then the child's group: the two are one.
_SAME_SIGNAL_SECONDS = 0.1
_OVERDUE_SECONDS = 1.0  # for a stage that hangs when the time limit has passed
# For a proof behind reads that failed. On NFSv4 an open waits for the client's state manager, on
# soft mounts too, whose reads have long since given up (nfs4_client_recover_expired_lease).
_PROOF_IDLE_SECONDS = 30.0


class _Run:
    """The pipeline in its thread, as far as it has come."""

    def __init__(self, options: Options, environ: Mapping[str, str], stop: Stop) -> None:
        self.monitor = Monitor()
        self.report = Report(options.action, options.min_resident_percent)
        self.ended = False
        self.defect: BaseException | None = None
        self.news = threading.Event()  # there is a new report, or the end
        self.began = time.monotonic()
        self._options = options
        self._environ = environ
        self._stop = stop

    def start(self) -> None:
        spawn(self._work, "pipeline")

    @property
    def proof_seconds(self) -> float:
        """Seconds for which a storage whose reads failed has not answered the proof either."""
        failed = self.report.result is not None and self.report.result.failed
        return self.monitor.snapshot().idle_seconds if failed else 0.0

    def _publish(self, report: Report) -> None:
        self.report = report
        self.news.set()

    def _work(self) -> None:
        try:
            run(self._options, self._environ, self.monitor, self._stop, self._publish)
        except PrefetchError as error:
            if not self._stop.interrupted:  # else it may be of the interruption
                self.report = replace(self.report, error=error)
        except BaseException as error:  # noqa: BLE001 - a defect: raised again by the main thread
            self.defect = error
        finally:
            self.ended = True
            self.news.set()


class _Signals:
    """Turns signals into a stop; a second one, or a hung output, ends the process at once."""

    def __init__(self, stop: Stop) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._stop = stop
        # What the parent ignores (nohup) stays ignored.
        self._awaited = {
            number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
        }
        # Blocked in this thread and in all that it starts, so that they go to the one that waits
        # for them. A handler of Python's would run in the main thread, which may be on its way
        # into a write that never returns.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        try:
            spawn(self._await, "signals")
        except RuntimeError:
            # No thread for them: each ends the process, as it would without this class.
            for number in self._awaited:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._awaited)

    @property
    def waited_seconds(self) -> float:
        """Seconds since the signal; zero while there was none."""
        return 0.0 if self.received is None else time.monotonic() - self._since

    def _await(self) -> None:
        number = signal.sigwait(self._awaited)
        self._since = time.monotonic()
        self.received = number
        self._stop.request()
        while (left := _LAST_SECONDS - self.waited_seconds) > 0:
            again = signal.sigtimedwait(self._awaited, left)
            if again is not None and self.waited_seconds > _SAME_SIGNAL_SECONDS:
                break
        leave(interrupted_exit_code(number))


def supervise(options: Options, environ: Mapping[str, str], display: Audience) -> int:
    """Return the exit code of a run that has been shown in full.

    The storage is touched by other threads only, so that a mount that hangs cannot keep this
    one from rendering, from ending at the time limit or within a second after a signal. Some of
    those threads may still hang then: end the process by `leave`. Raises RuntimeError where no
    thread can be started, and whatever a defect in the pipeline raised.
    """
    stop = Stop(options.time_limit_seconds)
    signals = _Signals(stop)
    job = _Run(options, environ, stop)
    try:
        return _follow(job, stop, signals, display)
    finally:
        display.stop_bar()


def _follow(job: _Run, stop: Stop, signals: _Signals, display: Audience) -> int:
    """Show the run from its start to its end, and return its exit code."""
    job.start()
    shown: Report | None = None
    gathered = False
    while not job.ended:
        job.news.wait(_POLL_SECONDS)
        job.news.clear()
        if shown is None and is_decided(job.report):
            shown = job.report
            display.decided(shown)
        if shown is not None and not gathered and job.report.libraries is not None:
            gathered = True
            display.gathered(job.report)
        display.progress(job.monitor.snapshot())
        if signals.waited_seconds > _GRACE_SECONDS or stop.overdue_seconds > _OVERDUE_SECONDS:
            break
        if job.proof_seconds > _PROOF_IDLE_SECONDS:
            break
    if job.defect is not None:
        raise job.defect
    report = _as_far_as_known(job, signals.received)
    if shown is None and report.error is None:
        shown = report
        display.decided(shown)
    if not gathered and report.libraries is not None and report.error is None:
        display.gathered(report)
    display.progress(job.monitor.snapshot())
    display.finished(report, shown)
    return exit_code(report)


def _as_far_as_known(job: _Run, received: int | None) -> Report:
    """Return the report of a run that has ended, or that cannot be waited for any longer."""
    report = job.report
    if report.error is None:
        report = replace(report, signal=received)
    if job.ended or report.error is not None:
        return report
    if report.result is not None or report.eviction is not None:
        return report  # done, but the proof hangs
    if job.monitor.reading:
        return _read_so_far(report, job.monitor.snapshot())
    if report.action is Action.EVICT and is_decided(report):
        elapsed_seconds = time.monotonic() - job.began
        return replace(report, eviction=Eviction(None, elapsed_seconds, complete=False, failed=()))
    if received is not None:
        return report
    wait = job.monitor.snapshot().longest_wait
    awaited = "the storage" if wait is None else printable(wait.path)
    error = PrefetchError(
        f"expected an answer within --time-limit, found none from {awaited}", "check the mount"
    )
    return replace(report, error=error)


def _read_so_far(report: Report, snapshot: Snapshot) -> Report:
    """Return the report with what was read of the part that hangs, and nothing of the next one."""
    # Where the checkpoint is left alone, the libraries are the last part.
    own_bytes = snapshot.last_part_bytes if _is_due(report) else 0
    part = report.libraries
    if part is not None and _is_due(part):
        result = _cut_short(part.plan, snapshot.done_bytes - own_bytes, snapshot.part_seconds)
        report = replace(report, libraries=replace(part, result=result))
    if _is_due(report):
        result = _cut_short(report.plan, own_bytes, snapshot.part_seconds)
        report = replace(report, result=result)
    return report


def _is_due(report: Report) -> bool:
    """Whether it is to be read, and there is no result of that yet."""
    decision = report.decision
    return report.result is None and decision is not None and decision.action is not Verdict.SKIP


def _cut_short(plan: Plan | None, read_bytes: int, seconds: float) -> ReadResult:
    return ReadResult(
        bytes_read=read_bytes,
        bytes_already_resident=0 if plan is None else plan.already_resident_bytes,
        elapsed_seconds=seconds,
        engine=Engine.AUTO if plan is None else plan.engine,
        complete=False,
        failed=(),
    )
