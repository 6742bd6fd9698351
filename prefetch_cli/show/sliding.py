"""A window that moves with COMMAND's loader, and what came of it, in words: pure functions."""

from collections.abc import Iterator

from prefetch_cli.base.amounts import format_duration, format_size
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.states import Proven, Slid, SlideEnded, Sliding
from prefetch_cli.show.lines import Line, by_signal, resident

_WHY_ENDED = {
    SlideEnded.LOADED: "; COMMAND has loaded it",
    SlideEnded.HEAD: "; then the head",
    SlideEnded.TIME_LIMIT: "; ended by --time-limit",
}


def sliding(state: Sliding) -> str:
    """Return that a window moves from now on."""
    return f"a window of {format_size(state.slide.size_bytes)} moves with COMMAND's loader"


def slid(outcome: Outcome) -> Iterator[Line]:
    """Yield what came of it."""
    part = outcome.checkpoint
    if (state := part.get(Slid)) is None:
        return
    slide = state.slide
    why = _WHY_ENDED.get(state.ended, "")
    if outcome.signal is not None:
        why = f"; {by_signal(outcome.signal)}"
    yield (
        "window",
        f"{format_size(slide.bytes_read)} more read, at most "
        f"{format_size(slide.furthest_bytes)} ahead, {format_size(slide.dropped_bytes)} dropped "
        f"in {format_duration(slide.elapsed_seconds)}{why}",
    )
    if (proven := part.get(Proven)) is not None:
        yield "resident", resident(proven.survey)
