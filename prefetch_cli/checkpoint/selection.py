"""The names in a folder -> those that a loader reads, by vLLM's rules: pure.

The rules come from vllm/model_executor/model_loader (default_loader.py, weight_utils.py) in
release 0.33, and for component folders from diffusers and sentence-transformers.
"""

import fnmatch
import functools
import glob
import itertools
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefetch_cli.base.words import LoadFormat
from prefetch_cli.checkpoint.index import Index

INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")

# Training loops save these beside the weights; no server reads them.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_WEIGHT_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_SIDE_GLOBS = ("*.json", "tokenizer*", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py")
_SIDE = re.compile("|".join(map(fnmatch.translate, _SIDE_GLOBS)))

_MOST_MISSING = 10_000  # a hostile name may promise a billion parts

_DIGITS = re.compile(r"([0-9]+)")
_NUMBERED = re.compile(
    r"(?P<base>.*?)(?P<number>[0-9]{1,9})-of-(?P<total>[0-9]{1,9})(?P<rest>.*)", re.DOTALL
)
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


@dataclass(frozen=True)
class _Family:
    """Weight files that are loaded together, and the index that may list them."""

    pattern: str
    index: str | None = None
    # A folder may hold the same weights in two layouts. vLLM reads only the safetensors files
    # that the index names, but every file of other formats.
    index_decides: bool = False


_SAFETENSORS = _Family("*.safetensors", "model.safetensors.index.json", index_decides=True)
_MISTRAL = _Family(
    "consolidated*.safetensors", "consolidated.safetensors.index.json", index_decides=True
)
_BIN = _Family("*.bin", "pytorch_model.bin.index.json")
_PT = _Family("*.pt")
_GGUF = _Family("*.gguf")

# The first family of a format that has files is loaded.
_FAMILIES = {
    LoadFormat.HF: (_SAFETENSORS, _BIN, _PT),
    LoadFormat.SAFETENSORS: (_SAFETENSORS,),
    LoadFormat.MISTRAL: (_MISTRAL,),
    LoadFormat.PT: (_PT,),
    LoadFormat.NPCACHE: (_BIN,),
    LoadFormat.GGUF: (_GGUF,),
}


