"""The names in a folder -> those that a loader reads, by its server's rules: pure.

The rules of component folders come from diffusers and sentence-transformers; see `servers`.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint.index import Index
from prefetch_cli.checkpoint.names import (
    in_natural_order,
    is_hidden,
    missing_numbers,
    missing_ranks,
)
from prefetch_cli.checkpoint.servers import Consolidated, Family, Order, Rules

INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".tensors")

_SIDE_GLOBS = ("*.json", "tokenizer*", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py")
_SIDE = re.compile("|".join(map(fnmatch.translate, _SIDE_GLOBS)))

# `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and, newer,
# `model-00001-of-00002.fp16.safetensors` are variants of `model.safetensors`.
_VARIANT = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:-[0-9]+-of-[0-9]+)?"
    r"\.[A-Za-z0-9_]+(?:-[0-9]+-of-[0-9]+)?\.(?:safetensors|bin)(?:\.index\.json)?"
)

Want = Callable[[str], bool]
ReadIndex = Callable[[str], Index | None]


@dataclass(frozen=True)
class Filters:
    """The user's globs, on paths relative to the checkpoint."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def want(self, path: str) -> bool:
        """Return whether the globs keep this path."""
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(
            fnmatch.fnmatchcase(path, pattern) for pattern in self.include
        )


@dataclass(frozen=True)
class Selection:
    """The weight files of one folder in load order, whether they exist or not."""

    load_format: LoadFormat  # resolved: never AUTO
    weights: tuple[str, ...]
    index: Index | None


def side_files(names: Iterable[str]) -> list[str]:
    """Return the config and tokenizer files among `names`, in natural order."""
    found = (
        name
        for name in names
        if _SIDE.match(name) and not is_hidden(name) and not name.endswith(WEIGHT_SUFFIXES)
    )
    return list(in_natural_order(found))


def select(
    names: Collection[str],
    load_format: LoadFormat,
    rules: Rules,
    want: Want,
    read_index: ReadIndex,
    *,
    component: bool,
) -> Selection:
    """Return the weight files that the loader reads from a folder with these `names`.

    Includes missing files that an index, or a name like `model-00001-of-00004`, promises, if
    the user does `want` them. `read_index` gets one of `names` and returns None if that file is
    unusable. In a component folder the index may have any name, and variants (`fp16`) count
    only if there is nothing else. `load_format` is not ALL, which takes every file. Raises what
    `read_index` raises.
    """
    weights: Sequence[str] = [name for name in names if _may_be_weight(name) and want(name)]
    if component:
        weights = _without_variants(weights)
        if load_format is LoadFormat.AUTO:
            load_format = LoadFormat.HF  # the other formats are for whole checkpoints
    folder = _Candidates(names, weights, functools.cache(read_index), component=component)
    families = rules.of_format(load_format)
    if not families:
        return Selection(load_format, (), None)
    family = (
        next(filter(folder.has, families), None)
        or next(filter(folder.leads_on, families), None)
        or _promised(families, folder)
    )
    resolved = family.load_format if load_format is LoadFormat.AUTO else load_format
    found = folder.files(family)
    # Servers that do not go by an index do not look at a stale one either. Where there are files,
    # their numbers say what is missing.
    index = folder.index(family) if family.index_decides or not found else None
    wanted = filter(want, _loaded(family, found, index))
    return Selection(resolved, in_order(wanted, rules.order), index)


def select_by_index(name: str, index: Index, rules: Rules, want: Want) -> Selection:
    """Return the weight files that the index `name` lists."""
    families = (family for family in rules.families if family.index == name)
    load_format = next((family.load_format for family in families), LoadFormat.HF)
    return Selection(load_format, in_order(filter(want, index.shards), rules.order), index)


@dataclass(frozen=True)
class _Candidates:
    """The names in one folder, by family."""

    names: Collection[str]
    weights: Sequence[str]  # that may be weights and that the user wants
    read_index: ReadIndex
    component: bool

    def files(self, family: Family) -> list[str]:
        """Return the weight files of a family that exist."""
        if not self._counts(family):
            return []
        found = [
            name
            for name in self.weights
            if _matches(name, family.patterns) and not _matches(name, family.never)
        ]
        return _without_consolidated(found, family, has_index=self._index_name(family) is not None)

    def index(self, family: Family) -> Index | None:
        """Return the index of a family, or None if it has no usable one."""
        name = self._index_name(family)
        return None if name is None else self.read_index(name)

    def has(self, family: Family) -> bool:
        """Return whether a loader finds this family here."""
        return bool(self.files(family)) or (not family.patterns and self.index(family) is not None)

    def leads_on(self, family: Family) -> bool:
        """Return whether the index of this family names files in folders below.

        An index is often downloaded even when its weights are not.
        """
        index = self.index(family) if family.index_decides else None
        return index is not None and any("/" in shard for shard in index.shards)

    def _counts(self, family: Family) -> bool:
        return not (
            (family.only_with and not fnmatch.filter(self.names, family.only_with))
            or (family.not_with and fnmatch.filter(self.names, family.not_with))
        )

    def _index_name(self, family: Family) -> str | None:
        if family.index is None or family.index in self.names:
            return family.index
        if not self.component:
            return None
        found = {
            name
            for pattern in family.patterns
            for name in _without_variants(fnmatch.filter(self.names, pattern + INDEX_SUFFIX))
        }
        return found.pop() if len(found) == 1 else None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _without_consolidated(found: list[str], family: Family, *, has_index: bool) -> list[str]:
    """Return the files less those that a server leaves out beside others."""
    if family.consolidated is Consolidated.NEVER:
        return [name for name in found if "consolidated" not in name] or found
    if family.consolidated is Consolidated.NOT_AS_ONE_OF_TWO and not has_index and len(found) == 2:
        first, second = sorted(found)
        if first.endswith("consolidated.safetensors") and second.endswith("model.safetensors"):
            return [second]
    return found


def _without_variants(names: Sequence[str]) -> Sequence[str]:
    """Return the names that are not variants, or all if there are only variants."""
    return [name for name in names if not _VARIANT.fullmatch(name)] or names


def _promised(families: Sequence[Family], folder: _Candidates) -> Family:
    """Return the first family that has an index, though no files.

    Mistral's comes last: no server looks at that index where its files are not there.
    """
    last = sorted(families, key=lambda family: family.load_format is LoadFormat.MISTRAL)
    return next((family for family in last if folder.index(family)), last[0])


def _loaded(family: Family, found: Sequence[str], index: Index | None) -> Collection[str]:
    if index is not None:
        return index.shards
    if family.load_format is LoadFormat.SHARDED_STATE:
        return {*found, *missing_ranks(found)}
    return {*found, *missing_numbers(found)}


def _may_be_weight(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) and not is_hidden(name)


def in_order(names: Iterable[str], order: Order) -> tuple[str, ...]:
    """Return the names in the order in which a server opens them."""
    return in_natural_order(names) if order is Order.NATURAL else tuple(sorted(names))
