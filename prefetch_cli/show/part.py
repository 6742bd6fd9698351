"""Which part of a checkpoint is read, in words."""

from collections.abc import Iterable, Iterator

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.text import counted, printable
from prefetch_cli.checkpoint.excerpt import Excerpt
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.checkpoint.placement import Numbers


def parts(sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Yield a labelled line for each source of which only a part is read."""
    for source in sources:
        if source.excerpt is not None:
            yield "part", _in_words(source.excerpt)


def _in_words(excerpt: Excerpt) -> str:
    of = f"{excerpt.tensors:,} of {counted(excerpt.total_tensors, 'tensor')}"
    whole = f"the whole has {format_size(excerpt.whole_bytes)}"
    chosen = "; ".join((*_chosen(excerpt), of, whole))
    return f"{chosen}; from COMMAND: --stage all reads all" if excerpt.needs.inferred else chosen


def _chosen(excerpt: Excerpt) -> Iterator[str]:
    needs = excerpt.needs
    if needs.stage is not None:
        yield f"stage {needs.stage}, {_numbers('layer', excerpt.layers)}"
    if needs.experts is not None:
        yield f"experts {needs.experts}, {_numbers('expert', excerpt.experts)}"
    if needs.globs:
        yield f"tensors {' '.join(map(printable, needs.globs))}"


def _numbers(noun: str, numbers: Numbers | None) -> str:
    if numbers is None:
        return f"all {noun}s"
    needed = numbers.needed
    if not needed:
        return f"no {noun} of {numbers.total:,}"
    return f"{noun}s {needed[0]:,} to {needed[-1]:,} of {numbers.total:,}"
