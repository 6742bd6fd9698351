"""GGUF file names -> models, their parts, their projector, their quantisation: pure.

Names are paths below one folder. The rules of `org/name:QUANT` and of the projector were read in
llama.cpp (common/download.cpp) and in vLLM's GGUF plugin 0.0.5 (weight_utils.py, gguf_utils.py).
"""

import glob
import posixpath
import re
from collections.abc import Iterable, Sequence

from prefetch_cli.checkpoint.names import NUMBERED, in_natural_order, missing_numbers, natural_key

SUFFIX = ".gguf"

_PROJECTOR = "mmproj"
_NO_MODELS = (_PROJECTOR, "imatrix")
# Heads that predict tokens for a model that is loaded beside them.
_DRAFTS = ("mtp-", "eagle3-", "dflash-", "dspark-")

_LLAMA_CPP_DEFAULTS = ("Q4_K_M", "Q8_0")
_TAG = re.compile(r"[-.]([A-Za-z0-9_]+)$")
_DIGITS = re.compile(r"[0-9]{1,4}")
_QUANTISATION = re.compile(
    r"(?:.*?[-.])?((?:UD-)?(?:I?Q[0-9][A-Za-z0-9_]*|TQ[0-9]_[0-9]|[MN][XV]FP4[A-Za-z0-9_]*"
    r"|BF16|F16|F32|FP16|FP32))",
    re.IGNORECASE | re.DOTALL,
)


def parts(name: str) -> list[str]:
    """Return all parts of the split GGUF that `name` belongs to, or just `name`."""
    folder, last = posixpath.split(name)
    found = in_natural_order({last, *missing_numbers([last])})
    return [posixpath.join(folder, part) for part in found]


def models(names: Iterable[str]) -> dict[str, str]:
    """Return the first file of each GGUF model, by the glob that matches all its parts.

    Projectors, imatrices and draft heads are loaded beside a model. A head alone can be one.
    """
    found: dict[str, str] = {}
    for name in sorted(filter(may_be_model, names), key=natural_key):
        found.setdefault(_glob(name), name)
    whole = {glob: name for glob, name in found.items() if not _has(name, _DRAFTS)}
    return whole or found


def may_be_model(name: str) -> bool:
    """Return whether a GGUF file can be a model by its name."""
    return not _has(name, _NO_MODELS)


def quantisation(name: str) -> str | None:
    """Return the quantisation that a file name, or else its folder, carries at its end."""
    folder, _ = posixpath.split(name)
    for text in (_stem(name), posixpath.basename(folder)):
        if found := _QUANTISATION.fullmatch(text):
            return found[1]
    return None


def of_quantisation(models: Sequence[str], wanted: str) -> list[str]:
    """Return the models of a quantisation, the one that vLLM takes first.

    `wanted` is one by its name, in any case, or a file name, as Ollama allows. It is looked for
    in file names, then in those of folders. vLLM takes the path with the fewest dashes.
    """
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(wanted)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = (
        [name for name in models if posixpath.basename(name).lower() == wanted.lower()]
        or [name for name in models if word.search(_stem(name))]
        or [name for name in models if word.search(posixpath.dirname(name))]
    )
    return sorted(found, key=lambda name: (name.count("-"), name))


def llama_cpp_choice(models: Iterable[str], wanted: str | None) -> str | None:
    """Return the model that llama.cpp's `-hf org/name[:QUANT]` takes, None if there is none.

    It searches whole paths and takes the first: `F16` finds `BF16` too.
    """
    names = sorted(models)
    for tag in _LLAMA_CPP_DEFAULTS if wanted is None else (wanted,):
        pattern = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE)
        if found := next(filter(pattern.search, names), None):
            return found
    return names[0] if names and wanted is None else None


def is_projector(name: str) -> bool:
    """Return whether a GGUF file is a projector by its name."""
    return _has(name, (_PROJECTOR,))


def projector(projectors: Iterable[str], model: str) -> str | None:
    """Return which of the projectors goes with a model, None if none does.

    As llama.cpp chooses it: in the model's folder, or else the nearest above it; of several, the
    one whose bits are the closest to the model's.
    """
    folders = posixpath.dirname(model).split("/")
    bits = _bits(model)

    def far(name: str) -> tuple[int, int, str]:
        return -_depth(name), abs(_bits(name) - bits), name

    near = [name for name in projectors if folders[: _depth(name)] == _folders(name)]
    return min(near, key=far, default=None)


def _has(name: str, words: Iterable[str]) -> bool:
    last = posixpath.basename(name).lower()
    return any(word in last for word in words)


def _folders(name: str) -> list[str]:
    folder = posixpath.dirname(name)
    return folder.split("/") if folder else []


def _depth(name: str) -> int:
    return name.count("/")


def _stem(name: str) -> str:
    """Return the last part of a path without its suffix and the numbers of a split."""
    last = posixpath.basename(name)
    if part := NUMBERED.fullmatch(last):
        return part["base"].rstrip("-.")
    return last.removesuffix(SUFFIX)


def _bits(name: str) -> int:
    """Return the bits of a weight by the name: 4 for Q4_0, 16 for BF16, 0 where it does not say."""
    tag = _TAG.search(_stem(name))
    digits = _DIGITS.search(tag[1]) if tag else None
    return int(digits[0]) if digits else 0


def _glob(name: str) -> str:
    """Return the glob that matches all parts of the model that a GGUF file belongs to."""
    folder, last = posixpath.split(name)
    if part := NUMBERED.fullmatch(last):
        base, rest = glob.escape(part["base"]), glob.escape(part["rest"])
        last = f"{base}*-of-{part['total']}{rest}"
    else:
        last = glob.escape(last)
    return posixpath.join(glob.escape(folder), last)
