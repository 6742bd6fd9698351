"""Whether to read, and why: a pure function of facts, budget and flags."""

import enum
from dataclasses import dataclass

from prefetch_cli.base import amounts
from prefetch_cli.base.words import Overrule

DEFAULT_PERCENT = 90.0
# Where the GPU has no memory of its own: it then needs as much again, for the same weights.
SHARED_PERCENT = 40.0
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


@dataclass(frozen=True)
class Budget:
    """How many bytes of a checkpoint this node's page cache may take."""

    size_bytes: int
    available_bytes: int
    threshold_percent: float
    limited_by: str  # "host", the path of a cgroup, "lustre", or "max-bytes"
    max_bytes: int | None
    shared_with: str | None = None  # the hardware whose GPU is why the threshold is low


@dataclass(frozen=True)
class Forecast:
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


@dataclass(frozen=True)
class Facts:
    """The facts that decide."""

    total_bytes: int  # without files that are in memory already
    share_bytes: int
    resident_bytes: int | None  # of the share, by an exact method; None where none can tell
    in_memory: bool  # all files are on in-memory file systems
    bypasses_cache: bool  # all files are on mounts whose options say so
    storage: Storage
    cold_bytes: int  # of all ranks, as far as this one can tell: on storage and readable
    forecast: Forecast | None = None  # None: the storage was not tried


@dataclass(frozen=True)
class Decision:
    """What to do, and why: a word for scripts, a sentence for people."""

    action: Verdict
    reason: Reason
    message: str
    warning: bool  # the user should not overlook the sentence
    limit_bytes: int | None  # read only this many bytes, in load order; None: all


def budget(
    available_bytes: int,
    limited_by: str,
    threshold_percent: float | None,
    max_bytes: int | None,
    shared_with_gpu: str | None = None,
    most_cached_bytes: int | None = None,
) -> Budget:
    """Return how many bytes a checkpoint may take, and what limits them.

    `most_cached_bytes` is what Lustre's client keeps, None where that is no limit.
    Where no threshold is given it is 90 % of what is available, or 40 % where the GPU has no memory
    of its own, on the hardware that is named.
    """
    shared_with = None if threshold_percent is not None else shared_with_gpu
    if threshold_percent is None:
        threshold_percent = DEFAULT_PERCENT if shared_with is None else SHARED_PERCENT
    size = int(available_bytes * threshold_percent / 100)
    if most_cached_bytes is not None and most_cached_bytes < size:
        size, limited_by = most_cached_bytes, "lustre"
    if max_bytes is not None and max_bytes < size:
        size, limited_by = max_bytes, "max-bytes"
    return Budget(size, available_bytes, threshold_percent, limited_by, max_bytes, shared_with)


def decide(facts: Facts, budget: Budget, overrule: Overrule) -> Decision:
    """Return the decision: the first rule that matches.

    The rules for network and local file systems are vLLM's (vllm-project/vllm#36012, #37673).
    Before them come states in which reading gains nothing, so `overrule` does not apply to them.
    """
    if facts.share_bytes == 0:
        return _skip(Reason.EMPTY_SHARE, "this rank has nothing to read")
    if facts.in_memory:
        return _skip(Reason.IN_MEMORY_FILESYSTEM, "the files are already in memory")
    if (
        facts.resident_bytes is not None
        and facts.resident_bytes >= _ENOUGH_RESIDENT * facts.share_bytes
    ):
        return _skip(Reason.ALREADY_RESIDENT, "it is already in the page cache")
    if facts.bypasses_cache:
        return _skip(
            Reason.NO_PAGE_CACHE,
            "the mount options let reads bypass the page cache, so nothing would stay; "
            "mount it with caching",
        )
    if facts.total_bytes <= budget.size_bytes:
        return _decide_fitting(facts, budget, overrule)
    return _decide_too_big(facts, budget, overrule)


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
    fits = f"{amounts.format_size(facts.total_bytes)} fit into {_budget_in_words(budget)}"
    where = facts.storage.value
    if facts.storage.network:
        return _prefetch(Reason.NETWORK_FITS, f"{where}, and {fits}")
    if Overrule.FORCE in overrule:
        return _prefetch(Reason.FORCED, f"{where}, forced; {fits}")
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


def _decide_too_big(facts: Facts, budget: Budget, overrule: Overrule) -> Decision:
    total = amounts.format_size(facts.total_bytes)
    too_big = f"{facts.storage.value}, but {total} do not fit into {_budget_in_words(budget)}"
    if Overrule.PARTIAL in overrule and (facts.storage.network or Overrule.FORCE in overrule):
        return Decision(
            Verdict.PARTIAL,
            Reason.PARTIAL,
            f"{too_big}: reading the first {amounts.format_size(budget.size_bytes)} of it",
            warning=False,
            limit_bytes=budget.size_bytes,
        )
    if Overrule.FORCE in overrule:
        return _force_too_big(too_big, facts, budget)
    if facts.storage.network:
        return _skip(
            Reason.NETWORK_TOO_BIG,
            f"{too_big}: give --partial to read what fits, --force to read all, "
            "or --ram-threshold to allow more",
            warning=True,
        )
    return _skip(
        Reason.LOCAL_TOO_BIG,
        f"{too_big}: give --force --partial to read what fits, or --force to read all",
    )


def _force_too_big(too_big: str, facts: Facts, budget: Budget) -> Decision:
    # Nothing overrules --max-bytes.
    if budget.max_bytes is not None and budget.max_bytes < facts.total_bytes:
        most = "that" if budget.limited_by == "max-bytes" else amounts.format_size(budget.max_bytes)
        return Decision(
            Verdict.PARTIAL,
            Reason.FORCED_TOO_BIG,
            f"{too_big}: forced, up to {most}",
            warning=True,
            limit_bytes=budget.max_bytes,
        )
    return Decision(
        Verdict.PREFETCH,
        Reason.FORCED_TOO_BIG,
        f"{too_big}: forced, although memory may run out and the head be dropped again; "
        "--partial keeps the head",
        warning=True,
        limit_bytes=None,
    )


def _budget_in_words(budget: Budget) -> str:
    size = amounts.format_size(budget.size_bytes)
    if budget.limited_by == "max-bytes":
        return f"the {size} of --max-bytes"
    if budget.limited_by == "lustre":
        return f"the {size} that Lustre's client keeps (llite.*.max_cached_mb)"
    available = amounts.format_size(budget.available_bytes)
    too = "" if budget.shared_with is None else ", which the GPU uses too"
    return f"{size}, {budget.threshold_percent:g} % of {available} available{too}"


def _prefetch(reason: Reason, message: str) -> Decision:
    return Decision(Verdict.PREFETCH, reason, message, warning=False, limit_bytes=None)


def _skip(reason: Reason, message: str, *, warning: bool = False) -> Decision:
    return Decision(Verdict.SKIP, reason, message, warning, limit_bytes=None)
