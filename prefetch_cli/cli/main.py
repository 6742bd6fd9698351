"""The edge: the words of a command line -> a run -> its exit code."""

import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from prefetch_cli import __version__
from prefetch_cli.base.errors import PrefetchError, UsageError
from prefetch_cli.base.text import printable
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX, PROGRAM, Command, options
from prefetch_cli.linux.exit import leave

_SEE_HELP = f"see {PROGRAM} --help"


@click.pass_context
def _run(ctx: click.Context, /, **values: Any) -> int:
    # Here, since `--help` need not pay for what only a run needs.
    from prefetch_cli.cli import meaning  # noqa: PLC0415
    from prefetch_cli.process import beside, supervisor  # noqa: PLC0415

    typed, words = _typed(ctx), ctx.obj or ()
    values = meaning.settled(values, typed, words)
    terms = meaning.to_terms(values, typed, words)
    options = meaning.to_options(values, typed, words, os.environ)
    display = meaning.to_display(values, beside_command=terms is not None)
    if terms is None:
        return supervisor.supervise(options, os.environ, display)
    return beside.accompany(
        terms, display, lambda audience: supervisor.supervise(options, os.environ, audience)
    )


def _typed(ctx: click.Context) -> set[str]:
    """Return the names of the parameters that the command line gave."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}


command = Command(
    PROGRAM,
    params=options(),
    callback=_run,
    add_help_option=False,
    context_settings={"auto_envvar_prefix": ENVIRONMENT_PREFIX, "show_default": True},
    help=(
        "Warm a model checkpoint into the page cache before a server maps it, and prove that "
        "it stayed there.\n\n"
        "CHECKPOINT is a directory, a weight file, an index file, or a repo id in the local "
        "cache of a hub. Nothing is ever downloaded, or written to a checkpoint.\n\n"
        "With COMMAND, the process becomes it, and the warming goes on beside it.\n\n"
        f"Every option also comes from the environment, as {ENVIRONMENT_PREFIX}_THREADS=16."
    ),
)


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of the command with these arguments, every error shown in one line."""
    given = arguments
    arguments, behind = _parted(arguments)
    try:
        if instruction := os.environ.get(f"_{ENVIRONMENT_PREFIX}_COMPLETE"):
            from prefetch_cli.cli import completion  # noqa: PLC0415 - only a shell asks for it

            return completion.answer(instruction, given, command)
        if behind == ():
            raise UsageError("expected a COMMAND behind --, found nothing", _SEE_HELP)
        code = command.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=behind)
        return int(code or 0)
    except click.ClickException as error:
        return _refuse(arguments, _reworded(error))
    except PrefetchError as error:
        return _refuse(arguments, error)
    except Exception as defect:  # noqa: BLE001 - the boundary: nobody else would say it in one line
        return _refuse(arguments, _reported(defect), defect)


def _parted(arguments: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """Return what stands before the first `--` and what behind it, None where there is none.

    click would drop it, and COMMAND has options of its own.
    """
    given = list(arguments)
    if "--" not in given:
        return given, None
    place = given.index("--")
    return given[:place], tuple(given[place + 1 :])


def _refuse(given: Sequence[str], error: PrefetchError, defect: BaseException | None = None) -> int:
    """Return the exit code of a run that came to nothing, having shown why."""
    from prefetch_cli.cli import meaning  # noqa: PLC0415 - as in `_run`

    # Whatever is wrong with the rest: who asked for JSON reads the answer there.
    ctx = command.make_context(
        PROGRAM, list(given), resilient_parsing=True, ignore_unknown_options=True
    )
    return meaning.refuse(meaning.settled(ctx.params, _typed(ctx)), error, defect)


def _reworded(error: click.ClickException) -> UsageError:
    """Return click's error in the form of all others: what was expected, what was found."""
    hint = _SEE_HELP
    if isinstance(error, click.NoSuchOption):
        names = [name for param in command.params for name in param.opts]
        near = [name for name in names if name.startswith(error.option_name)]
        near += difflib.get_close_matches(error.option_name, names, n=1, cutoff=0.75)
        if near:
            hint = f"did you mean {near[0]}?"
        message = f"expected an option, found {error.option_name}"
    elif isinstance(error, click.BadOptionUsage):
        param = next(param for param in command.params if error.option_name in param.opts)
        found = "no value, found one" if getattr(param, "is_flag", False) else "a value, found none"
        message = f"{param.opts[-1]}: expected {found}"
    elif isinstance(error, click.BadParameter) and error.param is not None:
        message = _misfit(error, error.param)
    else:
        message = error.format_message()
    return UsageError(printable(" ".join(message.split())), hint)


def _misfit(error: click.BadParameter, param: click.Parameter) -> str:
    """Return what is wrong with a value, and where it comes from."""
    name = param.name or ""
    if error.ctx is None or error.ctx.get_parameter_source(name) is not ParameterSource.ENVIRONMENT:
        return f"{param.opts[-1]}: {error.message}"
    variable = param.envvar or f"{ENVIRONMENT_PREFIX}_{name.upper()}"
    if getattr(param, "is_flag", False):
        return f"{variable}: expected 1 or 0, found {os.environ.get(str(variable))!r}"
    return f"{variable}: {error.message}"


def _reported(defect: Exception) -> PrefetchError:
    """Return what is shown of an exception that no stage foresaw."""
    found = printable(" ".join(f"{type(defect).__name__}: {defect}".split()))
    if isinstance(defect, MemoryError):
        return PrefetchError(
            "expected more memory, found that the system gives none",
            "raise the limit (ulimit -v, or the cgroup's), or give fewer --threads",
        )
    # CPython has no type of its own for it.
    if isinstance(defect, RuntimeError) and "start new thread" in str(defect):
        return PrefetchError(
            "expected threads to read in, found that the system starts none",
            "raise the limit (ulimit -u, ulimit -v, or pids.max of the cgroup)",
        )
    if isinstance(defect, OSError):
        return PrefetchError(f"expected an answer from the system, found {found}")
    return PrefetchError(
        f"found a defect of {PROGRAM} {__version__}: {found}",
        "please report it, with what --verbose shows",
    )


def main() -> NoReturn:
    """End the process with the exit code of the command; never returns."""
    code = run(sys.argv[1:])
    # Threads that hang in the storage must not be waited for, as the interpreter's end would.
    leave(code)
