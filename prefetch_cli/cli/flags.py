"""The flags of the command."""

import sys
from typing import Any

import click

from prefetch_cli import __version__
from prefetch_cli.cli.types import AmountType, Count, Duration, OneOf, Percent, Several, Size
from prefetch_cli.show.streams import Stream

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


class _Option(click.Option):
    """An option that knows its group in `--help`."""

    def __init__(self, *args: Any, group: str, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.group = group


class Command(click.Command):
    """A command whose help is grouped and ends with examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
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
        """Write the examples."""
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


def options() -> list[click.Parameter]:
    """Return the parameters of the command."""
    return [
        click.Argument(["checkpoints"], metavar=_ARGUMENTS, nargs=-1),
        _Option(
            ["--load-format"],
            group="Checkpoint",
            type=OneOf("auto", "hf", "safetensors", "mistral", "pt", "npcache", "gguf", "all"),
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
            type=Several("glob"),
            multiple=True,
            help="Only files whose path below the checkpoint matches; repeatable.",
        ),
        _Option(
            ["--exclude"],
            group="Checkpoint",
            type=Several("glob"),
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
            type=OneOf("huggingface", "modelscope"),
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
            type=Several("path"),
            multiple=True,
            help="This file or directory too, before the weights; repeatable.",
        ),
        _Option(
            ["--package"],
            group="Libraries",
            type=Several("name"),
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
            type=Percent(1),
            default="90",
            metavar="PERCENT",
            help="Part of the available memory that a checkpoint may take, 1 to 100.",
        ),
        _Option(
            ["--max-bytes"],
            group="Decision",
            type=Size(),
            metavar="SIZE",
            help="An upper bound that is never passed, whatever else is given.",
        ),
        _Option(
            ["--rank"],
            group="Ranks",
            type=Count(0, auto=True),
            metavar="N|auto",
            help="This process among those of this node, 0 by default; auto asks the launcher.",
        ),
        _Option(
            ["--world-size"],
            group="Ranks",
            type=Count(1, auto=True),
            metavar="N|auto",
            help="How many processes of this node share the work, 1 by default.",
        ),
        _Option(
            ["--split"],
            group="Ranks",
            type=OneOf("auto", "files", "bytes"),
            metavar="HOW",
            default="auto",
            help="What is dealt out to the ranks: files, bytes, or auto: files where that is even.",
        ),
        _Option(
            ["-t", "--threads"],
            group="Reading",
            type=Count(1),
            default=8,
            metavar="N",
            help="Reading threads, at least 1.",
        ),
        _Option(
            ["-b", "--block-size"],
            group="Reading",
            type=Size(),
            default="16MiB",
            metavar="SIZE",
            help="Unit of work of a thread: 16MiB, 16M or 16777216.",
        ),
        _Option(
            ["--engine"],
            group="Reading",
            type=OneOf("auto", "advise", "splice", "read"),
            metavar="ENGINE",
            default="auto",
            help="How bytes get into the cache: advise, splice, read, or auto: what measures best.",
        ),
        _Option(
            ["--max-rate"],
            group="Reading",
            type=Size(),
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
            type=Duration(),
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
            type=Percent(0),
            metavar="PERCENT",
            help="Exit 4 when less is resident after warming, or with --check.",
        ),
        _Option(
            ["--lead"],
            group="Command",
            type=AmountType(),
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
            type=OneOf("auto", "bar", "log", "none"),
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
