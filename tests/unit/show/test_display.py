"""The words, the lines and the bar, from crafted snapshots: no time passes."""

import io
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import PrefetchError
from prefetch_cli.base.progress import Monitor, Progress, Wait
from prefetch_cli.base.words import Action, ProgressMode, Verbosity
from prefetch_cli.run.outcome import Outcome, Refused
from prefetch_cli.show.bar import bar_line
from prefetch_cli.show.display import Display

MIB = 1024 * 1024
GIB = 1024 * MIB


def snapshot(
    done_bytes: int = 0,
    total_bytes: int = 100 * MIB,
    *,
    elapsed_seconds: float = 10.0,
    files: tuple[int, int] = (1, 3),
    wait: Wait | None = None,
    idle_seconds: float = 0.0,
) -> Progress:
    return Progress(
        total_bytes=total_bytes,
        done_bytes=done_bytes,
        total_files=files[1],
        done_files=files[0],
        elapsed_seconds=elapsed_seconds,
        longest_wait=wait,
        idle_seconds=idle_seconds,
    )


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def display(
    errors: io.StringIO,
    mode: ProgressMode = ProgressMode.AUTO,
    verbosity: Verbosity = Verbosity.NORMAL,
) -> Display:
    return Display(mode, verbosity, json_document=False, output=io.StringIO(), errors=errors)


def stalled(seconds: float, offset: int | None = 16 * MIB) -> Progress:
    wait = Wait("/models/m/model-00002.safetensors", offset, seconds + 1.4)
    return snapshot(30 * MIB, wait=wait, idle_seconds=seconds)


def percentages(text: str) -> list[str]:
    return re.findall(r"\S+%", text)


TENTHS = [f"{tenth}%" for tenth in range(10, 101, 10)]


@pytest.mark.parametrize(
    "steps",
    [
        [0, 100],
        [100],
        list(range(101)),
        [5, 9, 10, 10, 11, 34, 34, 99, 100, 100],
    ],
    ids=["at once", "nothing before", "each", "uneven"],
)
def test_each_tenth_has_one_line_however_fast_it_goes(steps: list[int]) -> None:
    errors = io.StringIO()
    shown = display(errors)
    for step in steps:
        shown.progress(snapshot(step * MIB))
    assert percentages(errors.getvalue()) == TENTHS
    assert errors.getvalue().count("\n") == 10


def test_a_line_says_what_was_reached_and_only_the_last_of_several_how_fast() -> None:
    errors = io.StringIO()
    display(errors).progress(snapshot(25 * MIB))
    assert errors.getvalue().splitlines() == [
        "prefetch-cli: 10% 10 MiB of 100 MiB",
        "prefetch-cli: 20% 25 MiB of 100 MiB, 2.5 MiB/s, 1 of 3 files, 30 s left",
    ]


def test_a_tenth_that_is_not_reached_has_no_line() -> None:
    errors = io.StringIO()
    display(errors).progress(snapshot(10 * MIB - 1))
    assert errors.getvalue() == ""


