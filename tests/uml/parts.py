"""Parts by tensor over NFS: what a stage reads, and that its loaders find all of it.

What the client reads is what its own count of the mount says (`nfs.wire_bytes`), and its cache is
proven empty before each warming.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from tests.bench import environment
from tests.bench.throughput import in_turn
from tests.helpers.command import ROOT
from tests.helpers.oracle import ALLOWED_WARM
from tests.peers import wheels
from tests.uml import kernel, link
from tests.uml.machine import UserMode
from tests.uml.rows import GIB, MIB, Row
from tests.uml.stage import LAYERS
from tests.vm import nfs
from tests.vm.bench.contest import Say, resident_share, weights
from tests.vm.machine import Done, Machine, MachineError

ROUND_TRIP_MS = 10
SIZE_BYTES, QUICK_BYTES = GIB, GIB // 8
MEMORY_BYTES = 5 * GIB
# What may be read of another stage: at each edge of a part the kernel reads ahead, and a gap that
# is as small is read too.
EDGES_SHARE = 0.03
_MODULE = os.path.join(kernel.BUILD, "weight_utils.py")
_SECONDS = 900


class Part(NamedTuple):
    """What is warmed, and the layers that its loader copies."""

    name: str
    flags: tuple[str, ...]
    layers: range


WHOLE = Part("all", (), range(LAYERS))
STAGES = tuple(
    Part(
        f"--stage {stage}/2",
        ("--stage", f"{stage}/2"),
        range(LAYERS // 2 * stage, LAYERS // 2 * (stage + 1)),
    )
    for stage in range(2)
)


class Loaders(NamedTuple):
    """What loads behind the warming."""

    python: str  # their interpreter
    names: tuple[str, ...]
    note: str  # why one is missing, else empty


@dataclass(frozen=True)
class Load:
    """A lazy load of a part."""

    loader: str
    seconds: float
    wire_bytes: int


@dataclass(frozen=True)
class Reading:
    """A part's warming from a cold cache, and the loads behind it."""

    part: str
    part_bytes: int  # what the command says that it has
    wire_bytes: int
    seconds: float  # of the whole process
    own_share: float  # resident afterwards of the layers of this stage: of the least
    others_share: float  # the mean of the other layers
    header_bytes: int  # on the wire, when the headers are read again behind it
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class Result:
    """All that was seen."""

    whole_bytes: int
    rounds: int
    readings: list[Reading]
    cold: list[tuple[str, Load]]  # the loader alone, once for each part
    together_bytes: int  # on the wire, of both stages one after the other
    together_share: float  # what is resident then, of the weight files
    note: str

    def of(self, part: Part) -> list[Reading]:
        """Return the readings of a part."""
        return [one for one in self.readings if one.part == part.name]


def loaders(say: Say) -> Loaders:
    """Return the loaders that there are here, before the machine starts, which sees their files.

    vLLM's needs torch and a wheel from an index.
    """
    say("parts: the servers' environment and vLLM's wheel, unless they are there")
    try:
        server = environment.make(os.path.join(ROOT, "build", "bench-server"), say)
        text = wheels.source_of(wheels.VLLM, "vllm.model_executor.model_loader.weight_utils")
    except environment.EnvironmentFailureError as error:
        return Loaders(sys.executable, ("slices",), f"no vLLM: {error}")
    except pytest.skip.Exception as reason:
        return Loaders(sys.executable, ("slices",), f"no vLLM: {reason.msg}")
    if server.note:
        return Loaders(server.python, ("slices",), f"no vLLM: {server.note}")
    with open(_MODULE, "w", encoding="utf-8") as file:
        file.write(text)
    return Loaders(server.python, ("slices", "vllm"), "")


def measure(
    machine: UserMode, loaders: Loaders, *, size_bytes: int, rounds: int, say: Say
) -> Result:
    """Return what stages read beside the whole, and what their loaders then read."""
    directory = f"/srv/parts-{size_bytes // MIB}"
    _python(machine, "write", directory, str(size_bytes))
    with link.mounted(machine, Row(ROUND_TRIP_MS)) as point:
        at = _Mounted(machine, point, point + directory.removeprefix("/srv"), loaders)
        cold = [(part.name, at.load_cold(part)) for part in (WHOLE, *STAGES)]
        for name, load in cold:
            say(f"    {name}: loaded cold in {load.seconds:.1f} s")
        readings = []
        for number in range(1, rounds + 1):
            for part in in_turn((WHOLE, *STAGES), number, rounds):
                readings.append(at.read(part))
                say(f"    {number}/{rounds} {_said(readings[-1])}")
        together_bytes = at.read_together()
        share = resident_share(machine, at.files)
        whole_bytes = sum(machine.size_bytes(at.files))
    return Result(whole_bytes, rounds, readings, cold, together_bytes, share, loaders.note)


