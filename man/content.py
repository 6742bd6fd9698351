"""The text of the man page, and of README's tables, that no record of a flag has."""

from dataclasses import dataclass

from prefetch_cli.base.errors import ExitCode
from prefetch_cli.base.words import PROGRAM
from prefetch_cli.plan.decision import Reason, Verdict

# The last change to this page that a reader should know of. By hand, so that the page changes
# only when its content does.
DATE = "2026-11-21"


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
    """A message of the command, its exit code, and what it means."""

    said: str  # a {NAME} stands for what differs from run to run
    exit_code: str
    meaning: str


DESCRIPTION = (
    f"`{PROGRAM}` reads the files of a model checkpoint into the kernel's page cache. "
    "A server that maps them afterwards, or meanwhile, finds them in memory instead of fetching "
    "them page by page from a network file system. "
    "After reading, the command opens the files again and measures how much stayed.",
    "`CHECKPOINT` is a directory; a weight file (.safetensors, .gguf, .bin, .pt, .pth); an index "
    "file (*.index.json); a repo id, like org/name, in the local cache of Hugging Face or "
    "ModelScope; or, with `--hub ollama`, the name of a model of Ollama. "
    "org/name:QUANT and DIR:QUANT are one quantisation of a GGUF repo or directory, as vLLM, "
    "llama.cpp and Ollama (hf.co/org/name:QUANT) write it: the model whose file name, or else "
    "folder, has that word, in any case, with its projector; org/name/FILE.gguf is one by its "
    "file. "
    "A path that exists wins over a repo id. "
    "One part of a split GGUF means all its parts; one shard of an indexed set means only that "
    "file. "
    "Several checkpoints are read in the order given. "
    "Nothing is ever downloaded, and nothing is ever written to a checkpoint.",
    "The command finds the files that the loader will read, in the loader's order; their file "
    "systems; the available memory; and how much is already resident. "
    "It decides (see DECISION), reads what is missing, and reports the result. "
    "Decision and summary go to standard output, progress and warnings to standard error.",
    "With `COMMAND`, the process becomes `COMMAND` as soon as the decision is known, by execve(2) "
    "without a shell: it keeps the pid and the standard streams, and signals and exit code are its "
    "own. "
    "The warming goes on in another process, which writes all its lines to standard error. "
    "That process exits when it is done, and within a second of `COMMAND` ending. "
    "`COMMAND` runs even if the decision is to skip or the warming fails.",
    "Without a `CHECKPOINT`, it is what `COMMAND` says that it reads, if that is a server which "
    "the command knows: `vllm serve`, `sglang serve`, `trtllm-serve`, "
    "`text-generation-launcher`, `transformers serve` or `llama-server`; see "
    "prefetch-cli-recipes(7). What was found is printed. "
    "A `CHECKPOINT` that is given wins; `COMMAND` then only says by whose rules it is read.",
)

DECISION_RULES = (
    "A checkpoint fits if its size is at most `--ram-threshold` of the available memory and at "
    "most `--max-bytes`. "
    "It counts as network if any of its files is on a network file system, or on a block device "
    "behind a network; files in memory do not count towards its size. "
    "The first matching row wins; its reason is `decision.reason` in the JSON document."
)