@given(st.lists(st.integers(0, 3 * GIB)), st.integers(1, 3 * GIB))
def test_lines_are_exactly_the_tenths_that_the_bytes_passed(
    growth: list[int], total_bytes: int
) -> None:
    errors = io.StringIO()
    shown = display(errors)
    done = 0
    for size in growth:
        done = min(total_bytes, done + size)
        shown.progress(snapshot(done, total_bytes))
    assert percentages(errors.getvalue()) == TENTHS[: 10 * done // total_bytes]


def test_nothing_is_shown_of_nothing() -> None:
    errors = io.StringIO()
    display(errors).progress(snapshot(0, 0))
    assert errors.getvalue() == ""


@pytest.mark.parametrize(
    ("mode", "verbosity"),
    [(ProgressMode.NONE, Verbosity.NORMAL), (ProgressMode.BAR, Verbosity.QUIET)],
)
def test_progress_can_be_switched_off(mode: ProgressMode, verbosity: Verbosity) -> None:
    errors = Terminal()
    shown = display(errors, mode, verbosity)
    shown.progress(snapshot(50 * MIB))
    shown.progress(stalled(31))
    assert errors.getvalue() == ""


def test_a_stall_says_which_file_where_and_how_long_soon_and_every_half_minute() -> None:
    errors = io.StringIO()
    shown = display(errors, ProgressMode.LOG)
    shown.progress(snapshot(30 * MIB))
    errors.truncate(0)
    errors.seek(0)
    for seconds in (0, 5, 9.9, 10.0, 10.1, 15, 39.9, 40.1, 41, 70, 99, 130):
        shown.progress(stalled(seconds))
    line = "prefetch-cli: nothing has arrived for {}: waiting {} for {} at offset 16,777,216"
    path = "/models/m/model-00002.safetensors"
    assert errors.getvalue().splitlines() == [
        line.format("10 s", "11 s", path),
        line.format("40 s", "41 s", path),
        line.format("1m 10s", "1m 11s", path),
        line.format("2m 10s", "2m 11s", path),
    ]


def test_a_stall_that_ends_and_begins_again_is_told_again() -> None:
    errors = io.StringIO()
    shown = display(errors, ProgressMode.LOG)
    for seconds in (11, 0.1, 9, 11):
        shown.progress(stalled(seconds))
    assert errors.getvalue().count("nothing has arrived for 11 s") == 2


def test_a_stall_is_told_while_nothing_is_read_yet() -> None:
    errors = io.StringIO()
    wait = Wait("/models/m", None, 30.5)
    display(errors).progress(snapshot(0, 0, wait=wait, idle_seconds=30.5))
    assert errors.getvalue() == (
        "prefetch-cli: nothing has arrived for 30 s: waiting 30 s for /models/m\n"
    )


def test_a_name_is_escaped_and_never_read_as_markup() -> None:
    for errors in (io.StringIO(), Terminal()):
        shown = display(errors)
        shown.progress(snapshot(1 * MIB))  # draws a bar
        name = "/m/[red]x\n\x1b]0;title\x07\udcff.safetensors"
        shown.progress(snapshot(1 * MIB, wait=Wait(name, 0, 31), idle_seconds=31))
        assert "/m/[red]x\\n\\x1b]0;title\\x07\\xff.safetensors at offset 0" in errors.getvalue()


def test_lines_come_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    errors = Terminal()
    shown = display(errors)
    shown.progress(snapshot(30 * MIB))
    shown.progress(stalled(31))
    erased, _, after = errors.getvalue().rpartition("\x1b[2K")[0].rpartition("\x1b[2K")
    assert after.startswith("prefetch-cli: nothing has arrived for 31 s")
    assert "30%" in after.split("\n")[-1]  # the bar, redrawn below
    assert "30%" in erased


def test_a_killed_run_leaves_the_cursor_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    errors = Terminal()
    display(errors).progress(snapshot(30 * MIB))
    shown_again = errors.getvalue().rfind("\x1b[?25h")
    assert shown_again > errors.getvalue().rfind("\x1b[?25l")


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
@pytest.mark.parametrize("mode", [ProgressMode.AUTO, ProgressMode.BAR])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch, term: str | None, mode: ProgressMode
) -> None:
    monkeypatch.delenv("TERM")
    if term is not None:
        monkeypatch.setenv("TERM", term)
    errors = Terminal()
    display(errors, mode).progress(snapshot(100 * MIB))
    assert percentages(errors.getvalue()) == TENTHS
    assert "\x1b" not in errors.getvalue()


def test_a_bar_that_is_asked_for_is_drawn_into_a_pipe_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    errors = io.StringIO()
    shown = display(errors, ProgressMode.BAR)
    shown.progress(snapshot(30 * MIB))
    shown.stop_bar()
    assert "30% of 100 MiB" in errors.getvalue()


