"""Progress on standard error, and tables on standard output."""

import sys

from rich.console import Console
from rich.table import Table


def show(title: str, rows: list[list[str]]) -> None:
    """Print rows of cells as a table, 140 columns wide if not on a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