NOTHING_TO_GAIN = "any options"
DECISIONS = (
    Row("nothing in this rank's share", NOTHING_TO_GAIN, Verdict.SKIP, Reason.EMPTY_SHARE),
    Row("any of the next four", "--verify", Verdict.PREFETCH, Reason.VERIFY),
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
        "99 % of the share resident, by a timed sample's lower bound",
        "nothing",
        Verdict.SKIP,
        Reason.ALREADY_RESIDENT,
    ),
    Row(
        "mount options that bypass the page cache",
        NOTHING_TO_GAIN,
        Verdict.SKIP,
        Reason.NO_PAGE_CACHE,
    ),
    Row("network", "--window", Verdict.PREFETCH, Reason.WINDOW),
    Row("local", "--force --window", Verdict.PREFETCH, Reason.WINDOW),
    Row("network, fits", NOTHING_TO_GAIN, Verdict.PREFETCH, Reason.NETWORK_FITS),
    Row("network, does not fit", "nothing", Verdict.SKIP, Reason.NETWORK_TOO_BIG, warns=True),
    Row("network, does not fit", "--partial", Verdict.PARTIAL, Reason.PARTIAL),
    Row("network, does not fit", "--force", Verdict.PREFETCH, Reason.FORCED_TOO_BIG, warns=True),
    Row("network, does not fit", "--verify", Verdict.PARTIAL, Reason.VERIFY, warns=True),
    Row("local, fits, and slow by a trial", "nothing", Verdict.PREFETCH, Reason.LOCAL_SLOW),
    Row("local, fits", "nothing", Verdict.SKIP, Reason.LOCAL_FITS),
    Row("local, fits", "--force", Verdict.PREFETCH, Reason.FORCED),
    Row("local, fits", "--verify", Verdict.PREFETCH, Reason.VERIFY),
    Row("local, does not fit", "nothing", Verdict.SKIP, Reason.LOCAL_TOO_BIG),
    Row("local, does not fit", "--force --partial", Verdict.PARTIAL, Reason.PARTIAL),
    Row("local, does not fit", "--force", Verdict.PREFETCH, Reason.FORCED_TOO_BIG, warns=True),
    Row("local, does not fit", "--verify", Verdict.PARTIAL, Reason.VERIFY, warns=True),
)

EXIT_CODES = {
    str(int(ExitCode.OK)): "Done, skipped by decision, or stopped by `--time-limit`.",
    str(int(ExitCode.READ_FAILED)): (
        "A file could not be read or, with `--evict`, dropped, or is not what `--verify` expects; "
        "all others were. Or the system failed: no memory, no descriptors, no answer."
    ),
    str(int(ExitCode.USAGE)): "Wrong options, or a bad line in `--from-file`.",
    str(int(ExitCode.CHECKPOINT)): (
        "The checkpoint is missing, empty, incomplete, malformed or ambiguous, or a library was "
        "not found; no weights were read."
    ),
    str(int(ExitCode.NOT_RESIDENT)): (
        "Less than `--min-resident` is resident, or may be, or it is unknown."
    ),
    str(int(ExitCode.COMMAND_NOT_EXECUTABLE)): "COMMAND cannot be executed; nothing was read.",
    str(int(ExitCode.COMMAND_NOT_FOUND)): "COMMAND was not found; nothing was read.",
    "129": "Interrupted by SIGHUP, within a second, after a summary of what was read.",
    "130": "Interrupted by SIGINT (Ctrl-C), likewise.",
    "143": "Interrupted by SIGTERM, likewise.",
}

