"""The edge: click's flags -> a run -> exit code. The only module that knows click."""

import difflib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from prefetch_cli import __version__
from prefetch_cli.errors import PrefetchError, UsageError
from prefetch_cli.leaving import leave
from prefetch_cli.sizes import Amount, parse_amount, parse_duration, parse_size
from prefetch_cli.streams import Stream
from prefetch_cli.text import printable

PROGRAM = "prefetch-cli"
ENVIRONMENT_PREFIX = "PREFETCH_CLI"

GROUPS = ("Checkpoint", "Libraries", "Decision", "Ranks", "Reading", "Actions", "Command", "Output")

EXAMPLES = (
    ("Before a server, in a job script", f"{PROGRAM} /models/Llama-3.1-70B"),
    ("Each rank of a node its share", f"srun {PROGRAM} --rank auto /models/Llama-3.1-70B"),
    ("What would be done, for a script", f"{PROGRAM} --dry-run --json org/name"),
)

_ARGUMENTS = "CHECKPOINT... [-- COMMAND [ARG]...]"
_TERM_COLUMNS = 26  # of the options in the help: the same in each group
_MOST = 1_000_000  # threads or ranks; more is a slip of the keyboard
_SEE_HELP = f"see {PROGRAM} --help"


class _Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Duration(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Amount(click.ParamType):  # type: ignore[type-arg]
    name = "amount"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Amount:
        try:
            return parse_amount(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Percent(click.ParamType):  # type: ignore[type-arg]
    name = "percent"

    def __init__(self, least: float) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not self._least <= percent <= 100:
            self.fail(f"expected {self._least:g} to 100, found {str(value)!r}", param, ctx)
        return percent


class _Count(click.ParamType):  # type: ignore[type-arg]
    name = "number"

    def __init__(self, least: int, *, auto: bool = False) -> None:
        self._least = least
        self._auto = auto

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if self._auto and text == "auto":
            return "auto"
        expected = f"a whole number of at least {self._least}"
        # int() refuses thousands of digits.
        number = int(text[:20]) if text.isascii() and text.isdecimal() else -1
        if number > _MOST:
            expected = f"at most {_MOST:,}"
        elif number >= self._least:
            return number
        or_auto = " or auto" if self._auto else ""
        return self.fail(f"expected {expected}{or_auto}, found {text!r}", param, ctx)


class _OneOf(click.Choice):  # type: ignore[type-arg]
    """One of some words, which are the values of an enum that `--help` need not load."""

    def __init__(self, *words: str) -> None:
        super().__init__(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            words = f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
            self.fail(f"expected {words}, found {value!r}", param, ctx)
        return str(value)


class _Several(click.ParamType):  # type: ignore[type-arg]
    """A text that may be given several times."""

    # How several stand in one environment variable.
    envvar_list_splitter = os.pathsep

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class _Option(click.Option):
    """An option that knows its group in `--help`."""

    def __init__(self, *args: Any, group: str, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.group = group


class _Command(click.Command):
    """A command whose help is grouped and ends with examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            rows = [
                (f"{record[0]:<{_TERM_COLUMNS}}", record[1])
                for param in self.params
                if isinstance(param, _Option)
                and param.group == group
                and (record := param.get_help_record(ctx)) is not None
            ]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=_TERM_COLUMNS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for title, line in EXAMPLES:
                formatter.write_text(f"{title}:")
                with formatter.indentation():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _print_help(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not ctx.resilient_parsing:
        Stream(sys.stdout).write(f"{ctx.get_help()}\n")
        ctx.exit()


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if wanted and not ctx.resilient_parsing:
        Stream(sys.stdout).write(f"{PROGRAM} {__version__}\n")
        ctx.exit()


def _options() -> list[click.Parameter]:
    return [
        click.Argument(["checkpoints"], metavar=_ARGUMENTS, nargs=-1),
        _Option(
            ["--load-format"],
            group="Checkpoint",
            type=_OneOf("auto", "hf", "safetensors", "mistral", "pt", "npcache", "gguf", "all"),
            metavar="FORMAT",
            default="auto",
            help=(
                "Which weight files count, by vLLM's rules: auto, hf, safetensors, mistral, pt, "
                "npcache, gguf or all."
            ),
        ),
        _Option(
            ["--include"],
            group="Checkpoint",
            type=_Several("glob"),
            multiple=True,
            help="Only files whose path below the checkpoint matches; repeatable.",
        ),
        _Option(
            ["--exclude"],
            group="Checkpoint",
            type=_Several("glob"),
            multiple=True,
            help="No files whose path below the checkpoint matches; repeatable.",
        ),
        _Option(
            ["--weights-only"],
            group="Checkpoint",
            is_flag=True,
            help="Leave config and tokenizer files out.",
        ),
        _Option(
            ["--allow-incomplete"],
            group="Checkpoint",
            is_flag=True,
            help="Warm what is there although files are missing or cut short.",
        ),
        _Option(
            ["--hub"],
            group="Checkpoint",
            type=_OneOf("huggingface", "modelscope"),
            metavar="HUB",
            help="Whose local cache a repo id is looked up in: huggingface or modelscope.",
        ),
        _Option(
            ["--revision"],
            group="Checkpoint",
            metavar="REV",
            help="Branch, tag or commit of a repo id; the main one by default.",
        ),
        _Option(
            ["--cache-dir"],
            group="Checkpoint",
            metavar="DIR",
            help="The hub's cache that a repo id is looked up in.",
        ),
        _Option(
            ["--also"],
            group="Libraries",
            type=_Several("path"),
            multiple=True,
            help="This file or directory too, before the weights; repeatable.",
        ),
        _Option(
            ["--package"],
            group="Libraries",
            type=_Several("name"),
            multiple=True,
            help="The libraries of this Python distribution and of what it requires; repeatable.",
        ),
        _Option(
            ["--python"],
            group="Libraries",
            metavar="PYTHON",
            help="Whose packages are meant; by default COMMAND's interpreter, else python3.",
        ),
        _Option(
            ["--libraries"],
            group="Libraries",
            is_flag=True,
            help="The libraries of the distribution that COMMAND belongs to.",
        ),
        _Option(
            ["-f", "--force"],
            group="Decision",
            is_flag=True,
            help="Read even where the decision would skip.",
        ),
        _Option(
            ["--partial"],
            group="Decision",
            is_flag=True,
            help="Where it does not fit, read the first bytes in load order, up to the budget.",
        ),
        _Option(
            ["--ram-threshold"],
            group="Decision",
            type=_Percent(1),
            default="90",
            metavar="PERCENT",
            help="Part of the available memory that a checkpoint may take, 1 to 100.",
        ),
        _Option(
            ["--max-bytes"],
            group="Decision",
            type=_Size(),
            metavar="SIZE",
            help="An upper bound that is never passed, whatever else is given.",
        ),
        _Option(
            ["--rank"],
            group="Ranks",
            type=_Count(0, auto=True),
            metavar="N|auto",
            help="This process among those of this node, 0 by default; auto asks the launcher.",
        ),
        _Option(
            ["--world-size"],
            group="Ranks",
            type=_Count(1, auto=True),
            metavar="N|auto",
            help="How many processes of this node share the work, 1 by default.",
        ),
        _Option(
            ["--split"],
            group="Ranks",
            type=_OneOf("auto", "files", "bytes"),
            metavar="HOW",
            default="auto",
            help="What is dealt out to the ranks: files, bytes, or auto: files where that is even.",
        ),
        _Option(
            ["-t", "--threads"],
            group="Reading",
            type=_Count(1),
            default=8,
            metavar="N",
            help="Reading threads, at least 1.",
        ),
        _Option(
            ["-b", "--block-size"],
            group="Reading",
            type=_Size(),
            default="16MiB",
            metavar="SIZE",
            help="Unit of work of a thread: 16MiB, 16M or 16777216.",
        ),
        _Option(
            ["--engine"],
            group="Reading",
            type=_OneOf("auto", "advise", "splice", "read"),
            metavar="ENGINE",
            default="auto",
            help="How bytes get into the cache: advise, splice, read, or auto: what measures best.",
        ),
        _Option(
            ["--max-rate"],
            group="Reading",
            type=_Size(),
            metavar="SIZE",
            help="Read at most so many bytes a second.",
        ),
        _Option(
            ["--background"],
            group="Reading",
            is_flag=True,
            help="Give way to others: lowest priority for the processor and, where heeded, disks.",
        ),
        _Option(
            ["--time-limit"],
            group="Reading",
            type=_Duration(),
            metavar="DURATION",
            help="Stop reading after 90s, 5m, 1h30m or 01:30:00, and exit 0.",
        ),
        _Option(
            ["-n", "--dry-run"],
            group="Actions",
            is_flag=True,
            help="Print facts, decision, share and plan; read no weight.",
        ),
        _Option(["--check"], group="Actions", is_flag=True, help="Print how much is resident."),
        _Option(
            ["--evict"],
            group="Actions",
            is_flag=True,
            help="Drop the checkpoint from the page cache.",
        ),
        _Option(
            ["--min-resident"],
            group="Actions",
            type=_Percent(0),
            metavar="PERCENT",
            help="Exit 4 when less is resident after warming, or with --check.",
        ),
        _Option(
            ["--lead"],
            group="Command",
            type=_Amount(),
            default="0",
            metavar="SIZE|PERCENT",
            help="Start COMMAND when so much is warm: 8GiB, 25%.",
        ),
        _Option(
            ["--best-effort"],
            group="Command",
            is_flag=True,
            help="Start COMMAND even where the checkpoint is missing, incomplete or malformed.",
        ),
        _Option(
            ["--json", "json_document"],
            group="Output",
            is_flag=True,
            envvar=f"{ENVIRONMENT_PREFIX}_JSON",
            help="One JSON document on standard output, nothing else there.",
        ),
        _Option(
            ["--progress"],
            group="Output",
            type=_OneOf("auto", "bar", "log", "none"),
            metavar="HOW",
            default="auto",
            help="bar, log (a line each 10 %), none, or auto: bar on a terminal, else log.",
        ),
        _Option(["-q", "--quiet"], group="Output", is_flag=True, help="Errors only."),
        _Option(["-v", "--verbose"], group="Output", is_flag=True, help="Each file too."),
        _Option(
            ["--version"],
            group="Output",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=_print_version,
            help="Print the version.",
        ),
        _Option(
            ["-h", "--help"],
            group="Output",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            allow_from_autoenv=False,
            callback=_print_help,
            help="Print this help.",
        ),
    ]


@click.pass_context
def _run(ctx: click.Context, /, **values: Any) -> int:
    # Here, since `--help` need not pay for what only a run needs.
    from prefetch_cli import arguments, companion, supervisor  # noqa: PLC0415

    typed, beside = _typed(ctx), ctx.obj or ()
    values = arguments.settled(values, typed, beside)
    terms = arguments.to_terms(values, typed, beside)
    options = arguments.to_options(values, typed, beside, os.environ)
    display = arguments.to_display(values, beside_command=terms is not None)
    if terms is None:
        return supervisor.supervise(options, os.environ, display)
    return companion.accompany(
        terms, display, lambda audience: supervisor.supervise(options, os.environ, audience)
    )


def _typed(ctx: click.Context) -> set[str]:
    """Return the names of the parameters that the command line gave."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is ParameterSource.COMMANDLINE}


command = _Command(
    PROGRAM,
    params=_options(),
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
    arguments, behind = _parted(arguments)
    try:
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
    from prefetch_cli import arguments  # noqa: PLC0415 - as in `_run`

    # Whatever is wrong with the rest: who asked for JSON reads the answer there.
    ctx = command.make_context(
        PROGRAM, list(given), resilient_parsing=True, ignore_unknown_options=True
    )
    return arguments.refuse(arguments.settled(ctx.params, _typed(ctx)), error, defect)


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
