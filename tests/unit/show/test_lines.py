"""The lines, from crafted outcomes."""

import pytest

from prefetch_cli.base.words import Action
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.residency.evict import Eviction
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.outcome import Outcome, folded
from prefetch_cli.run.parts import CHECKPOINT
from prefetch_cli.run.states import Evicted, Proven
from prefetch_cli.show.lines import summary


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
