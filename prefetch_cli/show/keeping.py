"""What is being kept, and what came of it, in words: pure functions."""

from collections.abc import Iterator

from prefetch_cli.base.amounts import format_duration, format_percent, format_size
from prefetch_cli.residency.keep import Ended
from prefetch_cli.run.outcome import Outcome
from prefetch_cli.run.states import Keeping, Kept, Wanted
from prefetch_cli.show.lines import Line, by_signal

# How keeping ended, where nobody set that end and no signal did it.
_WHY_ENDED = {
    Ended.LOADED: "; COMMAND has loaded it",
    Ended.GIVEN_UP: "; given up",
    Ended.RELEASED: "; unlocked early",
    Ended.UNKNOWN: "; not looked after any longer",
}


def keeping(outcome: Outcome, state: Keeping) -> str:
    """Return what is being kept, and until when; later, what was read again so far."""
    keep, tally = state.keep, state.tally
    if tally.bytes_read_again:
        return f"{format_size(tally.bytes_read_again)} read again so far: they were dropped"
    doing = f"keeping {format_size(tally.locked_bytes if keep.lock else tally.held_bytes)}"
    wanted = outcome.checkpoint.get(Wanted)
    if wanted is not None and tally.held_bytes < wanted.share.size_bytes:
        doing += f" of {format_size(wanted.share.size_bytes)}"
    if keep.lock:
        doing += " locked"
    if keep.seconds is None:
        return f"{doing} until COMMAND has loaded it or ends"
    return f"{doing} for {format_duration(keep.seconds)}"


def kept(outcome: Outcome) -> Iterator[Line]:
    """Yield what came of keeping."""
    state = outcome.checkpoint.get(Kept)
    if state is None or state.ended is Ended.NOTHING_HELD:
        return
    tally = state.tally
    how = (
        f"{format_size(tally.locked_bytes)} locked"
        if state.keep.lock
        else f"{format_size(tally.bytes_read_again)} read again"
    )
    at_last = ""
    if tally.resident_bytes is not None and state.ended is not Ended.INTERRUPTED:
        resident = format_percent(tally.resident_bytes, tally.held_bytes)
        at_last = f"; {resident} resident at the end"
    why = _WHY_ENDED.get(state.ended, "")
    if outcome.signal is not None:
        why = f"; {by_signal(outcome.signal)}"
    took = format_duration(tally.elapsed_seconds)
    yield "kept", f"{format_size(tally.held_bytes)} for {took}, {how}{at_last}{why}"
