"""A real server starts beside the warming, which reads every page of the weights for it.

On a FUSE file system that knows who asks. Each read takes 50 ms there, so the server is up long
before the warming ends: by itself it would ask for all pages, as the last test shows.
"""

import json
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.helpers import oracle, passthrough
from tests.helpers.command import COMMAND, ROOT
from tests.helpers.passthrough import Read
from tests.launchers import programs
from tests.servers import environment, llama

FOLDER = "gguf_single"
MODEL = "tiny-f32.gguf"
_DELAY_SECONDS = 0.05
_LONGEST_SECONDS = 30


@contextmanager
def _share(source: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield where a folder of cold files is mounted, a slow network file system, and its log.

    Cached pages outlive the next open there, as on NFS: else the server's would drop them.
    """
    oracle.make_cold([entry.path for entry in os.scandir(source) if entry.is_file()])
    log = str(folder / "log")
    mountpoint = folder / "share"
    mountpoint.mkdir()
    options = ("--keep-cache", "--subtype", "sshfs", "--delay", str(_DELAY_SECONDS), "--log", log)
    with ExitStack() as stack:
        try:
            stack.enter_context(passthrough.mounted(source, str(mountpoint), *options))
        except OSError as error:
            programs.give_up(f"needs root and FUSE: {error}")
        yield str(mountpoint), log


@pytest.mark.parametrize("named", [True, False], ids=["named", "inferred"])
def test_llama_server_answers_and_has_read_none_of_its_weights(
    named: bool, models: str, tmp_path: Path
) -> None:
    with _share(os.path.join(models, FOLDER), tmp_path) as (mountpoint, log):
        model = os.path.join(mountpoint, MODEL)
        before = [*COMMAND, *([model] if named else []), "--"]
        process = llama.start("-m", model, before=before)
        try:
            _await_command(process)
            asked_before = _pages(passthrough.reads(log), process.pid, own=False)
            server = llama.listening(process)
            assert server.answers()
        finally:
            llama.stop(process)
        size_bytes = os.path.getsize(model)
        found = passthrough.reads(log)
    pages = -(-size_bytes // mmap.PAGESIZE)
    assert len(asked_before) < pages / 2  # so most of it was read while the server ran
    own = _pages(found, process.pid, own=True)
    warmed = _pages(found, process.pid, own=False)
    # llama.cpp asks for a file's size by a seek to its end, and glibc reads the page there: before
    # all others, so before any warming could come to it.
    assert own <= {pages - 1}
    assert warmed | own == set(range(pages))
    assert len({one.process for one in found} - {process.pid}) == 1  # the warmer; none is unknown


def test_transformers_computes_and_has_read_none_of_its_weights(
    models: str, tmp_path: Path
) -> None:
    with _share(os.path.join(models, "sharded"), tmp_path) as (mountpoint, log):
        job = {"name": "", "library": "transformers", "model": mountpoint, "options": {}}
        loader = [environment.PYTHON, os.path.join(environment.HERE, "load.py"), json.dumps([job])]
        process = subprocess.Popen(
            [*COMMAND, "--server", "transformers", mountpoint, "--", *loader],
            cwd=ROOT,
            env=environment.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        output, _ = process.communicate()
        assert output.splitlines()[-1] == b"{}"  # no failure
        found = passthrough.reads(log)
    weights = [one for one in found if one.name.endswith(".safetensors")]
    assert weights
    assert process.pid not in {one.process for one in weights}


def test_without_warming_llama_server_reads_them_all(models: str, tmp_path: Path) -> None:
    with _share(os.path.join(models, FOLDER), tmp_path) as (mountpoint, log):
        model = os.path.join(mountpoint, MODEL)
        with llama.serving("-m", model) as server:
            assert server.answers()
            process = server.process.pid
        pages = -(-os.path.getsize(model) // mmap.PAGESIZE)
        assert _pages(passthrough.reads(log), process, own=True) == set(range(pages))


def _pages(found: list[Read], process: int, *, own: bool) -> set[int]:
    """Return the pages that this process asked for, or that others did."""
    return {
        page
        for one in found
        if (one.process == process) is own
        for page in range(
            one.offset // mmap.PAGESIZE, (one.offset + one.size_bytes) // mmap.PAGESIZE
        )
    }


def _await_command(process: "subprocess.Popen[str]") -> None:
    """Wait until the process has become the server."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if Path(f"/proc/{process.pid}/comm").read_text(encoding="ascii") == "llama-server\n":
            return
        time.sleep(0.01)
    pytest.fail("expected a process that becomes llama-server")
