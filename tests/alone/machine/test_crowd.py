"""Many runs on one checkpoint at once, and one that is killed: nothing is read twice or left."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import MIB
from tests.helpers import checkpoints, oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, Running, environment

_BLOCK_BYTES = 512  # unit of ru_inblock


def together(lines: Sequence[Sequence[str]]) -> list[tuple[int, str, int]]:
    """Return the exit code, output and bytes read from disk of each of these concurrent runs."""
    running = [
        subprocess.Popen(
            [*COMMAND, *line], stdout=subprocess.PIPE, env=environment(), stdin=subprocess.DEVNULL
        )
        for line in lines
    ]
    found = []
    for process in running:
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        found.append((process.returncode, output, usage.ru_inblock * _BLOCK_BYTES))
    return found


def test_two_warmers(tmp_path: Path) -> None:
    built = checkpoints.write_streamed(str(tmp_path / "model"), shard_bytes=[64 * MIB] * 2)
    oracle.make_cold(built.files)
    flags = ("--force", "--json", "--weights-only", built.directory)
    found = together([flags, flags])
    assert [code for code, _, _ in found] == [0, 0]
    for _, output, _ in found:
        document = json.loads(output)
        if document["result"] is None:  # it started after the other had ended
            assert document["decision"]["reason"] == "already-resident"
        else:
            assert document["result"]["failed"] == []
        assert document["residency"]["after_bytes"] == oracle.about(built.weight_bytes)
    # The second run to reach a page finds it resident or on its way.
    from_disk = sum(size_bytes for _, _, size_bytes in found)
    assert from_disk < 1.1 * built.weight_bytes


def test_sixty_four_ranks(built: BuiltCheckpoint, cold: str) -> None:
    flags = ("--force", "--json", "--block-size", "64K", "--world-size", "64", cold)
    found = together([("--rank", str(rank), *flags) for rank in range(64)])
    assert [code for code, _, _ in found] == [0] * 64
    handled = 0
    for _, output, _ in found:
        document = json.loads(output)
        result = document["result"]
        if result is None:  # others had read ahead its whole share, or it has none
            assert document["decision"]["reason"] in {"already-resident", "empty-share"}
            handled += document["share"]["bytes"]
        else:
            handled += result["bytes_read"] + result["bytes_already_resident"]
    assert handled == sum(map(os.path.getsize, built.files))
    assert oracle.resident_bytes(built.files) == oracle.about(handled)


def test_a_killed_run_leaves_nothing(cold: str) -> None:
    with Running.start("--force", "--max-rate", "4M", cold) as running:
        running.await_line("10%")
        running.send(signal.SIGKILL)
        assert running.process.wait(10) == -signal.SIGKILL
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        assert os.fsencode(cold) not in line
