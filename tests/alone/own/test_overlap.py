"""The bench of a server's start: the slow storage, the server's loading, and the goal."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.bench import overlap, server
from tests.bench.environment import NAME, ServerEnvironment, write_wheel
from tests.bench.figures import Figure
from tests.bench.overlap import (
    BEHIND,
    BESIDE,
    IMPORT_ALONE,
    LIBRARIES,
    PLAIN,
    WARM,
    WARM_ALONE,
    Comparison,
    Start,
    overlap_comparisons,
    overlap_entrants,
    overlap_figures,
)
from tests.bench.throttle import ThrottleError, own_disk, throttled
from tests.helpers import checkpoints, oracle

MIB = 1 << 20
RATE = 32 * MIB
_CGROUPS = Path("/sys/fs/cgroup/blkio")

# Stands in for the heavy server, which needs a package index: starts at once, reads everything.
_LIGHT = """
import glob, json, os, struct, sys

def main():
    size = 0
    for directory in sys.argv[1:]:
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            with open(path, "rb") as file:
                header = struct.unpack("<Q", file.read(8))[0]
                size += len(file.read()) - header
    print(json.dumps({"import_seconds": 0.5, "load_seconds": 0.25, "size_bytes": size}))
"""


@contextmanager
def _needed(context: AbstractContextManager[object]) -> Iterator[object]:
    """Skip with the reason if the storage cannot be had."""
    try:
        value = context.__enter__()
    except ThrottleError as error:
        pytest.skip(str(error))
    try:
        yield value
    finally:
        context.__exit__(None, None, None)


def _seconds(commands: Sequence[Sequence[str]]) -> float:
    began = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(60) for process in running] == [0] * len(running)
    return time.monotonic() - began


def test_a_limit_holds_for_all_processes_of_the_group_together(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(os.urandom(24 * MIB))
    with _needed(throttled([str(tmp_path)], RATE)) as prefix:
        assert isinstance(prefix, tuple)
        oracle.make_cold([str(path) for path in paths])
        took = _seconds([(*prefix, "cat", str(path)) for path in paths])
        assert took >= 0.8 * 48 * MIB / RATE
        # Resident data is not read, so the limit does not slow it down.
        assert _seconds([(*prefix, "cat", str(path)) for path in paths]) < took / 2
        assert [one for one in _CGROUPS.iterdir() if one.name.endswith(f"-{os.getpid()}")]
    assert not [one for one in _CGROUPS.iterdir() if one.name.endswith(f"-{os.getpid()}")]


def test_without_a_block_device_there_is_no_limit() -> None:
    with pytest.raises(ThrottleError, match="block device"):  # noqa: SIM117
        with throttled(["/proc"], RATE):
            pass


def test_a_disk_of_its_own_is_another_one_and_leaves_nothing(tmp_path: Path) -> None:
    with _needed(own_disk(str(tmp_path), 16 * MIB)) as folder:
        assert isinstance(folder, str)
        assert os.stat(folder).st_dev != tmp_path.stat().st_dev
        path = Path(folder) / "file"
        path.write_bytes(os.urandom(16 * MIB))
        with _needed(throttled([folder], RATE)) as prefix:
            assert isinstance(prefix, tuple)
            oracle.make_cold([str(path)])
            assert _seconds([(*prefix, "cat", str(path))]) >= 0.8 * 16 * MIB / RATE
    assert not list(tmp_path.iterdir())
    # A mount namespace that another process made meanwhile keeps the loop device until it ends.
    deadline = time.monotonic() + 60
    while _has_loop_device(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _has_loop_device(tmp_path)


def _has_loop_device(folder: Path) -> bool:
    shown = subprocess.run(["losetup", "--all"], capture_output=True, check=True, text=True)
    return str(folder) in shown.stdout


def test_the_server_loads_every_tensor_in_order(tmp_path: Path) -> None:
    built = checkpoints.write_sharded(str(tmp_path / "model"), shard_bytes=[300_001, 70_000])
    loaded = [server._load(path, None) for path in built.weight_files]
    assert sum(size for size, _ in loaded) == built.tensor_bytes
    for path, (_, checksum) in zip(built.weight_files, loaded, strict=True):
        pages = (
            tensor.reshape(-1).view(np.uint8)[::4096].astype(np.int64)
            for tensor in load_file(path).values()
        )
        assert checksum == sum(int(page.sum()) for page in pages)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> ServerEnvironment:
    """The server's environment as pip installs it, with a light server in it."""
    folder = tmp_path_factory.mktemp("light")
    place = folder / "server"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    found = ServerEnvironment(str(place), ("numpy==0",), "no torch: a test")
    wheel = write_wheel(str(folder), _LIGHT, ())
    pip = (sys.executable, "-m", "pip", "--python", found.python)
    subprocess.run(
        [*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True, timeout=60
    )
    return found


def test_pip_installs_the_server_as_a_distribution_with_a_script(light: ServerEnvironment) -> None:
    owned = subprocess.run(
        [light.python, "-c", f"import importlib.metadata as m; print(m.files({NAME!r}))"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert f"bin/{NAME}" in owned
    assert light.server in light.files()
    assert light.python not in light.files()  # others run that interpreter
    assert light.heaviest == ("scipy", "scipy.stats")


def test_everyone_starts_the_server_and_what_it_loads_is_checked(
    light: ServerEnvironment, tmp_path: Path
) -> None:
    [found] = _compared(light, tmp_path)
    names = [start.name for start in found.starts]
    libraries = [LIBRARIES] if overlap.knows("--libraries") else []
    assert names == [PLAIN, BEHIND, BESIDE, *libraries, IMPORT_ALONE, WARM_ALONE, WARM]
    for start in found.starts:
        assert (start.runs, start.error) == (1, None)
        assert start.seconds > 0
        assert (start.load_seconds is None) == (start.name in {IMPORT_ALONE, WARM_ALONE})
        assert (start.import_seconds is None) == (start.name == WARM_ALONE)
    [figure] = overlap_figures([found])
    assert figure.value is not None


def test_a_server_that_loads_too_little_does_not_count(
    light: ServerEnvironment, tmp_path: Path
) -> None:
    script = Path(light.server)
    kept = script.read_text(encoding="utf-8")
    document = '{"import_seconds": 1, "load_seconds": 1, "size_bytes": 7}'
    script.write_text(f"#!/bin/sh\necho '{document}'\n", encoding="utf-8")
    try:
        [found] = _compared(light, tmp_path)
    finally:
        script.write_text(kept, encoding="utf-8")
    assert found.find(PLAIN) is None
    [plain] = [start for start in found.starts if start.name == PLAIN]
    assert plain.error == f"expected {3 * MIB} bytes of tensors, found 7"
    [figure] = overlap_figures([found])
    assert figure.verdict == "not measured"


def _compared(light: ServerEnvironment, folder: Path) -> list[Comparison]:
    return list(
        overlap_comparisons(
            str(folder), light, lambda _: None, size_bytes=3 * MIB + 3, rounds=1, rates=()
        )
    )


def test_the_warming_runs_before_or_beside_the_same_command(light: ServerEnvironment) -> None:
    found = {one.name: one for one in overlap_entrants(light, "/models/x", libraries=True)}
    assert found[PLAIN].command == (light.server, "/models/x")
    assert found[BESIDE].command[-3:] == ("--", *found[PLAIN].command)
    assert "--libraries" in found[LIBRARIES].command
    assert found[BEHIND].command[2].endswith(f" && exec {light.server} /models/x")
    assert [one.name for one in found.values() if not one.cold] == [WARM]
    assert LIBRARIES not in [
        one.name for one in overlap_entrants(light, "/models/x", libraries=False)
    ]


def _start(name: str, seconds: float, load_seconds: float | None = None, runs: int = 3) -> Start:
    return Start(name, runs, seconds, seconds, seconds, None, load_seconds, None)


def _goal(beside: float, *, imports: float, warming: float, runs: int = 3) -> Figure:
    starts = (
        _start(PLAIN, 30),
        _start(BESIDE, beside, 1.5),
        _start(IMPORT_ALONE, imports),
        _start(WARM_ALONE, warming),
        _start(BEHIND, 20, 1.0, runs),
    )
    [figure] = overlap_figures([Comparison("a start", "a disk", starts)])
    return figure


@pytest.mark.parametrize(
    ("beside", "imports", "warming", "met"),
    [(12, 10, 5, True), (12, 5, 10, True), (12.1, 10, 5, False), (12.1, 10, 11, True)],
)
def test_the_goal_is_the_longer_of_the_two_and_the_load(
    beside: float, imports: float, warming: float, met: bool
) -> None:
    figure = _goal(beside, imports=imports, warming=warming)
    assert figure.met == met
    assert figure.value == pytest.approx(beside / (1.1 * max(imports, warming) + 1.0))


def test_without_one_of_its_parts_the_goal_is_not_measured() -> None:
    assert _goal(1, imports=10, warming=5, runs=0).verdict == "not measured"
    [figure] = overlap_figures([Comparison("a start", "a disk", (), ("no disk",))])
    assert (figure.value, figure.detail) == (None, "no disk")
