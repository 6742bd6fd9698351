"""A server against us, in every directory."""

from collections.abc import Callable, Sequence

import pytest

from tests.peers import ours
from tests.peers.conftest import Made
from tests.peers.differences import Case, row_of
from tests.peers.outcomes import Outcome

_MOST_SHOWN = 5


def compared(
    made: Sequence[Made], server: str, load_format: str, outcome: Callable[[str, str], Outcome]
) -> list[Case]:
    """Return all cases of a server and a load format."""
    return [
        Case(
            one.directory,
            server,
            load_format,
            theirs=outcome(one.path, load_format),
            ours=ours.outcome(one.path, server, load_format),
        )
        for one in made
    ]


def require_agreement(cases: Sequence[Case]) -> None:
    """Fail where we differ for no reason of the table."""
    found = [case for case in cases if not case.ours.agrees_with(case.theirs) and not row_of(case)]
    if not found:
        return
    shown = "\n".join(map(str, found[:_MOST_SHOWN]))
    pytest.fail(
        f"{len(found)} of {len(cases)} directories, the first of them:\n{shown}\n"
        "One seed again: make test-peers PEERS='--first-seed N --directories 1'",
        pytrace=False,
    )
