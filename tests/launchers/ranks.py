"""What a launcher's ranks did with one checkpoint, checked against the kernel's own figures."""

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
# Read ahead by two ranks at once, or looked at by all of them, e.g. headers.
_FETCHED_AGAIN = 0.03
# The interpreter and its modules, some 10 MiB, and headers. A share is 30 MiB less than the whole.
_ASKED_BESIDE_BYTES = 20 * MIB


@dataclass(frozen=True)
class Rank:
    """One finished process, as `rank.py` reported it."""

    code: int
    output: str
    errors: str
    seconds: float
    storage_bytes: int  # fetched by the kernel for it
    asked_bytes: int  # read by it, from storage or from the page cache
    environment: dict[str, str]  # the launchers' variables

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.output)
        return document

    @property
    def place(self) -> tuple[int, int]:
        """Its rank and the number of ranks on the node, as it reports them."""
        share = self.document["share"]
        return share["rank"], share["world_size"]

    @property
    def doubts(self) -> list[str]:
        """Its warnings about its rank; those about lost pages are another matter."""
        warnings = self.document["warnings"]
        return [warning for warning in warnings if warning.startswith("--rank auto found")]


def words(folder: str | os.PathLike[str], *command: str) -> list[str]:
    """Return the command line that runs a command as one rank, with its report in `folder`."""
    os.makedirs(folder, exist_ok=True)
    return [sys.executable, rank.__file__, os.fspath(folder), *command]


def ended(folder: str | os.PathLike[str]) -> list[Rank]:
    """Return the ranks that left a report in `folder`, in rank order."""
    found = []
    for name in os.listdir(folder):
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                found.append(Rank(**json.load(file)))
    return sorted(found, key=lambda one: one.place if one.output.startswith("{") else (0, 0))


def read_each_byte_once(found: Sequence[Rank], built: BuiltCheckpoint, count: int) -> None:
    """Check `count` ranks that warmed a cold checkpoint together against the kernel's counts."""
    total_bytes = sum(map(os.path.getsize, built.files))
    assert [one.code for one in found] == [0] * count, found
    assert [one.place for one in found] == [(number, count) for number in range(count)]
    documents = [one.document for one in found]
    assert [one.doubts for one in found] == [[]] * count
    # By their own reports the shares add up to the whole, and each rank did its own.
    shares = [document["share"]["bytes"] for document in documents]
    assert sum(shares) == total_bytes
    assert max(shares) <= total_bytes / count + 16 * MIB  # a block
    read_bytes = 0
    for document, share in zip(documents, shares, strict=True):
        result = document["result"]
        if result is None:
            # The others' read-ahead had fetched its share before it looked.
            assert document["decision"]["reason"] == "already-resident", document
            continue
        assert result["complete"], document
        assert result["bytes_read"] + result["bytes_already_resident"] == share
        read_bytes += result["bytes_read"]
    assert 0 < read_bytes <= total_bytes
    # By the kernel's counts no rank read more than its share, and everything was fetched once. They
    # do not tell which rank fetched what: read-ahead, 8 MiB on some disks, goes beyond a share.
    for share, one in zip(shares, found, strict=True):
        assert one.asked_bytes <= share + _ASKED_BESIDE_BYTES < total_bytes, (share, one)
    fetched = sum(one.storage_bytes for one in found)
    assert 0.99 * total_bytes <= fetched <= (1 + _FETCHED_AGAIN) * total_bytes, found
    all_is_resident(built)


def read_everything(one: Rank, built: BuiltCheckpoint) -> str:
    """Return the warning of a lone process; checks that it left a cold checkpoint fully cached."""
    warning = warned_alone(one, built)
    all_is_resident(built)
    return warning


def warned_alone(one: Rank, built: BuiltCheckpoint) -> str:
    """Return the warning of a lone process; checks that it fetched all of a cold checkpoint."""
    total_bytes = sum(map(os.path.getsize, built.files))
    assert one.code == 0, one
    assert one.place == (0, 1)
    assert one.document["share"]["bytes"] == total_bytes
    assert 0.99 * total_bytes <= one.storage_bytes <= (1 + _FETCHED_AGAIN) * total_bytes
    [warning] = one.doubts
    assert "this process reads everything" in warning
    return warning


def all_is_resident(built: BuiltCheckpoint) -> None:
    """Check with fincore or vmtouch that a checkpoint is warm."""
    total_bytes = sum(map(os.path.getsize, built.files))
    found_bytes = oracle.resident_bytes(built.files)
    assert found_bytes >= (1 - oracle.ALLOWED_WARM) * total_bytes, f"resident: {found_bytes}"
