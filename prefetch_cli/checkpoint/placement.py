"""Which tensors a node needs, by their names: pure.

What is not sure is needed: too much costs time, too little costs the point. The partition of layers
over pipeline stages is vLLM 0.33's get_pp_indices() (distributed/utils.py), or SGLang 0.5's, which
puts the remainder elsewhere; experts lie as in vLLM's determine_expert_map() with linear placement.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.config import Config

LEFT_OUT = "!"  # begins a glob of tensors that are not needed

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|blk)\.([0-9]{1,6})\.")
_EXPERT = re.compile(r"(?:^|\.)experts\.([0-9]{1,6})\.")
# Layers before such a word belong to no pipeline of the language model: a vision tower, or heads
# that predict more tokens, may have as many. `v`, `a` and `mm` are llama.cpp's towers, and
# `transformer.encoder` is what ChatGLM calls its decoder.
_TOWER = re.compile(
    r"vis|image|audio|speech|(?<!\btransformer\.)encoder|tower|talker|mtp|draft|eagle|2wav|projector|connector"
    r"|resampler|aligner|(?:^|\.)(?:v|a|mm)\."
)
_PARTITIONS = {Server.SGLANG: "SGLANG_PP_LAYER_PARTITION"}
_PARTITION = "VLLM_PP_LAYER_PARTITION"


@dataclass(frozen=True)
class Ranks:
    """Pipeline stages, or ranks, from one to another, both included, of so many."""

    first: int  # from 0
    last: int
    count: int

    def __str__(self) -> str:
        """Return it as one writes it: `0/2`, `0-3/8`."""
        numbers = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{numbers}/{self.count}"


class Span(NamedTuple):
    """Numbers from one to another, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        """Return it as one writes it: `0-7`."""
        return f"{self.first}-{self.last}"


class Needs(NamedTuple):
    """Which tensors are needed; by default all."""

    globs: tuple[str, ...] = ()  # on names; what one of LEFT_OUT matches is not needed
    stage: Ranks | None = None
    experts: Ranks | Span | None = None
    inferred: bool = False  # from COMMAND
    touched: bool = True  # with the bytes that a loader reads of tensors of other stages


EVERYTHING = Needs()


class Place(NamedTuple):
    """What the name of a tensor says of it."""

    wanted: bool  # by the globs
    tower: tuple[str, str]  # its folder, and what precedes the number of its layer
    layer: int | None
    expert: int | None


class Numbers(NamedTuple):
    """Layers or experts that are needed, of so many."""

    needed: range
    total: int


def _is_elsewhere(number: int | None, of: Numbers | None) -> bool:
    """Return whether only other nodes need this layer or expert.

    Layers behind the last are heads that predict more tokens: all need these.
    """
    if number is None or of is None or number >= of.total:
        return False
    return number not in of.needed


class Placement(NamedTuple):
    """Which layers and experts are needed; None: whatever their number."""

    layers: Numbers | None = None
    tower: tuple[str, str] = ("", "")  # whose layers these are
    experts: Numbers | None = None
    doubts: tuple[str, ...] = ()  # why something is needed whatever its number, in words

    def needs(self, place: Place) -> bool:
        """Return whether a tensor is needed."""
        if not place.wanted:
            return False
        if place.tower == self.tower and _is_elsewhere(place.layer, self.layers):
            return False
        return not _is_elsewhere(place.expert, self.experts)

    def is_of_other_stages(self, place: Place) -> bool:
        """Return whether a tensor would be needed if its layer were of this stage."""
        return not self.needs(place) and self._replace(layers=None).needs(place)


