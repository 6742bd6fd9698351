"""The flags: one record each, from which everything that lists flags is derived.

That is: click's options, the checks in `rules`, `--help`, the man page, README's table, and what
the tests try. A new flag is a record here and the code that acts on its value.
"""

from dataclasses import dataclass
from enum import Enum

from prefetch_cli.base.words import (
    PROGRAM,
    Engine,
    Hub,
    LoadFormat,
    ProgressMode,
    Server,
    Split,
    Until,
)
from prefetch_cli.cli.types import (
    AMOUNT,
    DURATION,
    EXPERTS,
    SIZE,
    SIZE_OR_AUTO,
    STAGES,
    TENSORS,
    UNTIL,
    Value,
    count,
    listed,
    one_of,
    percent,
)

ENVIRONMENT_PREFIX = "PREFETCH_CLI"
COMMAND = "COMMAND"  # what a flag excludes or needs is a flag, or this

GROUPS = ("Checkpoint", "Libraries", "Decision", "Ranks", "Reading", "Actions", "Command", "Output")

EXAMPLES = (
    ("Before a server, in a job script", f"{PROGRAM} /models/Llama-3.1-70B"),
    ("One share for each rank of a node", f"srun {PROGRAM} --rank auto /models/Llama-3.1-70B"),
    ("What would be done, for a script", f"{PROGRAM} --dry-run --json org/name"),
)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag, and everything that is said about it.

    `help` is for all documents, `details` is what only the man page has room for.
    """

    names: tuple[str, ...]  # the short one first
    group: str
    help: str
    details: str = ""
    value: Value | None = None  # None: a switch
    default: str | None = None  # as one would write it
    repeatable: bool = False
    excludes: tuple[str, ...] = ()  # it is enough that one of two names the other
    conflicts: tuple[tuple[str, str], ...] = ()  # flags and their values that it excludes
    needs: tuple[str, ...] = ()  # any one of them
    value_needs: tuple[Enum, str] | None = None  # one of its values, and what that needs
    implied_by: tuple[str, str] | None = None  # a flag and its value
    at_once: bool = False  # prints something and ends the run: never set by a variable
    option: str = ""  # the field of `run.options.Options` that takes the value as it is

    @property
    def name(self) -> str:
        """The long name: `--dry-run`."""
        return self.names[-1]

    @property
    def parameter(self) -> str:
        """The key of its value: `dry_run`."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it: `PREFETCH_CLI_DRY_RUN`; empty if none does."""
        return "" if self.at_once else f"{ENVIRONMENT_PREFIX}_{self.parameter.upper()}"

    @property
    def metavar(self) -> str:
        """How its value is written; empty for a switch."""
        return self.value.metavar if self.value else ""

    @property
    def unset(self) -> object:
        """The value that it has where nobody gives one."""
        if self.value is None:
            return False
        if self.repeatable:
            return ()
        return None if self.default is None else self.value.parse(self.default)


