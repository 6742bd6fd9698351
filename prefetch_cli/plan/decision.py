"""Whether to read, and why: a pure function of facts, budget and flags."""

import enum
from typing import NamedTuple

from prefetch_cli.base import amounts
from prefetch_cli.base.words import Overrule
from prefetch_cli.plan.budget import Budget, in_words
from prefetch_cli.plan.window import Ahead, Wish

_ENOUGH_RESIDENT = 0.99
# A loader alone is slow if it takes so many times as long as warming, and so much longer.
_SLOW_FACTOR = 2
_SLOW_SECONDS = 30.0
# Less is soon read by anyone: no storage is tried for it.
_LEAST_COLD_BYTES = 1024 * 1024 * 1024


class Verdict(enum.Enum):
    """What to do with the checkpoint."""

    PREFETCH = "prefetch"
    PARTIAL = "partial"
    SKIP = "skip"


class Reason(enum.Enum):
    """Why; users script against these values."""

    EMPTY_SHARE = "empty-share"
    IN_MEMORY_FILESYSTEM = "in-memory-filesystem"
    ALREADY_RESIDENT = "already-resident"
    NO_PAGE_CACHE = "no-page-cache"
    NETWORK_FITS = "network-fits"
    NETWORK_TOO_BIG = "network-too-big"
    LOCAL_FITS = "local-fits"
    LOCAL_SLOW = "local-slow"
    LOCAL_TOO_BIG = "local-too-big"
    FORCED = "forced"
    FORCED_TOO_BIG = "forced-too-big"
    PARTIAL = "partial"
    VERIFY = "verify"
    WINDOW = "window"


class Storage(enum.Enum):
    """What a checkpoint lies on, in words; of several, the farthest."""

    NETWORK = "network file system"
    NETWORK_DEVICE = "network block device"
    LOCAL = "local file system"
    UNKNOWN = "unknown file system"

    @property
    def network(self) -> bool:
        """Whether its bytes come over a network."""
        return self in {Storage.NETWORK, Storage.NETWORK_DEVICE}


# Reasons to read nothing on any rank, so a file that cannot be read is no failure.
NOTHING_MEANT = frozenset(
    {
        Reason.IN_MEMORY_FILESYSTEM,
        Reason.NO_PAGE_CACHE,
        Reason.NETWORK_TOO_BIG,
        Reason.LOCAL_FITS,
        Reason.LOCAL_TOO_BIG,
    }
)


class Forecast(NamedTuple):
    """How long reading what is cold will take, by rates in bytes per second."""

    cold_bytes: int
    our_rate: float
    loader_rate: float  # of a loader alone

    @property
    def warm_seconds(self) -> float:
        """How long warming takes."""
        return self.cold_bytes / self.our_rate

    @property
    def loader_seconds(self) -> float:
        """How long a loader alone takes."""
        return self.cold_bytes / self.loader_rate

    @property
    def loader_is_slow(self) -> bool:
        """Whether warming pays, although the storage counts as local."""
        longer = self.loader_seconds - self.warm_seconds
        return longer >= _SLOW_SECONDS and self.loader_seconds >= _SLOW_FACTOR * self.warm_seconds


class Sample(NamedTuple):
    """What a sample of the share says."""

    low_bytes: int  # so much is resident at least
    pages: int


class Facts(NamedTuple):
    """The facts that decide."""

    total_bytes: int  # without files that are in memory already
    share_bytes: int
    resident_bytes: int | None  # of the share, by an exact method; None where none can tell
    in_memory: bool  # all files are on in-memory file systems
    bypasses_cache: bool  # all files are on mounts whose options say so
    storage: Storage
    cold_bytes: int  # of all ranks, as far as this one can tell: on storage and readable
    forecast: Forecast | None = None  # None: the storage was not tried
    sample: Sample | None = None  # of the share, by the clock; None where that was not needed


class Decision(NamedTuple):
    """What to do, and why: a word for scripts, a sentence for people."""

    action: Verdict
    reason: Reason
    message: str
    warning: bool  # the user should not overlook the sentence
    limit_bytes: int | None  # read only this many bytes, in load order; None: all


