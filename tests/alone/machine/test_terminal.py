"""What a terminal shows: the bar, the wrapping, the cursor, at several widths."""

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator

import pexpect
import pytest

from tests.helpers.command import COMMAND, environment

SLOW = ("--force", "--max-rate", "40M")  # half a second
_LONGEST_SECONDS = 30


def spawned(*arguments: str, columns: int = 80, **env: str | None) -> "pexpect.spawn[str]":
    return pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *arguments],
        encoding="utf-8",
        dimensions=(24, columns),
        env=environment(**env),
        timeout=_LONGEST_SECONDS,
    )


def shown(*arguments: str, columns: int = 80, code: int = 0, **env: str | None) -> str:
    """Return everything a run writes to a terminal that carries both of its streams."""
    child = spawned(*arguments, columns=columns, **env)
    child.expect(pexpect.EOF)
    text = before(child)
    child.close()
    assert child.exitstatus == code, text
    assert "Traceback" not in text
    return text


def before(child: "pexpect.spawn[str]") -> str:
    """Return what came before the last match."""
    return child.before or ""


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def drawn(text: str) -> list[str]:
    """Return every line that was ever visible."""
    return [part.rstrip() for part in re.split(r"[\r\n]+", without_escapes(text)) if part.strip()]


@pytest.mark.parametrize(
    ("columns", "bar"),
    [
        (80, r"[━╸╺]+ +\d+% of 20 MiB +\d\S* MiB/s +(\d+ s|\?) left  \d/\d files"),
        (40, r"[━╸╺]+ +\d+% +\d\S* MiB/s +(\d+ s|\?) \d/\d"),
        (20, r" *\d+% \d\S* MiB/s"),
    ],
)
def test_the_bar_fits(cold: str, columns: int, bar: str) -> None:
    text = shown(*SLOW, cold, columns=columns)
    lines = drawn(text)
    bars = [line for line in lines if "%" in line and "MiB/s" in line and "engine" not in line]
    assert len(bars) >= 3
    assert "\x1b[36m" in text or columns == 20
    assert [line for line in bars if not re.fullmatch(bar, line)] == []
    assert [line for line in lines if len(line) > columns] == []
    assert "prefetch-cli:" not in text  # no log lines beside the bar


@pytest.mark.parametrize("columns", [80, 40])
def test_texts_are_wrapped_beside_their_labels(cold: str, columns: int) -> None:
    lines = drawn(shown("--dry-run", "--force", cold, columns=columns))
    heads = {line[:13].rstrip() for line in lines}
    assert heads == {
        "checkpoint", "size", "file system", "memory", "resident", "decision", "plan", ""
    }  # fmt: skip
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if re.search(r"\d$", line) and "/" not in line]  # 64|MiB


def test_texts_stand_below_their_labels_on_a_narrow_terminal(cold: str) -> None:
    lines = drawn(shown("--dry-run", cold, columns=20))
    assert lines[0] == "checkpoint"
    assert lines[1].startswith("  /")
    assert max(map(len, lines)) <= 20


def test_a_terminal_that_does_not_tell_its_width_has_80_columns(cold: str) -> None:
    lines = drawn(shown("--dry-run", cold, columns=0))
    assert 60 < max(map(len, lines)) <= 80
    lines = drawn(shown(*SLOW, cold, columns=0))
    assert [line for line in lines if len(line) > 80] == []
    assert any(re.search(r"━ +\d+% of 20 MiB", line) for line in lines)


def test_columns_of_the_environment_come_first(cold: str) -> None:
    lines = drawn(shown("--dry-run", "--force", cold, columns=80, COLUMNS="40"))
    assert 30 < max(map(len, lines)) <= 40


def test_no_colour_is_no_colour(cold: str) -> None:
    plain = shown(*SLOW, cold, NO_COLOR="1")
    assert re.findall(r"\x1b\[[0-9;]*m", plain) == []
    assert "━" in plain


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_without_a_cursor_gets_log_lines(cold: str, term: str | None) -> None:
    text = shown("--force", cold, TERM=term, columns=200)
    assert "\x1b" not in text
    assert re.findall(r"prefetch-cli: (\d+%)", text) == [f"{10 * n}%" for n in range(1, 11)]