FLAGS = (
    Flag(
        names=("--server",),
        group="Checkpoint",
        value=one_of(Server, "SERVER"),
        default="auto",
        help="Whose rules say which files are read; by default COMMAND's, else vLLM's.",
        details=(
            f"One of {listed(Server)}. What is printed names the rule. "
            "They differ where a checkpoint is there twice: vllm takes consolidated*.safetensors "
            "wherever there is any, the others take model*.safetensors."
        ),
    ),
    Flag(
        names=("--load-format",),
        group="Checkpoint",
        value=one_of(LoadFormat, "FORMAT", any_case=True),
        default="auto",
        help="Which weight files count, by vLLM's names and the server's rules.",
        details=(
            "`auto` takes consolidated*.safetensors if there are any, else *.safetensors, else "
            "*.bin, else *.distcp, else *.pt, else *.gguf, else *.engine and *.plan, else "
            "*.onnx with the files that they name, else *.npz. "
            "If there is a model.safetensors.index.json, only the safetensors files that it names "
            "count. "
            "`hf` is the same without consolidated files and GGUF, and so is `bitsandbytes`; "
            "`mistral`, `safetensors`, `pt`, `npcache` (*.bin) and `gguf` take only that kind; "
            "`fastsafetensors` and `instanttensor` are as `safetensors`, `modelexpress` as `auto`; "
            "`runai_streamer` takes *.safetensors whatever an index says, `sharded_state` and "
            "`runai_streamer_sharded` model-rank-*-part-*.safetensors, `tensorizer` *.tensors; "
            "`dcp` (*.distcp, with .metadata and common.pt), `engine`, `onnx` and `npz` are no "
            "names of vLLM's; "
            "`dummy` and `ipc_cache` read no weights; `all` takes every file below the directory. "
            f"That is {listed(LoadFormat)}, in any case. "
            "Several GGUF models are ambiguous: choose one by its quantisation, as in "
            "org/name:Q4_K_M, or with `--include`. If there are none in the directory itself, "
            "those in its folders count. The projector (mmproj) next to the model goes with it, "
            "as llama.cpp takes it."
        ),
    ),
    Flag(
        names=("--from-file",),
        group="Checkpoint",
        value=Value("FILE|-", words=("-",), paths="file"),
        help="Take further checkpoints from a list, one a line; - is standard input.",
        details=(
            "They come behind CHECKPOINT, in their order. "
            "White space around a name, blank lines and lines that begin with # are left out. "
            "If there is a NUL byte in the list, as `find -print0` writes it, NUL bytes end the "
            "names instead of line ends, and white space belongs to them. "
            "A name need not be UTF-8. "
            "A list with an empty name, a name that is too long or an object store's URI is "
            "refused with the numbers of these lines and exit code 2, before anything is read. "
            "COMMAND inherits standard input and descriptors unread: give it a file with a name, "
            "neither - nor <(...)."
        ),
    ),
    Flag(
        names=("--include",),
        group="Checkpoint",
        value=Value("GLOB"),
        repeatable=True,
        help="Read only files whose path below the checkpoint matches; repeatable.",
        details=(
            "A * also matches /. Files left out do not count as missing, and an index none of "
            "whose files are wanted does not count: `--include '*.fp16.*'` takes that variant of "
            "every component of a diffusers pipeline. A component of which nothing is left is "
            "missing, unless each `--include` begins with another folder, or an `--exclude` names "
            "its own. "
            "If a glob has a / and the directory itself has no weights that the globs leave in, "
            "the folders below are looked into, and each that has some counts as a checkpoint of "
            "its own: fp8/*, Q4_K_M/*. "
            "It can be combined with `--exclude`."
        ),
    ),
    Flag(
        names=("--exclude",),
        group="Checkpoint",
        value=Value("GLOB"),
        repeatable=True,
        help="Leave out files whose path below the checkpoint matches; repeatable.",
        details=(
            "It wins over `--include`. `--exclude 'vae/*'` leaves out a component of a pipeline."
        ),
    ),
    Flag(
        names=("--weights-only",),
        group="Checkpoint",
        help="Leave out config and tokenizer files.",
        details=(
            "They are *.json, tokenizer*, *.model, *.tiktoken, *.txt, *.jinja and *.py; by default "
            "they are warmed first."
        ),
    ),
    Flag(
        names=("--tensors",),
        group="Checkpoint",
        value=TENSORS,
        repeatable=True,
        excludes=("--verify",),
        help="Read only tensors whose names match; !GLOB leaves out; repeatable.",
        details=(
            "`--tensors '*.mlp.*'` reads these, `--tensors '!visual.*'` all but these, and what is "
            "left out wins. A glob is about the whole name, and a * also matches a dot. "
            "The headers of safetensors files and the tables of GGUF files say where each tensor "
            "lies; they, config and tokenizer files are read in any case. Other weight files have "
            "no such table: they are read whole, which is said once. "
            "Size, fit, decision, share, progress, proof and JSON are of this part: a model that "
            "does not fit as a whole may fit in part, and `--check`, `--evict` and `--list` are "
            "about the part. Parts are whole pages, and gaps are read too that are smaller than "
            "what the storage reads ahead anyway. "
            "A header that is wrong ends the run with exit code 3. "
            "A digest is of a whole file: `--verify` excludes parts."
        ),
    ),
    Flag(
        names=("--stage",),
        group="Checkpoint",
        value=STAGES,
        excludes=("--verify",),
        help="Read only the layers of pipeline stage I of N, counted from 0: 0/2.",
        details=(
            "I-J/N stands for several stages, `all` for all of them. "
            "By default, those that COMMAND gives this node: vLLM and SGLang by the sizes of "
            "pipeline and tensor parallelism, `--nnodes` and `--node-rank`, and vLLM's "
            "`--enable-expert-parallel` for experts. That is printed, and `--stage all` undoes it. "
            "Where ranks may lie otherwise (Ray, data or context parallelism, options in a file), "
            "all is read; see prefetch-cli-caching(7), PARTS. "
            "A tensor with the number of a layer in its name (`layers.K.`, `h.K.`, `blocks.K.`, "
            "`block.K.`, `blk.K.`) counts for the stage that has this layer; any other counts for "
            "all stages, and so do layers of towers (vision, audio) and of heads that predict more "
            "tokens. "
            "Layers are partitioned as vLLM does it, or as SGLang with `--server sglang`, with "
            "`VLLM_PP_LAYER_PARTITION` or `SGLANG_PP_LAYER_PARTITION`. How many there are is told "
            "by config.json, else by the names; where these disagree, the layers of all stages are "
            "read, with a warning. "
            "Only the first CHECKPOINT is parted: where draft models lie is not known. "
            "See `--tensors` for what holds of all parts."
        ),
    ),
    Flag(
        names=("--experts",),
        group="Checkpoint",
        value=EXPERTS,
        excludes=("--verify",),
        help="Read only these experts: 0-7, or those of rank I of N: 0/2.",
        details=(
            "A tensor with `experts.E.` in its name counts for those who need expert E, any other "
            "for all. With I/N, experts lie as in vLLM's linear placement: one after the other, "
            "and the first ranks have one more; I-J/N stands for several ranks, such as those of "
            "a node, and `all` for all. "
            "Tensors that hold all experts of a layer have no such number, and are read whole. "
            "See `--tensors` for what holds of all parts."
        ),
    ),
    Flag(
        names=("--allow-incomplete",),
        group="Checkpoint",
        help="Warm what is there even if files are missing or truncated.",
        details=(
            "Without it, a missing shard, a weight file that is empty or shorter than its header "
            "promises, a zip file without its end, a Git LFS pointer or an unfinished download "
            "ends the run with exit code 3 before any weights are read."
        ),
    ),
    Flag(
        names=("--hub",),
        group="Checkpoint",
        value=one_of(Hub, "HUB"),
        help=f"Hub whose local cache holds the repo id: {listed(Hub)}.",
        details=(
            "The default is what the server would use: for vllm, modelscope if "
            "`VLLM_USE_MODELSCOPE` is true; for sglang, modelscope if `SGLANG_USE_MODELSCOPE` is; "
            "for ollama, ollama; else huggingface. "
            "With `ollama`, CHECKPOINT is NAME or NAME:TAG as in `ollama list`: tiny, tiny:1b, "
            "user/tiny:1b, hf.co/org/tiny:Q4_K_M. Upper and lower case are the same, and the tag "
            "is latest by default. The blobs of the model, its adapters, draft model and projector "
            "are read, in that order. "
            "A path that exists is never taken for a repo id or a name."
        ),
    ),
    Flag(
        names=("--revision",),
        group="Checkpoint",
        value=Value("REV"),
        help="Branch, tag or commit of a repo id; by default its main branch.",
        details=(
            "A commit may be abbreviated as long as it is unique. "
            "By default, the one that COMMAND gives for the same model. "
            "A model of Ollama has its tag in its name instead."
        ),
    ),
    Flag(
        names=("--cache-dir",),
        group="Checkpoint",
        value=Value("DIR", paths="dir"),
        help="The hub cache in which to look for a repo id.",
        details=(
            "By default, where COMMAND says that it looks, else where the hub's own library looks; "
            "see ENVIRONMENT."
        ),
    ),
    Flag(
        names=("--also",),
        group="Libraries",
        value=Value("PATH", paths="file"),
        repeatable=True,
        help="Warm this file or directory too, before the weights; repeatable.",
        details=(
            "A directory counts with everything below it, and symlinks are followed. It is counted "
            "separately, and read on any file system, as far as it fits. "
            "With it, no CHECKPOINT is needed."
        ),
    ),
    Flag(
        names=("--package",),
        group="Libraries",
        value=Value("NAME"),
        repeatable=True,
        help="Warm the libraries of this Python distribution and its requirements; repeatable.",
        details=(
            "First the shared libraries, then the .pyc, then the .py files that its RECORD lists, "
            "with those of all its installed requirements; requirements of extras are left out. "
            "Nothing is imported or compiled. It is counted and read like `--also`."
        ),
    ),
    Flag(
        names=("--python",),
        group="Libraries",
        value=Value("PYTHON", paths="file"),
        needs=("--package", "--libraries"),
        help="Interpreter whose packages to warm; by default COMMAND's, else python3.",
        details="It is only asked for its search path.",
    ),
    Flag(
        names=("--libraries",),
        group="Libraries",
        needs=(COMMAND,),
        help="Warm the libraries of the distribution that COMMAND belongs to.",
        details=(
            "That is the distribution whose RECORD lists COMMAND's script, or the module that an "
            "interpreter runs with `-m`. It is counted and read like `--also`."
        ),
    ),
    Flag(
        names=("-f", "--force"),
        group="Decision",
        help="Read even if the decision is to skip.",
        details="It does not overrule the decisions that hold with any options; see DECISION.",
    ),
    Flag(
        names=("--partial",),
        group="Decision",
        help="If the checkpoint does not fit, read its head, in load order, up to the budget.",
        details=("A loader reads the head first. On a local file system, give `--force` as well."),
    ),
    Flag(
        names=("--ram-threshold",),
        group="Decision",
        value=percent(1),
        option="ram_threshold_percent",
        help="Percentage of available memory that a checkpoint may take, 1 to 100; by default 90.",
        details=(
            "Available memory is the least of what the host has and what each cgroup above this "
            "process has left; page cache that can be dropped does not count as used. "
            "The default is 40 where the GPU has no memory of its own (NVIDIA GB10 and Jetson, AMD "
            "MI300A and Strix Halo): it loads the same weights into the same memory."
        ),
    ),
    Flag(
        names=("--max-bytes",),
        group="Decision",
        value=SIZE,
        option="max_bytes",
        help="Never read more than this, whatever else is given.",
        details=(
            "A larger checkpoint does not fit; with `--partial` or `--force` its first SIZE bytes "
            "are read."
        ),
    ),
    Flag(
        names=("--rank",),
        group="Ranks",
        value=count(0, auto=True),
        help="Rank of this process on its node, 0 by default; auto asks the launcher.",
        details=(
            "The page cache is per node, so global ranks are never used. "
            "`auto` takes rank and size from torchrun, DeepSpeed, Open MPI, MPICH, Intel MPI, "
            "MVAPICH2, PALS, jsrun, Flux (jobs of one node) or a Slurm step. "
            "If it finds none, or two that disagree, it warns and reads everything."
        ),
    ),
    Flag(
        names=("--world-size",),
        group="Ranks",
        value=count(1, auto=True),
        implied_by=("--rank", "auto"),
        help="How many processes on this node share the work, 1 by default.",
    ),
    Flag(
        names=("--split",),
        group="Ranks",
        value=one_of(Split, "HOW"),
        default="auto",
        option="split",
        help=f"How ranks share the work: {listed(Split)}; auto is files if that is even.",
        details=(
            "`files` deals out whole files in turn, as vLLM does; `bytes` gives each block, in "
            "load order, to the rank with the fewest bytes so far; `auto` is `files` if that makes "
            "the largest share at most 10 % larger than the mean, else `bytes`."
        ),
    ),
    Flag(
        names=("-t", "--threads"),
        group="Reading",
        value=count(1, auto=True),
        default="auto",
        help="Number of reading threads, at least 1; auto is as many as pay, 8 to 64.",
        details=(
            "They take blocks in load order, so one huge file keeps all of them busy. "
            "With `auto`, 8 begin, and twice as many read as long as that raises the rate by 15 %, "
            "64 at most; it is tried again when the rate changes, and now and then. With "
            "`--background`, no more than 8 read. "
            "On a disk that spins one begins, and more join where that raises the rate."
        ),
    ),
    Flag(
        names=("-b", "--block-size"),
        group="Reading",
        value=SIZE,
        default="16MiB",
        help="How much a thread takes at a time: 16MiB, 16M or 16777216.",
        details="All sizes use units of 1024. A block is rounded up to whole pages.",
    ),
    Flag(
        names=("--engine",),
        group="Reading",
        value=one_of(Engine, "ENGINE"),
        default="auto",
        option="engine",
        help=f"How to fill the page cache: {listed(Engine)}; auto picks by measuring.",
        details=(
            "`populate` faults pages in as huge pages, which a loader maps fastest (local disks, "
            "Linux 6.9); "
            "`splice` sends pages to /dev/null without copying them; `advise` asks the kernel to "
            "read ahead, then drains; `read` copies into one small buffer per thread. "
            "`auto` starts with the one that suits the file system: `populate` on a local ext4 or "
            "XFS whose kernel keeps huge pages of it, if all threads may read at once, else "
            "`splice` on local disks and `advise` far away. If there is much to read, it "
            "tries another on a small part, `advise` on a slow local disk and `read` elsewhere, "
            "and switches if that is clearly faster."
        ),
    ),
    Flag(
        names=("--max-rate",),
        group="Reading",
        value=SIZE,
        option="max_bytes_per_second",
        help="Read at most this many bytes per second.",
        details="The limit is for all threads together.",
    ),
    Flag(
        names=("--background",),
        group="Reading",
        option="background",
        help="Give way to others: lowest CPU priority and, where honoured, disk priority.",
        details=(
            "A local disk is read by no more threads than the rate needs, so that others hardly "
            "wait for it. CPU priority is the lowest (nice 19), disk priority is idle. "
            "Only a disk's scheduler can honour the latter: bfq does, mq-deadline does in part, "
            "`none` does not, and network storage has no scheduler; use `--max-rate` there. "
            "With COMMAND, only the warmer gives way."
        ),
    ),
    Flag(
        names=("--time-limit",),
        group="Reading",
        value=DURATION,
        option="time_limit_seconds",
        help="Stop reading after 90s, 5m, 1h30m or 01:30:00, and exit 0.",
        details=(
            "The JSON document then says `complete: false`. A number without a unit is in seconds."
        ),
    ),
    Flag(
        names=("--verify",),
        group="Reading",
        excludes=("--dry-run", "--check", "--evict", "--list"),
        conflicts=(
            ("--split", "bytes"),
            ("--engine", "populate"),
            ("--engine", "advise"),
            ("--engine", "splice"),
        ),
        help="Hash what is read, and compare it with the hub's names or --checksums.",
        details=(
            "In the caches of Hugging Face and of Ollama, a blob's name is its digest. "
            "The header of a safetensors file is checked too: its tensors must lie one after the "
            "other up to the end of the file, each as long as its dtype and shape say. "
            "A file that is not what it should be has failed: it is named with what was expected "
            "and what was found, the exit code is 1, and the others are still read. "
            "What cannot be checked is counted. "
            "Every file is read, also where the decision would be to skip and what is already "
            "resident, but only whole files up to the budget and `--max-bytes`; `--force` reads "
            "all. Ranks share whole files. "
            "COMMAND starts once all is verified and if no file has failed, whatever `--lead` "
            "says. With `--best-effort` it starts at `--lead`, and failures are only logged. "
            "Where `--time-limit` ends the run first, it starts with a warning."
        ),
    ),
    Flag(
        names=("--checksums",),
        group="Reading",
        value=Value("FILE", paths="file"),
        option="checksums",
        needs=("--verify",),
        help="The SHA-256 of the files, as sha256sum lists them.",
        details=(
            "All its forms are read: text and binary, tagged, and with a NUL behind each line. "
            "Blank lines and lines that begin with # are comments. "
            "Names are relative to the folder of FILE or to CHECKPOINT. "
            "Lines about other files are counted. "
            "A malformed line is an error before anything is read. "
            "The list wins over a blob's name."
        ),
    ),
    Flag(
        names=("-n", "--dry-run"),
        group="Actions",
        excludes=("--check", "--evict", COMMAND),
        help="Print facts, decision, share and plan; read no weights.",
        details="The exit code is 0 whatever the decision.",
    ),
    Flag(
        names=("--trial",),
        group="Actions",
        needs=("--dry-run",),
        option="trial",
        help="With --dry-run: measure the storage for a second, and forecast the time.",
        details=(
            "Reads at most 64 MiB of what is cold: half by page faults in order, as a loader that "
            "maps the files, half as a run would. They stay warm. "
            "Without `--dry-run` that is done where it decides: at least 1 GiB is cold on a local "
            "file system and fits."
        ),
    ),
    Flag(
        names=("--check",),
        group="Actions",
        excludes=("--evict", COMMAND),
        help="Print how much is resident.",
        details=(
            "The method is printed beside the figure. A sample gives the interval that holds the "
            "truth in 95 % of all samples; it looks at no more than 1,024 pages. If no method can "
            "tell, the figure is unknown."
        ),
    ),
    Flag(
        names=("--evict",),
        group="Actions",
        excludes=(COMMAND,),
        help="Drop the checkpoint from the page cache.",
        details=(
            "It needs no privileges. "
            "What cannot be dropped is listed with the reason: dirty, mapped or not permitted."
        ),
    ),
    Flag(
        names=("--list",),
        group="Actions",
        excludes=("--dry-run", "--check", "--evict", COMMAND),
        help="Print the files in load order, one a line; read no weights.",
        details=(
            "These are the files of this rank's share, libraries first, and nothing else is "
            "printed on standard output. A path is absolute, and printed byte for byte; on a "
            "terminal, its control characters are escaped. "
            "With `--json`, they are the document's `files`."
        ),
    ),
    Flag(
        names=("--print0",),
        group="Actions",
        needs=("--list",),
        excludes=("--json",),
        help="With --list: end each path with a NUL byte, for xargs -0.",
        details="A path may hold a line end.",
    ),
    Flag(
        names=("--min-resident",),
        group="Actions",
        value=percent(0),
        option="min_resident_percent",
        help="Exit 4 if less is resident after warming, or with --check.",
        details=(
            "The exit code is also 4 if residency is unknown. Of an estimate the lower bound must "
            "be as much; if only the upper bound is, the exit code is 4, and the error says so."
        ),
    ),
    Flag(
        names=("--keep",),
        group="Actions",
        value=UNTIL,
        excludes=("--dry-run", "--check", "--evict", "--list"),
        value_needs=(Until.LOAD, COMMAND),
        help="Then read again what is dropped, for 30m or, behind --, until it is loaded.",
        details=(
            "The run looks every few seconds, at most 5 % of the time, and reads again what the "
            "kernel dropped, within the budget of the memory that is available then. "
            "What is dropped for the third time is given up, with a warning: memory is short. "
            "What is resident when reading ends is kept, also after a skip; libraries are not. "
            "`load` ends 30 s after COMMAND's processes had every weight file mapped or open and "
            "have none any more, or when COMMAND ends: a server that serves from its mapping has "
            "its pages kept to its end. "
            "A file that is opened for less than 0.25 s may be missed. "
            "`--time-limit` does not count what comes after reading."
        ),
    ),
    Flag(
        names=("--lock",),
        group="Actions",
        needs=("--keep",),
        help="With --keep: lock the pages in memory instead (mlock).",
        details=(
            "It needs CAP_IPC_LOCK or a limit that is large enough (`ulimit -l`); that is checked "
            "before anything is read, and a refusal is a usage error. "
            "At most the budget is locked. "
            "If less than 5 % of what was available is left later, all is unlocked with a warning."
        ),
    ),
    Flag(
        names=("--lead",),
        group="Command",
        value=AMOUNT,
        default="0",
        needs=(COMMAND,),
        help="Start COMMAND once this much is warm: 8GiB or 25%.",
        details=(
            "A percentage is of what there is to read in this share; what is already resident "
            "counts as warm. "
            "By default COMMAND starts once the decision is known. "
            "It starts in any case when the run skips, finishes, fails or reaches `--time-limit`; "
            "with `--verify`, see there."
        ),
    ),
    Flag(
        names=("--best-effort",),
        group="Command",
        needs=(COMMAND,),
        help="Start COMMAND even if the checkpoint is missing, incomplete or malformed.",
        details=(
            "Also if a line of `--from-file` is bad; and if `--lock` is refused, what is dropped "
            "is read again instead. "
            "Without it, the exit code is then 3, or 2, and COMMAND does not start. "
            "With `--verify`, COMMAND starts even if a file fails; without it, the exit code is "
            "then 1."
        ),
    ),
    Flag(
        names=("--window",),
        group="Command",
        value=SIZE_OR_AUTO,
        needs=(COMMAND,),
        excludes=("--max-bytes", "--rank", "--world-size", "--verify", "--keep"),
        help="Stay so far ahead of COMMAND's loader and drop what it has passed; auto: half.",
        details=(
            "For a checkpoint that does not fit. If one is given, the window moves over one that "
            "fits too. On a local file system that is not slow, give `--force` as well. "
            "`auto` is half of the budget; no window is larger than the budget. "
            "Where the GPU has no memory of its own (see `--ram-threshold`), `auto` is the default "
            "for a checkpoint that does not fit, unless `--partial` or what excludes `--window` "
            "is given. "
            "Where the loader is, is seen from outside, ten times a second at most: in /proc, by "
            "the weight files that COMMAND's processes have mapped or open, and how far they have "
            "read them. The slowest process counts. "
            "A file has been passed when every process that had it has gone on to a later one, or "
            "has had none for 10 s, or has ended. What was passed is dropped, each file as a "
            "whole, where the budget of the memory that is available then has no room for more. "
            "In a mapped file nobody sees how far the loader is, so a window should be larger than "
            "two files, and of a checkpoint in a single file that is mapped it reads the head. "
            "If COMMAND's processes are hidden from this user, read in another order, have files "
            "open at once that lie farther apart than the window, or open none for 10 minutes, a "
            "warning says so, and the head is read, up to the budget, as with `--partial`."
        ),
    ),
    Flag(
        names=("--json",),
        group="Output",
        excludes=(COMMAND,),
        help="Print one JSON document on standard output and nothing else.",
        details="Its keys are stable within one `schema_version`.",
    ),
    Flag(
        names=("--progress",),
        group="Output",
        value=one_of(ProgressMode, "HOW"),
        default="auto",
        help=f"How to show progress: {listed(ProgressMode)}; auto is bar on a terminal, else log.",
        details=(
            "`log` writes a line at every 10 %. "
            "`json` writes an object a line, at every 10 % and at least every 5 s, and warnings "
            "and errors as objects too; see prefetch-cli-json(5). "
            "If nothing arrives for 10 s, `bar` and `log` say which file they are waiting for."
        ),
    ),
    Flag(
        names=("--metrics",),
        group="Output",
        value=Value("FILE", paths="file"),
        help="Write the result as a text file for Prometheus, by node_exporter.",
        details=(
            "FILE is one for node_exporter's textfile collector, and ends in .prom for that. "
            "It is written when the run ends (with `--keep`, when that ends), also by an error or "
            "a signal, as a whole: through a file beside it that is renamed. Its mode is 0644. "
            "If that fails, a warning says so; the exit code stays. "
            "Every sample has the labels `checkpoint` and `rank`. Give each rank a FILE of its own."
        ),
    ),
    Flag(
        names=("-q", "--quiet"),
        group="Output",
        excludes=("--verbose",),
        help="Print errors only.",
        details="Decision, summary, progress and warnings are left out.",
    ),
    Flag(
        names=("-v", "--verbose"),
        group="Output",
        help="Print each file too.",
        details=(
            "Its line says how much of it is resident, before and after. "
            "With `--json`, the document has a key `files`."
        ),
    ),
    Flag(
        names=("--version",),
        group="Output",
        at_once=True,
        help="Print the version.",
    ),
    Flag(
        names=("-h", "--help"),
        group="Output",
        at_once=True,
        help="Print this help.",
    ),
)


def rivals(flag: Flag, flags: tuple[Flag, ...] = FLAGS) -> tuple[str, ...]:
    """Return the names of what cannot stand beside a flag, whichever of two says so."""
    others = [other.name for other in flags if flag.name in other.excludes]
    return (*others, *flag.excludes)
