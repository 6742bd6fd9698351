"""An outcome -> the text that Prometheus reads: pure.

The format is the one of https://prometheus.io/docs/instrumenting/exposition_formats/, without time
stamps, which node_exporter's textfile collector refuses.
"""

from collections.abc import Iterator, Mapping, Sequence

from prefetch_cli import __version__
from prefetch_cli.base.text import listing
from prefetch_cli.base.words import Action
from prefetch_cli.run.outcome import History, Outcome, exit_code
from prefetch_cli.run.states import Decided, Evicted, Looked, Proven, Read, Slid, Wanted

_PREFIX = "prefetch_cli_"

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]  # name, without the prefix

# Every metric with its help, in the order of the text. All are gauges.
HELP: Mapping[str, str] = {
    "info": "The version and the action of the last run; always 1.",
    "exit_code": "Exit code of the last run.",
    "complete": "Whether the last run did all that its decision meant to do: 1 or 0.",
    "duration_seconds": "How long the last run took.",
    "timestamp_seconds": "Unix time of the end of the last run.",
    "warnings": "Number of warnings of the last run.",
    "failed_files": "Files that could not be read or, with --evict, dropped.",
    "decision_info": "Action and reason of the decision; always 1.",
    "total_bytes": "Size of the files in this rank's share.",
    "resident_before_bytes": "What was resident of the share when the last run began.",
    "resident_bytes": "What was resident of the share when the last run ended.",
    "resident_low_bytes": "The fewest bytes that were: as many, except by a sample.",
    "resident_high_bytes": "The most bytes that were: as many, except by a sample.",
    "read_bytes": "What the last run read.",
    "read_seconds": "How long reading took.",
    "window_read_bytes": "What the last run read while a window moved.",
    "window_dropped_bytes": "What that window dropped behind the loader.",
    "evicted_bytes": "What the last run dropped from the page cache.",
}


def metrics(
    outcome: Outcome, asked: Sequence[str], *, ended_seconds: float, took_seconds: float
) -> str:
    """Return the metrics of a run that ended at a Unix time, after so many seconds.

    `asked` are the checkpoints as the user named them. They label every sample, as the rank does,
    so that the files of several runs can lie beside each other. What is not known has no sample.
    """
    wanted = outcome.checkpoint.get(Wanted)
    names = asked if wanted is None else wanted.found.names
    common = {
        "checkpoint": listing(names),
        "rank": "" if wanted is None else str(wanted.share.rank),
    }
    samples: list[Sample] = [
        ("info", {"version": __version__, "action": outcome.action.value}, 1),
        ("exit_code", {}, exit_code(outcome)),
        ("complete", {}, _is_complete(outcome)),
        ("duration_seconds", {}, round(took_seconds, 6)),
        ("timestamp_seconds", {}, round(ended_seconds, 3)),
        ("warnings", {}, len(outcome.warnings)),
    ]
    for part in (outcome.checkpoint, *outcome.beside):
        own = {"part": part.kind.name}
        samples += ((name, {**own, **more}, value) for name, more, value in _of(outcome, part))
    lines: list[str] = []
    for name, text in HELP.items():
        found = [(labels, value) for each, labels, value in samples if each == name]
        if found:
            lines += (f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} gauge")
            lines += (_line(name, {**common, **labels}, value) for labels, value in found)
    return "\n".join(lines) + "\n"


def _is_complete(outcome: Outcome) -> bool:
    reads = (part.get(Read) for part in outcome.parts)
    drops = (part.get(Evicted) for part in outcome.parts)
    return (
        outcome.error is None
        and outcome.signal is None
        and not outcome.failed
        and all(one.result.complete for one in reads if one is not None)
        and all(one.eviction.complete for one in drops if one is not None)
    )


def _of(outcome: Outcome, part: History) -> Iterator[Sample]:
    wanted, looked, decided = part.get(Wanted), part.get(Looked), part.get(Decided)
    if wanted is None:
        return
    yield "failed_files", {}, len(part.failed(outcome.action))
    yield "total_bytes", {}, wanted.share.size_bytes
    if decided is not None:
        decision = decided.decision
        labels = {"action": decision.action.value, "reason": decision.reason.value}
        yield "decision_info", labels, 1
    last = part.get(Proven) or looked
    if looked is not None and (size := looked.survey.resident_bytes) is not None:
        yield "resident_before_bytes", {}, size
    if last is not None and (size := last.survey.resident_bytes) is not None:
        yield "resident_bytes", {}, size
    if last is not None and (low := last.survey.low_bytes) is not None:
        yield "resident_low_bytes", {}, low
    if last is not None and (high := last.survey.high_bytes) is not None:
        yield "resident_high_bytes", {}, high
    if read := part.get(Read):
        yield "read_bytes", {}, read.result.bytes_read
        yield "read_seconds", {}, round(read.result.elapsed_seconds, 6)
    elif decided is not None and outcome.action is Action.PREFETCH:
        yield "read_bytes", {}, 0  # skipped, or ended before
    if slid := part.get(Slid):
        yield "window_read_bytes", {}, slid.slide.bytes_read
        yield "window_dropped_bytes", {}, slid.slide.dropped_bytes
    evicted = part.get(Evicted)
    if evicted is not None and (size := evicted.eviction.bytes_evicted) is not None:
        yield "evicted_bytes", {}, size


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    number = int(value) if value == int(value) else value
    return f"{_PREFIX}{name}{{{inside}}} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
