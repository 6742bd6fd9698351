"""File names of weights: their order, their numbers, what they promise: pure."""

import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

_MOST_MISSING = 10_000  # a hostile name may promise a billion parts

_DIGITS = re.compile(r"([0-9]+)")
NUMBERED = re.compile(
    r"(?P<base>.*?)(?P<number>[0-9]{1,9})-of-(?P<total>[0-9]{1,9})(?P<rest>.*)", re.DOTALL
)

_RANK = re.compile(r"model-(?:pp-([0-9]{1,6})-tp-|rank-)([0-9]{1,6})-part-")


def natural_key(path: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return the sort key of vLLM's order: by file name, `model-2` before `model-10`."""
    return _by_numbers(posixpath.basename(path)), path


def natural_path_key(path: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return the sort key of the same order for whole paths, folder by folder."""
    return _by_numbers(path), path


def _by_numbers(text: str) -> list[str | tuple[int, str]]:
    parts: list[str | tuple[int, str]] = [*_DIGITS.split(text)]
    # This compares like numbers do, without int()'s limit on digits.
    parts[1::2] = [
        (len(digits), digits) for digits in (part.lstrip("0") for part in _DIGITS.findall(text))
    ]
    return parts


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in vLLM's order, each once."""
    return tuple(sorted(names, key=natural_key))


def is_hidden(name: str) -> bool:
    """Return whether a name begins with a dot."""
    # Loaders' globs skip these; macOS leaves `._model.safetensors` in archives.
    return name.startswith(".")


def missing_numbers(names: Iterable[str]) -> Iterator[str]:
    """Yield the missing names that ones like `-00002-of-00004` promise, up to a bound."""
    numbers = {key: [part["number"] for part in parts] for key, parts in _numbered(names).items()}
    return itertools.islice(_gaps(numbers), _MOST_MISSING)


def lone_numbers(names: Iterable[str]) -> list[str]:
    """Return the names like `-00002-of-00004` that no other one of their set is beside."""
    sets = _numbered(names).values()
    return [parts[0][0] for parts in sets if len(parts) == 1 and int(parts[0]["total"]) > 1]


def _numbered(names: Iterable[str]) -> dict[tuple[str, str, str], list[re.Match[str]]]:
    """Return the matches of the numbered names, by what the names of a set have in common."""
    sets: dict[tuple[str, str, str], list[re.Match[str]]] = {}
    for name in names:
        if part := NUMBERED.fullmatch(name):
            sets.setdefault((part["base"], part["total"], part["rest"]), []).append(part)
    return sets


def missing_ranks(names: Iterable[str]) -> Iterator[str]:
    """Yield a name for each rank of vLLM's sharded state that has no file, up to a bound.

    The highest number of a rank tells how many there are: each loads files of its own, and one
    that finds none ends the server.
    """
    names = list(names)
    found = {tuple(map(int, part.groups("0"))) for name in names if (part := _RANK.match(name))}
    most = [max((ranks[place] for ranks in found), default=-1) for place in (0, 1)]
    staged = any("-pp-" in name for name in names)
    if staged:
        most[0] = max(1, most[0])  # a single stage would have the other names
    for stage, rank in itertools.islice(
        itertools.product(range(most[0] + 1), range(most[1] + 1)), _MOST_MISSING
    ):
        if (stage, rank) not in found:
            yield (
                f"model-pp-{stage}-tp-{rank}-part-0.safetensors"
                if staged
                else f"model-rank-{rank}-part-0.safetensors"
            )


def _gaps(sets: Mapping[tuple[str, str, str], Sequence[str]]) -> Iterator[str]:
    for (base, total, rest), written in sets.items():
        numbers = set(map(int, written))
        # Some sets are numbered without leading zeros: `model-1-of-61`.
        padded = any(number.startswith("0") and number != "0" for number in written)
        width = max(map(len, written)) if padded else 1
        first = 0 if 0 in numbers else 1
        for number in range(first, first + int(total)):
            if number not in numbers:
                yield f"{base}{number:0{width}}-of-{total}{rest}"
