"""System calls that the kernel or a container profile refuses."""

import sys
import time
from typing import Any

import pytest

from prefetch_cli.base.words import Engine
from tests.faults import refuse
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Done, run

pytestmark = pytest.mark.skipif(
    refuse.CALLS is None, reason="needs a machine whose system calls tests/faults/refuse.py numbers"
)
# Docker's profile returns EPERM, an old kernel ENOSYS.
ERRORS = ("EPERM", "ENOSYS")
_MOST_TRIES = 20  # of the clock, which tells nothing where the machine is too busy


def refused(*arguments: str, **rules: str) -> Done:
    """Return a run in which each of these calls fails with its error."""
    words = [f"{call}={error}" for call, error in rules.items()]
    command = (sys.executable, "-m", "tests.faults.refuse", *words, "--", *COMMAND)
    return run(*arguments, command=command)


def assert_read(done: Done, built: BuiltCheckpoint, **residency: Any) -> None:
    """Assert that everything was read, and what is reported of residency."""
    assert done.code == 0, done
    assert done.document["result"]["complete"] is True
    assert done.document["result"]["failed"] == []
    assert oracle.resident_bytes(built.weight_files) == oracle.about(built.weight_bytes)
    found = done.document["residency"]
    assert {name: found[name] for name in residency} == residency


@pytest.mark.parametrize("error", ERRORS)
def test_cachestat(built: BuiltCheckpoint, cold: str, error: str) -> None:
    done = refused("--force", "--json", cold, cachestat=error)
    nobody_knows = {"evicted_bytes": None, "recently_evicted_bytes": None}
    assert_read(done, built, method="mincore", **nobody_knows)
    assert done.errors.count("warning") == 0


@pytest.mark.parametrize("error", ERRORS)
def test_residency(built: BuiltCheckpoint, cold: str, error: str) -> None:
    done = refused("--force", "--json", cold, cachestat=error, mincore=error)
    assert_read(done, built, method="nowait")


@pytest.mark.parametrize("error", ERRORS)
def test_all_but_the_clock(built: BuiltCheckpoint, cold: str, error: str) -> None:
    rules = dict.fromkeys(("cachestat", "mincore", "preadv2"), error)
    # On a busy machine the clock may tell nothing; but a figure is never wrong.
    methods: list[str] = []
    while "timed" not in methods and len(methods) < _MOST_TRIES:
        time.sleep(0.2 * len(methods))
        oracle.make_cold(built.files)
        done = refused("--force", "--json", cold, **rules)
        assert_read(done, built)
        residency = done.document["residency"]
        methods.append(residency["method"])
        if residency["method"] == "unknown":
            assert residency["low_bytes"] is residency["high_bytes"] is None
        else:
            resident_bytes = min(oracle.resident_bytes(built.files), residency["total_bytes"])
            assert residency["low_bytes"] <= resident_bytes <= residency["high_bytes"]
    assert set(methods) <= {"timed", "unknown"}
    assert methods[-1] == "timed"


@pytest.mark.parametrize("error", ERRORS)
def test_all_residency(built: BuiltCheckpoint, cold: str, error: str) -> None:
    rules = dict.fromkeys(("cachestat", "mincore", "preadv2", "fadvise64"), error)
    done = refused("--force", "--json", cold, **rules)
    assert_read(done, built, method="unknown", before_bytes=None, after_bytes=None)
    done = refused("--check", "--min-resident", "50", cold, **rules)
    assert done.code == 4
    assert "unknown" in done.output


@pytest.mark.parametrize("engine", [engine.value for engine in Engine])
@pytest.mark.parametrize("error", ERRORS)
def test_advice(built: BuiltCheckpoint, cold: str, engine: str, error: str) -> None:
    done = refused("--force", "--json", "--engine", engine, cold, fadvise64=error)
    assert_read(done, built)
    # Nothing beyond --max-bytes may be read ahead, which only advice can prevent.
    oracle.evict(built.files)
    done = refused("--force", "--json", "--max-bytes", "4M", cold, fadvise64=error)
    assert done.code == 0, done
    assert done.document["result"]["complete"] is True


@pytest.mark.parametrize("error", ERRORS)
def test_eviction(built: BuiltCheckpoint, warm: str, error: str) -> None:
    done = refused("--evict", "--json", warm, fadvise64=error)
    assert done.code == 1, done
    failed = {one["path"]: one["error"] for one in done.document["result"]["failed"]}
    assert failed.keys() == set(built.files)
    assert set(failed.values()) == {
        {"EPERM": "Operation not permitted", "ENOSYS": "Function not implemented"}[error]
    }
    assert oracle.resident_bytes(built.weight_files) == oracle.about(built.weight_bytes)


@pytest.mark.parametrize("error", ERRORS)
def test_eviction_where_only_the_clock_tells(built: BuiltCheckpoint, warm: str, error: str) -> None:
    rules = dict.fromkeys(("cachestat", "mincore", "preadv2"), error)
    for number in range(_MOST_TRIES):
        time.sleep(0.2 * number)
        done = refused("--evict", "--json", warm, **rules)
        assert done.code == 0, done
        assert done.document["result"]["failed"] == []
        residency = done.document["residency"]
        if residency["method"] == "timed":
            break
    assert residency["method"] == "timed"
    assert residency["high_bytes"] <= 0.01 * residency["total_bytes"]
    assert oracle.resident_bytes(built.weight_files) <= 0.01 * built.weight_bytes


@pytest.mark.parametrize("engine", ["auto", "populate", "advise", "splice"])
@pytest.mark.parametrize("error", [*ERRORS, "EINVAL"])
def test_splice(built: BuiltCheckpoint, cold: str, engine: str, error: str) -> None:
    done = refused("--force", "--json", "--engine", engine, cold, sendfile=error)
    assert_read(done, built)
    # Which one `auto` begins with depends on the disk.
    others = {"populate"} if engine == "auto" else {engine} - {"splice"}
    assert done.document["result"]["engine"] in {"read", *others}


@pytest.mark.parametrize("error", [*ERRORS, "EINVAL"])
@pytest.mark.parametrize("engine", ["auto", "populate"])
def test_populate(built: BuiltCheckpoint, cold: str, engine: str, error: str) -> None:
    done = refused("--force", "--json", "--engine", engine, cold, madvise=error)
    assert_read(done, built)
    assert done.document["result"]["engine"] == "splice"
