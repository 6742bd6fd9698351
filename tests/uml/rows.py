"""The rows of the measurement: values without a machine."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

MIB = 1 << 20
GIB = 1 << 30

ROUND_TRIPS_MS = (0, 1, 10, 50)
MTUS = (1500, 9000)
BUFFERS = ("default", "large")
NCONNECTS = (1, 8)
FILES = (1, 4, 32)
SIZES_GIB = (1, 2, 4)
VERSIONS = ("4.2", "3")

_QUICK_BYTES = GIB // 16


@dataclass(frozen=True)
class Row:
    """One way to a server, and the files behind it."""

    round_trip_ms: int = 10
    files: int = 1
    mtu: int = 1500
    buffers: str = "default"
    nconnect: int = 1
    size_bytes: int = GIB
    version: str = "4.2"
    every_engine: bool = False  # and the peers; else ours, vLLM's loop and the limit

    @property
    def small_bytes(self) -> int:
        """The size for those that wait for each 128 KiB: they take minutes for all of it."""
        return min(self.size_bytes, GIB // max(1, self.round_trip_ms) // MIB * MIB)

    def __str__(self) -> str:
        """Return the row's name: what differs from the usual comes last."""
        plural = "s" if self.files > 1 else ""
        amount = f"{self.size_bytes // MIB} MiB"
        if self.size_bytes % GIB == 0:
            amount = f"{self.size_bytes // GIB} GiB"
        size = f"{amount} in {self.files} file{plural}"
        more = [f"MTU {self.mtu}"] if self.mtu != Row.mtu else []
        more += [f"{self.buffers} buffers"] if self.buffers != Row.buffers else []
        more += [f"nconnect {self.nconnect}"] if self.nconnect != Row.nconnect else []
        more += [f"NFSv{self.version}"] if self.version != Row.version else []
        return ", ".join((f"{self.round_trip_ms} ms", size, *more))


# Each value at least once, in 45 minutes; everyone where one file or a few decide.
USUAL = (
    Row(10, 1, every_engine=True),
    Row(10, 4, every_engine=True),
    Row(50, 1, every_engine=True),
    Row(50, 4),
    Row(50, 4, buffers="large"),
    Row(10, 4, nconnect=8),
    Row(10, 4, buffers="large"),
    Row(10, 4, mtu=9000),
    Row(10, 4, version="3"),
    Row(10, 32),
    Row(1, 1),
    Row(0, 4),
    Row(1, 4, size_bytes=4 * GIB),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each property of a row, which may be given several times."""
    for name, values in (
        ("round-trip", ROUND_TRIPS_MS),
        ("files", FILES),
        ("mtu", MTUS),
        ("buffers", BUFFERS),
        ("nconnect", NCONNECTS),
        ("size", SIZES_GIB),
        ("version", VERSIONS),
    ):
        kind = type(values[0])
        text = {"round-trip": "in ms; repeatable", "size": "in GiB; repeatable"}
        parser.add_argument(
            f"--{name}",
            action="append",
            type=kind,
            choices=values,
            help=text.get(name, "repeatable"),
        )


def chosen(given: argparse.Namespace) -> list[Row]:
    """Return the rows that the options ask for: the usual ones, all, or every combination."""
    asked = (
        (given.round_trip, ROUND_TRIPS_MS),
        (given.files, FILES),
        (given.mtu, MTUS),
        (given.buffers, BUFFERS),
        (given.nconnect, NCONNECTS),
        (given.size, SIZES_GIB),
        (given.version, VERSIONS),
    )
    if not given.all and not any(values for values, _ in asked):
        return list(USUAL)
    usual = (10, 1, Row.mtu, Row.buffers, Row.nconnect, 1, Row.version)
    axes = [
        values or (everything if given.all else (one,))
        for (values, everything), one in zip(asked, usual, strict=True)
    ]
    return [
        Row(trip, files, mtu, buffers, nconnect, size * GIB, version, every_engine=True)
        for trip, files, mtu, buffers, nconnect, size, version in itertools.product(*axes)
    ]


def quick(rows: Sequence[Row]) -> list[Row]:
    """Return the first two rows, with little data."""
    return [replace(row, size_bytes=_QUICK_BYTES) for row in rows[:2]]


def memory_bytes(rows: Sequence[Row]) -> int:
    """Return the memory for the files twice, on the server and at the client, and for the rest."""
    return 2 * max(row.size_bytes for row in rows) + 4 * GIB
