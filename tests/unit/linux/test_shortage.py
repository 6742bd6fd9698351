"""Which exceptions mean that there is no memory."""

import errno
import resource
import subprocess
import sys

import pytest

from prefetch_cli.linux.shortage import is_shortage
from tests.helpers.command import environment


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("x.so: failed to map segment from shared object"),
        ImportError("libx.so.1: cannot allocate memory in static TLS block"),
        RuntimeError("can't allocate lock"),
        SystemError("error return without exception set"),
        SystemError("<built-in function compile> returned NULL without setting an exception"),
    ],
)
def test_what_python_says_without_memory(error: Exception) -> None:
    assert is_shortage(error)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        ImportError("No module named x"),
        ImportError("x.so: undefined symbol: y"),
        SyntaxError("expected ':'"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("can't start new thread"),
        SystemError("bad argument to internal function"),
    ],
)
def test_a_defect_stays_one(error: Exception) -> None:
    assert not is_shortage(error)


def test_what_fails_while_that_is_handled_has_the_same_cause() -> None:
    error = KeyError()
    error.__context__ = ValueError()
    assert not is_shortage(error)
    error.__context__.__context__ = MemoryError()
    assert is_shortage(error)
    # The system said so of a file, and somebody was at work on an answer.
    error.__context__.__context__ = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert not is_shortage(error)


@pytest.mark.parametrize(("left_mib", "expected"), [(1, "True"), (64, "False")])
def test_a_full_address_space_explains_any_error(left_mib: int, expected: str) -> None:
    script = (
        "import resource, sys\n"
        "from prefetch_cli.linux.shortage import is_shortage\n"
        "is_shortage(KeyError())\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmPeak'))\n"
        "limit = int(peak.split()[1]) * 1024 + int(sys.argv[1]) * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))\n"
        "print(is_shortage(SyntaxError(\"expected ':'\")))\n"
    )
    if resource.getrlimit(resource.RLIMIT_AS)[1] != resource.RLIM_INFINITY:
        pytest.skip("the address space is limited here")
    done = subprocess.run(
        [sys.executable, "-c", script, str(left_mib)],
        capture_output=True,
        check=True,
        env=environment(),
    )
    assert done.stdout.decode().strip() == expected
