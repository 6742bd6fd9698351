"""The edge: the words of a command line -> a run -> its exit code."""

import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from prefetch_cli import __version__
from prefetch_cli.base.errors import PrefetchError, UsageError
from prefetch_cli.base.stop import Stop
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import PROGRAM
from prefetch_cli.cli.command import build
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX, FLAGS
from prefetch_cli.cli.rules import Given
from prefetch_cli.linux.exit import leave

if TYPE_CHECKING:
    from prefetch_cli.show.audience import Audience

_MOST_IGNORED = 64
_SEE_HELP = f"see {PROGRAM} --help"


@click.pass_context
def _run(ctx: click.Context, /, **values: Any) -> int:
    # Imported here because `--help` need not pay for what only a run needs.
    from prefetch_cli.cli import meaning  # noqa: PLC0415
    from prefetch_cli.process import supervisor  # noqa: PLC0415
    from prefetch_cli.process.record import Recorded  # noqa: PLC0415

    given = Given(values, _typed(ctx), ctx.obj or ()).effective()
    given.check()
    terms = meaning.to_terms(given.values, given.command)
    options = meaning.to_options(given.values, given.command, os.environ)
    display = meaning.to_display(given.values, beside_command=terms is not None)
    record = meaning.to_record(given.values, options)

    def warm(audience: "Audience") -> int:
        stop = Stop(options.time_limit_seconds)
        watching = audience if record is None else Recorded(audience, record, stop)
        return supervisor.supervise(options, os.environ, watching, stop)

    if terms is None:
        return warm(display)
    from prefetch_cli.process import beside  # noqa: PLC0415

    return beside.accompany(terms, display, warm)


def _typed(ctx: click.Context) -> set[str]:
    """Return the names of the parameters that the command line gave."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}


command = build(_run)


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; every error is shown in one line."""
    given = arguments
    arguments, after = _split_at_command(arguments)
    try:
        if instruction := os.environ.get(f"_{ENVIRONMENT_PREFIX}_COMPLETE"):
            from prefetch_cli.cli import completion  # noqa: PLC0415 - only a shell asks for it

            return completion.answer(instruction, given)
        if after == ():
            raise UsageError("expected a COMMAND after --, found nothing", _SEE_HELP)
        code = command.main(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=after)
        return int(code or 0)
    except click.ClickException as error:
        return _refuse(arguments, _reworded(error))
    except PrefetchError as error:
        return _refuse(arguments, error)
    except Exception as defect:
        # The one place where errors become one line.
        from prefetch_cli.linux.shortage import is_shortage  # noqa: PLC0415 - as in `_reported`

        if after and is_shortage(defect):
            raise  # COMMAND starts without us (see `__main__`)
        return _refuse(arguments, _reported(defect), defect)


def _split_at_command(arguments: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """Return what precedes the first `--` and what follows it, None where there is no `--`.

    click would drop the `--` and parse COMMAND's options as ours.
    """
    given = list(arguments)
    if "--" not in given:
        return given, None
    place = given.index("--")
    return given[:place], tuple(given[place + 1 :])


def _refuse(given: Sequence[str], error: PrefetchError, defect: BaseException | None = None) -> int:
    """Return the exit code of a run that failed, having shown why."""
    from prefetch_cli.cli import meaning  # noqa: PLC0415 - as in `_run`

    # Parse leniently: whatever else is wrong, --json must still get its answer as JSON.
    ctx = command.make_context(
        PROGRAM, list(given), resilient_parsing=True, ignore_unknown_options=True
    )
    values = Given(ctx.params, _typed(ctx)).effective().values
    return meaning.refuse(values, error, defect)


def _reworded(error: click.ClickException) -> UsageError:
    """Return click's error in our form: what was expected, what was found."""
    hint = _SEE_HELP
    if isinstance(error, click.NoSuchOption):
        import difflib  # noqa: PLC0415 - 5 ms that other runs save

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
    """Return what is wrong with a value, and where the value comes from."""
    flag = next(flag for flag in FLAGS if flag.parameter == param.name)
    source = error.ctx and error.ctx.get_parameter_source(flag.parameter)
    if source is not ParameterSource.ENVIRONMENT:
        return f"{flag.name}: {error.message}"
    if flag.value is None:
        return f"{flag.variable}: expected 1 or 0, found {os.environ.get(flag.variable)!r}"
    return f"{flag.variable}: {error.message}"


def _reported(defect: Exception) -> PrefetchError:
    """Return what to show of an exception that no stage handled."""
    from prefetch_cli.linux.shortage import is_shortage  # noqa: PLC0415 - only errors need it

    found = printable(" ".join(f"{type(defect).__name__}: {defect}".split()))
    # Python has no exception class for it.
    if isinstance(defect, RuntimeError) and "start new thread" in str(defect):
        return PrefetchError(
            "expected to start threads, found that the system refuses",
            "raise the limit (ulimit -u, ulimit -v, or the cgroup's pids.max)",
        )
    if is_shortage(defect):
        from prefetch_cli.process import without_memory  # noqa: PLC0415

        return PrefetchError(without_memory.MESSAGE, without_memory.HINT)
    if isinstance(defect, OSError):
        return PrefetchError(f"expected an answer from the system, found {found}")
    return PrefetchError(
        f"found a defect of {PROGRAM} {__version__}: {found}",
        "please report it, with the output of --verbose",
    )


def main() -> NoReturn:
    """End the process with the command's exit code; never returns."""
    # What Python cannot raise is shown at the end, but not that a thread found no memory to begin:
    # that counts as refused (see linux/threads.py). A function of ours might find none either.
    ignored: deque[sys.UnraisableHookArgs] = deque(maxlen=_MOST_IGNORED)
    sys.unraisablehook = ignored.append
    code = run(sys.argv[1:])
    for one in ignored:
        if not issubclass(one.exc_type, MemoryError):
            sys.__unraisablehook__(one)
    # A normal interpreter exit would wait for threads that hang in the storage.
    leave(code)