def test_a_locale_without_utf_8_gets_a_bar_of_ascii(cold: str) -> None:
    text = shown(*SLOW, cold, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert text.isascii()
    assert re.search(r"--- +\d+% of 20 MiB", without_escapes(text))


def test_output_to_a_file_leaves_the_bar_on_the_terminal(cold: str, tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "out")
    line = " ".join([*COMMAND, *SLOW, cold, ">", path])
    child = pexpect.spawn(
        "bash", ["-c", line], encoding="utf-8", env=environment(), timeout=_LONGEST_SECONDS
    )
    child.expect(pexpect.EOF)
    assert "MiB/s" in before(child)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert "\x1b" not in text
    assert text.startswith("checkpoint   ")


def test_an_interrupt_takes_the_bar_off_and_sums_up(cold: str) -> None:
    child = spawned("--force", "--max-rate", "4M", cold)
    child.expect("10%|11%|12%|13%")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    _, cleared, after = before(child).rpartition("\x1b[2K")
    assert cleared
    summary = " ".join(drawn(after))
    assert re.match(r"read         \S+ MiB of 20\S* MiB in .*interrupted\s+by SIGINT", summary)


def test_a_killed_run_leaves_the_cursor_visible(cold: str) -> None:
    child = spawned("--force", "--max-rate", "4M", cold)
    child.expect("10%|11%|12%|13%")
    text = before(child)
    child.kill(signal.SIGKILL)
    child.close()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_a_terminal_that_goes_away_stops_nothing(cold: str) -> None:
    # Not its controlling terminal, so no SIGHUP arrives, as under nohup.
    ours, theirs = os.openpty()
    line = [*COMMAND, *SLOW, cold]
    with subprocess.Popen(line, stdout=theirs, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        seen = b""
        while b"MiB/s" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(_LONGEST_SECONDS) == 0


@pytest.fixture
def tmux() -> Iterator[list[str]]:
    """The command prefix for a tmux server of its own."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux, which knows what a terminal shows in the end")
    line = ["tmux", "-L", f"prefetch-{uuid.uuid4().hex}", "-f", "/dev/null"]
    yield line
    subprocess.run([*line, "kill-server"], check=False, capture_output=True)


def screen(tmux: list[str], columns: int, line: str) -> list[str]:
    """Return what stands on a terminal of this width once a shell line has ended."""
    channel = uuid.uuid4().hex
    then = f"tmux wait-for -S {channel}; cat"
    size = ("-x", str(columns), "-y", "60")
    subprocess.run(
        [*tmux, "new-session", "-d", *size, f"{line}; {then}"], check=True, env=environment()
    )
    subprocess.run([*tmux, "wait-for", channel], check=True, timeout=_LONGEST_SECONDS)
    shown = subprocess.run(
        [*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True
    )
    return [text for text in shown.stdout.splitlines() if text]


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_the_screen_in_the_end_holds_the_summary_and_no_bar(
    cold: str, tmux: list[str], columns: int
) -> None:
    lines = screen(tmux, columns, " ".join([*COMMAND, *SLOW, cold]))
    assert lines[0].split()[0] == "checkpoint"
    assert "━" not in "".join(lines)
    assert "resident" in " ".join(lines[-5:])
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [80, 40])
def test_warnings_are_wrapped_between_words_on_a_terminal(
    cold: str, tmux: list[str], columns: int
) -> None:
    run = shlex.join([*COMMAND, "--dry-run", "--rank", "auto", "--force", cold])
    expected = subprocess.run(
        shlex.split(run), capture_output=True, text=True, check=True, env=environment()
    ).stderr
    assert expected.startswith("prefetch-cli: warning: --rank auto found ")
    assert expected.count("\n") == 1  # a log has one line
    lines = screen(tmux, columns, f"{run} > /dev/null")
    assert len(lines) > 1
    assert [line[:2] for line in lines[1:]] == ["  "] * len(lines[1:])
    assert " ".join(map(str.strip, lines)) == expected.strip()
    # No word was cut: the next one would not have fitted.
    for line, after in itertools.pairwise(lines):
        assert len(line) + 1 + len(after.split()[0]) > columns
    # Standard output goes to a file: the width is that of the terminal with standard error.
    assert max(map(len, lines)) <= columns


def test_a_path_that_is_longer_than_a_line_is_not_broken(tmux: list[str]) -> None:
    path = f"/no/such/{'x' * 50}"
    line = f"{shlex.join([*COMMAND, path])} > /dev/null"
    seen = screen(tmux, 40, line)
    assert path in "".join(seen)
    assert seen[0] == "prefetch-cli: error:"
