"""What a trial costs where it ends in a skip, and what it is worth on a slow local disk."""

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence

from tests.bench.figures import Bound, Figure
from tests.bench.run import Usage, run, run_cold, tool
from tests.bench.throughput import Say
from tests.helpers import oracle
from tests.helpers.checkpoints import write_streamed
from tests.helpers.passthrough import mounted

_MIB = 1 << 20
_SHARDS = 4
_MOST_SECONDS = 1.2
_SLOW_BYTES = 1280 * _MIB  # enough for a trial, and soon read at the rate of a loader alone
_RATE = 60_000_000
_DELAY_SECONDS = 0.02
# A type of FUSE that counts as local, so that the trial decides.
_SLOW = ("--keep-cache", "--subtype", "squashfuse")
_LEAST_GAIN = 2
_LOADER = """
import glob, sys
from safetensors import safe_open
for path in sorted(glob.glob(f"{sys.argv[1]}/*.safetensors")):
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():
            file.get_tensor(name).max()
"""


def trial_figures(directory: str, size_bytes: int, say: Say, *, rounds: int) -> Iterator[Figure]:
    """Yield the time of a decision on the directory's disk, and the gain on a slow one."""
    yield from _fast(directory, size_bytes, say, rounds=rounds)
    yield _slow(directory, say, rounds=rounds)


def _fast(directory: str, size_bytes: int, say: Say, *, rounds: int) -> Iterator[Figure]:
    say(f"trial: writing {size_bytes // _MIB:,} MiB")
    place = os.path.join(directory, "fast")
    checkpoint = write_streamed(place, shard_bytes=[size_bytes // _SHARDS] * _SHARDS)
    for flags, words in (
        (("--dry-run",), "--dry-run"),
        (("--dry-run", "--trial"), "--dry-run --trial"),
        ((), "a run that ends in local-fits"),
    ):
        say(f"trial: {words}")
        usages = [
            run_cold(tool("--json", *flags, checkpoint.directory), checkpoint.files)
            for _ in range(rounds)
        ]
        walls = [usage.wall_seconds for usage in usages]
        detail = f"{_spread(walls)}; {_found(usages)}"
        fits = all(_reason(usage) == "local-fits" for usage in usages)
        value = statistics.median(walls) if fits else None
        yield Figure(f"decision, {words}", value, "s", Bound.AT_MOST, _MOST_SECONDS, detail)


def _slow(directory: str, say: Say, *, rounds: int) -> Figure:
    source, point = (os.path.join(directory, name) for name in ("source", "slow"))
    os.mkdir(point)
    checkpoint = write_streamed(source, shard_bytes=[_SLOW_BYTES // _SHARDS] * _SHARDS)
    options = (*_SLOW, "--rate", str(_RATE), "--delay", str(_DELAY_SECONDS))
    name = f"lazy load, a local disk of {_RATE // 10**6} MB/s and 20 ms"
    loader = (sys.executable, "-c", _LOADER, point)
    alone, behind, warming = [], [], []
    try:
        with mounted(source, point, *options):
            files = [os.path.join(point, os.path.basename(path)) for path in checkpoint.files]
            for number in range(1, rounds + 1):
                oracle.make_cold(checkpoint.files)  # below the mount
                alone.append(run_cold(loader, files))
                oracle.make_cold(checkpoint.files)
                warming.append(run_cold(tool("--json", "--progress", "none", point), files))
                behind.append(run(loader))
                say(
                    f"trial: round {number}/{rounds}: alone {alone[-1].wall_seconds:.1f} s, command"
                    f" {warming[-1].wall_seconds:.1f} s, then {behind[-1].wall_seconds:.1f} s"
                )
    except PermissionError as error:
        detail = f"needs the right to mount FUSE: {error}"
        return Figure(name, None, "x", Bound.AT_LEAST, _LEAST_GAIN, detail)
    errors = [usage.error for usage in (*alone, *warming, *behind) if usage.error]
    found = _found(warming)
    if errors or any(_reason(usage) != "local-slow" for usage in warming):
        return Figure(name, None, "x", Bound.AT_LEAST, _LEAST_GAIN, errors[0] if errors else found)
    seconds = [usage.wall_seconds for usage in alone]
    ours = [one.wall_seconds + two.wall_seconds for one, two in zip(warming, behind, strict=True)]
    gain = statistics.median(seconds) / statistics.median(ours)
    detail = f"alone {_spread(seconds)}; with the command {_spread(ours)}; {found}"
    return Figure(name, gain, "x", Bound.AT_LEAST, _LEAST_GAIN, detail)


def _reason(usage: Usage) -> str:
    if usage.error is not None:
        return usage.error
    return str(json.loads(usage.stdout)["decision"]["reason"])


def _found(usages: Sequence[Usage]) -> str:
    """Return the reasons, and the forecasts beside what it took."""
    said = sorted({_reason(usage) for usage in usages})
    documents = [json.loads(usage.stdout) for usage in usages if usage.error is None]
    forecasts = [one["forecast"] for one in documents if one["forecast"] is not None]
    for key in ("warm_seconds", "loader_seconds"):
        if forecasts:
            said.append(f"forecast {key} {_spread([one[key] for one in forecasts])}")
    read = [one["result"]["elapsed_seconds"] for one in documents if one["result"] is not None]
    if read:
        said.append(f"reading took {_spread(read)}")
    return ", ".join(said)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