ENVIRONMENT = {
    "HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE": (
        "The Hugging Face cache; the second is the older name. Default: $HF_HOME/hub."
    ),
    "HF_HOME": "Hugging Face's directory. Default: $XDG_CACHE_HOME/huggingface.",
    "XDG_CACHE_HOME": "The user's cache directory. Default: ~/.cache.",
    "HOME": "What ~ stands for.",
    "PWD": "The path of the current folder, where that lies in another mount namespace.",
    "VLLM_USE_MODELSCOPE": (
        "`true` or `1` looks repo ids up in ModelScope's cache, for vLLM and where the server is "
        "not known."
    ),
    "SGLANG_USE_MODELSCOPE": "`true`, `1`, `yes` or `y` does so for `--server sglang`.",
    "MODELSCOPE_CACHE": "ModelScope's cache. Default: ~/.cache/modelscope.",
    "LLAMA_CACHE": "llama.cpp's cache, for `llama-server -hf`; before the variables above.",
    "LLAMA_ARG_MODEL, LLAMA_ARG_HF_REPO, LLAMA_ARG_HF_FILE, LLAMA_ARG_MMPROJ": (
        "What llama-server reads, where COMMAND's words do not say it."
    ),
    "LLAMA_ARG_SPEC_DRAFT_MODEL, LLAMA_ARG_SPEC_DRAFT_HF_REPO": "Its draft model, likewise.",
    "MODEL_ID, REVISION, LORA_ADAPTERS": "The same for text-generation-launcher.",
    "OLLAMA_MODELS": (
        "Ollama's store. Default: ~/.ollama/models, then that of the systemd service."
    ),
    "VLLM_MODEL_REDIRECT_PATH": (
        "A file that leads from a model's name to what vLLM opens in its place, as a JSON object "
        "or as lines of two words; for vLLM and where the server is not known."
    ),
    "LOCAL_RANK, LOCAL_WORLD_SIZE, LOCAL_SIZE": "`--rank auto` under torchrun and DeepSpeed.",
    "OMPI_COMM_WORLD_LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_SIZE": "`--rank auto` under Open MPI.",
    "MPI_LOCALRANKID, MPI_LOCALNRANKS": "`--rank auto` under MPICH and Intel MPI.",
    "MV2_COMM_WORLD_LOCAL_RANK, MV2_COMM_WORLD_LOCAL_SIZE": "`--rank auto` under MVAPICH2.",
    "PALS_LOCAL_RANKID, PALS_LOCAL_SIZE": "`--rank auto` under PALS.",
    "JSM_NAMESPACE_LOCAL_RANK, JSM_NAMESPACE_LOCAL_SIZE": "`--rank auto` under jsrun.",
    "FLUX_TASK_LOCAL_ID, FLUX_JOB_SIZE, FLUX_JOB_NNODES": "`--rank auto` under Flux, on one node.",
    "SLURM_STEP_ID, SLURM_LOCALID, SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE": (
        "`--rank auto` in a step started by srun. "
        "A batch script has no rank: it runs once and reads everything."
    ),
    "VLLM_PP_LAYER_PARTITION, SGLANG_PP_LAYER_PARTITION": (
        "How many layers each pipeline stage has, as 8,8,9,7: for `--stage`, by the server."
    ),
    "PATH": "Where to look for COMMAND, and for python3 with `--package`.",
    "SYSTEMD_EXEC_PID": "In a systemd service, COMMAND ignores SIGPIPE, as systemd set it up.",
    "COLUMNS": "How wide lines on a terminal are, whatever the terminal says.",
    "NO_COLOR": "If set and not empty, output has no colour.",
    "TERM": "If `dumb` or unset, a terminal gets a line at every 10 % instead of the bar.",
}

FILES = {
    "~/.cache/huggingface/hub": "Where repo ids are looked up.",
    "~/.cache/modelscope": "Where ModelScope's repo ids are looked up.",
    "~/.ollama/models, /usr/share/ollama/.ollama/models": (
        "Where Ollama's models are looked up; the second is that of the systemd service's user."
    ),
    "/proc/self/mountinfo": "Types and options of file systems.",
    "/proc/PID/mountinfo": "The same for a path that leads into another mount namespace.",
    "/proc/meminfo": "The host's available memory.",
    "/proc/self/cgroup, /sys/fs/cgroup": "The memory limits of every cgroup above the process.",
    "/proc/self/mountstats": "How long NFS servers took to answer.",
    "/proc/fs/lustre, /sys/fs/lustre": "What Lustre's client keeps and how far it reads ahead.",
    "/sys/class/dmi, /sys/bus/pci, /proc/device-tree": "Whether the GPU has memory of its own.",
    "/sys/class/bdi": "The kernel's read-ahead.",
    "/sys/dev/block": "What block devices lie on, and the kernel's read-ahead.",
}

