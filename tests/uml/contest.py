"""The contenders on one row, and their figures beside vLLM's loop.

What the server keeps is in its memory, and the client's cache is proven empty before each run. CPU
time is the host's, of the whole machine: client, link and server. The limit's direct reads go
nowhere, so its CPU time is what server, link and client need however the pages are filled; what a
contender takes beyond that is its own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.uml import link
from tests.uml.machine import UserMode
from tests.uml.rows import Row
from tests.vm.bench import contest
from tests.vm.bench.contest import AUTO, ENGINES, VLLM, Contender, Say, Standing
from tests.vm.bench.place import Place
from tests.vm.machine import Done, Machine, MachineError

CAT = "xargs -P8 cat"
LIMIT = "dd, direct"
_SECONDS = 900
_LIMIT = "5s"  # an engine that is slow is so from the first second


@dataclass(frozen=True)
class Result:
    """What all reached on one row."""

    row: Row
    standings: list[Standing]

    def rate_ratio(self, one: Standing) -> float:
        """The rate relative to vLLM's loop."""
        return one.rate / contest.find(self.standings, VLLM).rate

    def own_cpu_seconds_per_gb(self, one: Standing) -> float:
        """The CPU time beyond what server and link need by themselves."""
        limit = contest.find(self.standings, LIMIT)
        return one.cpu_seconds_per_gb - limit.cpu_seconds_per_gb


def measure(place: Place, machine: UserMode, row: Row, *, rounds: int, say: Say) -> Result:
    """Return the standings of everyone on one row, in turn; those that wait, on fewer bytes."""
    large = place.checkpoint(f"{row.files}-of", [row.size_bytes // row.files] * row.files)
    auto, *_, vllm = contest.contenders()
    engines = [contest.command(one, "--engine", one, "--time-limit", _LIMIT) for one in ENGINES]
    entrants = [auto, *(engines if row.every_engine else []), vllm]
    groups = [(large, [*entrants, _piped(LIMIT, _DIRECT)])]
    if row.every_engine:
        small = place.checkpoint(f"{row.files}-of", [row.small_bytes // row.files] * row.files)
        groups.append((small, [_piped(CAT, "cat"), contest.vmtouch()]))
    with link.mounted(machine, row) as point:
        standings = []
        for path, group in groups:
            directory = point + path.removeprefix("/srv")
            present = group if path == large else _working(machine, group, directory, say)
            standings += contest.contest(
                machine,
                [_metered(one) for one in present],
                partial(_cold, machine, directory),
                rounds=rounds,
                say=say,
            )
    # A row with its own files makes place for the next one's.
    machine.sh(f"rm -rf {' '.join(path for path, _ in groups)}")
    return Result(row, standings)


def _working(
    machine: UserMode, entrants: Sequence[Contender], directory: str, say: Say
) -> Iterator[Contender]:
    """Yield the peers that do their work: some processors let one end in user-mode Linux."""
    files = contest.weights(machine, directory)
    for one in entrants:
        try:
            one.run(machine, directory, files)
        except MachineError as error:
            say(f"  without {one.name}: {error}")
        else:
            yield one


@contextlib.contextmanager
def _cold(machine: Machine, directory: str) -> Iterator[str]:
    # The mount stays, so that its connections keep the window that the first run has opened.
    machine.drop_caches()
    yield directory


# Each block is that many requests at once, far more than a link of 50 ms holds.
_DIRECT = "dd of=/dev/null bs=64M iflag=direct status=none"


def _piped(name: str, command: str) -> Contender:
    """Return a command that gets a file on its standard input, eight at a time."""
    script = f"""xargs -P8 -I{{}} sh -c '{command} < "$1" > /dev/null' sh {{}}"""

    def run(machine: Machine, _directory: str, files: Sequence[str]) -> Done:
        content = "\n".join(files).encode()
        return machine.run("sh", "-c", script, content=content, seconds=_SECONDS)

    return Contender(name, run)


def _metered(one: Contender) -> Contender:
    """Return a contender whose CPU time is the host's, of the whole machine during its run."""

    def run(machine: Machine, directory: str, files: Sequence[str]) -> Done:
        assert isinstance(machine, UserMode)
        before = machine.cpu_seconds()
        done = one.run(machine, directory, files)
        return replace(done, cpu_seconds=machine.cpu_seconds() - before)

    return Contender(one.name, run)


def table(results: Sequence[Result]) -> list[list[str]]:
    """Return the results as rows of cells, the first with the headings."""
    headings = ["", "MB/s", "x vLLM", "CPU s/GB", "beyond dd's", "engine"]
    cells = [["round trip and files", *headings]]
    for result in results:
        name = str(result.row)
        for one in result.standings:
            rates = f"{one.rate:.0f} ({one.rate_min:.0f} to {one.rate_max:.0f})"
            own = f"{result.own_cpu_seconds_per_gb(one):+.2f}"
            ratio = f"{result.rate_ratio(one):.2f}"
            cpu = f"{one.cpu_seconds_per_gb:.2f}"
            engine = one.engine if one.name == AUTO else ""
            cells.append([name, one.name, rates, ratio, cpu, own, engine])
            name = ""
    return cells
