"""Where we differ from a server on purpose: each row says when, and why its user is better off."""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.peers.directories import Directory
from tests.peers.outcomes import Outcome

_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
_NOT_THERE = re.compile(r"([^ ,]+) \(not there\)")
_NOT_FOR_INFERENCE = ("*training_args.bin", "*optimizer.bin")


@dataclass(frozen=True)
class Case:
    """One directory, and what a server and we do with it."""

    directory: Directory
    server: str
    load_format: str
    theirs: Outcome
    ours: Outcome

    def beside(self, pattern: str) -> list[str]:
        """Return the files that match, as glob.glob does: none in folders, none that is hidden."""
        found = fnmatch.filter(self.directory.files, pattern)
        return [name for name in found if "/" not in name and not name.startswith(".")]

    def __str__(self) -> str:
        return (
            f"{self.directory}\n  --server {self.server} --load-format {self.load_format}\n"
            f"  it {self.theirs}\n  we {self.ours}\n"
        )

    @property
    def only_they_open(self) -> bool:
        """Whether we refuse, since something is missing, what they open."""
        return self.theirs.refusal is None and "missing or cut short" in (self.ours.refusal or "")

    @property
    def only_we_open(self) -> bool:
        """Whether they refuse what we open."""
        return self.theirs.refusal is not None and self.ours.refusal is None


@dataclass(frozen=True)
class Difference:
    """A row: when we differ, an example, and why."""

    name: str
    applies: Callable[[Case], bool]
    example: tuple[str, str, str]  # server, load format, named layout
    # What we warn of, where the server is known to end on what it finds.
    warning: str | None = field(default=None, kw_only=True)
    why: str


def row_of(case: Case) -> Difference | None:
    """Return the row of a case in which we differ, or None if there is none."""
    return next((row for row in DIFFERENCES if row.applies(case)), None)


def _a_number_is_missing(case: Case) -> bool:
    missing = _NOT_THERE.findall(case.ours.refusal or "")
    return (
        case.only_they_open
        and _has_gap(case.theirs.files)
        and bool(missing)
        and all(map(_NUMBERED.fullmatch, missing))
    )


def _index_names_folders(case: Case) -> bool:
    named = {
        name
        for index, content in case.directory.files.items()
        if index.endswith(".safetensors.index.json") and "/" not in index
        for name in _names_in(content)
    }
    nested = {name for name in case.ours.files if "/" in name}
    theirs = [name for name in case.ours.files if name not in nested]
    less = case.theirs.refusal is not None or sorted(case.theirs.files) == sorted(theirs)
    return (
        case.server in ("vllm", "sglang")
        and case.ours.refusal is None
        and bool(nested)
        and nested <= named
        and less
    )


def _names_in(content: bytes | None) -> list[str]:
    """Return the names in an index, none if it is malformed."""
    try:
        return list(json.loads(content or b"")["weight_map"].values())
    except ValueError:
        return []


def _training_args_beside_pt(case: Case) -> bool:
    found = case.beside("*.bin")
    kept = [name for name in found if not _matches(name, _NOT_FOR_INFERENCE)]
    read = [name for name in case.ours.files if not name.startswith("np/")]  # npcache's own
    return case.only_we_open and bool(found) and not kept and _all_end(read, ".pt")


def _consolidated_in_a_folder(case: Case) -> bool:
    nested = fnmatch.filter(case.directory.files, "*/consolidated*.safetensors")
    return (
        case.only_we_open
        and case.server == "vllm"
        and case.load_format == "auto"
        and bool(nested)
        and not case.beside("consolidated*.safetensors")
    )


def _gguf(case: Case) -> bool:
    return case.only_we_open and _all_end(case.ours.files, ".gguf")


def _only_consolidated(case: Case) -> bool:
    return (
        case.only_we_open
        and case.server == "transformers"
        and set(case.ours.files) <= set(case.beside("consolidated*.safetensors"))
    )


