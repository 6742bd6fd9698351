"""The contenders: the tool, its engines, the peers, and the disk's own limit."""

import enum
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prefetch_cli.base.words import Engine
from tests.bench.run import ROOT, Usage, run, tool
from tests.helpers.checkpoints import BuiltCheckpoint

VLLM = "vLLM's loop"
PREFETCH = "prefetch-cli"
ENGINES = tuple(engine.value for engine in Engine.fixed())
_VLLM_LOOP = os.path.join(ROOT, "tests", "bench", "vllm_loop.py")
_FIO_SYNCHRONOUS = "psync"
_FIO_ENGINES = ("io_uring", "libaio", _FIO_SYNCHRONOUS)
_FIO_PARALLEL = 8
_FIO_BLOCK_BYTES = 4 << 20


class Role(enum.Enum):
    """A contender's role in the comparison."""

    OURS = "ours"
    ENGINE = "engine"
    PEER = "peer"
    LIMIT = "limit"  # direct reads: warms nothing, shows what the disk gives


@dataclass(frozen=True)
class Timed:
    """One run's times for the table, and the contender's own note."""

    wall_seconds: float
    reading_seconds: float | None = None  # without start-up and exit, if it reports that
    note: str = ""


def _whole_process(usage: Usage, checkpoint: BuiltCheckpoint) -> Timed:
    return Timed(usage.wall_seconds)


@dataclass(frozen=True)
class Contender:
    """One way of reading a checkpoint: its command line and how its run is timed."""

    name: str
    role: Role
    command: Callable[[BuiltCheckpoint], tuple[str, ...]]
    program: str  # what must be installed
    file_list_on_stdin: bool = False
    timed: Callable[[Usage, BuiltCheckpoint], Timed] = _whole_process

    def input_text(self, checkpoint: BuiltCheckpoint) -> str:
        """Return what the command reads from standard input."""
        return "\n".join(checkpoint.weight_files) + "\n" if self.file_list_on_stdin else ""

    @property
    def discards_output(self) -> bool:
        """Whether its output is the data itself, which goes to /dev/null."""
        return self.program in {"cat", "xargs"}


def contenders() -> list[Contender]:
    """Return all contenders, installed or not, in table order."""
    return [
        _prefetch(PREFETCH, Role.OURS, "auto"),
        *(_prefetch(f"  --engine {engine}", Role.ENGINE, engine) for engine in ENGINES),
        Contender(
            VLLM,
            Role.PEER,
            lambda checkpoint: (sys.executable, "-I", _VLLM_LOOP, *checkpoint.weight_files),
            program=sys.executable,
        ),
        Contender(
            "vmtouch -t",
            Role.PEER,
            lambda checkpoint: ("vmtouch", "-t", *checkpoint.weight_files),
            program="vmtouch",
        ),
        Contender(
            "cat",
            Role.PEER,
            lambda checkpoint: ("cat", *checkpoint.weight_files),
            program="cat",
        ),
        Contender(
            "xargs -P8 cat",
            Role.PEER,
            lambda checkpoint: ("xargs", "-P8", "-I{}", "cat", "{}"),
            program="xargs",
            file_list_on_stdin=True,
        ),
        Contender("fio, direct", Role.LIMIT, _fio, program="fio", timed=_fio_timed),
    ]


def missing_programs(wanted: Iterable[Contender]) -> dict[str, str]:
    """Return the names of the contenders that cannot run here, each with the reason."""
    found = {}
    tool_error = run(tool("--version")).error
    for contender in wanted:
        if shutil.which(contender.program) is None:
            found[contender.name] = f"{contender.program} is not installed"
        elif contender.role in {Role.OURS, Role.ENGINE} and tool_error is not None:
            found[contender.name] = tool_error
    return found


def _prefetch(name: str, role: Role, engine: str) -> Contender:
    options = ("--force", "--json", "--progress", "none", "--engine", engine)
    return Contender(
        name,
        role,
        lambda checkpoint: tool(*options, checkpoint.directory),
        program=sys.executable,
        timed=_prefetch_timed,
    )


def _prefetch_timed(usage: Usage, checkpoint: BuiltCheckpoint) -> Timed:
    report = json.loads(usage.stdout)
    result = report["result"]
    if result is None:
        raise ValueError(f"nothing was read: {report['decision']['message']}")
    return Timed(usage.wall_seconds, float(result["elapsed_seconds"]), f"engine {result['engine']}")


def _fio(checkpoint: BuiltCheckpoint) -> tuple[str, ...]:
    engine = _fio_engine(checkpoint.weight_files[0])
    queued = engine != _FIO_SYNCHRONOUS
    return (*_fio_options(engine), *(_fio_job(checkpoint) if queued else _fio_jobs(checkpoint)))


def _fio_options(engine: str) -> tuple[str, ...]:
    return (
        # Buffers of small pages split direct requests into many pieces and halve throughput.
        *("env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"),
        "fio",
        "--readonly",
        "--rw=read",
        "--direct=1",
        f"--bs={_FIO_BLOCK_BYTES}",
        f"--ioengine={engine}",
        "--group_reporting",
        "--output-format=json",
    )


def _fio_job(checkpoint: BuiltCheckpoint) -> Iterator[str]:
    """Yield one job that reads file after file with a queue depth of eight blocks."""
    yield f"--iodepth={_FIO_PARALLEL}"
    yield "--file_service_type=sequential"
    yield "--name=limit"
    yield f"--filename={':'.join(map(_fio_name, checkpoint.weight_files))}"


def _fio_jobs(checkpoint: BuiltCheckpoint) -> Iterator[str]:
    """Yield eight jobs without a queue, or one per file, that together read every block once."""
    parts = max(1, _FIO_PARALLEL // len(checkpoint.weight_files))
    for path in checkpoint.weight_files:
        blocks = os.path.getsize(path) // _FIO_BLOCK_BYTES
        for part in range(parts):
            start, end = blocks * part // parts, blocks * (part + 1) // parts
            if end > start:
                yield "--name=limit"
                yield f"--filename={_fio_name(path)}"
                yield f"--offset={start * _FIO_BLOCK_BYTES}"
                yield f"--size={(end - start) * _FIO_BLOCK_BYTES}"


def _fio_name(path: str) -> str:
    return path.replace(":", "\\:")  # fio separates names by colons


@functools.cache
def _fio_engine(path: str) -> str:
    """Return the first engine that reads `path` here; containers often refuse io_uring."""
    for engine in _FIO_ENGINES:
        probe = ("--name=probe", f"--filename={_fio_name(path)}", f"--size={_FIO_BLOCK_BYTES}")
        if run((*_fio_options(engine), *probe)).error is None:
            return engine
    return _FIO_SYNCHRONOUS


def _fio_timed(usage: Usage, checkpoint: BuiltCheckpoint) -> Timed:
    # fio starts slowly: only its own clock shows the disk's limit.
    report = json.loads(usage.stdout)
    read = report["jobs"][0]["read"]
    scale = checkpoint.weight_bytes / read["io_bytes"]  # fio skips a partial last block
    seconds = read["runtime"] / 1000 * scale
    return Timed(seconds, seconds, f"its own clock, {report['global options']['ioengine']}")
