"""The most telling of the system calls that fail once, on real mounts: what the storage is asked.

`make sweep` lets all of them fail, on a local disk.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.vm import nfs
from tests.vm.fuse_mounts import passthrough
from tests.vm.machine import ROOT, Machine
from tests.vm.rows import Mounting

RUNS = 25  # of each kernel and mount
_ACTIONS = ("auto", "advise", "splice", "verify", "check", "evict", "command")
_SOURCE = "/srv/calls"
_PATIENCE = 8  # emulated, a run takes seconds


@contextmanager
def over_nfs(machine: Machine) -> Iterator[str]:
    """Yield the files on NFSv4.2."""
    with nfs.mounted(machine) as point:
        yield os.path.join(point, os.path.basename(_SOURCE))


@contextmanager
def over_fuse(machine: Machine) -> Iterator[str]:
    """Yield the files on FUSE that keeps its pages."""
    with passthrough(machine, options=("--keep-cache",), source=_SOURCE) as point:
        yield point


def sweep(machine: Machine, *words: str, seconds: float = 60) -> str:
    """Return what the sweep prints; raises MachineError where a run was wrong."""
    module = (sys.executable, "-m", "tests.faults.sweep", "--jobs", "1")
    return machine.run(*module, *words, folder=ROOT, seconds=seconds).out


@pytest.mark.parametrize("mounting", [over_nfs, over_fuse])
def test_no_call_that_fails_makes_a_run_lie_or_hang(machine: Machine, mounting: Mounting) -> None:
    machine.run("rm", "-rf", _SOURCE)
    sweep(machine, "--make", _SOURCE)
    words = [word for name in _ACTIONS for word in ("--action", name)]
    with mounting(machine) as folder:
        told = sweep(
            machine,
            *("--within", folder, "--telling", str(RUNS), "--hangs", "no"),
            *("--patience", str(_PATIENCE), *words),
            seconds=500,
        )
    runs, reached = (int(part.split()[0]) for part in told.splitlines()[-1].split(", "))
    assert runs == RUNS
    assert reached > 0.9 * runs
