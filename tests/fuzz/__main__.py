"""Fuzz each way in for its share of the time, in a separate process: `make fuzz`.

A case fails if it raises anything but one of the command's own errors, takes too long, uses too
much memory, or breaks an assertion of its target. It is printed with the command to repeat it.
"""

import argparse
import base64
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from prefetch_cli.base.errors import PrefetchError
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import Run, Target, targets

_CASE_SECONDS = 10  # per case: far more than any took, even on a busy machine
_MOST_BYTES = 100 * 1024 * 1024
_START_SECONDS = 60  # for a process on top of its share of the time


class TooLongError(Exception):
    """A case that took too long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if no case failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [target.name for target in targets()]
    parser.add_argument("--only", action="append", choices=names, help="this way in; repeatable")
    parser.add_argument("--seconds", type=float, default=600, help="of all together (600)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="to repeat a run")
    parser.add_argument("--case", metavar="BASE64", help="run this one, of the only way in")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    chosen = [target for target in targets() if target.name in (given.only or names)]
    if given.case is not None or given.inside:
        (target,) = chosen
        return _inside(target, given.seed, given.seconds, given.case)
    failed = 0
    for target in chosen:
        words = ("--only", target.name, "--seed", str(given.seed), "--inside")
        seconds = given.seconds / len(chosen)
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words, "--seconds", str(seconds)],
            check=False,
            timeout=seconds + _START_SECONDS,
        )
        failed += done.returncode != 0
    print(f"fuzz: seed {given.seed}: {failed} of {len(chosen)} ways in failed")
    return 1 if failed else 0


def _inside(target: Target, seed: int, seconds: float, case: str | None) -> int:
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        run = target.open(Path(folder))
        if case is not None:
            return 0 if _passes(target, run, base64.b64decode(case)) else 1
        chance = random.Random(f"{seed} {target.name}")
        until = time.monotonic() + seconds
        cases = refused = 0
        slowest = 0.0
        while time.monotonic() < until:
            content = mutated(chance, target.seeds)
            began = time.monotonic()
            outcome = _passes(target, run, content)
            slowest = max(slowest, time.monotonic() - began)
            if outcome is None:
                return 1
            cases += 1
            refused += outcome is False
    most_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{target.name:8} {cases:9,} cases, {refused:9,} refused, slowest {slowest:.3f} s, "
        f"{most_bytes / 2**20:.0f} MiB",
        flush=True,
    )
    if most_bytes > _MOST_BYTES:
        print(f"{target.name}: expected at most {_MOST_BYTES / 2**20:.0f} MiB of memory")
        return 1
    return 0


def _passes(target: Target, run: Run, content: bytes) -> bool | None:
    """Return True if the input was taken, False if it was refused, None if the case fails."""
    signal.alarm(_CASE_SECONDS)
    try:
        run(content)
    except PrefetchError as error:
        if str(error).isprintable():
            return False
        print(f"{target.name}: a message with characters that a terminal would act on: {error!r}")
    except BaseException:  # noqa: BLE001 - any exception is a finding
        traceback.print_exc()
    else:
        return True
    finally:
        signal.alarm(0)
    case = base64.b64encode(content).decode()
    with contextlib.suppress(OSError):
        os.makedirs("build", exist_ok=True)
        place = f"build/fuzz-{target.name}"
        Path(place).write_bytes(content)
        print(f"the bytes: {place}")
    print(f"again: python -m tests.fuzz --only {target.name} --case {case[:2000]}", flush=True)
    return None


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TooLongError


if __name__ == "__main__":
    sys.exit(main())
