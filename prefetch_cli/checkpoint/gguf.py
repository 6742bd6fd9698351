"""GGUF files -> the models that they are parts of: pure."""

import glob
from collections.abc import Iterable

from prefetch_cli.checkpoint.names import NUMBERED, in_natural_order, missing_numbers, natural_key


def parts(name: str) -> list[str]:
    """Return all parts of the split GGUF that `name` belongs to, or just `name`."""
    return list(in_natural_order({name, *missing_numbers([name])}))


def models(names: Iterable[str]) -> dict[str, str]:
    """Return the first file of each GGUF model, by the glob that matches all its parts.

    A projector (mmproj) is loaded beside its model and is not one itself.
    """
    found: dict[str, str] = {}
    for name in sorted(names, key=natural_key):
        if "mmproj" not in name.lower():
            found.setdefault(_glob(name), name)
    return found


def _glob(name: str) -> str:
    """Return the glob that matches all parts of the model that a GGUF file belongs to."""
    if part := NUMBERED.fullmatch(name):
        base, rest = glob.escape(part["base"]), glob.escape(part["rest"])
        return f"{base}*-of-{part['total']}{rest}"
    return glob.escape(name)
