"""The flags: defaults, environment, help, what they mean together, and what a run prints."""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from prefetch_cli import __version__
from prefetch_cli.base.words import (
    PROGRAM,
    Action,
    Engine,
    Hub,
    LoadFormat,
    Overrule,
    Server,
    Split,
)
from prefetch_cli.checkpoint.request import Reference
from prefetch_cli.cli.flags import EXAMPLES, GROUPS
from prefetch_cli.cli.main import command
from prefetch_cli.reading.plan import Threads
from prefetch_cli.run.from_file import FromFile
from prefetch_cli.run.options import Keep, Options
from tests.helpers.command import COMMAND, ROOT, environment, run, unprivileged

MIB = 1024 * 1024


def parsed(
    monkeypatch: pytest.MonkeyPatch, *given: str, env: Mapping[str, str] | None = None
) -> Options:
    """Return what the command makes of these arguments and these variables."""
    for name in [name for name in os.environ if name.startswith("PREFETCH_CLI_")]:
        monkeypatch.delenv(name)
    for name, value in (env or {}).items():
        monkeypatch.setenv(f"PREFETCH_CLI_{name}", value)
    found: list[Options] = []

    def supervise(options: Options, *_: object) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr("prefetch_cli.process.supervisor.supervise", supervise)
    command.main([*given, "/m"], prog_name=PROGRAM, standalone_mode=False)
    return found[0]


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parsed(monkeypatch)
    assert options == Options(
        action=Action.PREFETCH,
        request=options.request,
        from_file=None,
        libraries=None,
        rank=0,
        world_size=1,
        split=Split.AUTO,
        overrule=Overrule.NONE,
        ram_threshold_percent=None,
        max_bytes=None,
        threads=Threads(8, 64),
        block_size_bytes=16 * MIB,
        engine=Engine.AUTO,
        trial=False,
        max_bytes_per_second=None,
        background=False,
        beside_command=False,
        time_limit_seconds=None,
        min_resident_percent=None,
        keep=None,
    )
    request = options.request
    assert request.references == (Reference("/m"),)
    assert (request.server, request.hub, request.cache_dir) == (Server.AUTO, None, None)
    assert request.load_format is LoadFormat.AUTO
    assert (request.filters.include, request.filters.exclude) == ((), ())
    assert (request.weights_only, request.allow_incomplete) == (False, False)


GIVEN: Sequence[tuple[str, str, str, Any]] = (
    ("--threads", "3", "threads", Threads.fixed(3)),
    ("--block-size", "1M", "block_size_bytes", MIB),
    ("--block-size", "1", "block_size_bytes", 4096),
    ("--block-size", "4097", "block_size_bytes", 8192),
    ("--block-size", "16777216", "block_size_bytes", 16 * MIB),
    ("--ram-threshold", "42.5", "ram_threshold_percent", 42.5),
    ("--ram-threshold", "1%", "ram_threshold_percent", 1),
    ("--max-bytes", "2GiB", "max_bytes", 2048 * MIB),
    ("--max-rate", "10M", "max_bytes_per_second", 10 * MIB),
    ("--time-limit", "1h30m", "time_limit_seconds", 5400),
    ("--time-limit", "01:30:00", "time_limit_seconds", 5400),
    ("--time-limit", "90s", "time_limit_seconds", 90),
    ("--min-resident", "0", "min_resident_percent", 0),
    ("--min-resident", "99.5", "min_resident_percent", 99.5),
    ("--keep", "90s", "keep", Keep(90, None, lock=False)),
    ("--keep", "1h30m", "keep", Keep(5400, None, lock=False)),
    ("--engine", "splice", "engine", Engine.SPLICE),
    ("--split", "bytes", "split", Split.BYTES),
    ("--load-format", "gguf", "request.load_format", LoadFormat.GGUF),
    ("--hub", "modelscope", "request.hub", Hub.MODELSCOPE),
    ("--revision", "abc", "request.references", (Reference("/m", "abc"),)),
    ("--server", "sglang", "request.server", Server.SGLANG),
    ("--load-format", "FastSafetensors", "request.load_format", LoadFormat.FASTSAFETENSORS),
    ("--cache-dir", "/c", "request.cache_dir", "/c"),
    ("--rank", "auto", "rank", None),
    ("--from-file", "/l", "from_file", FromFile("/l", None, None)),
    ("--from-file", "-", "from_file", FromFile("-", None, None)),
)


def value_of(options: Options, name: str) -> object:
    value: object = options
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("flag", "text", "name", "value"), GIVEN)
def test_a_value_comes_from_the_command_line_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, flag: str, text: str, name: str, value: object
) -> None:
    assert value_of(parsed(monkeypatch, flag, text), name) == value
    variable = flag[2:].replace("-", "_").upper()
    assert value_of(parsed(monkeypatch, env={variable: text}), name) == value


