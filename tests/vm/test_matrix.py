"""Each file system for real: what the command finds, decides and reads, and what stays cached."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import fuse_mounts, local_mounts, nfs_mounts, shared_mounts
from tests.vm.machine import STRANGER, Done, Machine
from tests.vm.rows import Keeps, Row, without_advice

ROWS = (*local_mounts.ROWS, *fuse_mounts.ROWS, *nfs_mounts.ROWS, *shared_mounts.ROWS)


@dataclass(frozen=True)
class Mounted:
    """A row, mounted in a machine."""

    row: Row
    machine: Machine
    path: str

    @property
    def files(self) -> list[str]:
        """The files of the checkpoint."""
        return self.machine.sh(f"find '{self.path}' -type f").splitlines()

    @property
    def total_bytes(self) -> int:
        """The size of the files."""
        return sum(self.machine.size_bytes(self.files))

    def make_cold(self) -> None:
        """Drop it from the page cache, as the oracle confirms."""
        for _ in range(3):
            self.machine.drop_caches()
            if self.resident_bytes() <= ALLOWED_WARM * self.total_bytes:
                return
        raise AssertionError(f"{self.resident_bytes()} bytes stay resident")

    def resident_bytes(self) -> int:
        """Return the resident bytes by fincore, which reopens each file, as root."""
        return sum(self.machine.resident_bytes(self.files))

    def tool(self, *arguments: str, user: int | None = None) -> Done:
        """Return a successful run on the checkpoint."""
        done = self.machine.tool("--json", *arguments, self.path, user=user)
        assert done.code == 0, done
        return done


@pytest.fixture(params=ROWS, ids=str)
def mounted(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Mounted]:
    """Each row, mounted."""
    with mount(request.param, machine) as found:
        yield found


@contextmanager
def mount(row: Row, machine: Machine) -> Iterator[Mounted]:
    """Mount a row, or skip with the reason why this machine cannot."""
    if reason := row.unavailable(machine):
        pytest.skip(reason)
    with row.mounting(machine) as path:
        yield Mounted(row, machine, path)


def test_the_row(mounted: Mounted) -> None:
    row = mounted.row
    if row.keeps is not Keeps.MEMORY:
        mounted.make_cold()
    found_as_it_is(mounted, mounted.tool("--dry-run").document)
    nothing_is_resident(mounted, user=None)
    nothing_is_resident(mounted, user=STRANGER)
    decided_without_flags(mounted, mounted.tool("--progress", "none"))
    if row.keeps is not Keeps.MEMORY:
        mounted.make_cold()
        read_by_force(mounted, mounted.tool("--force"))
    looked_at_by_a_stranger(mounted)


def found_as_it_is(mounted: Mounted, document: dict[str, Any]) -> None:
    row = mounted.row
    assert [(one["type"], one["network"]) for one in document["filesystems"]] == [
        (row.type, row.network)
    ]
    assert document["checkpoint"]["total_bytes"] == mounted.total_bytes


def nothing_is_resident(mounted: Mounted, user: int | None) -> None:
    """Cold files are never reported as warm, whoever asks."""
    if mounted.row.keeps is Keeps.MEMORY or not may_read(mounted, user):
        return
    residency = mounted.tool("--check", user=user).document["residency"]
    if residency["after_bytes"] is None:
        assert residency["method"] == "unknown"
        known = mounted.row.known_to_root if user is None else mounted.row.known_to_stranger
        assert not known, residency
    else:
        assert residency["after_bytes"] <= ALLOWED_WARM * mounted.total_bytes, residency


def decided_without_flags(mounted: Mounted, done: Done) -> None:
    decision = done.document["decision"]
    skip = mounted.row.skip
    if skip is None:
        assert (decision["action"], decision["reason"]) == ("prefetch", "network-fits")
        read_whole(mounted, done)
    else:
        assert (decision["action"], decision["reason"]) == ("skip", skip.value)
        assert done.document["result"] is None


def read_by_force(mounted: Mounted, done: Done) -> None:
    row = mounted.row
    if row.skip is not None and row.skip.value == "no-page-cache":
        assert done.document["decision"]["reason"] == "no-page-cache"
        return
    expected = "network-fits" if row.network else "forced"
    assert done.document["decision"]["reason"] == expected
    read_whole(mounted, done)
    if row.engine:
        assert done.document["result"]["engine"] == row.engine


def read_whole(mounted: Mounted, done: Done) -> None:
    """Everything was read, and the reported residency is what the oracle finds."""
    document, row, total = done.document, mounted.row, mounted.total_bytes
    stayed = mounted.resident_bytes()
    result, residency = document["result"], document["residency"]
    assert result["complete"] and result["failed"] == [], done  # noqa: PT018
    # The look beforehand left a few header pages resident.
    assert result["bytes_read"] + result["bytes_already_resident"] == total
    assert result["bytes_read"] >= (1 - ALLOWED_WARM) * total
    if row.known_to_root:
        assert residency["after_bytes"] is not None
        assert abs(residency["after_bytes"] - stayed) <= ALLOWED_WARM * total, (residency, stayed)
    told = without_advice(document["warnings"])
    assert not row.advice or row.advice in told.pop(0)
    warnings = " ".join(told)
    if row.keeps is Keeps.ALL:
        assert stayed >= (1 - ALLOWED_WARM) * total, done
        assert warnings == ""
    else:
        assert stayed <= ALLOWED_WARM * total, (stayed, total)
        assert row.warning, f"expected the part of a warning in the row, found {warnings!r}"
        assert row.warning in warnings
        assert "stayed in the page cache" in warnings


def told_a_stranger(mounted: Mounted) -> tuple[dict[str, Any], int]:
    """Return what a user who does not own the files is told, and how much is resident."""
    found = mounted.tool("--check", user=STRANGER).document["residency"]
    stayed = mounted.resident_bytes()
    if found["method"] == "timed":
        assert abs(found["after_bytes"] - stayed) <= 0.05 * mounted.total_bytes, (found, stayed)
    return found, stayed


def holds(found: dict[str, Any], resident_bytes: int, mounted: Mounted) -> bool:
    """Return whether the interval of a sample holds the truth."""
    allowed = ALLOWED_WARM * mounted.total_bytes
    return bool(found["low_bytes"] - allowed <= resident_bytes <= found["high_bytes"] + allowed)


def looked_at_by_a_stranger(mounted: Mounted) -> None:
    """A user who does not own the files gets the truth, or "unknown"."""
    if not may_read(mounted, STRANGER):
        return
    found, stayed = told_a_stranger(mounted)
    if found["method"] == "timed" and not holds(found, stayed, mounted):
        found, stayed = told_a_stranger(mounted)  # a sample's interval misses once in twenty
    if found["method"] == "unknown":
        assert found["after_bytes"] is None
        assert not mounted.row.known_to_stranger
    elif found["method"] == "timed":
        assert mounted.row.known_to_stranger is not False
        assert holds(found, stayed, mounted), (found, stayed)
    elif found["method"] == "nowait":  # an estimate, from samples
        assert mounted.row.known_to_stranger
        assert abs(found["after_bytes"] - stayed) <= 0.05 * mounted.total_bytes, (found, stayed)
    else:
        assert mounted.row.known_to_stranger is not False
        assert abs(found["after_bytes"] - stayed) <= ALLOWED_WARM * mounted.total_bytes, (
            found,
            stayed,
        )


def may_read(mounted: Mounted, user: int | None) -> bool:
    return user is None or mounted.row.readable_by_stranger
