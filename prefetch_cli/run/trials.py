"""The stage of a trial: how fast the storage is, before the decision rests on it."""

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.stop import Stop
from prefetch_cli.plan.decision import Forecast
from prefetch_cli.reading import trial
from prefetch_cli.reading.trial import Unmeasured
from prefetch_cli.run import media, stages
from prefetch_cli.run.options import Options
from prefetch_cli.run.states import Decided, Looked, Tried, Wanted

# What the trial reads passes neither limit: it takes about a second.
_SECONDS = 1


def try_storage(
    wanted: Wanted,
    looked: Looked,
    decided: Decided,
    options: Options,
    monitor: Monitor,
    stop: Stop,
) -> Tried | Unmeasured:
    """Return how fast the storage is, or why that is not known."""
    extents = stages.cold(wanted, looked)
    limit = options.max_bytes_per_second
    bounds = (trial.MOST_BYTES, options.max_bytes, None if limit is None else limit * _SECONDS)
    found = trial.measure(
        decided.plan._replace(extents=extents),
        media.targets(wanted),
        stop,
        monitor,
        most_bytes=min(bound for bound in bounds if bound is not None),
        beside_others=wanted.share.world_size > 1,
    )
    if isinstance(found, Unmeasured):
        return found
    our_rate = found.our_rate if limit is None else min(found.our_rate, limit)
    forecast = Forecast(sum(extent.length for extent in extents), our_rate, found.loader_rate)
    return Tried(wanted.kind, found, forecast)