MORE_EXAMPLES = (
    ("Fail a job unless the model is warm", "{} --min-resident 99 /models/Llama-3.1-70B"),
    ("Read as much as fits, for at most 5 minutes", "{} --partial --time-limit 5m /models/R1"),
    ("A model on a slow local disk", "{} --force /scratch/Llama-3.1-8B"),
    ("Target and draft model, in that order", "{} /models/Llama-3.1-70B /models/draft-1B"),
    ("One quantisation of a GGUF repo", "{} unsloth/DeepSeek-R1-GGUF:UD-Q2_K_XL"),
    ("One model out of a directory of GGUF files", "{} --include '*Q4_K_M*' /models/gguf"),
    ("One of two precisions in folders", "{} --include 'fp8/*' /models/R1"),
    ("What the first of two pipeline stages reads", "{} --stage 0/2 /models/Llama-3.1-405B"),
    ("All but the vision tower", "{} --tensors '!visual.*' /models/Qwen3-VL-235B"),
    ("How much is resident", "{} --check /models/Llama-3.1-70B"),
    ("While the server starts", "{} -- vllm serve /models/R1"),
    ("The files in load order, for another tool", "{} --list --print0 /models/R1 | xargs -0 ls -l"),
    ("Give the memory back", "{} --evict /models/Llama-3.1-70B"),
)

