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
from prefetch_cli.plan.decision import Budget
from prefetch_cli.plan.share import Share
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.run.parts import CHECKPOINT
from prefetch_cli.run.states import Evicted, Looked, Proven, Wanted
from prefetch_cli.show.lines import facts, summary


def resident(method: Method, resident_bytes: int | None) -> str:
    """Return the line of a survey by this method."""
    survey = Survey(resident_bytes, 1000, method, (), {}, ())
    evicted = Evicted(CHECKPOINT, Eviction(5, 1.0, complete=True, failed=()))
    outcome = folded(Outcome(Action.EVICT), [evicted, Proven(CHECKPOINT, survey)])
    return dict(summary(outcome))["resident"]


@pytest.mark.parametrize("method", [method for method in Method if method is not Method.UNKNOWN])
def test_a_figure_by_samples_is_called_an_estimate(method: Method) -> None:
    line = resident(method, 500)
    assert line.startswith("500 bytes of 1000 bytes (50.0 %, ")
    assert ("estimate" in line) is not method.exact
    assert (method.value in line) is method.exact


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
    threads=1,
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
