"""Write man page, option table and README's tables from the command itself: `make man`."""

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from man.content import (
    CAVEATS,
    DATE,
    DECISION_RULES,
    DECISIONS,
    DESCRIPTION,
    DIAGNOSTICS,
    ENVIRONMENT,
    EXIT_CODES,
    FILES,
    MORE_EXAMPLES,
    NOTHING_TO_GAIN,
    SEE_ALSO,
)
from prefetch_cli import __version__
from prefetch_cli.base.words import PROGRAM
from prefetch_cli.cli.flags import EXAMPLES, FLAGS, GROUPS, Flag, rivals
from prefetch_cli.plan.decision import Verdict

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAN_PAGE = os.path.join(_ROOT, "man", f"{PROGRAM}.1")
OPTIONS = os.path.join(_ROOT, "man", "options.md")
README = os.path.join(_ROOT, "README.md")

Flags = tuple[Flag, ...]

_OPTIONS_HEAD = f"""\
# Options

Written by `make man` from the command itself. `man {PROGRAM}` has the details of each.
"""


# README


def readme(text: str, flags: Flags = FLAGS) -> str:
    """Return README's text with what stands between each pair of markers written anew.

    Raises ValueError where a marker is missing.
    """
    for name, table in (
        ("options", _option_groups(flags)),
        ("decision", _decision_table()),
        ("exit-codes", _exit_code_table()),
    ):
        text = _between_markers(text, name, table)
    return text


