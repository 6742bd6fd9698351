"""How much of a checkpoint the page cache of this node may take: pure."""

from typing import NamedTuple

from prefetch_cli.base import amounts

DEFAULT_PERCENT = 90.0
# Where the GPU has no memory of its own: it then needs as much again, for the same weights.
SHARED_PERCENT = 40.0


class Budget(NamedTuple):
    """How many bytes of a checkpoint this node's page cache may take."""

    size_bytes: int
    available_bytes: int
    threshold_percent: float
    limited_by: str  # "host", the path of a cgroup, "lustre", or "max-bytes"
    max_bytes: int | None
    shared_with: str | None = None  # the hardware whose GPU is why the threshold is low


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


def in_words(budget: Budget) -> str:
    """Return the budget as a phrase."""
    size = amounts.format_size(budget.size_bytes)
    if budget.limited_by == "max-bytes":
        return f"the {size} of --max-bytes"
    if budget.limited_by == "lustre":
        return f"the {size} that Lustre's client keeps (llite.*.max_cached_mb)"
    available = amounts.format_size(budget.available_bytes)
    too = "" if budget.shared_with is None else ", which the GPU uses too"
    return f"{size}, {budget.threshold_percent:g} % of {available} available{too}"
