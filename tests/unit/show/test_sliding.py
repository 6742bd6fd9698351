"""A window in words and in JSON, from crafted outcomes."""

import pytest

from prefetch_cli.base.words import Action
from prefetch_cli.linux.pagecache import Method
from prefetch_cli.plan.loaders import Lost
from prefetch_cli.residency.survey import Survey
from prefetch_cli.run.lasting import window_document
from prefetch_cli.run.outcome import Interrupted, Outcome, folded
from prefetch_cli.run.parts import CHECKPOINT
from prefetch_cli.run.states import Proven, Slid, Slide, SlideEnded, Sliding
from prefetch_cli.show.sliding import slid, sliding

MIB = 1024 * 1024
SLIDE = Slide(256 * MIB, 200 * MIB, 700 * MIB, 500 * MIB, 12.3456789)
SLIDING = Sliding(CHECKPOINT, SLIDE)


def outcome(*states: Sliding | Slid | Proven | Interrupted) -> Outcome:
    return folded(Outcome(Action.PREFETCH), states)


def ended(how: SlideEnded, lost: Lost | None = None) -> Slid:
    return Slid(CHECKPOINT, SLIDE, how, lost, () if lost is None else ("why",))


def test_it_is_said_that_it_moves() -> None:
    assert sliding(SLIDING) == "a window of 256 MiB moves with COMMAND's loader"
    assert list(slid(outcome(SLIDING))) == []


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (SlideEnded.LOADED, "; COMMAND has loaded it"),
        (SlideEnded.HEAD, "; then the head"),
        (SlideEnded.TIME_LIMIT, "; ended by --time-limit"),
    ],
)
def test_one_line_says_what_came_of_it(how: SlideEnded, why: str) -> None:
    (line,) = slid(outcome(SLIDING, ended(how)))
    assert line == (
        "window",
        f"700 MiB more read, at most 200 MiB ahead, 500 MiB dropped in 12.3 s{why}",
    )


def test_a_signal_is_named_and_what_is_left_is_proven() -> None:
    proven = Proven(CHECKPOINT, Survey(500, 1000, Method.MINCORE, (), {}, ()))
    found = dict(slid(outcome(SLIDING, ended(SlideEnded.INTERRUPTED), proven, Interrupted(15))))
    assert found["window"].endswith("; interrupted by SIGTERM")
    assert found["resident"] == "500 bytes of 1000 bytes (50.0 %, mincore)"


def test_the_document_has_it() -> None:
    assert window_document(outcome().checkpoint) is None
    expected = {
        "size_bytes": 256 * MIB,
        "furthest_bytes": 200 * MIB,
        "bytes_read": 700 * MIB,
        "dropped_bytes": 500 * MIB,
        "elapsed_seconds": 12.345679,
        "reason_ended": "loaded",
        "fallback": None,
    }
    assert window_document(outcome(SLIDING, ended(SlideEnded.LOADED)).checkpoint) == expected
    found = window_document(outcome(SLIDING, ended(SlideEnded.HEAD, Lost.ORDER)).checkpoint)
    assert found == {**expected, "reason_ended": "head", "fallback": "order"}
    # Without its end, something has ended the run.
    assert window_document(outcome(SLIDING).checkpoint) == {
        **expected,
        "reason_ended": "interrupted",
    }
    assert outcome(SLIDING, ended(SlideEnded.HEAD, Lost.ORDER)).warnings == ("why",)
