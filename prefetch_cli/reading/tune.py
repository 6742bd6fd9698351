"""Engine and threads, chosen while reading: a pure state machine, rates in and the next step out.

It holds no clock and no lock: times are handed in, and the caller takes turns.
"""

from typing import NamedTuple

from prefetch_cli.base.words import Engine
from prefetch_cli.reading.prior import Prior

# A window, over which a rate is measured, ends when this much of it is over:
_WINDOW_SECONDS = 0.25  # and each thread has ended two steps
_FAST_SECONDS = 0.05  # and each thread has read two portions
_LONG_SECONDS = 2.0  # and each has ended one
_LONGEST_SECONDS = 4.0  # and any has
_PATIENCE_SECONDS = 0.5  # for steps under way at its end
_SETTLED_SECONDS = 1.0  # once nothing is tried
_STARTING_SECONDS = 3.0  # a window begins by then, whatever still reads in another way

# Another engine is tried if that costs little of what is left, in windows.
_WORTH_TRYING = 16
_WORTH_CLIMBING = 100  # by an engine that is slower so far
_FAR_BETTER = 2.0  # times as fast: one comparison is enough
# On near media, do not compare once the likely engine is this fast: the trial would cost more
# processor time than any other engine could save.
_FAST_BYTES_PER_SECOND = 1_000_000_000
_TOO_SLOW = 0.5  # leave an engine mid-portion when its rate falls below this part of the best one
TOO_SLOW_SECONDS = 0.2  # its rate is not known earlier

# Looking again
_CHANGED = 1.33  # a rate that differs by this factor
_CHANGED_WINDOWS = 3  # in so many windows in a row
_QUIET_SECONDS = 10.0  # after settling, twice as long each time that nothing else is found
_MOST_QUIET_SECONDS = 30.0

_STALLED_SECONDS = 2.0  # without a byte: whoever holds the turn hangs
_STALLED_MOST = 8  # threads that the hanging of others lets read


class Setting(NamedTuple):
    """A way to read."""

    engine: Engine
    threads: int


class Portion(NamedTuple):
    """What a thread reads next."""

    engine: Engine
    size_bytes: int


