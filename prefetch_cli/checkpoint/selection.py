"""The names in a folder -> those that a loader reads, by its server's rules: pure.

The rules of component folders come from diffusers and sentence-transformers; see `servers`.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint.families import plain_families, variant_families, variant_of
from prefetch_cli.checkpoint.index import Index
from prefetch_cli.checkpoint.names import (
    in_natural_order,
    is_hidden,
    lone_numbers,
    missing_numbers,
    missing_ranks,
)
from prefetch_cli.checkpoint.servers import (
    Consolidated,
    Family,
    Order,
    Rules,
)

INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".bin", ".pt", ".pth", ".tensors", ".distcp", ".engine", ".plan"),
    *(".onnx", ".onnx_data", ".onnx.data", ".npz"),
)

_SIDE_GLOBS = ("*.json", "tokenizer*", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py")
_SIDE = re.compile("|".join(map(fnmatch.translate, _SIDE_GLOBS)))

# The other formats are for whole checkpoints.
_COMPONENT_FORMATS = {LoadFormat.AUTO, LoadFormat.HF, LoadFormat.SAFETENSORS}

Want = Callable[[str], bool]
ReadIndex = Callable[[str], Index | None]


class Filters(NamedTuple):
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

    def leaves_out(self, folder: str, names: Iterable[str]) -> bool:
        """Return whether the user means to leave out this folder, in which files have these names.

        That is so if an `exclude` matches the folder itself, or has a slash and matches what is in
        it, or if each `include` begins with the name of another folder.
        """
        inside = [f"{folder}/", *(f"{folder}/{name}" for name in names)]
        excluded = any(
            fnmatch.fnmatchcase(path, pattern)
            for pattern in self.exclude
            for path in (inside if "/" in pattern else inside[:1])
        )
        first = folder.partition("/")[0]
        return excluded or (
            bool(self.include)
            and all(
                "/" in pattern and not fnmatch.fnmatchcase(first, pattern.partition("/")[0])
                for pattern in self.include
            )
        )


@dataclass(frozen=True)
class Selection:
    """The weight files of one folder in load order, whether they exist or not."""

    load_format: LoadFormat  # resolved: never AUTO
    weights: tuple[str, ...]
    index: Index | None
    # Names like `model-00001-of-00004` that neither an index nor another file of the set backs.
    lone: tuple[str, ...] = ()


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
    unusable; an index none of whose shards the user wants does not count. In a component folder
    variants (`fp16`) count only if there is nothing else, and the index may have any name.
    `load_format` is not ALL, which takes every file. Raises what `read_index` raises.
    """
    if component and load_format in _COMPONENT_FORMATS:
        return _select_component(names, load_format, rules, want, read_index)
    if component:
        names = _without_variants(list(filter(want, names)))
    folder = _Candidates(names, want, functools.cache(read_index), component=component)
    return _selected(folder, rules.of_format(load_format), load_format, rules.order)


def _select_component(
    names: Collection[str],
    load_format: LoadFormat,
    rules: Rules,
    want: Want,
    read_index: ReadIndex,
) -> Selection:
    """Return the weight files of a component: the plain ones, else those of all variants."""
    variants: dict[str, list[str]] = {"": []}
    for name in sorted(names):
        variants.setdefault(variant_of(name), []).append(name)
    read = functools.cache(read_index)
    others = (*rules.of_format(LoadFormat.HF), *rules.of_format(LoadFormat.ONNX))
    resolved = LoadFormat.HF if load_format is LoadFormat.AUTO else load_format
    chosen = []
    for variant, own in variants.items():
        folder = _Candidates(own, want, read, component=True)
        families = variant_families(variant) if variant else plain_families(others)
        if load_format is LoadFormat.SAFETENSORS:
            families = tuple(filter(_is_of_safetensors, families))
        chosen.append(_selected(folder, families, resolved, rules.order))
    plain, *rest = chosen
    # An index is often downloaded even when its weights are not.
    if not set(plain.weights).isdisjoint(names):
        return plain
    there = [one for one in rest if not set(one.weights).isdisjoint(names)]
    if not there:
        return next((one for one in chosen if one.weights), plain)
    weights = (name for one in there for name in one.weights)
    index = there[0].index if len(there) == 1 else None
    return Selection(resolved, in_order(weights, rules.order), index)


