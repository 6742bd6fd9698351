"""Write the man page and the tables of README from the command itself: `make man`."""

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from prefetch_cli import __version__
from prefetch_cli.base.errors import ExitCode
from prefetch_cli.cli.flags import EXAMPLES, GROUPS, PROGRAM
from prefetch_cli.cli.main import command
from prefetch_cli.plan.decision import Reason, Verdict

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAN_PAGE = os.path.join(_ROOT, "man", f"{PROGRAM}.1")
README = os.path.join(_ROOT, "README.md")

# Of the last change to this page that a reader should know of; by hand, so that the page only
# changes when its content does.
_DATE = "2026-11-21"

_DEFAULT = re.compile(r"\s+\[default: (?P<value>.*)\]\Z", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """What the command says of one option."""

    group: str
    flags: tuple[str, ...]  # the short one first
    value: str  # how its value is written, empty for a switch
    help: str
    default: str  # empty where there is none
    variable: str  # of the environment, empty where none sets it


@dataclass(frozen=True)
class Row:
    """One row of the decision: what was found and given, and what follows."""

    found: str
    given: str
    action: Verdict
    reason: Reason
    warns: bool = False


@dataclass(frozen=True)
class Diagnostic:
    """What the command says of a fault, and how it ends."""

    said: str
    exit_code: str
    meaning: str


NOTHING_TO_GAIN = "any options"
DECISIONS = (
    Row("nothing in this rank's share", NOTHING_TO_GAIN, Verdict.SKIP, Reason.EMPTY_SHARE),
    Row(
        "all files in memory: tmpfs, ramfs, hugetlbfs, DAX",
        NOTHING_TO_GAIN,
        Verdict.SKIP,
        Reason.IN_MEMORY_FILESYSTEM,
    ),
    Row(
        "99 % of the share resident, by an exact method",
        NOTHING_TO_GAIN,
        Verdict.SKIP,
        Reason.ALREADY_RESIDENT,
    ),
    Row(
        "mount options that bypass the page cache",
        NOTHING_TO_GAIN,
        Verdict.SKIP,
        Reason.NO_PAGE_CACHE,
    ),
    Row("network, fits", NOTHING_TO_GAIN, Verdict.PREFETCH, Reason.NETWORK_FITS),
    Row("network, does not fit", "nothing", Verdict.SKIP, Reason.NETWORK_TOO_BIG, warns=True),
    Row("network, does not fit", "--partial", Verdict.PARTIAL, Reason.PARTIAL),
    Row("network, does not fit", "--force", Verdict.PREFETCH, Reason.FORCED_TOO_BIG, warns=True),
    Row("local, fits", "nothing", Verdict.SKIP, Reason.LOCAL_FITS),
    Row("local, fits", "--force", Verdict.PREFETCH, Reason.FORCED),
    Row("local, does not fit", "nothing", Verdict.SKIP, Reason.LOCAL_TOO_BIG),
    Row("local, does not fit", "--force --partial", Verdict.PARTIAL, Reason.PARTIAL),
    Row("local, does not fit", "--force", Verdict.PREFETCH, Reason.FORCED_TOO_BIG, warns=True),
)

EXIT_CODES = {
    str(int(ExitCode.OK)): "Done, or skipped by decision, or ended by `--time-limit`.",
    str(int(ExitCode.READ_FAILED)): (
        "A file could not be read, or dropped with `--evict`; the others were."
    ),
    str(int(ExitCode.USAGE)): "Wrong options.",
    str(int(ExitCode.CHECKPOINT)): (
        "The checkpoint was not found, or is empty, incomplete, malformed or ambiguous, or a "
        "library was not found; no weight was read."
    ),
    str(int(ExitCode.NOT_RESIDENT)): (
        "Less than `--min-resident` is resident, or it cannot be known."
    ),
    str(int(ExitCode.COMMAND_NOT_EXECUTABLE)): "COMMAND cannot be executed; nothing was read.",
    str(int(ExitCode.COMMAND_NOT_FOUND)): "COMMAND was not found; nothing was read.",
    "129": "Interrupted by SIGHUP, within a second, after a summary of what was read.",
    "130": "Interrupted by SIGINT (Ctrl-C), likewise.",
    "143": "Interrupted by SIGTERM, likewise.",
}

# What `--help` has no room for, by the option's last flag.
DETAILS = {
    "--load-format": (
        "`auto` takes consolidated*.safetensors where there are any, else *.safetensors, else "
        "*.bin, else *.pt, and *.gguf where there is nothing else. "
        "Where model.safetensors.index.json lies beside them, only the safetensors files that it "
        "names count. "
        "`hf` is the same without consolidated files and GGUF; `mistral`, `safetensors`, `pt`, "
        "`npcache` (*.bin) and `gguf` take that kind alone; `all` takes every weight file. "
        "Several GGUF models in one directory are ambiguous: choose one with `--include`."
    ),
    "--include": (
        "A * matches / too. What is filtered out is not missed either. "
        "Both options can be given together."
    ),
    "--exclude": "It wins over `--include`.",
    "--weights-only": (
        "Those are *.json, tokenizer*, *.model, *.tiktoken, *.txt, *.jinja and *.py; by default "
        "they are warmed first."
    ),
    "--allow-incomplete": (
        "Without it missing shards, shards that are shorter than their header promises, Git LFS "
        "pointers and unfinished downloads end the run with exit code 3 before a weight is read."
    ),
    "--hub": (
        "By default modelscope where `VLLM_USE_MODELSCOPE` is true, else huggingface. "
        "What exists as a path is never taken for a repo id."
    ),
    "--revision": "A commit may be shortened as long as it is unique.",
    "--cache-dir": "By default where the hub's own library looks, see ENVIRONMENT.",
    "--also": (
        "A directory counts with all that lies below it, and links are followed. It is counted "
        "apart, and read whatever the file system is, as far as it fits. No CHECKPOINT is needed "
        "beside it."
    ),
    "--package": (
        "The shared libraries, then .pyc, then .py files that its RECORD names, and those of all "
        "that it requires as far as that is installed; what is required under an extra is not. "
        "Nothing is imported or compiled. It is counted and read as with `--also`."
    ),
    "--python": "It is only asked for its search path.",
    "--libraries": (
        "By the RECORD that has COMMAND's script, or the module that an interpreter runs by -m. "
        "It is counted and read as with `--also`."
    ),
    "--force": "It does not overrule the decisions that hold with any options, see DECISION.",
    "--partial": (
        "The head is what a loader reads first. On a local file system give `--force` too."
    ),
    "--ram-threshold": (
        "Available is the least of what the host has and what each cgroup above this process has "
        "left; page cache that can be dropped does not count as used."
    ),
    "--max-bytes": (
        "A checkpoint that is larger does not fit; with `--partial` or `--force` its first SIZE "
        "bytes are read."
    ),
    "--rank": (
        "Page cache is per node, so global ranks are never used. "
        "`auto` takes the rank and size of torchrun, DeepSpeed, Open MPI, MPICH, Intel MPI, "
        "MVAPICH2, PALS, jsrun, Flux (jobs of one node) or a Slurm step, where all that are found "
        "agree; otherwise it warns and reads everything."
    ),
    "--world-size": "`--rank auto` alone implies it.",
    "--split": (
        "`files` deals out the files in turn, as vLLM does; `bytes` gives each block, in load "
        "order, to the rank with the fewest bytes so far; `auto` takes files where the largest "
        "share is at most 10 % above the mean."
    ),
    "--threads": "They take blocks in load order, so that one huge file keeps all of them busy.",
    "--block-size": ("The units of all sizes are of 1024. This one is rounded up to a whole page."),
    "--engine": (
        "`splice` sends pages to /dev/null without copying them; `advise` asks the kernel to read "
        "ahead, then drains; `read` copies into one small buffer of each thread. "
        "`auto` begins with the one that suits the file system; where much is to be read it tries "
        "another on a small part, `advise` on a slow local disk and `read` elsewhere, and changes "
        "if that is clearly faster."
    ),
    "--max-rate": "All threads together keep to it.",
    "--background": (
        "A local disk is read by no more threads than the rate needs, so that others hardly wait "
        "for it. The processor's priority is the lowest (nice 19), the disk's is idle. "
        "Only the scheduler of a disk can heed the latter: bfq does, mq-deadline in part, `none` "
        "does not, and over a network there is none; there `--max-rate` spares others. "
        "With COMMAND it is the warmer's alone."
    ),
    "--time-limit": (
        "The JSON document then has `complete: false`. A number without a unit is seconds."
    ),
    "--dry-run": "The exit code is 0 whatever is decided.",
    "--check": (
        "The method stands beside the figure; a sample is called an estimate, and where nothing "
        "can tell it is unknown."
    ),
    "--evict": (
        "It needs no privilege. "
        "What could not be dropped is listed with the reason: dirty, mapped, or not permitted."
    ),
    "--min-resident": "The same where it cannot be known.",
    "--lead": (
        "A part counts from what is to be read in this share, and what is resident already counts "
        "as warm. "
        "By default COMMAND starts once the decision is known. "
        "A skip, the end of reading, a failure and `--time-limit` start it in any case."
    ),
    "--best-effort": "By default the exit code is 3 then, and COMMAND does not start.",
    "--json": "Its keys are stable within one `schema_version`.",
    "--progress": (
        "`log` writes one line at each 10 %. "
        "With both, when nothing has arrived for 10 s, a line says which file is waited for."
    ),
    "--quiet": "Decision, summary, progress and warnings are left out.",
    "--verbose": "That is: how much of it is resident, before and after.",
}

ENVIRONMENT = {
    "HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE": (
        "The Hugging Face cache; the second is the older name. By default $HF_HOME/hub."
    ),
    "HF_HOME": "Hugging Face's directory. By default $XDG_CACHE_HOME/huggingface.",
    "XDG_CACHE_HOME": "By default ~/.cache.",
    "HOME": "What ~ stands for.",
    "VLLM_USE_MODELSCOPE": "`true` or `1` looks repo ids up in ModelScope's cache.",
    "MODELSCOPE_CACHE": "ModelScope's cache. By default ~/.cache/modelscope.",
    "LOCAL_RANK, LOCAL_WORLD_SIZE, LOCAL_SIZE": "`--rank auto` under torchrun and DeepSpeed.",
    "OMPI_COMM_WORLD_LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_SIZE": "`--rank auto` under Open MPI.",
    "MPI_LOCALRANKID, MPI_LOCALNRANKS": "`--rank auto` under MPICH and Intel MPI.",
    "MV2_COMM_WORLD_LOCAL_RANK, MV2_COMM_WORLD_LOCAL_SIZE": "`--rank auto` under MVAPICH2.",
    "PALS_LOCAL_RANKID, PALS_LOCAL_SIZE": "`--rank auto` under PALS.",
    "JSM_NAMESPACE_LOCAL_RANK, JSM_NAMESPACE_LOCAL_SIZE": "`--rank auto` under jsrun.",
    "FLUX_TASK_LOCAL_ID, FLUX_JOB_SIZE, FLUX_JOB_NNODES": "`--rank auto` under Flux, on one node.",
    "SLURM_STEP_ID, SLURM_LOCALID, SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE": (
        "`--rank auto` in a step that srun started. "
        "A batch script has no rank: it runs once, and reads everything."
    ),
    "PATH": "Where COMMAND, and python3 for `--package`, are looked up.",
    "SYSTEMD_EXEC_PID": "In a service that systemd started COMMAND ignores SIGPIPE, as set there.",
    "NO_COLOR": "Where it is set and not empty, nothing is coloured.",
    "TERM": "A terminal that is `dumb`, or not named, gets 10 % lines in place of the bar.",
}

FILES = {
    "~/.cache/huggingface/hub": "Where repo ids are looked up.",
    "~/.cache/modelscope": "Where repo ids of ModelScope are looked up.",
    "/proc/self/mountinfo": "Types and options of file systems.",
    "/proc/meminfo": "The host's available memory.",
    "/proc/self/cgroup, /sys/fs/cgroup": "The memory limits of every cgroup above the process.",
    "/sys/class/bdi, /sys/dev/block": "How much the kernel reads ahead at once.",
}

MORE_EXAMPLES = (
    ("Fail a job unless the model is warm", "{} --min-resident 99 /models/Llama-3.1-70B"),
    ("Read as much as fits, for 5 minutes at most", "{} --partial --time-limit 5m /models/R1"),
    ("A model on a slow local disk", "{} --force /scratch/Llama-3.1-8B"),
    ("Target and draft model, in that order", "{} /models/Llama-3.1-70B /models/draft-1B"),
    ("One model of a directory of GGUF files", "{} --include '*Q4_K_M*' /models/gguf"),
    ("How much of it is resident", "{} --check /models/Llama-3.1-70B"),
    ("While the server starts", "{} /models/R1 -- vllm serve /models/R1"),
    ("Give the memory back", "{} --evict /models/Llama-3.1-70B"),
)

# The fault, the message and the exit code. A {NAME} stands for what differs from run to run; the
# rest is what the program says.
DIAGNOSTICS = (
    Diagnostic(
        "nothing has arrived for {TIME}: waiting {TIME} for {PATH} at offset {N}",
        "while it waits",
        "The storage has not answered for 10 s; the line comes again each 30 s. "
        "Check the mount. The run can be interrupted all the same, and goes on by itself when the "
        "storage is back.",
    ),
    Diagnostic(
        "expected an answer within --time-limit, found none from {PATH}",
        "1",
        "The storage did not answer at all, before anything could be read.",
    ),
    Diagnostic(
        "{PATH}: Input/output error",
        "1",
        "The storage failed while the file was read (EIO), likewise `Stale file handle` and "
        "`Permission denied`. "
        "The rest of that block is left out, after three errors the rest of the file; all others "
        "are read.",
    ),
    Diagnostic(
        "{PATH}: No such file or directory",
        "1",
        "It was there when the run began. All others are read.",
    ),
    Diagnostic(
        "it was cut short while it was read",
        "1",
        "The file shrank meanwhile: something is writing the checkpoint.",
    ),
    Diagnostic(
        "expected a complete checkpoint, found {N} missing or cut short",
        "3",
        "A shard that the index names is not there, is a Git LFS pointer, or has fewer bytes than "
        "its header promises. Finish the download, or give `--allow-incomplete`.",
    ),
    Diagnostic(
        "expected {KIND} inside the checkpoint, found {NAME}",
        "3",
        "An index or a layout file leads out of the checkpoint. Nothing is read.",
    ),
    Diagnostic(
        "expected the names of a model's files, found JSON far too large or nested for that",
        "3",
        "No model has such an index. Nothing is read.",
    ),
    Diagnostic(
        "{SIZE} do not fit into {SIZE}",
        "0",
        "The checkpoint is larger than the budget, and the loader would find its head dropped "
        "again. See `--partial`, `--force` and `--ram-threshold`.",
    ),
    Diagnostic(
        "{SIZE} of the {SIZE} that were read or resident stayed in the page cache",
        "0, or 4 with --min-resident",
        "The likely cause stands behind it: a memory limit, a FUSE file system that drops pages "
        "when a file is opened again, or a file system that keeps its data elsewhere. "
        "A server's reads would meet the same.",
    ),
    Diagnostic(
        "unknown: nothing here can tell this user",
        "0, or 4 with --min-resident",
        "No method tells the truth here about a file that one neither owns nor may write, or a "
        "profile of system calls refuses them all; mincore(2) would call all of it resident.",
    ),
    Diagnostic(
        "its index claims {SIZE}, the files have {SIZE}: the index may be stale",
        "0",
        "Only a warning: tools leave total_size behind when they change the weights.",
    ),
    Diagnostic(
        "--rank auto found {WHAT}; this process reads everything",
        "0",
        "No launcher that is known started it, or two claim different ranks, as when one starts "
        "the other.",
    ),
    Diagnostic(
        "{PATH}: left out: expected a file, found {WHAT}",
        "0",
        "A FIFO, a socket or a device: it is not opened.",
    ),
    Diagnostic(
        "{SIZE} stay: dirty, not yet written back",
        "1",
        "Only pages that are on the disk can be dropped.",
    ),
    Diagnostic(
        "{SIZE} stay: mapped by {PROCESS}",
        "1",
        "Pages that a process maps are in use.",
    ),
    Diagnostic(
        "expected threads to read in, found that the system starts none",
        "1",
        "A limit on processes (ulimit -u, pids.max). "
        "Where some can be started, fewer threads read; where few files may be open (ulimit -n), "
        "likewise.",
    ),
    Diagnostic(
        "expected more memory, found that the system gives none",
        "1",
        "A limit on addresses (ulimit -v) or on memory. Fewer `--threads` need less.",
    ),
    Diagnostic(
        "--background: expected the lowest priority, found it refused",
        "0",
        "By a profile of system calls. It reads all the same.",
    ),
)

SEE_ALSO = (
    "fincore(1)",
    "sbatch(1)",
    "srun(1)",
    "mincore(2)",
    "posix_fadvise(2)",
    "sendfile(2)",
    "cgroups(7)",
    "vmtouch(8)",
)


def options() -> tuple[Option, ...]:
    """Return the options as the command has them, in the order of its help."""
    with click.Context(command, info_name=PROGRAM, **command.context_settings) as ctx:
        found = [_option(param, ctx) for param in command.get_params(ctx)]
    known = [option for option in found if option is not None]
    return tuple(sorted(known, key=lambda option: GROUPS.index(option.group)))


def _option(param: click.Parameter, ctx: click.Context) -> Option | None:
    record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
    if record is None:
        return None
    usage, text = record
    default = _DEFAULT.search(text)
    names = sorted(param.opts, key=len)
    _, _, value = usage.rpartition(names[-1])
    return Option(
        group=getattr(param, "group", "Output"),
        flags=tuple(names),
        value=value.strip(),
        help=_DEFAULT.sub("", text),
        default=default["value"] if default else "",
        variable=_variable(param, ctx),
    )


def _variable(param: click.Parameter, ctx: click.Context) -> str:
    if isinstance(param.envvar, str):
        return param.envvar
    if not getattr(param, "allow_from_autoenv", False) or "--help" in param.opts:
        return ""
    return f"{ctx.auto_envvar_prefix}_{param.name}".upper()


# README


def readme(text: str) -> str:
    """Return the text of README with the part between each pair of markers written anew."""
    for name, table in (
        ("options", _option_table()),
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


def _option_table() -> str:
    lines = ["| Option | Default | Meaning |", "| --- | --- | --- |"]
    for group in GROUPS:
        lines.append(f"| **{group}** | | |")
        for option in options():
            if option.group == group:
                shown = ", ".join(_code(flag) for flag in option.flags[:-1])
                last = _code(f"{option.flags[-1]} {_choices(option.value)}".strip())
                flags = f"{shown}, {last}" if shown else last
                default = _code(option.default) if option.default else ""
                lines.append(f"| {flags} | {default} | {_cell(_marked(option.help))} |")
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
    """Return Markdown in which each flag within a sentence is set as code."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*", lambda match: _code(match[0]), text)


def _choices(value: str) -> str:
    return value.removeprefix("[").removesuffix("]")


# The man page, in man(7)


def man_page() -> str:
    """Return the source of the man page."""
    return "\n".join(_man_lines()) + "\n"


def _man_lines() -> Iterator[str]:
    yield r".\" Written by man/generate.py from the command itself: change that, then `make man`."
    yield f'.TH {PROGRAM.upper()} 1 {_DATE} "{PROGRAM} {__version__}" "User Commands"'
    yield ".SH NAME"
    yield rf"{_escaped(PROGRAM)} \- warm a model checkpoint into the page cache"
    yield ".SH SYNOPSIS"
    yield rf".B {_escaped(PROGRAM)}"
    yield r"[\fIOPTION\fR]... \fICHECKPOINT\fR... [\-\- \fICOMMAND\fR [\fIARG\fR]...]"
    yield ".SH DESCRIPTION"
    yield from _description()
    yield ".SH OPTIONS"
    for group in GROUPS:
        yield f".SS {group}"
        for option in options():
            if option.group == group:
                yield from _man_option(option)
    yield ".SH DECISION"
    yield from _decision()
    yield ".SH ENVIRONMENT"
    yield from _environment()
    yield ".SH FILES"
    yield from _entries(FILES)
    yield ".SH EXIT STATUS"
    yield from _entries(EXIT_CODES)
    yield ".SH EXAMPLES"
    yield from _examples()
    yield ".SH DIAGNOSTICS"
    yield from _prose("Behind each message stands the exit code of a run that met nothing else.")
    yield from _entries(
        {f"{re.sub(r'[{}]', '', one.said)} [{one.exit_code}]": one.meaning for one in DIAGNOSTICS}
    )
    yield ".SH SEE ALSO"
    yield from _see_also()
    yield ".SH CAVEATS"
    yield from _caveats()


def _description() -> Iterator[str]:
    yield from _prose(
        f"`{PROGRAM}` reads the files of a model checkpoint into the kernel's page cache, so that "
        "a server that maps them afterwards, or meanwhile, finds them in memory instead of "
        "fetching them page by page from a network file system. "
        "Then it opens them again and measures how much stayed."
    )
    yield ".PP"
    yield from _prose(
        "`CHECKPOINT` is a directory; a weight file (.safetensors, .gguf, .bin, .pt, .pth); an "
        "index file (*.index.json); or a repo id such as org/name in the local cache of Hugging "
        "Face or ModelScope. "
        "What exists as a path wins over a repo id. "
        "One part of a split GGUF means all its parts, one shard of an indexed set that file "
        "alone. "
        "Several checkpoints are read in the order in which they are given. "
        "Nothing is ever downloaded, and nothing is ever written to a checkpoint."
    )
    yield ".PP"
    yield from _prose(
        "It finds the files that the loader will read, in its order; their file systems; the "
        "memory that is available; and how much is resident already. "
        "Then it decides (see DECISION), reads what is missing, and says what came of it. "
        "Decision and summary go to standard output, progress and warnings to standard error."
    )
    yield ".PP"
    yield from _prose(
        "With `COMMAND` the process becomes it, by execve(2) without a shell, as soon as the "
        "decision is known: same pid, same standard streams, signals and exit code are its own. "
        "The warming goes on in another process, which writes all its lines to standard error. "
        "It ends by itself, and within a second when `COMMAND` ends. "
        "A decision to skip, or a failure to warm, still runs `COMMAND`."
    )


def _man_option(option: Option) -> Iterator[str]:
    flags = ", ".join(rf"\fB{_escaped(flag)}\fR" for flag in option.flags)
    value = rf" \fI{_escaped(_choices(option.value))}\fR" if option.value else ""
    yield ".TP"
    yield flags + value
    yield from _prose(option.help)
    if option.flags[-1] in DETAILS:
        yield from _prose(DETAILS[option.flags[-1]])
    if option.default:
        yield from _prose(f"Default: `{option.default}`.")


def _decision() -> Iterator[str]:
    yield from _prose(
        "A checkpoint fits where its size is at most `--ram-threshold` of the available memory, "
        "and at most `--max-bytes`. "
        "Any file on a network file system makes it network; files in memory leave the sum. "
        "The first row that matches wins; its reason is `decision.reason` in the JSON document."
    )
    for row in DECISIONS:
        given = row.given if row.given == NOTHING_TO_GAIN else f"{row.given} given"
        warns = ", with a warning" if row.warns else ""
        yield ".TP"
        yield rf"\fB{_escaped(row.reason.value)}\fR"
        text = f"{row.found}; {given}: {row.action.value}{warns}."
        yield from _prose(text[0].upper() + text[1:])


def _environment() -> Iterator[str]:
    yield from _prose(
        "Each option has a variable, which the command line overrules. "
        "A switch is set by `1` and cleared by `0`; where an option is repeatable, its values are "
        "separated by colons."
    )
    variables = {
        option.variable: f"`{option.flags[-1]}`" for option in options() if option.variable
    }
    yield ".PP"
    yield ".PD 0"
    yield from _entries(variables, indent=32)
    yield ".PD"
    yield ".PP"
    yield from _prose("These are read as the tools that own them read them:")
    yield from _entries(ENVIRONMENT)


def _examples() -> Iterator[str]:
    for number, (title, line) in enumerate(examples()):
        if number:
            yield ".PP"
        yield from _prose(f"{title}:")
        yield ".PP"
        yield ".RS 4"
        yield ".EX"
        yield _escaped(line)
        yield ".EE"
        yield ".RE"


def examples() -> tuple[tuple[str, str], ...]:
    """Return title and command line of each example, those of the help first."""
    return (*EXAMPLES, *((title, line.format(PROGRAM)) for title, line in MORE_EXAMPLES))


def _see_also() -> Iterator[str]:
    for number, page in enumerate(SEE_ALSO):
        name, _, section = page.rstrip(")").partition("(")
        comma = "," if number < len(SEE_ALSO) - 1 else ""
        yield f".BR {_escaped(name)} ({section}){comma}"


def _caveats() -> Iterator[str]:
    yield from _prose(
        "A loader that reads past the page cache gains nothing: GPU direct storage, O_DIRECT, "
        "streamers that fetch for themselves. "
        "Nothing holds the pages afterwards: the kernel drops them when memory is needed, so warm "
        "shortly before the server starts, and look with `--check` in doubt."
    )


def _entries(entries: dict[str, str], indent: int | None = None) -> Iterator[str]:
    for head, text in entries.items():
        yield ".TP" if indent is None else f".TP {indent}"
        yield rf"\fB{_escaped(head)}\fR"
        yield from _prose(text)


def _prose(text: str) -> Iterator[str]:
    """Yield text as the source of a paragraph, each sentence on a line of its own."""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z`-])", text):
        # Every second piece is set as code: what stands in backquotes, and flags.
        pieces = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][a-z-]*)", sentence)
        marked = "".join(
            rf"\fB{_escaped(piece.strip('`'))}\fR" if number % 2 else piece.replace("\\", r"\e")
            for number, piece in enumerate(pieces)
        )
        for line in textwrap.wrap(marked, 78, break_long_words=False, break_on_hyphens=False):
            yield rf"\&{line}" if line[0] in ".'" else line


def _escaped(text: str) -> str:
    # A plain - may come out as a typographic hyphen, which no shell knows.
    return text.replace("\\", r"\e").replace("-", r"\-")


def main() -> None:
    """Write the man page, and the tables of README."""
    with open(MAN_PAGE, "w", encoding="utf-8") as file:
        file.write(man_page())
    with open(README, encoding="utf-8") as file:
        text = readme(file.read())
    with open(README, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