@pytest.mark.parametrize(
    ("columns", "text", "bar_columns"),
    [
        (120, " 62% of 64 GiB    1.25 GiB/s     20 s left   31/163 files", 62),
        (79, " 62% of 64 GiB    1.25 GiB/s     20 s left   31/163 files", 21),
        (66, " 62%    1.25 GiB/s     20 s left   31/163 files", 18),
        (39, " 62%   1.25 GiB/s    20 s  31/163", 5),
        (30, " 62% 1.25 GiB/s 20 s  31/163", 0),
        (19, " 62% 1.25 GiB/s", 0),
        (10, " 62%", 0),
        (3, " 62", 0),
    ],
)
def test_what_stands_beside_the_bar(columns: int, text: str, bar_columns: int) -> None:
    done = 40 * GIB
    shown = snapshot(done, 64 * GIB, elapsed_seconds=done / (1.25 * GIB), files=(31, 163))
    assert bar_line(shown, columns) == (text, bar_columns)


@given(
    st.integers(1, 240),
    st.integers(0, 2**50),
    st.integers(1, 2**50),
    st.floats(0, 1e9),
    st.integers(0, 10**6),
)
def test_the_bar_fits_any_terminal(
    columns: int, done: int, total: int, elapsed: float, files: int
) -> None:
    shown = snapshot(min(done, total), total, elapsed_seconds=elapsed, files=(files, max(files, 1)))
    text, bar_columns = bar_line(shown, columns)
    assert len(text) + (bar_columns + 1 if bar_columns else 0) <= columns


def test_a_hundred_is_the_end() -> None:
    assert bar_line(snapshot(100 * MIB - 1), 10)[0] == " 99%"
    assert bar_line(snapshot(100 * MIB), 10)[0] == "100%"


@pytest.mark.parametrize("failing", ["write", "flush"])
def test_a_stream_that_fails_stops_nothing(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Broken(Terminal):
        pass

    def fail(*_: object) -> None:
        raise BrokenPipeError

    setattr(Broken, failing, fail)
    for mode in ProgressMode:
        shown = display(Broken(), mode)
        shown.progress(snapshot(50 * MIB))
        shown.progress(stalled(31))
        shown.finished(Outcome(Action.PREFETCH, ending=Refused(PrefetchError("found nothing"))))


def test_an_error_is_one_line_with_its_hint() -> None:
    errors = io.StringIO()
    error = PrefetchError("expected a, found b", "do c")
    refused = Outcome(Action.PREFETCH, ending=Refused(error))
    display(errors, verbosity=Verbosity.QUIET).finished(refused)
    assert errors.getvalue() == "prefetch-cli: error: expected a, found b; do c\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which only the test advances."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_monitor_says_what_is_awaited_and_since_when(clock: list[float]) -> None:
    monitor = Monitor()
    assert monitor.snapshot().longest_wait is None
    clock[0] = 200.0
    assert monitor.snapshot().idle_seconds == 0  # nothing is awaited
    with monitor.waiting("/m/a", 4096):
        clock[0] = 235.0
        shown = monitor.snapshot()
        assert shown.longest_wait == Wait("/m/a", 4096, 35.0)
        assert shown.idle_seconds == 35.0
    assert monitor.snapshot().longest_wait is None


def test_the_monitor_names_the_call_itself_not_what_it_is_a_part_of(clock: list[float]) -> None:
    monitor = Monitor()
    with monitor.waiting("/m"):
        clock[0] = 110.0
        with monitor.waiting("/m/index.json"):
            clock[0] = 130.0
            assert monitor.snapshot().longest_wait == Wait("/m/index.json", None, 20.0)
        clock[0] = 135.0
        shown = monitor.snapshot()
        assert shown.longest_wait == Wait("/m", None, 5.0)  # since the index arrived
        assert shown.idle_seconds == 5.0


def test_the_rate_is_of_the_time_of_reading(clock: list[float]) -> None:
    monitor = Monitor()
    clock[0] += 50
    monitor.announce({"checkpoint": (100, 2)})
    with monitor.reading_part("checkpoint"):
        for _ in itertools.repeat(None, 4):
            monitor.advance(10)
        clock[0] += 4
        shown = monitor.snapshot()
        assert (shown.bytes_per_second, shown.left_seconds) == (10.0, 6.0)
    clock[0] += 100
    assert monitor.snapshot().elapsed_seconds == 4.0
