"""The progress bar."""

from typing import IO, TYPE_CHECKING, cast

from prefetch_cli.base.amounts import format_rate, format_size
from prefetch_cli.base.progress import Progress
from prefetch_cli.show.lines import coarse
from prefetch_cli.show.streams import Stream

if TYPE_CHECKING:
    from rich.console import Console


class Bar:
    """One line at the bottom of a terminal, redrawn at each call."""

    def __init__(self, stream: Stream) -> None:
        from rich.live import Live  # noqa: PLC0415 - 50 ms that a log does not need

        self._live = Live(
            console=_console(stream),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        # A killed process could not bring it back.
        self._live.console.show_cursor(show=True)

    def draw(self, snapshot: Progress) -> None:
        """Show how far reading has come."""
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        # The terminal may have been resized since the last call.
        text, bar_columns = bar_line(snapshot, self._live.console.width - 1)
        line = Table.grid(padding=(0, 1, 0, 0))
        if bar_columns:
            bar = ProgressBar(
                total=snapshot.total_bytes,
                completed=snapshot.done_bytes,
                width=bar_columns,
                complete_style="cyan",
            )
            line.add_row(bar, Text(text, no_wrap=True))
        else:
            line.add_row(Text(text, no_wrap=True))
        self._live.update(line, refresh=True)

    def tell(self, line: str) -> None:
        """Write a line above the bar."""
        self._live.console.print(line, soft_wrap=True)

    def stop(self) -> None:
        """Erase the bar."""
        self._live.stop()


def bar_line(snapshot: Progress, columns: int) -> tuple[str, int]:
    """Return the text beside the bar and the width of the bar: as much as fits, 0 for no bar.

    Changing figures have a fixed width, so that the line does not jump.
    """
    # Rounded down, so that 100 % means finished.
    percent = f"{100 * snapshot.done_bytes // snapshot.total_bytes:3}%"
    rate = format_rate(snapshot.bytes_per_second)
    left = "?" if snapshot.left_seconds is None else coarse(snapshot.left_seconds)
    files = f"{snapshot.done_files:>{len(str(snapshot.total_files))}}/{snapshot.total_files}"
    total = format_size(snapshot.total_bytes)
    # The minimum width of the bar beside each text; the last three have no bar.
    texts = (
        (16, f"{percent} of {total}  {rate:>12}  {left:>7} left  {files} files"),
        (12, f"{percent}  {rate:>12}  {left:>7} left  {files} files"),
        (4, f"{percent} {rate:>12} {left:>7} {files}"),
        (0, f"{percent} {rate} {left} {files}"),
        (0, f"{percent} {rate}"),
        (0, percent),
    )
    for least, text in texts:
        room = columns - len(text) - 1 if least else 0
        if room >= least and len(text) <= columns:
            return text, room
    return percent[:columns], 0


def _console(stream: Stream) -> "Console":
    from rich.console import Console  # noqa: PLC0415 - 50 ms that a log does not need

    return Console(
        file=cast("IO[str]", stream),
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