def _selected(
    folder: "_Candidates", families: Sequence[Family], load_format: LoadFormat, order: Order
) -> Selection:
    """Return the weight files of the first family that the folder has."""
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
    lone = [] if index is not None else folder.lone(family)
    loaded = set(_loaded(family, found, index, lone))
    loaded.update(folder.beside(family) if found else ())
    wanted = in_order(filter(folder.want, loaded), order)
    promised = any(map(folder.want, missing_numbers(lone)))
    return Selection(resolved, wanted, index, tuple(lone) if promised else ())


def select_by_index(name: str, index: Index, rules: Rules, want: Want) -> Selection:
    """Return the weight files that the index `name` lists."""
    families = (family for family in rules.families if family.index == name)
    load_format = next((family.load_format for family in families), LoadFormat.HF)
    return Selection(load_format, in_order(filter(want, index.shards), rules.order), index)


@dataclass(frozen=True)
class _Candidates:
    """The names in one folder, by family."""

    names: Collection[str]
    want: Want
    read_index: ReadIndex
    component: bool

    @functools.cached_property
    def weights(self) -> list[str]:
        """The names that may be weights and that the user wants."""
        return [name for name in self.names if _may_be_weight(name) and self.want(name)]

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
        """Return the index of a family, or None if it has none that is usable and wanted."""
        name = self._index_name(family)
        index = None if name is None else self.read_index(name)
        return index if index is not None and any(map(self.want, index.shards)) else None

    def beside(self, family: Family) -> list[str]:
        """Return the names of what is read along with a family that is here."""
        return [name for name in self.names if _matches(name, family.beside)]

    def lone(self, family: Family) -> list[str]:
        """Return the files of a family whose name alone promises that there are more."""
        # The header of a split GGUF promises the same.
        if family.load_format is LoadFormat.GGUF or self._index_name(family) is not None:
            return []
        numbered = [name for name in self.names if _matches(name, family.patterns)]
        return sorted(set(lone_numbers(numbered)).intersection(self.files(family)))

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
            for name in fnmatch.filter(self.names, pattern + INDEX_SUFFIX)
        }
        return found.pop() if len(found) == 1 else None


def _is_of_safetensors(family: Family) -> bool:
    return any(".safetensors" in name for name in (*family.patterns, family.index or ""))


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


def _without_variants(names: Collection[str]) -> Collection[str]:
    """Return the names that are not variants, or all if the only weights are variants."""
    plain = [name for name in names if not variant_of(name)]
    return plain if any(map(_may_be_weight, plain)) else names


def _promised(families: Sequence[Family], folder: _Candidates) -> Family:
    """Return the first family that has an index, though no files.

    Mistral's comes last: no server looks at that index where its files are not there.
    """
    last = sorted(families, key=lambda family: family.load_format is LoadFormat.MISTRAL)
    return next((family for family in last if folder.index(family)), last[0])


def _loaded(
    family: Family, found: Sequence[str], index: Index | None, lone: Collection[str]
) -> Collection[str]:
    if index is not None:
        return index.shards
    if family.load_format is LoadFormat.SHARDED_STATE:
        return {*found, *missing_ranks(found)}
    return {*found, *missing_numbers(name for name in found if name not in lone)}


def _may_be_weight(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) and not is_hidden(name)


def in_order(names: Iterable[str], order: Order) -> tuple[str, ...]:
    """Return the names in the order in which a server opens them."""
    return in_natural_order(names) if order is Order.NATURAL else tuple(sorted(names))
