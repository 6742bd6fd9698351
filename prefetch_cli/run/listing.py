"""The files of a run, one by one: what `--list` prints, and what JSON says of each."""

from collections.abc import Iterator
from typing import NamedTuple

from prefetch_cli.run.outcome import History, Outcome
from prefetch_cli.run.states import Looked, Proven, Verified, Wanted


class Listed(NamedTuple):
    """A file, and what of it lies in this process's share."""

    path: str
    size_bytes: int  # of it in the share
    resident_before_bytes: int | None  # of these; None where not looked at, or not known
    resident_after_bytes: int | None
    verified: bool | None  # whether its content is as expected; None where not compared


def listed(outcome: Outcome) -> Iterator[Listed]:
    """Yield the files of this process's share in the order of reading.

    No share has a byte of an empty file, so rank 0 lists these: all ranks together list all files.
    """
    for part in (*outcome.beside, outcome.checkpoint):
        yield from _of_part(part)


def _of_part(part: History) -> Iterator[Listed]:
    wanted, looked, proven = part.get(Wanted), part.get(Looked), part.get(Proven)
    if wanted is None:
        return
    sizes: dict[int, int] = {}
    for extent in wanted.share.extents:
        sizes[extent.file] = sizes.get(extent.file, 0) + extent.length
    before = {} if looked is None else looked.survey.resident_by_file
    after = {} if proven is None else proven.survey.resident_by_file
    verified = part.get(Verified)
    verdicts = {} if verified is None else verified.verification.verdicts
    for number, file in enumerate(wanted.found.files):
        if number in sizes or (file.size_bytes == 0 and wanted.share.rank == 0):
            yield Listed(
                file.path,
                sizes.get(number, 0),
                before.get(number),
                after.get(number),
                verdicts.get(file.path),
            )
