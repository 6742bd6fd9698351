"""Which part of a checkpoint is read, for the JSON document."""

from typing import Any

from prefetch_cli.checkpoint.excerpt import Excerpt
from prefetch_cli.checkpoint.placement import Numbers


def excerpt_document(excerpt: Excerpt) -> dict[str, Any]:
    """Return what was asked for, by the names of the flags, and what is read for that."""
    needs = excerpt.needs
    return {
        "tensors": list(needs.globs),
        "stage": None if needs.stage is None else str(needs.stage),
        "experts": None if needs.experts is None else str(needs.experts),
        "layers_read": _numbers(excerpt.layers),
        "experts_read": _numbers(excerpt.experts),
        "tensors_read": excerpt.tensors,
        "total_tensors": excerpt.total_tensors,
        "whole_bytes": excerpt.whole_bytes,
    }


def _numbers(numbers: Numbers | None) -> dict[str, int] | None:
    """Return which numbers are read, from the first to that behind the last; None: all."""
    if numbers is None:
        return None
    needed = numbers.needed
    return {"start": needed.start, "end": needed.stop, "total": numbers.total}
