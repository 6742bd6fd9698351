"""The lines, from crafted outcomes."""

import pytest

from prefetch_cli.base.words import Action, LoadFormat, Server, Split
from prefetch_cli.checkpoint.files import File
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.linux.cachestat import Reclaimed
from prefetch_cli.linux.filesystem import UNKNOWN
from prefetch_cli.linux.memory import Memory
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.budget import Budget
from prefetch_cli.plan.share import Share
from prefetch_cli.reading.plan import Threads
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.samples import Sampled
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.run.parts import CHECKPOINT
from prefetch_cli.run.states import Evicted, Looked, Proven, Wanted
from prefetch_cli.show.lines import facts, summary


def resident(method: Method, resident_bytes: int | None, sampled: Sampled | None = None) -> str:
    """Return the line of a survey by this method."""
    survey = Survey(resident_bytes, 1000, method, (), {}, (), sampled=sampled)
    evicted = Evicted(CHECKPOINT, Eviction(5, 1.0, complete=True, failed=()))
    outcome = folded(Outcome(Action.EVICT), [evicted, Proven(CHECKPOINT, survey)])
    return dict(summary(outcome))["resident"]


@pytest.mark.parametrize("method", [method for method in Method if method.exact])
def test_an_exact_figure_names_its_method(method: Method) -> None:
    assert resident(method, 500) == f"500 bytes of 1000 bytes (50.0 %, {method.value})"


@pytest.mark.parametrize(
    ("method", "how"), [(Method.NOWAIT, "sample"), (Method.TIMED, "timed sample")]
)
def test_a_figure_by_samples_is_an_interval(method: Method, how: str) -> None:
    line = resident(method, 500, Sampled(495, 800, 1000, 1024))
    assert line == f"49.5 to 100 % of 1000 bytes ({how} of 1,024 pages)"
    # Rounded outward, so that it does not claim more than was found.
    line = resident(method, 500, Sampled(0, 0, 1, 1))
    assert line == f"0 to 0.1 % of 1000 bytes ({how} of 1 page)"


def test_no_figure_is_given_where_nothing_tells() -> None:
    assert resident(Method.UNKNOWN, None).startswith("unknown")


WANTED = Wanted(
    CHECKPOINT,
    Checkpoint(
        (File("/m/a", "/m/a", 1000, weight=True, device=1, inode=2),),
        failed=(),
        warnings=(),
        names=(),
        sources=(Source("/m", "directory", "/m", None, LoadFormat.HF, Server.VLLM),),
    ),
    (UNKNOWN,),
    Memory(1000, 1000, None, "host"),
    Budget(900, 1000, 90.0, "host", None),
    Share(0, 1, Split.FILES, (), 1, 1000),
    launcher=None,
    threads=Threads.fixed(1),
)


@pytest.mark.parametrize(
    ("reclaimed", "ending"),
    [
        (Reclaimed(300, 0), "(20.0 %, cachestat); 300 bytes more were here and dropped again"),
        (Reclaimed(10, 10), "(20.0 %, cachestat); 10 bytes more were here and dropped again"),
        (Reclaimed(9, 0), "(20.0 %, cachestat)"),
        (Reclaimed(0, 0), "(20.0 %, cachestat)"),
        (None, "(20.0 %, cachestat)"),
    ],
)
def test_what_was_here_before_is_told_where_it_is_known_and_matters(
    reclaimed: Reclaimed | None, ending: str
) -> None:
    survey = Survey(200, 1000, Method.CACHESTAT, (), {}, (), reclaimed_by_file={0: reclaimed})
    before = folded(Outcome(Action.CHECK), [WANTED, Looked(CHECKPOINT, survey)])
    assert dict(facts(before))["resident"] == f"200 bytes of 1000 bytes {ending}"
    evicted = Evicted(CHECKPOINT, Eviction(5, 1.0, complete=True, failed=()))
    # What is lost afterwards is in the warning, with its cause.
    after = folded(before, [evicted, Proven(CHECKPOINT, survey)])
    assert dict(summary(after))["resident"].endswith("(20.0 %, cachestat)")