FLAGS: Sequence[tuple[str, str, Any]] = (
    ("--force", "overrule", Overrule.FORCE),
    ("--partial", "overrule", Overrule.PARTIAL),
    ("--weights-only", "request.weights_only", True),
    ("--allow-incomplete", "request.allow_incomplete", True),
    ("--dry-run", "action", Action.DRY_RUN),
    ("--check", "action", Action.CHECK),
    ("--evict", "action", Action.EVICT),
    ("--list", "action", Action.LIST),
)


@pytest.mark.parametrize(("flag", "name", "value"), FLAGS)
def test_a_flag_comes_from_the_command_line_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, flag: str, name: str, value: object
) -> None:
    variable = flag[2:].replace("-", "_").upper()
    assert value_of(parsed(monkeypatch, flag), name) == value
    for text in ("1", "true"):
        assert value_of(parsed(monkeypatch, env={variable: text}), name) == value
    for text in ("0", "false", ""):
        assert value_of(parsed(monkeypatch, env={variable: text}), name) != value


def test_short_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parsed(monkeypatch, "-fnqt3", "-b", "1M")
    assert options.overrule is Overrule.FORCE
    assert options.action is Action.DRY_RUN
    assert (options.threads, options.block_size_bytes) == (Threads.fixed(3), MIB)


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_globs_repeat_and_are_split_at_colons(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    options = parsed(monkeypatch, f"--{which}", "a*", f"--{which}", "b:c")
    assert getattr(options.request.filters, which) == ("a*", "b:c")
    options = parsed(monkeypatch, env={which.upper(): "a*:b/*.bin"})
    assert getattr(options.request.filters, which) == ("a*", "b/*.bin")


def test_the_command_line_overrules_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"THREADS": "3", "INCLUDE": "x"}
    options = parsed(monkeypatch, "--threads", "5", "--include", "y", env=env)
    assert options.threads == Threads.fixed(5)
    assert parsed(monkeypatch, "--threads", "auto", env=env).threads == Threads(8, 64)
    assert options.request.filters.include == ("y",)


@pytest.mark.parametrize(
    ("given", "env", "name", "value"),
    [
        (["--evict"], {"CHECK": "1"}, "action", Action.EVICT),
        (["--check"], {"DRY_RUN": "1", "EVICT": "1"}, "action", Action.CHECK),
        (["--verbose"], {"QUIET": "1"}, "action", Action.PREFETCH),
        (["--rank", "auto"], {"RANK": "1", "WORLD_SIZE": "4"}, "world_size", None),
        (["--rank", "3"], {"WORLD_SIZE": "4"}, "world_size", 4),
        (["--rank", "3", "--world-size", "5"], {"RANK": "auto"}, "world_size", 5),
    ],
)
def test_what_excludes_a_variable_overrules_it(
    monkeypatch: pytest.MonkeyPatch,
    given: Sequence[str],
    env: Mapping[str, str],
    name: str,
    value: object,
) -> None:
    assert value_of(parsed(monkeypatch, *given, env=env), name) == value


@pytest.mark.parametrize(
    ("rank", "world_size", "expected"),
    [("0", "1", (0, 1)), ("3", "4", (3, 4)), ("auto", "auto", (None, None))],
)
def test_ranks(
    monkeypatch: pytest.MonkeyPatch,
    rank: str,
    world_size: str,
    expected: tuple[int | None, int | None],
) -> None:
    options = parsed(monkeypatch, "--rank", rank, "--world-size", world_size)
    assert (options.rank, options.world_size) == expected


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_grouped_and_ends_with_three_examples(flag: str) -> None:
    done = run(flag)
    assert (done.code, done.errors) == (0, "")
    headings = re.findall(r"^(\w+):$", done.output, re.MULTILINE)
    assert headings == [*GROUPS, "Examples"]
    assert len(EXAMPLES) == 3
    assert done.output.endswith(f"    {EXAMPLES[-1][1]}\n")
    assert max(map(len, done.output.splitlines())) <= 80
    for param in command.params:
        for name in param.opts if isinstance(param, click.Option) else ():
            assert re.search(rf"^  .*{name}\b", done.output, re.MULTILINE), name


def test_help_fits_a_narrow_terminal() -> None:
    done = run("--help", env={"COLUMNS": "50"})
    long = [line for line in done.output.splitlines() if len(line) > 50]
    assert long == [f"    {line}" for _, line in EXAMPLES if len(line) > 46]


def test_version() -> None:
    assert run("--version").output == f"prefetch-cli {__version__}\n"


