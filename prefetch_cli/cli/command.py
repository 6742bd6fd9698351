"""The records of the flags -> the command that click parses, and its help."""

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from prefetch_cli import __version__
from prefetch_cli.base.words import PROGRAM
from prefetch_cli.cli.flags import ENVIRONMENT_PREFIX, EXAMPLES, FLAGS, GROUPS, Flag
from prefetch_cli.cli.types import Value
from prefetch_cli.show.streams import Stream

_ARGUMENTS = "[CHECKPOINT]... [-- COMMAND [ARG]...]"
_TERM_COLUMNS = 26  # of the options in the help: the same in each group
_ABOUT = (
    "Warm a model checkpoint into the page cache before a server maps it, and prove that it stayed "
    "there.\n\n"
    "CHECKPOINT is a directory, a weight file, an index file, or a repo id in a hub's local cache. "
    "Nothing is ever downloaded, or written to a checkpoint.\n\n"
    "With COMMAND, the process becomes COMMAND and the warming goes on beside it. "
    "If COMMAND is a server that is known, CHECKPOINT may be left out.\n\n"
    f"Every option can also come from the environment, as {ENVIRONMENT_PREFIX}_THREADS=16."
)


class _Type(click.ParamType):  # type: ignore[type-arg]
    """A value as click asks for it."""

    # Separates the values of one environment variable.
    envvar_list_splitter = os.pathsep

    def __init__(self, value: Value) -> None:
        self.name = value.metavar.lower()
        self._value = value

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return the parsed value; a wrong one fails in words for the user."""
        try:
            return self._value.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Option(click.Option):
    """An option that keeps its record."""

    def __init__(self, flag: Flag) -> None:
        more: dict[str, Any] = {"help": flag.help}
        if flag.value:
            more.update(
                type=_Type(flag.value),
                metavar=flag.metavar,
                multiple=flag.repeatable,
                default=flag.default,
            )
        else:
            more.update(is_flag=True)
        if flag.at_once:
            more.update(
                is_eager=True,
                expose_value=False,
                allow_from_autoenv=False,
                callback=_print_at_once,
            )
        super().__init__([*flag.names, flag.parameter], **more)
        self.flag = flag


class Command(click.Command):
    """A command whose help is grouped and ends with examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        for group in GROUPS:
            rows = [
                (f"{record[0]:<{_TERM_COLUMNS}}", record[1])
                for param in self.params
                if isinstance(param, _Option)
                and param.flag.group == group
                and (record := param.get_help_record(ctx)) is not None
            ]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=_TERM_COLUMNS)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for title, line in EXAMPLES:
                formatter.write_text(f"{title}:")
                with formatter.indentation():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def build(run: Callable[..., int], flags: tuple[Flag, ...] = FLAGS) -> Command:
    """Return the command with these flags, which calls `run` with its click context."""
    return Command(
        PROGRAM,
        params=[
            click.Argument(["checkpoints"], metavar=_ARGUMENTS, nargs=-1),
            *map(_Option, flags),
        ],
        callback=run,
        add_help_option=False,
        context_settings={"auto_envvar_prefix": ENVIRONMENT_PREFIX, "show_default": True},
        help=_ABOUT,
    )


def _print_at_once(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    if not wanted or ctx.resilient_parsing:
        return
    text = f"{PROGRAM} {__version__}" if param.name == "version" else ctx.get_help()
    Stream(sys.stdout).write(f"{text}\n")
    ctx.exit()
