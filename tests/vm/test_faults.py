"""Faults that need a kernel of their own: a disk that fails, a clock that steps."""

import re
from pathlib import PurePath

from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import local_mounts
from tests.vm.machine import MIB, Machine

_SECTOR_BYTES = 512
_BAD_BYTES = 64 * 1024  # the range that fails, in the middle of a shard
# 24 MiB take 12 s, which leaves time to act in the middle.
SLOW = ("--force", "--json", "--max-rate", "2M")


def test_a_disk_that_fails_in_the_middle(machine: Machine) -> None:
    with local_mounts.device_mapper(machine) as model:
        files = machine.sh(f"ls -v {model}/*.safetensors").split()
        _, second, _ = files
        sizes = dict(zip(files, machine.size_bytes(files), strict=True))
        bad = physical_bytes(machine, second, sizes[second] // 2)
        machine.sh("sync")
        try:
            map_with_hole(machine, bad)
            machine.drop_caches()
            done = machine.tool("--force", "--json", "--block-size", "1M", model)
        finally:
            map_with_hole(machine, None)
        resident = dict(zip(files, machine.resident_bytes(files), strict=True))
    assert done.code == 1, done
    failed = done.document["result"]["failed"]
    assert failed == [{"path": second, "error": "Input/output error"}]
    said = [line for line in done.err.splitlines() if "error:" in line]
    assert len(said) == 1, done.err
    assert PurePath(second).name in said[0]
    for path, size_bytes in sizes.items():
        # A failed read gives up the rest of its block and whatever was requested with it.
        lost = 2 * MIB if path == second else ALLOWED_WARM * size_bytes
        assert resident[path] >= size_bytes - lost


def test_a_clock_that_steps(machine: Machine) -> None:
    machine.sh("sync")
    machine.drop_caches()
    process = machine.start_tool(*SLOW, "--time-limit", "2m", "/srv/model")
    before = float(machine.sh("date +%s.%N; cut -d ' ' -f 1 /proc/uptime").split()[0])
    try:
        process.await_text("20%")
        machine.sh(f"date -s @{before + 86400}")
        process.await_text("50%")
        machine.sh(f"date -s @{before - 86400}")
        done = process.end()
    finally:
        machine.sh(f"date -s @{before}")
    assert done.code == 0, done
    result = done.document["result"]
    assert result["complete"] is True
    assert 0 < result["elapsed_seconds"] < 60
    shown = re.findall(r"(\d+)%", done.err)
    assert shown == [str(step) for step in range(10, 101, 10)]


def physical_bytes(machine: Machine, path: str, offset: int) -> int:
    """Return the offset on its disk of a byte of a file."""
    for line in machine.sh(f"filefrag -b{MIB // 256} -e -v {path}").splitlines():
        found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
        if found and int(found[1]) * 4096 <= offset < (int(found[2]) + 1) * 4096:
            return int(found[3]) * 4096 + offset // 4096 * 4096 - int(found[1]) * 4096
    raise AssertionError(f"no extent of {path} holds byte {offset}")


def map_with_hole(machine: Machine, bad: int | None) -> None:
    """Make `_BAD_BYTES` of the mapped disk fail from this byte on, or none."""
    below = machine.disks["spare"]
    end = int(machine.sh(f"blockdev --getsz {below}"))
    lines = [f"0 {end} linear {below} 0"]
    if bad is not None:
        first, length = bad // _SECTOR_BYTES, _BAD_BYTES // _SECTOR_BYTES
        rest = first + length
        lines = [
            f"0 {first} linear {below} 0",
            f"{first} {length} error",
            f"{rest} {end - rest} linear {below} {rest}",
        ]
    table = "\n".join(lines)
    machine.sh(
        f"dmsetup suspend --noudevsync linear; echo '{table}' | dmsetup reload linear; "
        "dmsetup resume --noudevsync linear"
    )