def test_help_loads_nothing_that_only_a_run_needs() -> None:
    script = (
        "import sys; from prefetch_cli.cli import main; code = main.run(['--help']); "
        "print(code, sorted({'rich', 'psutil', 'ctypes', 'prefetch_cli.run.pipeline'} "
        "& sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, cwd=ROOT
    )
    assert done.stderr == "0 []\n"


def test_help_is_quick() -> None:
    def seconds(*line: str) -> float:
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment())
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    bare = seconds(sys.executable, "-c", "pass")
    # Twice what is promised: other work on this machine must not fail the test.
    assert seconds(*COMMAND, "--help") <= 24 * bare


def test_a_run_says_facts_then_decision_then_what_came_of_it(cold: str) -> None:
    done = run("--force", cold)
    assert done.code == 0
    labels = [line[:13].strip() for line in done.output.splitlines()]
    assert labels == [
        "checkpoint",
        "size",
        "file system",
        "memory",
        "resident",
        "decision",
        "read",
        "resident",
    ]
    assert done.lines["checkpoint"] == f"{cold} (as vllm reads it)"
    assert re.fullmatch(r"[\d.]+ MiB in 3 weight files and 5 other files", done.lines["size"])
    assert re.fullmatch(r"\S+( on \S+)? \(local\) at /.*", done.lines["file system"])
    assert re.fullmatch(
        r"[\d.]+ GiB available, bound by .+; budget [\d.]+ GiB \(90 %\)", done.lines["memory"]
    )
    assert done.lines["decision"].startswith("prefetch: ")
    assert re.fullmatch(r"[\d.]+ MiB in \S+ s, \S+ [MG]iB/s, engine \w+", done.lines["read"])
    assert done.resident_percent >= 99
    assert re.findall(r"\S+%", done.errors) == [f"{tenth}%" for tenth in range(10, 101, 10)]
    assert all(line.startswith("prefetch-cli: ") for line in done.errors.splitlines())


def test_a_skip_says_why_and_how_to_force_it(cold: str) -> None:
    done = run(cold)
    assert done.code == 0
    assert done.lines["decision"].startswith("skip: ")
    assert "--force" in done.lines["decision"]
    assert "read" not in done.lines
    assert done.errors == ""


def test_a_dry_run_ends_with_the_plan(cold: str) -> None:
    assert run("-n", cold).lines["plan"] == "read nothing"
    plan = run("-nf", cold).lines["plan"]
    assert re.fullmatch(
        r"read [\d.]+ MiB of \d files with 8 to 64 threads in blocks of 16 MiB, engine auto",
        plan,
    )
    assert "with 3 threads in" in run("-nft3", cold).lines["plan"]


def test_quiet_says_errors_only(cold: str) -> None:
    done = run("--quiet", "--force", cold)
    assert (done.code, done.output, done.errors) == (0, "", "")
    done = run("--quiet", "--check", "--min-resident", "100", "--evict", cold)
    assert done.code == 2
    assert done.errors.startswith("prefetch-cli: error: ")


def test_verbose_says_each_file_before_and_after(cold: str) -> None:
    done = run("--verbose", "--force", cold)
    files = [line[13:] for line in done.output.splitlines() if line.startswith("file  ")]
    assert len(files) == 2 * 8
    last = re.escape(f"{cold}/model-00003-of-00003.safetensors")
    assert re.fullmatch(rf"{last}: \d+ bytes of 3 MiB resident", files[7])
    assert re.fullmatch(rf"{last}: (3|2\.\d+) MiB of 3 MiB resident", files[15])


def test_each_line_of_a_rank_says_whose_it_is(cold: str) -> None:
    done = run("--force", "--rank", "1", "--world-size", "2", cold)
    assert done.code == 0
    assert all(line.startswith("rank 1/2  ") for line in done.output.splitlines())
    errors = done.errors.splitlines()
    assert all(line.startswith("prefetch-cli rank 1/2: ") for line in errors)
    assert len(errors) == 10


def test_rank_auto_outside_a_launcher_says_so_and_reads_everything(cold: str) -> None:
    names = [name for pair in ("SLURM_", "OMPI_", "LOCAL_") for name in os.environ if pair in name]
    done = run("--rank", "auto", "--dry-run", cold, env=dict.fromkeys(names))
    assert done.code == 0
    assert done.errors.startswith("prefetch-cli: warning: --rank auto found no launcher")
    assert "share" not in done.lines


def test_rank_auto_asks_the_launcher(cold: str) -> None:
    env = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    done = run("--rank", "auto", "--dry-run", cold, env=env)
    assert "rank 1 of 2, as torchrun says: " in done.output


def test_check_and_evict(warm: str) -> None:
    assert run("--check", warm).resident_percent >= 99
    done = run("--evict", warm)
    assert re.fullmatch(r"(20|19)(\.\d+)? MiB in \S+ s", done.lines["evicted"])
    done = run("--check", "--min-resident", "50", warm)
    assert done.code == 4
    assert done.errors.startswith("prefetch-cli: error: --min-resident 50: expected 50 %, found ")
    assert done.errors.count("\n") == 1


