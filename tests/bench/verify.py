"""--verify beside what bounds it: hashing on every core, and the storage.

Not every sha256sum uses the processor's instructions for it, only one that was built with OpenSSL.
So `openssl dgst` hashes too where it is installed, and the faster of the two counts.
"""

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence

from tests.bench.figures import Bound, Figure
from tests.bench.run import Usage, run, run_cold, tool
from tests.bench.throughput import GB, Say
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint, write_streamed

_TARGET_PERCENT = 85
_FILES_PER_CORE = 2
_PROGRAMS = (("sha256sum",), ("openssl", "dgst", "-sha256"))


def verify_figures(directory: str, size_bytes: int, say: Say, *, rounds: int) -> Iterator[Figure]:
    """Yield the rate of --verify in percent of its bound, for warm and for cold files.

    The bound is hashing on every core where they are warm, and that or the rate of a run without
    --verify, whichever is less, where they are cold. Each round measures all of them, one behind
    the other, and gives one ratio. Our rates are without start and exit.
    """
    cores = len(os.sched_getaffinity(0))
    count = cores * _FILES_PER_CORE
    say(f"verify: writing {size_bytes / GB:.2f} GB")
    checkpoint = write_streamed(
        os.path.join(directory, "verify"), shard_bytes=[size_bytes // count] * count
    )
    listed = os.path.join(directory, "SHA256SUMS")
    with open(listed, "w", encoding="utf-8") as file:
        file.write(_checked(run(("sha256sum", *checkpoint.weight_files))).stdout)
    warm: list[float] = []
    cold: list[float] = []
    rates = ""
    programs = [one for one in _PROGRAMS if shutil.which(one[0])]
    for number in range(1, rounds + 1):
        storage = _rate(_ours(checkpoint, "--force", cold=True))
        hashing = max(_hashing(checkpoint, cores, program) for program in programs)
        verifying = ("--verify", "--checksums", listed)
        rate_warm = _rate(_ours(checkpoint, *verifying, cold=False))
        rate_cold = _rate(_ours(checkpoint, *verifying, cold=True))
        warm.append(100 * rate_warm / hashing)
        cold.append(100 * rate_cold / min(hashing, storage))
        rates = (
            f"hashing on {cores} cores {hashing:.2f} GB/s, storage {storage:.2f}, verify warm "
            f"{rate_warm:.2f}, cold {rate_cold:.2f}"
        )
        say(f"verify: round {number}/{rounds}  {rates}")
    for state, found in (("warm", warm), ("cold", cold)):
        yield Figure(
            f"--verify of {state} files, of its bound",
            statistics.median(found),
            "%",
            Bound.AT_LEAST,
            _TARGET_PERCENT,
            f"median of {rounds}, {min(found):.0f} to {max(found):.0f}; last: {rates}",
        )


def _ours(checkpoint: BuiltCheckpoint, *flags: str, cold: bool) -> Usage:
    command = tool(*flags, "--json", "--progress", "none", checkpoint.directory)
    if cold:
        return _checked(run_cold(command, checkpoint.files))
    _warm(checkpoint)
    return _checked(run(command))


def _warm(checkpoint: BuiltCheckpoint) -> None:
    _checked(run(("cat", *checkpoint.files), discard_output=True))


def _rate(usage: Usage) -> float:
    result = json.loads(usage.stdout)["result"]
    return float(result["bytes_per_second"]) / GB


def _hashing(checkpoint: BuiltCheckpoint, cores: int, program: Sequence[str]) -> float:
    """Return the rate of a program on warm files, on every core, in GB a second."""
    _warm(checkpoint)
    names = "\n".join(checkpoint.weight_files)
    command = ("xargs", f"-P{cores}", "-n1", *program)
    usage = _checked(run(command, input_text=names, discard_output=True))
    return checkpoint.weight_bytes / GB / usage.wall_seconds


def _checked(usage: Usage) -> Usage:
    if usage.error is not None:
        raise oracle.OracleError(usage.error)
    return usage