class Tuner:
    """Finds the engine and the number of threads that read fastest on one medium, by trying.

    No pair wins everywhere. All threads read in the same way at a time, because side by side the
    one that fills the device's queue first would win at the other's expense. Threads double as long
    as that pays. Then another engine has its turn if there is enough to read: with as many threads,
    and with more while it could still win if each further thread added its share. It replaces the
    best at once if it is far faster, otherwise only if a second comparison agrees: one takes a few
    dozen milliseconds, in which the machine may have been busy. What was found is looked at again
    when the rate changes, and now and then.
    """

    def __init__(self, prior: Prior, size_bytes: int, now: float) -> None:
        self._prior = prior
        self._most = prior.threads.most
        self._no_choice = len(prior.engines) == 1 and prior.threads.first == self._most
        self._left_bytes = size_bytes
        self._in_flight: dict[int, Engine] = {}  # by the thread that reads a portion
        self._last = now  # when something was read
        self._finished = False
        self._found: Setting | None = None  # when it last settled
        self._quiet_seconds = _QUIET_SECONDS
        self._reached: dict[Engine, _Measured] = {}  # by other engines than the best
        self._exhausted: set[Engine] = set()  # of which more threads do not pay
        self._setting = Setting(prior.engines[0], prior.threads.first)
        self._since: float | None = None  # when the window began
        self._until: float | None = None  # when it ended
        self._awaited: set[int] = set()  # whose steps were under way then
        self._bytes = 0.0
        self._search(self._setting, now)

    @property
    def threads(self) -> int:
        """How many threads read."""
        return self._most if self._finished else self._setting.threads

    @property
    def reads(self) -> bool:
        """Whether a thread reads."""
        return bool(self._in_flight)

    def pick(self, thread: int, most_bytes: int) -> Portion:
        """Return what a thread reads next, of at most this size; `end` must follow."""
        engine = self._setting.engine
        self._in_flight[thread] = engine
        # Half of a block asks only half as far ahead, so the best keeps whole ones by itself.
        compared = engine is not self._best.engine or self._again
        return Portion(
            engine, min(most_bytes, self._prior.portion_bytes) if compared else most_bytes
        )

    def record(self, thread: int, size_bytes: int, seconds: float, now: float) -> bool:
        """Count what a step of a thread has read in so long, be it of a portion or not.

        Returns whether another way to read may have been chosen.
        """
        self._left_bytes -= size_bytes
        self._last = now
        if self._no_choice or self._in_flight.get(thread) is not self._setting.engine:
            return False
        if self._since is None:
            self._begin(now)
            return False
        # Threads that ask at once are answered at once: how many ends of steps lie in a window
        # depends on where in that beat it begins. So each step counts by its part in the window,
        # and the window's rate is known when the steps have ended that were under way at its end.
        began = now - seconds
        within = min(now, self._until or now) - max(began, self._since)
        self._bytes += size_bytes * max(0.0, within) / seconds if seconds > 0 else size_bytes
        self._steps += 1
        if self._until is None and self._is_over(now - self._since):
            self._until = now
            self._awaited = set(self._in_flight)
        self._awaited.discard(thread)
        if self._until is not None:
            length = self._until - self._since
            if not self._awaited or now - self._until >= max(length, _PATIENCE_SECONDS):
                self._judge(self._bytes / length, now)
                return True
        return False

    def abandon(self, engine: Engine, size_bytes: int, seconds: float, now: float) -> bool:
        """Return whether to leave a portion that has read so much in so long."""
        if seconds < TOO_SLOW_SECONDS or engine is self._best.engine:
            return False
        if size_bytes / seconds >= _TOO_SLOW * self._best_rate / self._best.threads:
            return False
        if engine is self._setting.engine:
            if engine in self._reached:
                return False  # it is known to be slower, and may win with more threads
            self._judge(size_bytes / seconds * self.threads, now)
        return True

    def end(self, thread: int) -> None:
        """Note that a thread no longer reads the portion that it picked."""
        del self._in_flight[thread]
        self._awaited.discard(thread)  # if its last step failed

    def look(self, now: float) -> None:
        """Let more threads read where nothing has been read for long: whoever reads hangs."""
        more = min(2 * self.threads, self._most, _STALLED_MOST)
        if now - self._last > _STALLED_SECONDS and more > self.threads:
            self._last = now
            self._try(self._setting._replace(threads=more), now)

    def limit(self, threads: int) -> None:
        """Use no more threads than these: the system refuses more."""
        self._most = threads
        self._setting = self._setting._replace(threads=min(self.threads, threads))

    def finish(self) -> None:
        """Let all threads see that nothing is left."""
        self._finished = True

    # Measuring

    def _try(self, setting: Setting, now: float) -> None:
        self._setting = setting
        self._since = None
        self._begin_by = now + _STARTING_SECONDS
        self._steps = 0

    def _begin(self, now: float) -> None:
        """Begin to measure once as many threads read in this way, and have opened and asked."""
        self._steps += 1
        alone = list(self._in_flight.values()) == [self._setting.engine] * self.threads
        if (alone and self._steps >= self.threads) or now >= self._begin_by:
            self._measure(now)

    def _measure(self, since: float) -> None:
        self._since = since
        self._until = None
        self._bytes = 0.0
        self._steps = 0

    def _is_over(self, seconds: float) -> bool:
        if self._settled:
            return seconds >= _SETTLED_SECONDS
        steps, portion_bytes = self._steps / self.threads, self._prior.portion_bytes
        return (
            (seconds >= _FAST_SECONDS and self._bytes >= 2 * portion_bytes * self.threads)
            or (seconds >= _WINDOW_SECONDS and steps >= 2)
            or (seconds >= _LONG_SECONDS and steps >= 1)
            or seconds >= _LONGEST_SECONDS
        )

    # Searching

    def _search(self, first: Setting, now: float) -> None:
        """Look for the best from here on; it is this as long as no other is known."""
        self._best = first
        self._best_rate = 0.0
        self._settled = False
        self._exhausted.discard(first.engine)
        self._doubted: Setting | None = None  # better in one comparison
        self._again: list[Setting] = []  # to be compared again; the next one last
        self._try(first, now)

    def _judge(self, rate: float, now: float) -> None:
        """Take a rate of the present way, and choose the next."""
        if self._settled:
            self._watch(rate, now)
            return
        setting, best = self._setting, self._best
        if self._best_rate == 0 or setting == best:
            self._best, self._best_rate = setting, rate
        elif setting.engine is not best.engine:
            self._compare(setting, rate)
        elif rate >= self._prior.pays * self._best_rate:
            self._best, self._best_rate = setting, rate
        else:
            self._exhausted.add(setting.engine)
        self._go_on(now)

    def _compare(self, setting: Setting, rate: float) -> None:
        """Take the rate of another engine than the best."""
        engine, gain = setting.engine, rate / self._best_rate
        clear = gain >= _FAR_BETTER or setting == self._doubted
        if gain > self._prior.better and not clear:
            self._doubted = setting
            self._again = [setting, self._best]
            return
        before = self._reached.get(engine)
        if before is not None and rate < self._prior.pays * before.rate:
            self._exhausted.add(engine)
        if gain > self._prior.better:
            self._reached[self._best.engine] = _Measured(self._best.threads, self._best_rate)
            self._best, self._best_rate = setting, rate
        else:
            self._reached[engine] = _Measured(setting.threads, rate)

    def _go_on(self, now: float) -> None:
        """Try what may be better, or settle."""
        if self._again:
            self._try(self._again.pop(), now)
            return
        following = self._more_threads() or self._other_engine()
        if following is not None:
            self._try(following, now)
            return
        self._quiet_seconds = min(2 * self._quiet_seconds, _MOST_QUIET_SECONDS)
        if self._best != self._found:
            self._quiet_seconds = _QUIET_SECONDS
        self._found = self._best
        self._settled = True
        self._settled_at = now
        self._odd = 0
        self._try(self._best, now)

    def _more_threads(self) -> Setting | None:
        best = self._best
        if best.engine in self._exhausted or best.threads >= self._most:
            return None
        return best._replace(threads=min(2 * best.threads, self._most))

    def _other_engine(self) -> Setting | None:
        if self._prior.fast_is_enough and self._best_rate > _FAST_BYTES_PER_SECOND:
            return None
        for engine in self._prior.engines:
            if engine is self._best.engine or engine in self._exhausted:
                continue
            reached = self._reached.get(engine)
            if reached is None:
                if self._windows_left >= _WORTH_TRYING:
                    return Setting(engine, self._best.threads)
            elif reached.threads < self._most and self._windows_left >= _WORTH_CLIMBING:
                # It can win if each thread adds as much as those before.
                most_rate = reached.rate * self._most / reached.threads
                if most_rate > self._prior.better * self._best_rate:
                    return Setting(engine, min(2 * reached.threads, self._most))
        return None

    @property
    def _windows_left(self) -> float:
        """How many windows the rest takes at the best rate."""
        rate = max(1.0, self._best_rate)
        fast = 2 * self._prior.portion_bytes * self._best.threads / rate
        seconds = min(_WINDOW_SECONDS, max(_FAST_SECONDS, fast))
        return self._left_bytes / rate / seconds

    # Settled

    def _watch(self, rate: float, now: float) -> None:
        """Take a rate of what was found, and look again when it changes, and now and then."""
        self._measure(now)
        changed = not 1 / _CHANGED <= rate / max(1.0, self._best_rate) <= _CHANGED
        self._odd = self._odd + 1 if changed else 0
        due = now - self._settled_at >= self._quiet_seconds
        first, found = self._prior.threads.first, self._best
        if not due or self._windows_left < _WORTH_CLIMBING:
            return
        if self._odd >= _CHANGED_WINDOWS:
            self._reached.clear()
            self._exhausted.clear()
            self._search(found._replace(threads=first), now)
        elif first == 1 < self._most:
            # Whoever begins with one thread has others to spare: do fewer do as well by now?
            self._search(found._replace(threads=max(1, found.threads // 2)), now)
        elif found.threads < self._most:
            self._search(found, now)


class _Measured(NamedTuple):
    threads: int
    rate: float  # in bytes per second, of all of them