DIAGNOSTICS = (
    Diagnostic(
        "{FILE}: expected {ALGORITHM} {DIGEST} by {SOURCE}, found {DIGEST}",
        "1",
        "With `--verify`: the content of the file is not what the hub's name of it, or "
        "`--checksums`, says. Download it again.",
    ),
    Diagnostic(
        "{FILE}: its header is wrong: {WHAT}",
        "1",
        "With `--verify`: safetensors' own library would refuse the file. Download it again.",
    ),
    Diagnostic(
        "leave out --tensors, --stage and --experts to read it whole",
        "3",
        "The header of a file is wrong: its tensors overlap, leave gaps or lie beyond its end, or "
        "it is no header. Nothing was read.",
    ),
    Diagnostic(
        "how many layers the model has is not sure: those of all stages are read",
        "0",
        "With `--stage`: config.json and the names of the tensors disagree, or several towers have "
        "as many layers as the model. Choose with `--tensors`.",
    ),
    Diagnostic(
        "{NAMES}: only whole safetensors and GGUF files say where their tensors lie: read whole",
        "0",
        "A part was asked for. What torch.save() writes (.bin, .pt) has no table of tensors, and a "
        "file that is cut short (`--allow-incomplete`) cannot hold what its table says.",
    ),
    Diagnostic(
        "--verify: no checksum of any file is known",
        "0",
        "CHECKPOINT is not in the cache of Hugging Face or Ollama, whose names tell. "
        "Only headers were checked. Give `--checksums`.",
    ),
    Diagnostic(
        "expected CHECKPOINT, or a COMMAND that names it, found {WHAT}",
        "2",
        "There is no CHECKPOINT, and COMMAND is no server that the command knows, or its words do "
        "not say for sure what it reads. Give CHECKPOINT in front of `--`.",
    ),
    Diagnostic(
        "expected a checkpoint on each line, found {LINES}",
        "2",
        "In brackets: why no CHECKPOINT can be called that. All such lines of the list are named, "
        "up to ten. Nothing was read, and COMMAND does not start without `--best-effort`.",
    ),
    Diagnostic(
        "--metrics {FILE}: not written: {WHY}",
        "that of the run",
        "The file is as it was before. What is there has to be a regular file, and its directory "
        "writable. Storage that does not answer is waited for 10 s, or until a signal comes; after "
        "one, for what is left of the second in which the run ends.",
    ),
    Diagnostic(
        "COMMAND's options in {FILE} are not read",
        "0",
        "A server's YAML file may name a load format, a revision or further models. "
        "Give CHECKPOINT and these options.",
    ),
    Diagnostic(
        "nothing has arrived for {TIME}: waiting {TIME} for {PATH} at offset {N}",
        "while it waits",
        "The storage has not answered for 10 s; the line is repeated every 30 s. "
        "Check the mount. The run can still be interrupted, and continues by itself once the "
        "storage is back.",
    ),
    Diagnostic(
        "expected an answer within --time-limit, found none from {PATH}",
        "1",
        "The storage never answered, so nothing could be read.",
    ),
    Diagnostic(
        "{PATH}: Input/output error",
        "1",
        "The storage failed while the file was being read (EIO). "
        "`Stale file handle` and `Permission denied` are similar. "
        "The rest of that block is left out, and after three errors the rest of the file. "
        "All other files are read.",
    ),
    Diagnostic(
        "{PATH}: No such file or directory",
        "1",
        "The file was there when the run began. All others are read.",
    ),
    Diagnostic(
        "expected the search path of a Python interpreter, found:",
        "3, or 1 where the system failed",
        "What was found follows. With 3, `--python` names no interpreter, or one that does not "
        "work, and nothing was read. With 1, the system could not start it, or it was killed or "
        "did not answer (within 120 s, or `--time-limit`): the libraries are left out, the rest "
        "is read, and COMMAND starts.",
    ),
    Diagnostic(
        "it was cut short while it was read",
        "1",
        "The file shrank meanwhile: something is writing to the checkpoint.",
    ),
    Diagnostic(
        "expected a complete checkpoint, found {N} missing or cut short",
        "3",
        "A shard listed in the index is missing or no file, or a weight file is a Git LFS pointer, "
        "is empty, has fewer bytes than its header promises (safetensors, GGUF), begins with "
        "zeros, or is a zip file without its end (.bin, .pt, .pth, .npz), or a blob has another "
        "size than Ollama's manifest says. A name like model-00001-of-00003 "
        "promises the others if at least one of them is there. A component that a layout file "
        "names and that has no weights, or none that the globs leave in, is missing too. The hint "
        "names downloads that have not ended, and another snapshot that has the files. Finish the "
        "download, or give `--allow-incomplete`.",
    ),
    Diagnostic(
        "its name promises more files, but there are none, and no index: warmed as it is",
        "0",
        "It may be a whole model under a numbered name, or all that came of a download.",
    ),
    Diagnostic(
        "{FILE} takes components from {REPO}",
        "0",
        "A modular pipeline of diffusers loads them from other repos. Give each as another "
        "CHECKPOINT.",
    ),
    Diagnostic(
        "expected one GGUF model, found {N}: {NAMES}",
        "3",
        "The directory, or its folders, hold several quantisations. Choose one with "
        "`--include`, or as org/name:QUANT or DIR:QUANT; the message shows both. "
        "With `--include`, the projector has to be named, too.",
    ),
    Diagnostic(
        "expected a GGUF model, found only {NAMES}",
        "3",
        "Projectors, adapters and importance matrices, by `general.type` in their headers or by "
        "their names, are no models. A file that is named itself is read whatever it is.",
    ),
    Diagnostic(
        "expected {KIND} inside the checkpoint, found {NAME}",
        "3",
        "An index or layout file points outside the checkpoint. Nothing is read.",
    ),
    Diagnostic(
        "expected the names of a model's files, found JSON far too large or nested for that",
        "3",
        "No model has such an index. Nothing is read.",
    ),
    Diagnostic(
        "{SIZE} do not fit into {SIZE}",
        "0",
        "The checkpoint is larger than the budget: the kernel would drop its head again before the "
        "loader gets to it. See `--window`, `--partial`, `--force` and `--ram-threshold`.",
    ),
    Diagnostic(
        "expected to be allowed to lock {SIZE} of memory",
        "2",
        "RLIMIT_MEMLOCK is too low and CAP_IPC_LOCK is missing. Nothing was read. Raise the limit, "
        "or leave out `--lock`.",
    ),
    Diagnostic(
        "{SIZE} were dropped three times and are not read again",
        "0",
        "`--keep` has given them up: memory is too short for them, or a program drops them "
        "(posix_fadvise, drop_caches). The rest is still kept.",
    ),
    Diagnostic(
        "only the first {SIZE} of {SIZE} are kept",
        "0",
        "The budget is smaller than what was warmed, by `--max-bytes` or since others took memory.",
    ),
    Diagnostic(
        "memory became short: {SIZE} were unlocked early",
        "0",
        "Less than 5 % of what was available when `--lock` began was left.",
    ),
    Diagnostic(
        "which files COMMAND's processes use is hidden from this user",
        "COMMAND's",
        "They are another user's, or started by a daemon. `--keep load` ends with COMMAND.",
    ),
    Diagnostic(
        "COMMAND's processes are hidden from this user",
        "COMMAND's",
        "They are another user's, or started by a daemon: `--window` cannot follow them, and reads "
        "the head, as `--partial` does.",
    ),
    Diagnostic(
        "the system killed the thread that looks at COMMAND's processes",
        "COMMAND's",
        "A seccomp filter does that; the kernel's log (audit, type=1326) names the system call. "
        "`--window` reads the head, as `--partial` does, and `--keep load` ends with COMMAND.",
    ),
    Diagnostic(
        "COMMAND has opened none of the weight files so far: only the head is read",
        "COMMAND's",
        "For 10 minutes: it reads another checkpoint, or a daemon reads this one for it.",
    ),
    Diagnostic(
        "COMMAND does not read the weight files in the order in which they are warmed",
        "COMMAND's",
        "`--window` would read what comes last, so the head is read, as by `--partial`. `--list` "
        "prints the order; see `--server`.",
    ),
    Diagnostic(
        "COMMAND has weight files open or mapped at once that lie farther apart than the window",
        "COMMAND's",
        "So nobody sees which of them it is at, and the head is read, as by `--partial`. A larger "
        "`--window` may do.",
    ),
    Diagnostic(
        "{SIZE} of the {SIZE} that were read or resident stayed in the page cache",
        "0, or 4 with --min-resident",
        "The likely cause follows: a memory limit, a FUSE file system that drops pages when a file "
        "is opened again, or a file system that keeps its data elsewhere. "
        "{SIZE} that were dropped again to free memory are no guess: the kernel counts them. "
        "A server's reads would fare the same.",
    ),
    Diagnostic(
        "unknown: this user has no way to tell",
        "0, or 4 with --min-resident",
        "No method is reliable here for a file that the user neither owns nor may write, or a "
        "seccomp profile refuses them all; mincore(2) would report everything as resident.",
    ),
    Diagnostic(
        "its index claims {SIZE}, the files have {SIZE}: the index may be stale",
        "0",
        "Only a warning: tools that change the weights often leave total_size as it was.",
    ),
    Diagnostic(
        "--rank auto found {WHAT}; this process reads everything",
        "0",
        "No known launcher started it, or two launchers claim different ranks because one started "
        "the other.",
    ),
    Diagnostic(
        "{PATH}: left out: expected a file, found {WHAT}",
        "0",
        "A FIFO, a socket or a device is never opened. What the index names and is no file makes "
        "the checkpoint incomplete instead.",
    ),
    Diagnostic(
        "{SIZE} stay: dirty, not yet written back",
        "1",
        "Only pages that are already on disk can be dropped.",
    ),
    Diagnostic(
        "{SIZE} stay: mapped by {PROCESS}",
        "1",
        "A process has these pages mapped.",
    ),
    Diagnostic(
        "expected to start threads, found that the system refuses",
        "1",
        "A limit on processes (ulimit -u, pids.max). "
        "If only some threads can be started, or only a few files opened (ulimit -n), fewer "
        "threads read.",
    ),
    Diagnostic(
        "expected more memory, found none",
        "1",
        "A limit on address space (ulimit -v) or on memory. Fewer `--threads` need less. "
        "Behind `--`, COMMAND starts anyway, unless `--verify` would have it wait.",
    ),
    Diagnostic(
        "--background: expected the lowest priority, found it refused",
        "0",
        "A seccomp profile refuses it. Reading continues at normal priority.",
    ),
)

SEE_ALSO = (
    "fincore(1)",
    "sbatch(1)",
    "srun(1)",
    "mincore(2)",
    "posix_fadvise(2)",
    "sendfile(2)",
    "prefetch-cli-json(5)",
    "cgroups(7)",
    "prefetch-cli-caching(7)",
    "prefetch-cli-recipes(7)",
    "vmtouch(8)",
)

CAVEATS = (
    "Loaders that bypass the page cache gain nothing: GPUDirect Storage, O_DIRECT, streamers that "
    "fetch for themselves. "
    "Nothing pins the pages afterwards: the kernel drops them when it needs memory. "
    "Warm shortly before the server starts, and use `--check` when in doubt."
)