def _between_markers(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: by `make man` -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected {begin.strip()} and {end} in README, found neither or one")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _option_groups(flags: Flags) -> str:
    lines = ["| | |", "| --- | --- |"]
    for group in GROUPS:
        names = (_code(flag.name) for flag in flags if flag.group == group)
        lines.append(f"| {group} | {' '.join(names)} |")
    return _table(lines)


def _decision_table() -> str:
    lines = ["| Found | Given | Action | `decision.reason` |", "| --- | --- | --- | --- |"]
    for row in DECISIONS:
        given = _code(row.given) if row.given.startswith("-") else row.given
        action = f"**{row.action.value}**" if row.action is not Verdict.SKIP else row.action.value
        warns = ", with a warning" if row.warns else ""
        lines.append(f"| {row.found} | {given} | {action}{warns} | `{row.reason.value}` |")
    return _table(lines)


def _exit_code_table() -> str:
    lines = ["| Code | Meaning |", "| --- | --- |"]
    lines += [f"| {_code(code)} | {text} |" for code, text in EXIT_CODES.items()]
    return _table(lines)


def _table(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _marked(text: str) -> str:
    """Return Markdown with each flag in the sentence as code."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z0-9-]*", lambda match: _code(match[0]), text)


# The options, for whoever reads them without man(1)


def option_table(flags: Flags = FLAGS) -> str:
    """Return the options with their meanings, in Markdown."""
    lines = ["| Option | Default | Meaning |", "| --- | --- | --- |"]
    for group in GROUPS:
        lines.append(f"| **{group}** | | |")
        for flag in flags:
            if flag.group == group:
                *short, name = flag.names
                names = [*short, f"{name} {flag.metavar}".strip()]
                default = _code(flag.default) if flag.default else ""
                text = _cell(_marked(flag.help))
                lines.append(f"| {', '.join(map(_code, names))} | {default} | {text} |")
    return f"{_OPTIONS_HEAD}\n{_table(lines)}"


# The man page, in man(7)


def man_page(flags: Flags = FLAGS) -> str:
    """Return the source of the man page."""
    return "\n".join(_man_lines(flags)) + "\n"


def _man_lines(flags: Flags) -> Iterator[str]:
    yield r".\" Written by man/generate.py from the command itself: change that, then `make man`."
    yield f'.TH {PROGRAM.upper()} 1 {DATE} "{PROGRAM} {__version__}" "User Commands"'
    yield ".SH NAME"
    yield rf"{_escaped(PROGRAM)} \- warm a model checkpoint into the page cache"
    yield ".SH SYNOPSIS"
    yield rf".B {_escaped(PROGRAM)}"
    yield r"[\fIOPTION\fR]... [\fICHECKPOINT\fR]... [\-\- \fICOMMAND\fR [\fIARG\fR]...]"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(DESCRIPTION)
    yield ".SH OPTIONS"
    for group in GROUPS:
        yield f".SS {group}"
        for flag in flags:
            if flag.group == group:
                yield from _man_option(flag, flags)
    yield ".SH DECISION"
    yield from _decision()
    yield ".SH ENVIRONMENT"
    yield from _environment(flags)
    yield ".SH FILES"
    yield from _entries(FILES)
    yield ".SH EXIT STATUS"
    yield from _entries(EXIT_CODES)
    yield ".SH EXAMPLES"
    yield from _examples()
    yield ".SH DIAGNOSTICS"
    yield from _prose("In brackets: the exit code of a run without any other fault.")
    yield from _entries(
        {f"{re.sub(r'[{}]', '', one.said)} [{one.exit_code}]": one.meaning for one in DIAGNOSTICS}
    )
    yield ".SH SEE ALSO"
    yield from _see_also()
    yield ".SH CAVEATS"
    yield from _prose(CAVEATS)


def _man_option(flag: Flag, flags: Flags) -> Iterator[str]:
    names = ", ".join(rf"\fB{_escaped(name)}\fR" for name in flag.names)
    yield ".TP"
    yield rf"{names} \fI{_escaped(flag.metavar)}\fR" if flag.metavar else names
    yield from _prose(flag.help)
    yield from _prose(flag.details)
    if flag.implied_by:
        yield from _prose(f"`{' '.join(flag.implied_by)}` implies it.")
    if flag.needs:
        yield from _prose(f"It needs {_listed(flag.needs, 'or')}.")
    values = tuple(f"`{' '.join(pair)}`" for pair in flag.conflicts)
    if excluded := (*rivals(flag, flags), *values):
        yield from _prose(f"It excludes {_listed(excluded, 'and')}.")
    if flag.default:
        yield from _prose(f"Default: `{flag.default}`.")


def _listed(names: Sequence[str], last_word: str) -> str:
    *others, last = names
    return f"{', '.join(others)} {last_word} {last}" if others else last


def _decision() -> Iterator[str]:
    yield from _prose(DECISION_RULES)
    for row in DECISIONS:
        given = row.given if row.given == NOTHING_TO_GAIN else f"{row.given} given"
        warns = ", with a warning" if row.warns else ""
        yield ".TP"
        yield rf"\fB{_escaped(row.reason.value)}\fR"
        text = f"{row.found}; {given}: {row.action.value}{warns}."
        yield from _prose(text[0].upper() + text[1:])


def _environment(flags: Flags) -> Iterator[str]:
    yield from _prose(
        "Each option has a variable; the command line overrides it. "
        "`1` sets a switch and `0` clears it; colons separate the values of a repeatable option."
    )
    yield ".PP"
    yield ".PD 0"
    yield from _entries(
        {flag.variable: f"`{flag.name}`" for flag in flags if flag.variable}, indent=32
    )
    yield ".PD"
    yield ".PP"
    yield from _prose("These are read like the tools that own them read them:")
    yield from _entries(ENVIRONMENT)


def _examples() -> Iterator[str]:
    for number, (title, line) in enumerate(examples()):
        if number:
            yield ".PP"
        yield from _prose(f"{title}:")
        yield ".PP"
        yield ".RS 4"
        yield ".EX"
        yield _escaped(line).replace("'", r"\(aq")
        yield ".EE"
        yield ".RE"


def examples() -> tuple[tuple[str, str], ...]:
    """Return title and command line of each example, the help's first."""
    return (*EXAMPLES, *((title, line.format(PROGRAM)) for title, line in MORE_EXAMPLES))


def _see_also() -> Iterator[str]:
    for number, page in enumerate(SEE_ALSO):
        name, _, section = page.rstrip(")").partition("(")
        comma = "," if number < len(SEE_ALSO) - 1 else ""
        yield f".BR {_escaped(name)} ({section}){comma}"


def _paragraphs(texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield ".PP"
        yield from _prose(text)


def _entries(entries: Mapping[str, str], indent: int | None = None) -> Iterator[str]:
    for head, text in entries.items():
        yield ".TP" if indent is None else f".TP {indent}"
        yield rf"\fB{_escaped(head)}\fR"
        yield from _prose(text)


def _prose(text: str) -> Iterator[str]:
    """Yield the source of a paragraph, each sentence on a line of its own."""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z`-])", text):
        # Every second piece is code: text in backquotes, and flags.
        pieces = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][a-z0-9-]*)", sentence)
        marked = "".join(
            rf"\fB{_escaped(piece.strip('`'))}\fR" if number % 2 else piece.replace("\\", r"\e")
            for number, piece in enumerate(pieces)
        )
        for line in textwrap.wrap(marked, 78, break_long_words=False, break_on_hyphens=False):
            yield rf"\&{line}" if line[0] in ".'" else line


def _escaped(text: str) -> str:
    # A plain - may be rendered as a typographic hyphen, which no shell understands.
    return text.replace("\\", r"\e").replace("-", r"\-")


def main() -> None:
    """Write man page, option table and README's tables."""
    for path, text in ((MAN_PAGE, man_page()), (OPTIONS, option_table())):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    with open(README, encoding="utf-8") as file:
        text = readme(file.read())
    with open(README, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
