"""The values of the flags -> what a run takes: Options, Terms and a Display."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefetch_cli.base.errors import PrefetchError, UsageError
from prefetch_cli.base.words import (
    PROGRAM,
    Action,
    Overrule,
    ProgressMode,
    Terminator,
    Until,
    Verbosity,
    Which,
)
from prefetch_cli.checkpoint.placement import EVERYTHING, Needs
from prefetch_cli.checkpoint.request import Reference, Request
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.cli.flags import FLAGS, rivals
from prefetch_cli.cli.rules import Values
from prefetch_cli.libraries import gather
from prefetch_cli.linux.pagecache import PAGE_BYTES
from prefetch_cli.process.command import Terms, which
from prefetch_cli.process.record import Record
from prefetch_cli.reading.plan import AUTO_THREADS, Threads
from prefetch_cli.run.from_file import STANDARD_INPUT, FromFile
from prefetch_cli.run.options import Keep, Options, Window
from prefetch_cli.run.outcome import Outcome, Refused, exit_code
from prefetch_cli.show.display import Display

if TYPE_CHECKING:
    from prefetch_cli.commands.infer import Inferred


def to_options(values: Values, command: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Return the options that the flags mean.

    Raises UsageError where ranks do not fit together or there is nothing to warm, and
    CommandError where COMMAND's libraries are wanted and there is no such COMMAND.
    """
    rank, world_size = _ranks(values["rank"], values["world_size"])
    inferred = _inferred(command, environ) if command else None
    overrule = Overrule.NONE
    if values["force"]:
        overrule |= Overrule.FORCE
    if values["partial"]:
        overrule |= Overrule.PARTIAL
    if values["verify"]:
        overrule |= Overrule.VERIFY
    return Options(
        action=_action(values),
        request=_request(values, inferred),
        from_file=_from_file(values, inferred),
        libraries=_libraries(values, command, environ),
        rank=rank,
        world_size=world_size,
        overrule=overrule,
        threads=_threads(values["threads"]),
        block_size_bytes=-(-values["block_size"] // PAGE_BYTES) * PAGE_BYTES,
        beside_command=bool(command),
        keep=_keep(values, command),
        window=_window(values, command),
        **{flag.option: values[flag.parameter] for flag in FLAGS if flag.option},
    )


def _threads(asked: int | str) -> Threads:
    return AUTO_THREADS if isinstance(asked, str) else Threads.fixed(asked)


def to_terms(values: Values, command: Sequence[str]) -> Terms | None:
    """Return what to run beside the warming, None without a COMMAND."""
    if not command:
        return None
    return Terms(
        tuple(command),
        lead=values["lead"],
        best_effort=values["best_effort"],
        awaits_verdict=values["verify"] and not values["best_effort"],
    )


def to_display(values: Values, *, beside_command: bool = False) -> Display:
    """Return the display that the flags mean."""
    verbosity = Verbosity.NORMAL
    if values["quiet"]:
        verbosity = Verbosity.QUIET
    elif values["verbose"]:
        verbosity = Verbosity.VERBOSE
    return Display(
        values["progress"],
        verbosity,
        json_document=values["json"],
        beside_command=beside_command,
        terminator=Terminator.NUL if values["print0"] else Terminator.NEWLINE,
    )


def to_record(values: Values, options: Options) -> Record | None:
    """Return the file of metrics, None where none is wanted."""
    if values["metrics"] is None:
        return None
    return Record(values["metrics"], [one.argument for one in options.request.references])


def _inferred(command: Sequence[str], environ: Mapping[str, str]) -> "Inferred":
    from prefetch_cli.commands.infer import infer  # noqa: PLC0415 - only COMMAND needs it

    return infer(command, environ)


def _request(values: Values, inferred: "Inferred | None") -> Request:
    """Return the checkpoints that the user wants, else those that COMMAND reads.

    Raises UsageError where nothing is wanted and COMMAND does not tell what it reads.
    """
    request = Request(
        references=tuple(
            Reference(argument, values["revision"]) for argument in values["checkpoints"]
        ),
        server=values["server"],
        hub=values["hub"],
        cache_dir=values["cache_dir"],
        load_format=values["load_format"],
        filters=Filters(tuple(values["include"]), tuple(values["exclude"])),
        weights_only=values["weights_only"],
        allow_incomplete=values["allow_incomplete"],
        needs=_needs(values),
    )
    if values["from_file"] is not None:
        return request  # completed once the list is read
    if inferred is not None:
        from prefetch_cli.commands.infer import completed  # noqa: PLC0415 - as in `_inferred`

        request = completed(request, inferred, values["revision"])
    if request.references or _wants_others(values):
        return request
    if inferred is None:
        raise UsageError("expected at least one CHECKPOINT, found none", f"see {PROGRAM} --help")
    raise UsageError(
        f"expected CHECKPOINT, or a COMMAND that names it, found {inferred.problem}",
        "give CHECKPOINT in front of --",
    )


def _needs(values: Values) -> Needs | None:
    """Return which tensors the user wants, None where that is not said."""
    globs, stage, experts = tuple(values["tensors"]), values["stage"], values["experts"]
    if not globs and stage is None and experts is None:
        return EVERYTHING if values["verify"] else None  # a digest is of a whole file
    needs = Needs(
        globs,
        None if stage is Which.ALL else stage,
        None if experts is Which.ALL else experts,
    )
    if values["evict"] and needs != EVERYTHING:
        # Of a large folio, the kernel drops all or nothing: a page of another stage takes 2 MiB.
        return needs._replace(touched=False)
    return needs


def _from_file(values: Values, inferred: "Inferred | None") -> FromFile | None:
    """Return the list of further checkpoints, None where there is none.

    Raises UsageError for one on standard input, which COMMAND inherits unread.
    """
    path = values["from_file"]
    if path is None:
        return None
    if path == STANDARD_INPUT and inferred is not None:
        raise UsageError(
            "--from-file: expected a file, found -, which COMMAND reads", "write the list to a file"
        )
    return FromFile(path, values["revision"], inferred)


def _wants_others(values: Values) -> bool:
    """Return whether anything beside a checkpoint is wanted."""
    return bool(values["also"] or values["package"] or values["libraries"])


def _libraries(
    values: Values, command: Sequence[str], environ: Mapping[str, str]
) -> gather.Request | None:
    """Return what to warm before the checkpoint, None where that is nothing."""
    if not _wants_others(values):
        return None
    packages = bool(values["package"] or values["libraries"])
    return gather.Request(
        paths=tuple(values["also"]),
        packages=tuple(values["package"]),
        python=values["python"],
        command=(which(command[0], environ), *command[1:]) if packages and command else (),
        of_command=values["libraries"],
    )


def _keep(values: Values, command: Sequence[str]) -> Keep | None:
    """Return how long to keep what is warm, None where that is not asked for."""
    until, lock = values["keep"], values["lock"]
    if until is None:
        return None
    return Keep(
        seconds=None if until is Until.LOAD else until,
        command_pid=os.getpid() if command else None,  # this process becomes COMMAND
        lock=lock,
        best_effort=values["best_effort"],
    )


def _window(values: Values, command: Sequence[str]) -> Window | None:
    """Return the window that may move ahead of COMMAND's loader, None where there cannot be one."""
    asked = values["window"]
    if not command or (asked is None and _excludes_window(values)):
        return None
    return Window(
        size_bytes=asked if isinstance(asked, int) else None,
        command_pid=os.getpid(),  # this process becomes COMMAND
        given=asked is not None,
    )


def _excludes_window(values: Values) -> bool:
    (window,) = (flag for flag in FLAGS if flag.parameter == "window")
    names = rivals(window)
    return any(values[flag.parameter] != flag.unset for flag in FLAGS if flag.name in names)


def _action(values: Values) -> Action:
    """Return the action, the default one where a refused command line has several."""
    wanted = [action for action in Action if values.get(action.value.replace("-", "_"))]
    return wanted[0] if len(wanted) == 1 else Action.PREFETCH


def _ranks(rank: int | str | None, world_size: int | str | None) -> tuple[int | None, int | None]:
    """Return rank and world size, or None and None where the launcher is asked."""
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
    """Return the exit code of a run that failed, having shown why.

    Values may be missing, or exclude each other: that may be the error.
    """
    outcome = Outcome(_action(values), ending=Refused(error))
    as_json = values.get("progress") is ProgressMode.JSON
    display = Display(
        ProgressMode.JSON if as_json else ProgressMode.NONE,
        Verbosity.VERBOSE if values.get("verbose") else Verbosity.NORMAL,
        json_document=bool(values.get("json")),
    )
    if values.get("metrics"):
        names = [name for name in values.get("checkpoints") or () if not name.startswith("-")]
        record = Record(values["metrics"], names)
        if (problem := record.write(outcome)) is not None:
            display.warn(problem)
    display.failed(outcome, defect)
    return exit_code(outcome)
