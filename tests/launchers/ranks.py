"""What the ranks of a launcher did to one checkpoint, held against the kernel's own figures."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND
from tests.launchers import rank

MIB = 1024 * 1024
TOOL = (*COMMAND, "--rank", "auto", "--force", "--progress", "none")
# Read ahead twice, by two ranks at once; and what all of them look at, such as headers.
_FETCHED_AGAIN = 0.03
# The interpreter and the modules, some 10 MiB, and headers. A share is 30 MiB less than all.
_ASKED_BESIDE_BYTES = 20 * MIB


@dataclass(frozen=True)
class Rank:
    """One process that has ended, as `rank.py` saw it."""

    code: int
    output: str
    errors: str
    seconds: float
    storage_bytes: int  # that the kernel fetched for it
    asked_bytes: int  # that it read, from the storage or from the page cache
    environment: dict[str, str]  # of launchers

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.output)
        return document

    @property
    def place(self) -> tuple[int, int]:
        """Its rank and how many share the node, as it says."""
        share = self.document["share"]
        return share["rank"], share["world_size"]

    @property
    def doubts(self) -> list[str]:
        """What it warns of its place; what faded from the page cache is another matter."""
        warnings = self.document["warnings"]
        return [warning for warning in warnings if warning.startswith("--rank auto found")]


def words(folder: str | os.PathLike[str], *command: str) -> list[str]:
    """Return the command line that runs a command as one rank and leaves in `folder` what came."""
    os.makedirs(folder, exist_ok=True)
    return [sys.executable, rank.__file__, os.fspath(folder), *command]


def ended(folder: str | os.PathLike[str]) -> list[Rank]:
    """Return the ranks that left something in `folder`, in the order of their own numbers."""
    found = []
    for name in os.listdir(folder):
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                found.append(Rank(**json.load(file)))
    return sorted(found, key=lambda one: one.place if one.output.startswith("{") else (0, 0))


def read_each_byte_once(found: Sequence[Rank], built: BuiltCheckpoint, count: int) -> None:
    """Hold `count` ranks that warmed a cold checkpoint together against what the kernel counts."""
    total_bytes = sum(map(os.path.getsize, built.files))
    assert [one.code for one in found] == [0] * count, found
    assert [one.place for one in found] == [(number, count) for number in range(count)]
    documents = [one.document for one in found]
    assert [one.doubts for one in found] == [[]] * count
    # What they say: shares that make up the whole, each of them done by its own rank.
    shares = [document["share"]["bytes"] for document in documents]
    assert sum(shares) == total_bytes
    assert max(shares) <= total_bytes / count + 16 * MIB  # a block
    read_bytes = 0
    for document, share in zip(documents, shares, strict=True):
        result = document["result"]
        if result is None:
            # What the others' reading ahead brought before it looked.
            assert document["decision"]["reason"] == "already-resident", document
            continue
        assert result["complete"], document
        assert result["bytes_read"] + result["bytes_already_resident"] == share
        read_bytes += result["bytes_read"]
    assert 0 < read_bytes <= total_bytes
    # What the kernel says: no rank asked for more than its share, all was fetched, and once. By
    # which rank it was fetched is not told: reading ahead, 8 MiB on some disks, passes the ends.
    for share, one in zip(shares, found, strict=True):
        assert one.asked_bytes <= share + _ASKED_BESIDE_BYTES < total_bytes, (share, one)
    fetched = sum(one.storage_bytes for one in found)
    assert 0.99 * total_bytes <= fetched <= (1 + _FETCHED_AGAIN) * total_bytes, found
    all_is_resident(built)


def read_everything(one: Rank, built: BuiltCheckpoint) -> str:
    """Return the warning of a process alone that warmed all of a cold checkpoint, by the kernel."""
    warning = warned_alone(one, built)
    all_is_resident(built)
    return warning


def warned_alone(one: Rank, built: BuiltCheckpoint) -> str:
    """Return the warning of a process alone that fetched all of a cold checkpoint."""
    total_bytes = sum(map(os.path.getsize, built.files))
    assert one.code == 0, one
    assert one.place == (0, 1)
    assert one.document["share"]["bytes"] == total_bytes
    assert 0.99 * total_bytes <= one.storage_bytes <= (1 + _FETCHED_AGAIN) * total_bytes
    [warning] = one.doubts
    assert "this process reads everything" in warning
    return warning


def all_is_resident(built: BuiltCheckpoint) -> None:
    """Hold a checkpoint that is warm against fincore or vmtouch."""
    total_bytes = sum(map(os.path.getsize, built.files))
    found_bytes = oracle.resident_bytes(built.files)
    assert found_bytes >= (1 - oracle.ALLOWED_WARM) * total_bytes, f"resident: {found_bytes}"
