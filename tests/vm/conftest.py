"""The machines, each booted once, and the checkpoint that their mounts show."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.helpers import checkpoints
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.vm import kernels
from tests.vm.kernels import NoMachineError
from tests.vm.machine import MIB, Cgroups, Machine, Share, virtiofsd
from tests.vm.rows import MODEL
from tests.vm.shared_mounts import SOURCE

FIGURES = "figures"  # the property of a test that has a row of the table at the end
_HEADINGS = ("storage", "kernel", "loader alone: forecast", "took", "warming: forecast", "took", "")

CGROUPS = {"6.1": Cgroups.V1, "6.12": Cgroups.V2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow each test the time that emulation takes."""
    for item in items:
        item.add_marker(pytest.mark.timeout(600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the table of what tests measured: figures to read, which decide nothing."""
    reports = (report for some in terminalreporter.stats.values() for report in some)
    rows = [
        value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == FIGURES and report.when == "call"
    ]
    if not rows:
        return
    table = [list(_HEADINGS), *sorted(rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(_HEADINGS))]
    terminalreporter.section("how forecasts held")
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="session")
def source() -> Iterator[BuiltCheckpoint]:
    """A checkpoint of three unequal shards, 24 MiB, where the machine can see it."""
    if missing := kernels.missing_packages():
        give_up(f"needs Debian's {', '.join(missing)}: apt-get install them")
    kernels.prepare()
    folder = tempfile.mkdtemp(prefix="model-", dir=kernels.BUILD)
    try:
        yield checkpoints.write_sharded(
            f"{folder}/model", shard_bytes=[7 * MIB + 1234, 12 * MIB, 5 * MIB - 4321]
        )
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session", params=kernels.SERIES)
def machine(request: pytest.FixtureRequest, source: BuiltCheckpoint) -> Iterator[Machine]:
    """A machine with this series' kernel and the checkpoint on its first disk, `/srv/model`."""
    try:
        kernel = kernels.fetch(request.param)
        booted = Machine(kernel, CGROUPS[request.param], shares=shares_of(source))
        booted.start()
    except NoMachineError as reason:
        give_up(str(reason))
    try:
        prepare(booted, source)
        yield booted
    finally:
        booted.close()


def give_up(reason: str) -> NoReturn:
    """Skip what cannot run here; in CI, where it must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def shares_of(source: BuiltCheckpoint) -> tuple[Share, ...]:
    """Return the checkpoint's virtiofs shares, one per cache mode; none without virtiofsd."""
    if virtiofsd() is None or os.geteuid() != 0:
        return ()
    folder = os.path.dirname(source.directory)
    return tuple(
        Share(f"virtiofs-{mode}", folder, (f"cache={mode}",)) for mode in ("auto", "always", "none")
    )


def prepare(machine: Machine, source: BuiltCheckpoint) -> None:
    """Put the checkpoint on the first disk, readable by all."""
    machine.sh(
        f"mkfs.ext4 -q -E nodiscard {machine.disks['data']}"
        f" && mkdir -p /srv && mount {machine.disks['data']} /srv"
        f" && cp -r {source.directory} {MODEL} && chmod -R a+rX /srv && sync"
    )
    # The stranger also looks at mounts of the host's own copy.
    subprocess.run(["chmod", "-R", "a+rX", os.path.dirname(source.directory)], check=True)
    machine.write(SOURCE, source.directory)
