"""What lies beside the files that are read: whatever a user would not want to be passed over."""

import os
import posixpath
import shlex
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import counted, listing, printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import selection
from prefetch_cli.checkpoint.layouts import MODULAR_LAYOUT
from prefetch_cli.checkpoint.manifest import Manifest
from prefetch_cli.checkpoint.names import is_hidden
from prefetch_cli.checkpoint.selection import ReadIndex, Want
from prefetch_cli.checkpoint.servers import Rules, rules_of

# Bounds of the look into folders that nothing names: they may hold anything.
_MOST_FOLDERS = 100
_MOST_ENTRIES = 5_000
_DEEPEST = 3

_OTHERS = (Server.SGLANG, Server.TENSORRT_LLM, Server.TRANSFORMERS)
# Loaders that open files with O_DIRECT where they can (fastsafetensors 0.5, instanttensor 0.2,
# runai-model-streamer 0.17, read in their packages), or take weights from another server.
_PAST_THE_CACHE = {
    LoadFormat.FASTSAFETENSORS,
    LoadFormat.INSTANTTENSOR,
    LoadFormat.RUNAI_STREAMER,
    LoadFormat.RUNAI_STREAMER_SHARDED,
    LoadFormat.MODELEXPRESS,
}
_WITHOUT_WEIGHTS = {LoadFormat.DUMMY, LoadFormat.IPC_CACHE}


class Unread(NamedTuple):
    """Weight files in folders that nothing names."""

    paths: tuple[str, ...]  # relative to the checkpoint
    size_bytes: int
    whole: bool  # whether all folders could be looked at within the bounds

    @property
    def folders(self) -> list[str]:
        """The folders of the checkpoint in or below which they lie."""
        return list(dict.fromkeys(path.partition("/")[0] for path in self.paths))


def unread_weights(root: str, folders: Iterable[str], want: Want, monitor: Monitor) -> Unread:
    """Return the weight files in these folders below `root`, and below them."""
    paths: list[str] = []
    size_bytes = 0
    whole = True
    pending = [name for name in sorted(folders, reverse=True) if not is_hidden(name)]
    looked = entries = 0
    while pending:
        folder = pending.pop()
        if looked == _MOST_FOLDERS or entries >= _MOST_ENTRIES:
            whole = False
            break
        looked += 1
        try:
            with monitor.waiting(os.path.join(root, folder)):
                found = list(_entries(os.path.join(root, folder), _MOST_ENTRIES - entries))
        except OSError:
            whole = False
            continue
        entries += len(found)
        for name, status in sorted(found, key=lambda entry: entry[0]):
            path = posixpath.join(folder, name)
            if stat.S_ISDIR(status.st_mode):
                if path.count("/") < _DEEPEST:
                    pending.append(path)
            elif name.endswith(selection.WEIGHT_SUFFIXES) and want(path):
                paths.append(path)
                size_bytes += status.st_size
    return Unread(tuple(paths), size_bytes, whole)


