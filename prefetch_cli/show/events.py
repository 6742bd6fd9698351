"""Standard error as JSON, an object a line: messages, and progress when it is due."""

import enum
import json
import time
from collections.abc import Iterator

from prefetch_cli.base.limits import EVENT_SECONDS
from prefetch_cli.base.progress import Progress, Wait
from prefetch_cli.run.document import Json, json_path


class Level(enum.Enum):
    """How much a line of standard error matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def line(event: Json) -> str:
    """Return an object as a line, in ASCII."""
    return json.dumps(event) + "\n"


def message(level: Level, text: str, rank: int | None) -> Json:
    """Return what is said to people, as an object."""
    return {"event": level.value, "rank": rank, "message": text}


class Feed:
    """Tells when progress is due: at each 10 %, and when nothing was due for 5 seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._tenths = 0

    def due(self, snapshot: Progress, rank: int | None) -> Iterator[Json]:
        """Yield an object for each 10 % passed since the last call, else one if it is time."""
        total = snapshot.total_bytes
        reached = 10 * snapshot.done_bytes // total if total else 0
        if reached <= self._tenths:
            if time.monotonic() - self._last >= EVENT_SECONDS:
                yield self._event(snapshot, rank)
            return
        for tenth in range(self._tenths + 1, reached):
            # It passed unseen: everything but its bytes is of now.
            passed = {"percent": 10 * tenth, "bytes": total * tenth // 10}
            yield {**self._event(snapshot, rank), **passed}
        yield self._event(snapshot, rank)
        self._tenths = reached

    def _event(self, snapshot: Progress, rank: int | None) -> Json:
        self._last = time.monotonic()
        done, total, left = snapshot.done_bytes, snapshot.total_bytes, snapshot.left_seconds
        return {
            "event": "progress",
            "rank": rank,
            "percent": 100 * done // total if total else None,  # 100 means finished
            "bytes": done,
            "total_bytes": total,
            "files": snapshot.done_files,
            "total_files": snapshot.total_files,
            "elapsed_seconds": round(snapshot.elapsed_seconds, 3),
            "bytes_per_second": round(snapshot.bytes_per_second, 1),
            "eta_seconds": None if left is None else round(left, 3),
            "waiting_for": _wait(snapshot.longest_wait),
        }


def _wait(wait: Wait | None) -> Json | None:
    if wait is None:
        return None
    return {
        "path": json_path(wait.path),
        "offset_bytes": wait.offset,
        "seconds": round(wait.seconds, 3),
    }
