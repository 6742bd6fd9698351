"""A timed sample by a user who owns nothing, where half of the files is resident, on real mounts.

`test_matrix` has cold and warm ones, and `tests.tools.truth` 200 runs a row where nothing is
emulated. On an emulated machine that is busy as well the clock may tell nothing, so "unknown" is
right there; but a figure must be true.
"""

import pytest

from tests.helpers.oracle import ALLOWED_WARM
from tests.vm import nfs
from tests.vm.machine import STRANGER, Machine
from tests.vm.rows import Row
from tests.vm.test_matrix import ROWS, Mounted, mount

FAR_SECONDS = 0.01
NAMES = ("nfs4.2", "nfs3", "9p-loose", "virtiofs-always", "fuse-keep-cache")


def make_half_resident(mounted: Mounted) -> None:
    """Bring in the first half of each file, and no more."""
    mounted.make_cold()
    for path, size_bytes in zip(
        mounted.files, mounted.machine.size_bytes(mounted.files), strict=True
    ):
        mounted.machine.sh(f"head -c {size_bytes // 2} '{path}' > /dev/null")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in NAMES], ids=str)
def test_half_of_it(row: Row, machine: Machine) -> None:
    with mount(row, machine) as mounted:
        far = row.name.startswith("nfs")
        if far:
            nfs.delay(machine, FAR_SECONDS)
        try:
            make_half_resident(mounted)
            residency = mounted.tool("--check", user=STRANGER).document["residency"]
            stayed = mounted.resident_bytes()
        finally:
            if far:
                nfs.delay(machine, 0)
        if residency["method"] == "unknown":
            assert residency["low_bytes"] is residency["high_bytes"] is None
            return
        assert residency["method"] == "timed"
        allowed = ALLOWED_WARM * mounted.total_bytes
        assert residency["low_bytes"] - allowed <= stayed <= residency["high_bytes"] + allowed, (
            residency,
            stayed,
        )