def natural_key(path: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return the sort key of vLLM's order: by file name, `model-2` before `model-10`."""
    name = posixpath.basename(path)
    parts: list[str | tuple[int, str]] = [*_DIGITS.split(name)]
    # This compares like numbers do, without int()'s limit on digits.
    parts[1::2] = [
        (len(digits), digits) for digits in (part.lstrip("0") for part in _DIGITS.findall(name))
    ]
    return parts, path


def side_files(names: Iterable[str]) -> list[str]:
    """Return the config and tokenizer files among `names`, in natural order."""
    found = (
        name
        for name in names
        if _SIDE.match(name) and not _is_hidden(name) and not name.endswith(WEIGHT_SUFFIXES)
    )
    return sorted(found, key=natural_key)


def select(
    names: Collection[str],
    load_format: LoadFormat,
    want: Want,
    read_index: ReadIndex,
    *,
    component: bool,
) -> Selection:
    """Return the weight files that the loader reads from a folder with these `names`.

    Includes missing files that an index, or a name like `model-00001-of-00004`, promises, if
    the user does `want` them. `read_index` gets one of `names` and returns None if that file is
    unusable. In a component folder the index may have any name, and variants (`fp16`) count
    only if there is nothing else. Raises what `read_index` raises.
    """
    weights: Sequence[str] = [name for name in names if _may_be_weight(name) and want(name)]
    if component and load_format is not LoadFormat.ALL:
        weights = _without_variants(weights)
    folder = _Candidates(names, weights, functools.cache(read_index), component=component)
    load_format = _resolved_format(load_format, folder)
    if load_format is LoadFormat.ALL:
        return Selection(load_format, _in_load_order(filter(want, _everything(folder))), None)
    families = _FAMILIES[load_format]
    family = next((one for one in families if folder.has(one)), None) or _promised(families, folder)
    index = folder.index(family)
    loaded = _loaded(family, folder.files(family), index)
    return Selection(load_format, _in_load_order(filter(want, loaded)), index)


def select_by_index(name: str, index: Index, want: Want) -> Selection:
    """Return the weight files that the index `name` lists."""
    load_format = LoadFormat.MISTRAL if name == _MISTRAL.index else LoadFormat.HF
    return Selection(load_format, _in_load_order(filter(want, index.shards)), index)


def gguf_parts(name: str) -> list[str]:
    """Return all parts of the split GGUF that `name` belongs to, or just `name`."""
    return list(_in_load_order({name, *_missing_numbers([name])}))


def gguf_models(names: Iterable[str]) -> dict[str, str]:
    """Return the first file of each GGUF model, by the glob that matches all its parts.

    A projector (mmproj) is loaded beside its model and is not one itself.
    """
    models: dict[str, str] = {}
    for name in sorted(names, key=natural_key):
        if "mmproj" not in name.lower():
            models.setdefault(_gguf_glob(name), name)
    return models


@dataclass(frozen=True)
class _Candidates:
    """The names in one folder, by family."""

    names: Collection[str]
    weights: Sequence[str]  # that may be weights and that the user wants
    read_index: ReadIndex
    component: bool

    def files(self, family: _Family) -> list[str]:
        """Return the weight files of a family that exist."""
        return fnmatch.filter(self.weights, family.pattern)

    def index(self, family: _Family) -> Index | None:
        """Return the index of a family, or None if it has no usable one."""
        name = self._index_name(family)
        return None if name is None else self.read_index(name)

    def has(self, family: _Family) -> bool:
        """Return whether a loader finds this family: files here, or folders in its index."""
        if self.files(family):
            return True
        index = self.index(family) if family.index_decides else None
        return index is not None and _leads_to(index, ())

    def _index_name(self, family: _Family) -> str | None:
        if family.index is None or family.index in self.names:
            return family.index
        if not self.component:
            return None
        found = _without_variants(fnmatch.filter(self.names, family.pattern + INDEX_SUFFIX))
        return found[0] if len(found) == 1 else None


def _without_variants(names: Sequence[str]) -> Sequence[str]:
    """Return the names that are not variants, or all if there are only variants."""
    return [name for name in names if not _VARIANT.fullmatch(name)] or names


def _resolved_format(load_format: LoadFormat, folder: _Candidates) -> LoadFormat:
    if load_format is not LoadFormat.AUTO:
        return load_format
    if folder.component:
        return LoadFormat.HF  # the other formats are for whole checkpoints
    if folder.files(_MISTRAL):
        return LoadFormat.MISTRAL
    families = _FAMILIES[LoadFormat.HF]
    if not any(map(folder.has, families)):
        if folder.files(_GGUF):
            return LoadFormat.GGUF
        if folder.index(_MISTRAL) and not any(map(folder.index, families)):
            return LoadFormat.MISTRAL
    return LoadFormat.HF


def _promised(families: Sequence[_Family], folder: _Candidates) -> _Family:
    """Return the first family that has an index, though no files."""
    return next((family for family in families if folder.index(family)), families[0])


def _loaded(family: _Family, found: Sequence[str], index: Index | None) -> Collection[str]:
    if index is None:
        return {*found, *_missing_numbers(found)}
    return index.shards if family.index_decides else {*found, *index.shards}


def _everything(folder: _Candidates) -> Collection[str]:
    """Return every weight file, and those that names and indexes promise."""
    found = set(folder.weights)
    loaded = {*found, *_missing_numbers(found)}
    for name in folder.names:
        index = folder.read_index(name) if name.endswith(_WEIGHT_INDEX_SUFFIXES) else None
        if index is not None and _leads_to(index, found):
            loaded.update(index.shards)
    return loaded


def _leads_to(index: Index, found: Collection[str]) -> bool:
    """Return whether an index names one of these files, or any in another folder.

    An index is often downloaded even when its weights are not.
    """
    return any("/" in shard or shard in found for shard in index.shards)


def _may_be_weight(name: str) -> bool:
    return (
        name.endswith(WEIGHT_SUFFIXES) and not name.endswith(_NOT_WEIGHTS) and not _is_hidden(name)
    )


def _is_hidden(name: str) -> bool:
    # Loaders' globs skip these; macOS leaves `._model.safetensors` in archives.
    return name.startswith(".")


def _in_load_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=natural_key))


def _missing_numbers(names: Iterable[str]) -> Iterator[str]:
    """Yield the missing names that ones like `-00002-of-00004` promise, up to a bound."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        if part := _NUMBERED.fullmatch(name):
            key = (part["base"], part["total"], part["rest"])
            sets.setdefault(key, []).append(part["number"])
    return itertools.islice(_gaps(sets), _MOST_MISSING)


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


def _gguf_glob(name: str) -> str:
    """Return the glob that matches all parts of the model that a GGUF file belongs to."""
    if part := _NUMBERED.fullmatch(name):
        base, rest = glob.escape(part["base"]), glob.escape(part["rest"])
        return f"{base}*-of-{part['total']}{rest}"
    return glob.escape(name)
