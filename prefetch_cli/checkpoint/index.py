"""An index file -> the shards that it names: pure.

A checkpoint may be hostile, so we bound the memory and time that a file can cost, and refuse
names that lead out of its folder.
"""

from collections.abc import Iterable
from typing import NamedTuple

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.metadata import AGAIN, names_below, parsed
from prefetch_cli.checkpoint.scanner import Scanner

_MOST_TOTAL_BYTES = 2**63 - 1


class Index(NamedTuple):
    """The shards that an index file names, and the size that it claims for them."""

    shards: frozenset[str]
    total_size_bytes: int | None


def parse_index(path: str, pieces: Iterable[bytes]) -> Index:
    """Return the index at `path` that has this content.

    If a key occurs twice, its last value counts; of a tensor that occurs twice, both shards do.
    Raises CheckpointError if the content is not JSON, has no `weight_map` object of file names,
    or names a file outside its own folder.
    """
    shards, claimed = parsed(path, lambda: _index(path, Scanner(pieces)))
    if not shards:
        raise CheckpointError(
            f"{printable(path)}: expected an object weight_map that names the shards, found none",
            AGAIN,
        )
    return Index(shards=frozenset(shards), total_size_bytes=claimed)


def _index(path: str, scanner: Scanner) -> tuple[list[str], int | None]:
    """Return the shards that an index names, if any, and the size that it claims."""
    shards: list[str] = []
    claimed = None
    if not scanner.is_object():
        scanner.value()
        scanner.end()
        return shards, claimed
    for key in scanner.members():
        is_object = scanner.is_object()
        if key == "weight_map" and is_object:
            shards = names_below(path, "file names", scanner.values())
        elif key == "weight_map":
            shards = []
            scanner.value()
        elif key == "metadata" and is_object:
            claimed = _total_size(scanner)
        else:
            scanner.value()
    scanner.end()
    return shards, claimed


def _total_size(scanner: Scanner) -> int | None:
    found = None
    for key in scanner.members():
        value = scanner.value()
        if key == "total_size":
            found = value
    # Some tools write 4000000000.0. Values out of bounds, and NaN, claim nothing.
    if isinstance(found, (int, float)) and 0 <= found <= _MOST_TOTAL_BYTES:
        return int(found)
    return None
