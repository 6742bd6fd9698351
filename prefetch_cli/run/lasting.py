"""What goes on when all is read, for the JSON document: keeping, and a window that moves."""

from typing import Any

from prefetch_cli.residency.keep import Ended
from prefetch_cli.run.outcome import History
from prefetch_cli.run.states import Keeping, Kept, Slid, SlideEnded, Sliding


def keep_document(part: History) -> dict[str, Any] | None:
    """Return what keeping has come to, None where nothing was kept."""
    kept = part.get(Kept)
    state = kept or part.get(Keeping)
    if state is None:
        return None
    tally = state.tally
    # Without its end, something has ended the run.
    ended = Ended.INTERRUPTED if kept is None else kept.ended
    return {
        "until": "duration" if state.keep.seconds is not None else "load",
        "seconds": state.keep.seconds,
        "lock": state.keep.lock,
        "held_bytes": tally.held_bytes,
        "locked_bytes": tally.locked_bytes,
        "resident_bytes": tally.resident_bytes,
        "bytes_read_again": tally.bytes_read_again,
        "bytes_given_up": tally.bytes_given_up,
        "looks": tally.looks,
        "elapsed_seconds": round(tally.elapsed_seconds, 6),
        "reason_ended": ended.value,
    }


def window_document(part: History) -> dict[str, Any] | None:
    """Return what a window has come to, None where there was none."""
    slid = part.get(Slid)
    state = slid or part.get(Sliding)
    if state is None:
        return None
    slide = state.slide
    ended = SlideEnded.INTERRUPTED if slid is None else slid.ended
    return {
        "size_bytes": slide.size_bytes,
        "furthest_bytes": slide.furthest_bytes,
        "bytes_read": slide.bytes_read,
        "dropped_bytes": slide.dropped_bytes,
        "elapsed_seconds": round(slide.elapsed_seconds, 6),
        "reason_ended": ended.value,
        "fallback": None if slid is None or slid.lost is None else slid.lost.value,
    }