def decide(
    facts: Facts, budget: Budget, overrule: Overrule, ahead: Ahead | None = None
) -> Decision:
    """Return the decision: the first rule that matches; without COMMAND there is no window `ahead`.

    The rules for network and local file systems are vLLM's (vllm-project/vllm#36012, #37673).
    Before them come states in which reading gains nothing, so `overrule` does not apply to them,
    except where that rests on a sample.
    """
    if facts.share_bytes == 0:
        return _skip(Reason.EMPTY_SHARE, "this rank has nothing to read")
    gain = _without_gain(facts, overrule)
    if gain is not None and Overrule.VERIFY in overrule:
        return _verify_what_costs_no_memory(gain.message, facts, budget)
    if gain is not None:
        return gain
    fits = facts.total_bytes <= budget.size_bytes
    if ahead is not None and _opens(ahead, facts, overrule, fits=fits):
        return _windowed(facts, budget, ahead, fits=fits)
    if fits:
        return _decide_fitting(facts, budget, overrule)
    return _decide_too_big(facts, budget, overrule, ahead)


def _opens(ahead: Ahead, facts: Facts, overrule: Overrule, *, fits: bool) -> bool:
    """Return whether the window is to move: only where it would pay to read all, if all fitted."""
    slow = facts.forecast is not None and facts.forecast.loader_is_slow
    if not facts.storage.network and not slow and Overrule.FORCE not in overrule:
        return False
    if ahead.wish is Wish.DEFAULT:
        return not fits and Overrule.PARTIAL not in overrule
    return ahead.wish is Wish.GIVEN


def _windowed(facts: Facts, budget: Budget, ahead: Ahead, *, fits: bool) -> Decision:
    total, size = (amounts.format_size(one) for one in (facts.total_bytes, ahead.size_bytes))
    verb = "fit" if fits else "do not fit"
    return Decision(
        Verdict.PREFETCH,
        Reason.WINDOW,
        f"{facts.storage.value}, and {total} {verb} into {in_words(budget)}: a window of {size} "
        "moves ahead of COMMAND's loader",
        warning=False,
        limit_bytes=ahead.size_bytes,
    )


def _without_gain(facts: Facts, overrule: Overrule) -> Decision | None:
    """Return why reading would add nothing to the page cache, None where it would."""
    if facts.in_memory:
        return _skip(Reason.IN_MEMORY_FILESYSTEM, "the files are already in memory")
    if (
        facts.resident_bytes is not None
        and facts.resident_bytes >= _ENOUGH_RESIDENT * facts.share_bytes
    ):
        return _skip(Reason.ALREADY_RESIDENT, "it is already in the page cache")
    if (
        facts.sample is not None
        and facts.sample.low_bytes >= _ENOUGH_RESIDENT * facts.share_bytes
        and Overrule.FORCE not in overrule
    ):
        found = amounts.format_range(facts.sample.low_bytes, facts.share_bytes, facts.share_bytes)
        return _skip(
            Reason.ALREADY_RESIDENT,
            f"{found} of it is already in the page cache, by a timed sample of "
            f"{facts.sample.pages:,} pages: give --force to read it anyway",
        )
    if facts.bypasses_cache:
        return _skip(
            Reason.NO_PAGE_CACHE,
            "the mount options let reads bypass the page cache, so nothing would stay; "
            "mount it with caching",
        )
    return None


def _verify_what_costs_no_memory(why: str, facts: Facts, budget: Budget) -> Decision:
    # So the budget does not bound it. Nothing overrules --max-bytes.
    if budget.max_bytes is not None and budget.max_bytes < facts.total_bytes:
        most = amounts.format_size(budget.max_bytes)
        message = f"{why}; the files in its first {most} (--max-bytes) are read to verify them"
        return _partial(Reason.VERIFY, message, budget.max_bytes)
    return _prefetch(Reason.VERIFY, f"{why}; read to verify it")


def awaits_trial(decision: Decision, facts: Facts) -> bool:
    """Return whether rates could change this decision, and enough is cold to measure them."""
    return decision.reason is Reason.LOCAL_FITS and facts.cold_bytes >= _LEAST_COLD_BYTES


def allows_trial(decision: Decision) -> bool:
    """Return whether a dry run may measure the storage: unless nothing on it would be read."""
    return decision.reason not in {
        Reason.EMPTY_SHARE,
        Reason.IN_MEMORY_FILESYSTEM,
        Reason.ALREADY_RESIDENT,
        Reason.NO_PAGE_CACHE,
    }