def place_of(name: str, globs: Collection[str] = (), folder: str = "") -> Place:
    """Return what a name says, of a tensor in a folder of the checkpoint."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    return Place(
        wanted=_wanted(name, globs),
        tower=(folder, "" if layer is None else name[: layer.start(1)]),
        layer=None if layer is None else int(layer[1]),
        expert=None if expert is None else int(expert[1]),
    )


def _wanted(name: str, globs: Collection[str]) -> bool:
    """Return whether the globs leave a tensor in; one that leaves out wins."""
    left_out = [glob.removeprefix(LEFT_OUT) for glob in globs if glob.startswith(LEFT_OUT)]
    if any(fnmatch.fnmatchcase(name, glob) for glob in left_out):
        return False
    takes = [glob for glob in globs if not glob.startswith(LEFT_OUT)]
    return not takes or any(fnmatch.fnmatchcase(name, glob) for glob in takes)


def placement(
    needs: Needs,
    places: Iterable[Place],
    config: Config,
    server: Server | None,
    environ: Mapping[str, str],
) -> Placement:
    """Return which layers and experts of a model are needed, of all its tensors' places.

    Raises UsageError where the variable that partitions the layers does not fit them.
    """
    found = list(places)
    doubts: list[str] = []
    tower, layers = ("", ""), None
    if needs.stage is not None:
        lengths: dict[tuple[str, str], int] = {}
        for place in found:
            if place.layer is not None:
                lengths[place.tower] = max(lengths.get(place.tower, 0), place.layer + 1)
        counted = _decoder(lengths, config)
        if counted is None:
            doubts.append("how many layers the model has is not sure: those of all stages are read")
        else:
            tower, total = counted
            layers = Numbers(layers_of(needs.stage, total, server, environ), total)
    experts = None
    if needs.experts is not None:
        total = max((one.expert + 1 for one in found if one.expert is not None), default=0)
        if total == 0:
            doubts.append("no tensor carries the number of an expert: all experts are read")
        elif isinstance(needs.experts, Span):
            first, behind = needs.experts.first, needs.experts.last + 1
            experts = Numbers(range(min(first, total), min(behind, total)), total)
        elif config.experts not in (None, total):
            doubts.append(
                f"config.json has {config.experts} experts, the names have {total}: all are read"
            )
        else:
            experts = Numbers(experts_of(needs.experts, total), total)
    return Placement(layers, tower, experts, tuple(doubts))


def _decoder(
    lengths: Mapping[tuple[str, str], int], config: Config
) -> tuple[tuple[str, str], int] | None:
    """Return what precedes the numbers of the language model's layers, and how many it has.

    None where that is not sure: config.json and the names must agree on one.
    """
    towers = {tower: length for tower, length in lengths.items() if not _TOWER.search(tower[1])}
    if not config.layers:
        return next(iter(towers.items())) if len(towers) == 1 else None
    fits = [
        (tower, count)
        for tower, length in towers.items()
        for count in config.layers
        if count <= length <= count + max(0, config.next_layers)
    ]
    return fits[0] if len(fits) == 1 else None


def layers_of(
    stages: Ranks,
    layers: int,
    server: Server | None = None,
    environ: Mapping[str, str] | None = None,
) -> range:
    """Return the layers of pipeline stages; raises UsageError."""
    variable = _PARTITIONS.get(server or Server.VLLM, _PARTITION)
    listed = (environ or {}).get(variable)
    if listed and not (server is Server.SGLANG and stages.count == 1):
        parts = _partition(variable, listed, stages.count, layers)
    else:
        each, rest = divmod(layers, stages.count)
        # The last `rest` stages have one more: in vLLM, without the very last one.
        last = 0 if server is Server.SGLANG else 1
        end = stages.count - last
        parts = [each + (end - rest <= one < end) for one in range(stages.count)]
    return range(sum(parts[: stages.first]), sum(parts[: stages.last + 1]))


def _partition(variable: str, listed: str, stages: int, layers: int) -> list[int]:
    texts = [text.strip() for text in listed.split(",")]
    parts = [int(text) for text in texts if re.fullmatch("[0-9]{1,6}", text)]
    if len(parts) != len(texts) or len(parts) != stages or sum(parts) != layers:
        raise UsageError(
            f"{variable}: expected {stages:,} numbers of layers, {layers:,} in all, "
            f"found {printable(listed[:80])}",
            f"correct or unset {variable}: the server refuses it too",
        )
    return parts


def experts_of(ranks: Ranks, experts: int) -> range:
    """Return the experts of ranks: the first ranks have one more."""
    each, rest = divmod(experts, ranks.count)
    behind = ranks.last + 1
    return range(
        ranks.first * each + min(ranks.first, rest),
        behind * each + min(behind, rest),
    )
