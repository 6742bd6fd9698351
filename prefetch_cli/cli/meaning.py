"""The values of the flags -> Options and a Display: what they mean together."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefetch_cli.base.errors import PrefetchError, UsageError
from prefetch_cli.base.words import (
    Action,
    Engine,
    Hub,
    LoadFormat,
    Overrule,
    ProgressMode,
    Split,
    Verbosity,
)
from prefetch_cli.checkpoint.resolve import Request
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.libraries.gather import Wanted
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.process.beside import Terms
from prefetch_cli.process.command import which
from prefetch_cli.run.options import Options
from prefetch_cli.run.outcome import Report, exit_code
from prefetch_cli.show.display import Display

Values = Mapping[str, Any]  # by the name of the parameter, each of the type of its flag

_ACTIONS = {"dry_run": Action.DRY_RUN, "check": Action.CHECK, "evict": Action.EVICT}
# What leaves nothing to run COMMAND beside, or wants its standard output.
_NOT_BESIDE = frozenset({*_ACTIONS, "json_document"})
_ONLY_BESIDE = ("lead", "best_effort", "libraries")
_EXCLUSIVE = (frozenset(_ACTIONS), frozenset({"quiet", "verbose"}))


def settled(values: Values, typed: Collection[str], command: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values without those that give way to one of the command line.

    `typed` names what the command line gave before `--`, and `command` is what stands behind it;
    the rest is of the environment or a default, which may have been set for other runs.
    """
    settled = dict(values)
    for group in _EXCLUSIVE:
        if not group.isdisjoint(typed):
            settled.update(dict.fromkeys(group - set(typed), False))
    if command:
        settled.update(dict.fromkeys(_NOT_BESIDE - set(typed), False))
    if "rank" in typed and "world_size" not in typed and values["rank"] == "auto":
        settled["world_size"] = None
    return settled


def to_options(
    values: Values, typed: Collection[str], command: Sequence[str], environ: Mapping[str, str]
) -> Options:
    """Return the options that the flags mean; raises UsageError where they exclude each other.

    Raises CommandError where COMMAND's libraries are wanted, and there is no such COMMAND.
    """
    rank, world_size = _ranks(values["rank"], values["world_size"])
    overrule = Overrule.NONE
    if values["force"]:
        overrule |= Overrule.FORCE
    if values["partial"]:
        overrule |= Overrule.PARTIAL
    return Options(
        action=_action(values),
        request=Request(
            arguments=tuple(values["checkpoints"]),
            hub=None if values["hub"] is None else Hub(values["hub"]),
            revision=values["revision"],
            cache_dir=values["cache_dir"],
            load_format=LoadFormat(values["load_format"]),
            filters=Filters(tuple(values["include"]), tuple(values["exclude"])),
            weights_only=values["weights_only"],
            allow_incomplete=values["allow_incomplete"],
        ),
        libraries=_libraries(values, typed, command, environ),
        rank=rank,
        world_size=world_size,
        split=Split(values["split"]),
        overrule=overrule,
        ram_threshold_percent=values["ram_threshold"],
        max_bytes=values["max_bytes"],
        threads=values["threads"],
        block_size_bytes=-(-values["block_size"] // PAGE_BYTES) * PAGE_BYTES,
        engine=Engine(values["engine"]),
        max_bytes_per_second=values["max_rate"],
        background=values["background"],
        beside_command=bool(command),
        time_limit_seconds=values["time_limit"],
        min_resident_percent=values["min_resident"],
    )


def to_terms(values: Values, typed: Collection[str], command: Sequence[str]) -> Terms | None:
    """Return what is to run beside the warming, None where no COMMAND was given.

    Raises UsageError where the flags exclude it, or mean nothing without it.
    """
    if not command:
        for name in _ONLY_BESIDE:
            if name in typed:
                raise UsageError(
                    f"expected a COMMAND with {_flag(name)}, found none",
                    "give it in the end, behind --",
                )
        return None
    for name in sorted(_NOT_BESIDE):
        if values[name]:
            raise UsageError(
                f"expected {_flag(name)} or COMMAND, found both",
                f"run {_flag(name)} by itself, without --",
            )
    return Terms(tuple(command), lead=values["lead"], best_effort=values["best_effort"])


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_document").replace("_", "-")


def to_display(values: Values, *, beside_command: bool = False) -> Display:
    """Return the display that the flags mean; raises UsageError where they exclude each other."""
    if values["quiet"] and values["verbose"]:
        raise UsageError("expected --quiet or --verbose, found both", "give one of them")
    verbosity = Verbosity.NORMAL
    if values["quiet"]:
        verbosity = Verbosity.QUIET
    elif values["verbose"]:
        verbosity = Verbosity.VERBOSE
    return Display(
        ProgressMode(values["progress"]),
        verbosity,
        json_document=values["json_document"],
        beside_command=beside_command,
    )


def _libraries(
    values: Values, typed: Collection[str], command: Sequence[str], environ: Mapping[str, str]
) -> Wanted | None:
    """Return what is to be warmed before the checkpoint, None where that is nothing."""
    of_command = values["libraries"] and bool(command)
    packages = bool(values["package"]) or of_command
    if "python" in typed and not packages:
        raise UsageError(
            "expected --package or --libraries with --python, found neither",
            "name what to warm with --package",
        )
    if not packages and not values["also"]:
        if not values["checkpoints"]:
            raise UsageError(
                "expected at least one CHECKPOINT, found none", "see prefetch-cli --help"
            )
        return None
    return Wanted(
        paths=tuple(values["also"]),
        packages=tuple(values["package"]),
        python=values["python"],
        command=(which(command[0], environ), *command[1:]) if packages and command else (),
        of_command=of_command,
    )


def _action(values: Values) -> Action:
    wanted = [action for flag, action in _ACTIONS.items() if values[flag]]
    if len(wanted) > 1:
        names = " and ".join(f"--{action.value}" for action in wanted)
        raise UsageError(f"expected one action, found {names}", "give one of them")
    return wanted[0] if wanted else Action.PREFETCH


def _ranks(rank: int | str | None, world_size: int | str | None) -> tuple[int | None, int | None]:
    """Return rank and world size as numbers, or None and None for the launcher's."""
    if rank is None and world_size is None:
        return 0, 1
    if rank == "auto" and world_size in {None, "auto"}:
        return None, None
    if not isinstance(rank, int) or not isinstance(world_size, int):
        found = " ".join(
            f"{flag} {value}"
            for flag, value in (("--rank", rank), ("--world-size", world_size))
            if value is not None
        )
        raise UsageError(
            f"expected --rank and --world-size as two numbers, or --rank auto, found {found}",
            "give both numbers",
        )
    if rank >= world_size:
        raise UsageError(
            f"--rank: expected a number below --world-size {world_size}, found {rank}",
            "ranks count from 0",
        )
    return rank, world_size


def refuse(values: Values, error: PrefetchError, defect: BaseException | None) -> int:
    """Return the exit code of a run that came to nothing, having shown why.

    The values may be some only, and exclude each other: that may be what is wrong.
    """
    wanted = [action for flag, action in _ACTIONS.items() if values.get(flag)]
    report = Report(wanted[0] if len(wanted) == 1 else Action.PREFETCH, error=error)
    display = Display(
        ProgressMode.NONE,
        Verbosity.VERBOSE if values.get("verbose") else Verbosity.NORMAL,
        json_document=bool(values.get("json_document")),
    )
    display.failed(report, defect)
    return exit_code(report)