def forecast_in_words(forecast: Forecast) -> str:
    """Return the forecast as a phrase."""
    warm = amounts.format_duration(forecast.warm_seconds)
    loader = amounts.format_duration(forecast.loader_seconds)
    return f"about {warm} to warm; a loader alone about {loader}"


def _decide_fitting(facts: Facts, budget: Budget, overrule: Overrule) -> Decision:
    fits = f"{amounts.format_size(facts.total_bytes)} fit into {in_words(budget)}"
    where = facts.storage.value
    if facts.storage.network:
        return _prefetch(Reason.NETWORK_FITS, f"{where}, and {fits}")
    if Overrule.FORCE in overrule:
        return _prefetch(Reason.FORCED, f"{where}, forced; {fits}")
    if Overrule.VERIFY in overrule:
        return _prefetch(Reason.VERIFY, f"{where}, read to verify it; {fits}")
    force = "give --force to read it anyway"
    if facts.forecast is None:
        why = ", so it counts as a local one" if facts.storage is Storage.UNKNOWN else ""
        return _skip(Reason.LOCAL_FITS, f"{where}{why}; {fits}: {force}")
    loader, ours = (
        amounts.format_rate(rate) for rate in (facts.forecast.loader_rate, facts.forecast.our_rate)
    )
    measured = f"measured: {loader} by a loader alone, {ours} by prefetch-cli"
    if facts.forecast.loader_is_slow:
        return _prefetch(Reason.LOCAL_SLOW, f"{where}, but slow, {measured}; {fits}")
    return _skip(Reason.LOCAL_FITS, f"{where}, {measured}; {fits}: {force}")


def _decide_too_big(
    facts: Facts, budget: Budget, overrule: Overrule, ahead: Ahead | None
) -> Decision:
    total = amounts.format_size(facts.total_bytes)
    too_big = f"{facts.storage.value}, but {total} do not fit into {in_words(budget)}"
    if Overrule.PARTIAL in overrule and (facts.storage.network or Overrule.FORCE in overrule):
        message = f"{too_big}: reading the first {amounts.format_size(budget.size_bytes)} of it"
        if ahead is not None:
            message += "; --window would stay ahead of COMMAND's loader"
        return _partial(Reason.PARTIAL, message, budget.size_bytes, warning=False)
    if Overrule.FORCE in overrule:
        return _force_too_big(too_big, facts, budget)
    if Overrule.VERIFY in overrule:
        message = f"{too_big}: only the files that fit are verified; --force reads all"
        return _partial(Reason.VERIFY, message, budget.size_bytes)
    window = "" if ahead is None else "--window to stay ahead of COMMAND's loader, "
    if facts.storage.network:
        return _skip(
            Reason.NETWORK_TOO_BIG,
            f"{too_big}: give {window}--partial to read what fits, --force to read all, "
            "or --ram-threshold to allow more",
            warning=True,
        )
    if window:
        window = f"--force {window}"
    return _skip(
        Reason.LOCAL_TOO_BIG,
        f"{too_big}: give {window}--force --partial to read what fits, or --force to read all",
    )


def _force_too_big(too_big: str, facts: Facts, budget: Budget) -> Decision:
    # Nothing overrules --max-bytes.
    if budget.max_bytes is not None and budget.max_bytes < facts.total_bytes:
        most = "that" if budget.limited_by == "max-bytes" else amounts.format_size(budget.max_bytes)
        message = f"{too_big}: forced, up to {most}"
        return _partial(Reason.FORCED_TOO_BIG, message, budget.max_bytes)
    return Decision(
        Verdict.PREFETCH,
        Reason.FORCED_TOO_BIG,
        f"{too_big}: forced, although memory may run out and the head be dropped again; "
        "--partial keeps the head",
        warning=True,
        limit_bytes=None,
    )


def _partial(reason: Reason, message: str, limit_bytes: int, *, warning: bool = True) -> Decision:
    return Decision(Verdict.PARTIAL, reason, message, warning, limit_bytes)


def _prefetch(reason: Reason, message: str) -> Decision:
    return Decision(Verdict.PREFETCH, reason, message, warning=False, limit_bytes=None)


def _skip(reason: Reason, message: str, *, warning: bool = False) -> Decision:
    return Decision(Verdict.SKIP, reason, message, warning, limit_bytes=None)
