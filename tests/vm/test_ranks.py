"""Processes that share a checkpoint on NFS fetch every byte exactly once.

The client counts the bytes that came over the wire; the server's total checks that count.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import nfs
from tests.vm.machine import MIB, Machine
from tests.vm.rows import MODEL

RANKS = 4
BIG_BYTES = 48 * MIB + 4321
# Headers are fetched twice: looking at them beforehand leaves nothing in the cache.
ALLOWED_AGAIN = 0.01
# The other traffic on the link: headers of packets and replies, lookups, attributes.
ALLOWED_BESIDE = 0.05
LAYOUTS = {
    "files": ("--split", "files"),
    # Small blocks, so that even this small checkpoint has more blocks than ranks.
    "bytes": ("--split", "bytes", "--block-size", "1M"),
}


@pytest.fixture(scope="module", autouse=True)
def _server(machine: Machine) -> Iterator[None]:
    with nfs.serving(machine):
        yield


@pytest.fixture
def cold(machine: Machine) -> Iterator[str]:
    """The root of the export on a fresh mount, with nothing cached."""
    with nfs.mounted(machine) as mount_point:
        yield mount_point


@pytest.fixture(scope="module")
def big(machine: Machine) -> Iterator[str]:
    """One weight file, as a path below the export."""
    path = f"{nfs.EXPORT}/big.bin"
    try:
        machine.sh(f"head -c {BIG_BYTES} /dev/urandom > {path}; sync")
        yield path.removeprefix(nfs.EXPORT)
    finally:
        machine.run("rm", "-f", path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_ranks_read_each_byte_once(machine: Machine, cold: str, layout: str) -> None:
    model = cold + MODEL.removeprefix(nfs.EXPORT)
    each_byte_comes_once(machine, cold, model, RANKS, *LAYOUTS[layout])


def test_four_ranks_read_each_byte_of_one_big_file_once(
    machine: Machine, cold: str, big: str
) -> None:
    each_byte_comes_once(machine, cold, cold + big, RANKS, "--block-size", "4M")


def test_one_process_reads_each_byte_once(machine: Machine, cold: str) -> None:
    each_byte_comes_once(machine, cold, cold + MODEL.removeprefix(nfs.EXPORT), 1)


def test_one_process_reads_each_byte_of_a_big_file_once(
    machine: Machine, cold: str, big: str
) -> None:
    each_byte_comes_once(machine, cold, cold + big, 1)


def each_byte_comes_once(
    machine: Machine, mount_point: str, checkpoint: str, ranks: int, *arguments: str
) -> None:
    """Warm a cold checkpoint with `ranks` processes at once and check them against the wire."""
    files = machine.run("find", checkpoint, "-type", "f").out.splitlines()
    total_bytes = sum(map(int, machine.run("stat", "-c", "%s", *files).out.split()))
    assert sum(machine.resident_bytes(files)) == 0
    came, sent = nfs.wire_bytes(machine, mount_point), nfs.sent_bytes(machine)

    documents = warmed(machine, checkpoint, ranks, *arguments)

    came = nfs.wire_bytes(machine, mount_point) - came
    sent = nfs.sent_bytes(machine) - sent
    assert sum(machine.resident_bytes(files)) >= (1 - ALLOWED_WARM) * total_bytes
    assert total_bytes <= came <= (1 + ALLOWED_AGAIN) * total_bytes
    assert came < sent <= (1 + ALLOWED_BESIDE) * came
    # No rank read for another, and every rank had something to read.
    shares = [document["share"]["bytes"] for document in documents]
    assert sum(shares) == total_bytes
    assert min(shares) > 0
    for document in documents:
        result = document["result"]
        if result is None:
            # The share holds only what every rank has to look at, e.g. the index.
            assert document["decision"]["reason"] == "already-resident"
            continue
        assert result["complete"], document
        read_bytes = result["bytes_read"] + result["bytes_already_resident"]
        assert read_bytes == document["share"]["bytes"], document


def warmed(machine: Machine, checkpoint: str, ranks: int, *arguments: str) -> list[dict[str, Any]]:
    """Start all processes at once and return the document of each."""
    processes = []
    for rank in range(ranks):
        place = ("--rank", str(rank), "--world-size", str(ranks)) if ranks > 1 else ()
        words = ("--json", "--progress", "none", *place, *arguments, checkpoint)
        processes.append(machine.start_tool(*words))
    ended = [process.end() for process in processes]
    assert [done.code for done in ended] == [0] * ranks, ended
    return [done.document for done in ended]
