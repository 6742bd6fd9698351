"""A sample of `make sweep`: system calls that fail once, or hang."""

import subprocess
import sys

import pytest

from tests.faults import inject
from tests.helpers.command import ROOT

_WHY_NOT = inject.why_not()
needs_injection = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))

_PARTS = 200


def swept(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: it forks, which a process with threads should not.
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.sweep", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@needs_injection
@pytest.mark.timeout(300)  # 10 s where nothing else runs
def test_no_call_that_fails_makes_a_run_lie_or_hang() -> None:
    done = swept("--part", f"1/{_PARTS}", "--hangs", "no")
    assert done.returncode == 0, done.stdout + done.stderr
    runs, reached = (int(part.split()[0].replace(",", "")) for part in done.stdout.split(", "))
    assert runs > 200
    assert reached > 0.9 * runs


@needs_injection
@pytest.mark.parametrize(
    ("action", "faults"),
    [
        ("auto", ("mmap#8+=ENOMEM", "openat#20+=EMFILE", "cachestat#1+=EPERM")),
        ("check", ("mincore#1+=ENOSYS", "newfstatat#30+=EIO")),
        ("command", ("clone3#2+=EAGAIN", "read#15+=EIO")),
    ],
)
def test_a_call_that_fails_from_then_on_makes_no_run_lie_or_hang(
    action: str, faults: tuple[str, ...]
) -> None:
    done = swept("--action", action, *faults)
    assert (done.returncode, done.stdout) == (0, f"{len(faults)} runs, {len(faults)} reached\n"), (
        done.stderr
    )


@needs_injection
@pytest.mark.parametrize(
    ("action", "faults"),
    [
        ("splice", ("sendfile#2=hang", "openat#30=hang", "cachestat#9=hang")),
        ("check", ("newfstatat#60=hang", "fadvise64#3=hang")),
        ("evict", ("close#40=hang",)),
        ("command", ("read#10=hang",)),
    ],
)
def test_a_call_that_hangs_does_not_hold_a_signal(action: str, faults: tuple[str, ...]) -> None:
    done = swept("--action", action, *faults)
    assert (done.returncode, done.stdout) == (0, f"{len(faults)} runs, {len(faults)} reached\n"), (
        done.stderr
    )