def _entries(path: str, most: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield name and status of the folders and weight files in a folder, up to a bound."""
    with os.scandir(path) as found:
        for number, entry in enumerate(found):
            if number >= most:
                return
            if is_hidden(entry.name):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or entry.name.endswith(selection.WEIGHT_SUFFIXES):
                try:
                    yield entry.name, entry.stat()
                except OSError:
                    continue  # a link to nothing


def about_unread(shown: str, manifest: Manifest, unread: Unread) -> Iterator[str]:
    """Yield a line on weights that are not read."""
    if not unread.paths:
        return
    folders = unread.folders
    more = "" if unread.whole else "at least "
    also = shlex.quote(os.path.join(manifest.root, folders[0]))
    reader = manifest.server.value if manifest.server else "the server"
    yield (
        f"{printable(shown)}: left out {more}{counted(len(unread.paths), 'weight file')} "
        f"({format_size(unread.size_bytes)}) in {listing([f'{name}/' for name in folders])}, which "
        f"nothing names for {reader}; --also {printable(also)} warms "
        f"{'it' if len(folders) == 1 else 'the first'} too"
    )


def about_other_sets(
    shown: str,
    names: Collection[str],
    taken: Sequence[str],
    want: Want,
    read_index: ReadIndex,
) -> Iterator[str]:
    """Yield a line if another server would take other files of the same folder."""
    left_out = {
        name for name in names if name.endswith(selection.WEIGHT_SUFFIXES) and not is_hidden(name)
    }.difference(taken)
    if not left_out:
        return
    others: dict[tuple[str, ...], list[str]] = {}
    for server in _OTHERS:
        chosen = selection.select(
            names, LoadFormat.AUTO, rules_of(server), want, read_index, component=False
        ).weights
        if left_out.intersection(chosen) and set(chosen) <= set(names):
            others.setdefault(tuple(sorted(chosen)), []).append(server.value)
    if not others:
        return
    alternatives = "; ".join(
        f"{listing(list(chosen))} with --server {' or '.join(servers)}"
        for chosen, servers in others.items()
    )
    yield (
        f"{printable(shown)}: weights lie there twice: took {listing(list(taken))}, as vllm; "
        f"{alternatives}"
    )


def about_failing(
    names: Collection[str],
    load_format: LoadFormat,
    rules: Rules,
    unread: Unread,
    shards: Collection[str],
) -> Iterator[str]:
    """Yield a line for each layout on which this server fails before it has read anything."""
    server = rules.server.value
    deep = sorted(shard for shard in shards if "/" in shard)
    if rules.refuses_shards_in_folders and deep:
        yield (
            f"{server} ends on an index that names files in folders: {listing(deep)}; put them "
            "beside the index, or serve it with another server"
        )
    if load_format is not LoadFormat.AUTO:
        return
    nested = [path for path in unread.paths if _is_consolidated(posixpath.basename(path))]
    if (
        rules.takes_nested_consolidated_for_mistral
        and nested
        and not any(map(_is_consolidated, names))
    ):
        yield (
            f"{server} takes {printable(nested[0])} for Mistral's format, and then finds no "
            f"weights: start it with --load-format hf"
        )
    matched = [name for name in names if name.endswith(".bin") and not is_hidden(name)]
    if (
        rules.takes_training_args_for_weights
        and matched
        and all(name.endswith(("training_args.bin", "optimizer.bin")) for name in matched)
        and not any(name.endswith(".safetensors") for name in names)
        and any(name.endswith(".pt") for name in names)
    ):
        yield (
            f"{server} takes {listing(matched)} for the weights, and then finds none: start it "
            "with --load-format pt"
        )


def about_lone(paths: Iterable[str]) -> Iterator[str]:
    """Yield a line for each file whose name promises others that nothing else tells of."""
    for path in paths:
        yield (
            f"{printable(path)}: its name promises more files, but there are none, and no index: "
            "warmed as it is"
        )


def about_format(load_format: LoadFormat) -> Iterator[str]:
    """Yield a line where this format does not read through the page cache."""
    if load_format in _PAST_THE_CACHE:
        yield (
            f"--load-format {load_format.value} reads past the page cache where it can: what is "
            "warmed gains it nothing then"
        )
    if load_format in _WITHOUT_WEIGHTS:
        yield f"--load-format {load_format.value} reads no weights: there are none to warm"


def about_other_repos(shown: str, repos: Sequence[str]) -> Iterator[str]:
    """Yield a line where the config names other repos whose weights are loaded too."""
    if repos:
        yield (
            f"{printable(shown)}: its config.json names {listing(list(repos))}, which the server "
            "loads too: give it as another CHECKPOINT"
        )


def about_other_places(shown: str, repos: Sequence[str]) -> Iterator[str]:
    """Yield a line where a modular pipeline takes components from other repos."""
    if repos:
        yield (
            f"{printable(shown)}: {MODULAR_LAYOUT} takes components from {listing(list(repos))}: "
            "to warm them too, give each as another CHECKPOINT"
        )


def _is_consolidated(name: str) -> bool:
    return name.startswith("consolidated") and name.endswith(".safetensors")