def test_min_resident_after_warming(cold: str) -> None:
    assert run("--min-resident", "99", "--force", cold).code == 0
    assert run("--evict", cold).code == 0
    assert run("--min-resident", "99", cold).code == 4  # skipped, since the disk is local


def test_time_limit(cold: str) -> None:
    began = time.monotonic()
    done = run("--force", "--max-rate", "4M", "--time-limit", "0.5s", cold)
    # The limit counts from the start of the command, the line from the first byte.
    assert time.monotonic() - began >= 0.5
    assert done.code == 0
    assert done.lines["read"].endswith("; ended by --time-limit")
    assert re.match(r"[\d.]+ MiB of 20 MiB in 0\.\d", done.lines["read"])


def test_progress_can_be_chosen(cold: str) -> None:
    assert run("--force", "--progress", "none", cold).errors == ""
    assert run("--evict", cold).code == 0
    drawn = run("--force", "--progress", "bar", "--max-rate", "100M", cold).errors
    assert "\x1b[2K" in drawn


def test_several_checkpoints_are_read_in_their_order(cold: str, small: Path) -> None:
    done = run("--dry-run", str(small), cold)
    shown = [line[13:] for line in done.output.splitlines() if line.startswith("checkpoint ")]
    assert shown == [f"{small} (as vllm reads it)", f"{cold} (as vllm reads it)"]
    assert "6 weight files and 10 other files" in done.lines["size"]


def test_a_failed_file_is_an_error_and_the_others_are_read(small: Path) -> None:
    shard = small / "model-00002-of-00003.safetensors"
    shard.chmod(0)
    done = run("--force", str(small), command=[*unprivileged(), *COMMAND])
    assert done.code == 1
    assert f"prefetch-cli: error: {shard}: Permission denied" in done.errors
    assert done.lines["read"].endswith("; 1 file failed")


def test_names_are_shown_escaped(small: Path) -> None:
    odd = b"[red]x\n\x1b[31m\xff.safetensors"
    os.rename(
        os.fsencode(small / "model-00001-of-00003.safetensors"),
        os.path.join(os.fsencode(small), odd),
    )
    shown = "[red]x\\n\\x1b[31m\\xff.safetensors"
    for locale in (
        {},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        path = os.path.join(small, os.fsdecode(odd))
        done = run("--verbose", "--force", path, env=locale)
        assert done.code == 0
        assert "\x1b" not in done.output + done.errors
        assert done.lines["checkpoint"] == f"{small}/{shown}"
        assert done.lines["file"].startswith(f"{small}/{shown}: 29")


def test_a_defect_is_one_line_and_a_trace_for_who_asks(cold: str) -> None:
    broken = (
        sys.executable,
        "-c",
        "from prefetch_cli.cli import main\n"
        "from prefetch_cli.run import pipeline\n"
        "def fail(*_, **__): raise KeyError('a\\x1bb')\n"
        "pipeline.run = fail\n"
        "main.main()",
    )
    done = run(cold, command=broken)
    assert (done.code, done.output) == (1, "")
    assert done.errors == (
        f"prefetch-cli: error: found a defect of prefetch-cli {__version__}: KeyError: 'a\\x1bb'; "
        "please report it, with the output of --verbose\n"
    )
    assert run("--json", cold, command=broken).document["exit_code"] == 1
    traced = subprocess.run(
        [*broken, "--verbose", cold], capture_output=True, check=False, text=True, cwd=ROOT
    )
    assert traced.returncode == 1
    assert traced.stderr.startswith("Traceback")
    assert traced.stderr.endswith("with the output of --verbose\n")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("MemoryError()", "expected more memory, found none; raise the limit"),
        ('RuntimeError("can\'t allocate lock")', "expected more memory, found none; raise the"),
        # What a call says whose own MemoryError found no memory.
        ("SystemError('error return without exception set')", "expected more memory, found none"),
        (
            'RuntimeError("can\'t start new thread")',
            "expected to start threads, found that the system",
        ),
        ("OSError(24, 'Too many open files')", "expected an answer from the system, found OSE"),
    ],
)
def test_what_the_system_refuses_is_no_defect(cold: str, fault: str, expected: str) -> None:
    script = (
        "from prefetch_cli.cli import main\n"
        "from prefetch_cli.run import pipeline\n"
        f"def fail(*_, **__): raise {fault}\n"
        "pipeline.run = fail\n"
        "main.main()"
    )
    done = run(cold, command=(sys.executable, "-c", script))
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"prefetch-cli: error: {expected}")
