"""The words of a server -> which pipeline stages and experts this node has: pure.

Read in vLLM 0.33 (config/parallel.py: ranks are laid out as pipeline x tensor, and nodes take them
in a row) and SGLang 0.5.23 (entrypoints/engine.py, _calculate_rank_ranges()). Where ranks may lie
otherwise, nothing is said.
"""

from collections.abc import Callable, Mapping

from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.placement import EVERYTHING, Needs, Ranks
from prefetch_cli.commands.arguments import Named
from prefetch_cli.commands.syntaxes import Meaning

_MOST_DIGITS = 6
# Options with which ranks, or experts, may lie otherwise, or each file is read whole (`eager`), and
# their values with which that is not so.
_ELSEWHERE = {
    Meaning.DATA_SIZE: ("1",),
    Meaning.CONTEXT_SIZE: ("1",),
    Meaning.EXECUTOR: ("mp", "uni"),
    Meaning.STRATEGY: ("lazy", "prefetch", "torchao"),
    Meaning.CONFIG_FILE: (),
}
_EXPERTS_ELSEWHERE = {Meaning.EXPERT_PLACEMENT: ("linear",), Meaning.EXPERT_BALANCE: ()}


def needs(named: Named, server: Server) -> Needs:
    """Return what a server's words say that this node needs; EVERYTHING where that is not sure."""
    layout = _LAYOUTS.get(server)
    nodes, node = _number(named, Meaning.NODES, 1), _number(named, Meaning.NODE_RANK, 0)
    tensor = _number(named, Meaning.TENSOR_SIZE, 1)
    pipeline = _number(named, Meaning.PIPELINE_SIZE, 1)
    if layout is None or _is_elsewhere(named, _ELSEWHERE):
        return EVERYTHING
    if nodes is None or node is None or tensor is None or pipeline is None or node >= nodes:
        return EVERYTHING
    stages, ranks = layout(nodes, node, tensor, pipeline)
    if named.one(Meaning.EXPERT_PARALLEL) is None or _is_elsewhere(named, _EXPERTS_ELSEWHERE):
        ranks = None
    if stages is None and ranks is None:
        return EVERYTHING
    return Needs(stage=stages, experts=ranks, inferred=True)


def _number(named: Named, meaning: Meaning, default: int) -> int | None:
    """Return a number that words name, the default where they do not; None: it is no such thing."""
    text = named.one(meaning)
    if text is None:
        return None if meaning in named.values else default
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    number = int(text) if is_number else -1
    least = 0 if meaning is Meaning.NODE_RANK else 1
    return number if number >= least else None


def _is_elsewhere(named: Named, options: Mapping[Meaning, tuple[str, ...]]) -> bool:
    return any(
        meaning in named.values and named.one(meaning) not in values
        for meaning, values in options.items()
    )


_Layout = tuple[Ranks | None, Ranks | None]  # stages, tensor ranks; None: all, or not sure


def _vllm(nodes: int, node: int, tensor: int, pipeline: int) -> _Layout:
    each, rest = divmod(tensor * pipeline, nodes)
    if rest or each == 0:
        return None, None
    first, last = node * each, (node + 1) * each - 1
    stages = _some(first // tensor, last // tensor, pipeline)
    if first // tensor != last // tensor:
        return stages, None  # all ranks of one stage at least, or of parts of several
    return stages, _some(first % tensor, last % tensor, tensor)


def _sglang(nodes: int, node: int, tensor: int, pipeline: int) -> _Layout:
    if max(nodes, pipeline) % min(nodes, pipeline) or tensor % max(nodes // pipeline, 1):
        return None, None
    each = max(pipeline // nodes, 1)
    first = each * (node // max(nodes // pipeline, 1))
    # Its experts may lie anywhere: they are balanced, and held several times.
    return _some(first, first + each - 1, pipeline), None


def _some(first: int, last: int, count: int) -> Ranks | None:
    """Return some of several, None where that is all."""
    return None if (first, last) == (0, count - 1) else Ranks(first, last, count)


_LAYOUTS: Mapping[Server, Callable[[int, int, int, int], _Layout]] = {
    Server.VLLM: _vllm,
    Server.SGLANG: _sglang,
}
