"""`--metrics`: a file that is whole at any time, of every run, and never a reason to fail."""

import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import oracle
from tests.helpers.command import COMMAND, Running, run, unprivileged


def values(path: Path) -> dict[str, float]:
    """Return the value of each metric of a run without libraries."""
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    samples = [sample for family in families for sample in family.samples]
    names = [sample.name.removeprefix("prefetch_cli_") for sample in samples]
    assert len(names) == len(set(names))
    return dict(zip(names, (sample.value for sample in samples), strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    return folder / "prefetch.prom"


def alone(file: Path) -> bool:
    return os.listdir(file.parent) == [file.name]


def test_the_figures_are_those_of_the_document(cold: str, file: Path) -> None:
    found = run("--json", "--force", "--metrics", str(file), cold).document
    shown = values(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert shown["exit_code"] == found["exit_code"] == 0
    assert shown["complete"] == 1
    assert shown["read_bytes"] == found["result"]["bytes_read"]
    assert shown["read_seconds"] == found["result"]["elapsed_seconds"] > 0
    assert shown["duration_seconds"] >= shown["read_seconds"]
    assert shown["resident_before_bytes"] == found["residency"]["before_bytes"]
    assert shown["resident_bytes"] == found["residency"]["after_bytes"]
    assert shown["total_bytes"] == found["residency"]["total_bytes"]
    assert alone(file)
    # The next run replaces all of it.
    assert run("--evict", cold, env={"PREFETCH_CLI_METRICS": str(file)}).code == 0
    shown = values(file)
    assert shown["evicted_bytes"] == oracle.about(int(shown["total_bytes"]))
    assert "read_bytes" not in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("/no/such",), 3),
        (("--check", "--evict", "/m"), 2),
        (("--nope", "/m"), 2),
        (("/m", "--", "/no/such/command"), 127),
    ],
)
def test_a_run_that_is_refused_has_metrics_too(
    file: Path, arguments: tuple[str, ...], code: int
) -> None:
    done = run("--metrics", str(file), *arguments)
    assert done.code == code
    assert (values(file)["exit_code"], values(file)["complete"]) == (code, 0)


def test_a_run_that_fails_has_metrics_too(small: Path, file: Path) -> None:
    (small / "model-00002-of-00003.safetensors").chmod(0)
    line = [*unprivileged(), *COMMAND]
    assert run("--metrics", str(file), "--force", str(small), command=line).code == 1
    shown = values(file)
    assert (shown["exit_code"], shown["complete"], shown["failed_files"]) == (1, 0, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_has_metrics_too(
    cold: str, file: Path, number: signal.Signals
) -> None:
    # In memory, since a disk that others keep busy may take longer than the run has left.
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        pytest.skip("needs /dev/shm")
    file = folder / f"prefetch-cli-test-{os.getpid()}.prom"
    try:
        slow = ("--force", "--max-rate", "4M", "--metrics", str(file), cold)
        with Running.start(*slow) as running:
            running.await_line("10%")
            running.send(number)
            done = running.end()
        assert done.code == 128 + number
        assert "interrupted by" in done.lines["read"]
        shown = values(file)
        assert (shown["exit_code"], shown["complete"]) == (128 + number, 0)
        assert 0 < shown["read_bytes"] < shown["total_bytes"]
    finally:
        file.unlink(missing_ok=True)


def test_beside_command_they_are_those_of_the_warming(cold: str, file: Path) -> None:
    # COMMAND starts when all is warm and ends when the file is there.
    script = f"while ! test -e {file}; do sleep 0.1; done; exit 7"
    line = ("--force", "--lead", "100%", "--metrics", str(file), cold, "--", "sh", "-c", script)
    assert run(*line).code == 7
    shown = values(file)
    assert (shown["exit_code"], shown["complete"]) == (0, 1)
    assert shown["read_bytes"] > 0


@pytest.mark.parametrize("action", ["--dry-run", "--check", "--list"])
def test_a_file_that_cannot_be_written_is_a_warning(cold: str, tmp_path: Path, action: str) -> None:
    path = tmp_path / "no" / "x.prom"
    done = run(action, "--metrics", str(path), cold)
    assert done.code == 0
    expected = f"--metrics {path}: not written: No such file or directory"
    assert done.errors == f"prefetch-cli: warning: {expected}\n"
    found = run(action, "--json", "--metrics", str(path), cold).document
    assert found["warnings"] == [expected]
    done = run("/no/such", "--metrics", str(path))
    assert done.code == 3
    assert done.errors.count(expected) == 1


def test_a_device_is_never_replaced(cold: str) -> None:
    done = run("--check", "--metrics", os.devnull, cold)
    assert done.code == 0
    assert f"--metrics {os.devnull}: not written: expected a file, found a char" in done.errors
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    done = run("--check", "--metrics", "/dev/stdout", cold)
    assert done.code == 0
    assert "--metrics /dev/stdout: not written: " in done.errors


def test_storage_that_never_answers_does_not_hold_the_run(cold: str, file: Path) -> None:
    # A mock: no file system of this machine hangs in fsync.
    script = (
        "import os, threading\n"
        "os.fsync = lambda _: threading.Event().wait()\n"
        "from prefetch_cli.cli import main\nfrom prefetch_cli.base import limits\n"
        "limits.RECORD_SECONDS = 0.2\n"
        "main.main()"
    )
    line = (sys.executable, "-c", script)
    done = run("--check", "--metrics", str(file), cold, command=line)
    assert done.code == 0
    assert f"--metrics {file}: not written: no answer for 0.2 s" in done.errors
    assert not file.exists()
    with suppress(OSError):  # not every file system has files without a name
        os.close(os.open(file.parent, os.O_TMPFILE | os.O_WRONLY))
        assert os.listdir(file.parent) == []


def test_a_signal_while_they_are_written_costs_no_result(cold: str, file: Path) -> None:
    # A mock, as above.
    script = (
        "import os, signal, threading\n"
        "def hang(_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()\n"
        "os.fsync = hang\n"
        "from prefetch_cli.__main__ import main\n"
        "main()"
    )
    line = (sys.executable, "-c", script)
    done = run("--check", "--json", "--metrics", str(file), cold, command=line)
    assert done.code == 0  # the result was there before the signal
    assert done.document["action"] == "check"
    assert [one for one in done.document["warnings"] if "not written: a signal came" in one]
    assert not file.exists()


def test_whoever_reads_meanwhile_sees_a_whole_file(cold: str, file: Path) -> None:
    assert run("--check", "--metrics", str(file), cold).code == 0
    ended = threading.Event()
    found: list[int] = []

    def look() -> None:
        while not ended.is_set():
            found.append(len(values(file)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(3):
            assert run("--check", "--metrics", str(file), cold).code == 0
    finally:
        ended.set()
        thread.join()
    assert set(found) == {len(values(file))}