class _Mounted:
    """The checkpoint on a mount."""

    def __init__(self, machine: Machine, point: str, directory: str, loaders: Loaders) -> None:
        self._machine = machine
        self._point = point
        self._directory = directory
        self._loaders = loaders
        self.files = weights(machine, directory)

    def load_cold(self, part: Part) -> Load:
        """Load a part with nothing before it."""
        self._make_cold()
        return self._load(part, "slices")

    def read(self, part: Part) -> Reading:
        """Warm a part from a cold cache, then load it."""
        self._make_cold()
        before = self._wire_bytes()
        done = self._warm(part)
        wire_bytes = self._wire_bytes() - before
        before = self._wire_bytes()
        shares = self._resident()
        header_bytes = self._wire_bytes() - before
        own = [share for layer, share in shares.items() if layer in part.layers or layer is None]
        others = [share for layer, share in shares.items() if layer not in (None, *part.layers)]
        loads = tuple(self._load(part, name) for name in self._loaders.names)
        return Reading(
            part.name,
            done.document["share"]["bytes"],
            wire_bytes,
            done.seconds,
            min(own),
            statistics.mean(others) if others else 0.0,
            header_bytes,
            loads,
        )

    def read_together(self) -> int:
        """Warm both stages, one after the other, and return the bytes on the wire."""
        self._make_cold()
        before = self._wire_bytes()
        for part in STAGES:
            self._warm(part)
        return self._wire_bytes() - before

    def _warm(self, part: Part) -> Done:
        words = ("--json", "--progress", "none", *part.flags, self._directory)
        return self._machine.run(
            *(sys.executable, "-m", "prefetch_cli", *words), folder=ROOT, seconds=_SECONDS
        )

    def _load(self, part: Part, loader: str) -> Load:
        layers = str(part.layers.start), str(part.layers.stop)
        before = self._wire_bytes()
        done = self._machine.run(
            *(self._loaders.python, "-m", "tests.uml.stage", loader, self._directory),
            *(*layers, _MODULE),
            folder=ROOT,
            seconds=_SECONDS,
        )
        return Load(loader, done.document["seconds"], self._wire_bytes() - before)

    def _resident(self) -> dict[int | None, float]:
        shown = _python(self._machine, "resident", self._directory).out
        found: dict[str, float] = json.loads(shown)
        return {None if name == "None" else int(name): share for name, share in found.items()}

    def _wire_bytes(self) -> int:
        return nfs.wire_bytes(self._machine, self._point)

    def _make_cold(self) -> None:
        self._machine.drop_caches()
        if (share := resident_share(self._machine, self.files)) > ALLOWED_WARM:
            raise MachineError(f"expected cold files, found {100 * share:.1f} % resident")


def _python(machine: Machine, *words: str) -> Done:
    return machine.run(sys.executable, "-m", "tests.uml.stage", *words, folder=ROOT, seconds=300)


def _said(one: Reading) -> str:
    loads = ", ".join(
        f"{load.loader} {load.seconds:.2f} s and {load.wire_bytes:,} bytes" for load in one.loads
    )
    return (
        f"{one.part}: {one.wire_bytes / MIB:.1f} MiB in {one.seconds:.2f} s; behind it {loads}; "
        f"resident {100 * one.own_share:.1f} %, of other stages {100 * one.others_share:.2f} %"
    )


def table(result: Result) -> list[list[str]]:
    """Return the result as rows of cells, the first with the headings."""
    names = [load.loader for load in result.readings[0].loads]
    heads = [f"then {name}" for name in names]
    cells = [["", "part", "on the wire", "seconds", "loader cold", *heads, "of other stages"]]
    cold = dict(result.cold)
    for part in (WHOLE, *STAGES):
        readings = result.of(part)
        seconds = [one.seconds for one in readings]
        behind = [
            f"{statistics.median(load.seconds for load in loads):.2f} s, "
            f"{max(load.wire_bytes for load in loads):,} bytes"
            for loads in _by_loader(readings)
        ]
        cells.append(
            [
                part.name,
                f"{readings[0].part_bytes / MIB:.1f} MiB",
                f"{statistics.median(one.wire_bytes for one in readings) / MIB:.1f} MiB",
                f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
                f"{cold[part.name].seconds:.1f} s",
                *behind,
                f"{100 * max(one.others_share for one in readings):.2f} %",
            ]
        )
    both = f"{result.together_bytes / MIB:.1f} MiB"
    share = f"{100 * result.together_share:.2f} % resident"
    whole = f"{result.whole_bytes / MIB:.1f} MiB"
    cells.append(["both stages", whole, both, "", "", *([""] * (len(names) - 1)), share, ""])
    return cells


def _by_loader(readings: Sequence[Reading]) -> Iterator[tuple[Load, ...]]:
    return zip(*(one.loads for one in readings), strict=True)


def misses(result: Result) -> list[str]:
    """Return what a stage must do and does not, in words."""
    found = []
    for one in result.readings:
        if one.own_share < 1 - ALLOWED_WARM:
            found.append(f"{one.part}: {100 * one.own_share:.1f} % of a layer of its own resident")
        if one.others_share > EDGES_SHARE:
            found.append(f"{one.part}: {100 * one.others_share:.1f} % of other stages resident")
        if one.header_bytes:
            found.append(f"{one.part}: {one.header_bytes:,} bytes of headers are not resident")
        found += [
            f"{one.part}: {load.loader} read {load.wire_bytes:,} bytes behind it"
            for load in one.loads
            if load.wire_bytes
        ]
    if result.together_share < 1 - ALLOWED_WARM:
        found.append(f"both stages: {100 * result.together_share:.1f} % resident")
    return found