def _only_an_adapter(case: Case) -> bool:
    adapters = {"adapter_model.safetensors", "adapter_model.bin"}
    return (
        case.only_we_open
        and case.server in ("transformers", "sentence-transformers")
        and set(case.ours.files) <= adapters
    )


def _hidden_shard(case: Case) -> bool:
    hidden = fnmatch.filter(case.directory.files, ".*.safetensors")
    return (
        case.only_we_open
        and case.server == "transformers"
        and bool(hidden)
        and bool(case.beside("shard-*-model-*.safetensors"))
    )


def _link_to_nothing(case: Case) -> bool:
    return case.only_they_open and "(a symbolic link to nothing)" in (case.ours.refusal or "")


def _numpy_cache_of_sources(case: Case) -> bool:
    special = case.directory.name in ("bge-m3", "cosmos3")
    return special and case.load_format == "npcache" and case.ours.refusal is None


def _has_gap(names: Iterable[str]) -> bool:
    numbers: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if part := _NUMBERED.fullmatch(name):
            numbers.setdefault((part[1], part[3], part[4]), set()).add(int(part[2]))
    return any(len(found) < int(key[1]) for key, found in numbers.items())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _all_end(names: Iterable[str], suffix: str) -> bool:
    return all(name.endswith(suffix) for name in names)


DIFFERENCES = (
    Difference(
        "a number of a set is missing, and no index counts",
        _a_number_is_missing,
        ("vllm", "hf", "two-of-three-without-index"),
        "The server reads all that is there before it finds that weights are missing, or serves "
        "without them; we say at once which file is missing.",
    ),
    Difference(
        "an index names files in folders",
        _index_names_folders,
        ("vllm", "hf", "index-names-a-folder"),
        "vLLM refuses them, and SGLang leaves them out or refuses: neither can serve this layout. "
        "We read what the index names, as a server that can does.",
    ),
    Difference(
        "training_args.bin or optimizer.bin beside .pt files",
        _training_args_beside_pt,
        ("vllm", "auto", "pt-beside-training-args"),
        "vLLM and SGLang choose .bin, leave these out, and find nothing: --load-format pt loads.",
        warning="start it with --load-format pt",
    ),
    Difference(
        "consolidated*.safetensors in a folder only",
        _consolidated_in_a_folder,
        ("vllm", "auto", "consolidated-in-a-folder"),
        "vLLM takes the folder's file for the model's format and finds none; with "
        "--load-format hf it loads what we read.",
        warning="start it with --load-format hf",
    ),
    Difference(
        "GGUF files and nothing else",
        _gguf,
        ("sglang", "gguf", "only-gguf"),
        "The servers want the file's path, which their user gives them; the directory stands "
        "for the file in it.",
    ),
    Difference(
        "consolidated*.safetensors and nothing else, for transformers",
        _only_consolidated,
        ("transformers", "auto", "mistral-only"),
        "transformers has no name for these files; who serves them with it hands them over by "
        "other means, and there is nothing else that could be meant.",
    ),
    Difference(
        "an adapter and nothing else",
        _only_an_adapter,
        ("transformers", "auto", "adapter"),
        "transformers reads the adapter after the model that it names, which lies elsewhere: "
        "that part of its code is not compared.",
    ),
    Difference(
        "a hidden file beside the shards of torch",
        _hidden_shard,
        ("transformers", "auto", "torch-shards-with-a-hidden-file"),
        "transformers takes macOS's ._ files for shards and fails on them; they are no weights.",
    ),
    Difference(
        "a link to nothing",
        _link_to_nothing,
        ("transformers", "auto", "a-link-to-nothing-beside-a-bin"),
        "transformers goes on to the next name, which holds older weights or others, where a "
        "download has not ended.",
    ),
    Difference(
        "a numpy cache of a model with sources of its own",
        _numpy_cache_of_sources,
        ("vllm", "npcache", "bge-m3"),
        "vLLM writes the cache for the first source and takes it for the others, and SGLang stops "
        "at safetensors files under this format: neither serves such a model with npcache.",
    ),
)
