"""What `--verify` found, in words: a pure function."""

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.text import counted
from prefetch_cli.run.verification import Finding, Verification


def verified_in_words(found: Verification) -> str:
    """Return how much is what it should be, what is not, and what was not compared."""
    size, matching = format_size(found.verified_bytes), len(found.of(Finding.MATCH))
    line = f"{size} in {matching:,} of {counted(len(found.files), 'file')}"
    if mismatched := len(found.of(Finding.MISMATCH)):
        line += f"; {mismatched:,} {'does' if mismatched == 1 else 'do'} not match"
    for reason, files in found.reasons.items():
        line += f"; {files:,} not checked: {reason}"
    if found.ignored_lines:
        lines = counted(found.ignored_lines, "line")
        line += f"; {lines} of --checksums about other files"
    return line
