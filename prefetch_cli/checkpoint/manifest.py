"""What a loader reads of one checkpoint, as paths, and the terms on which it is looked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.files import Incomplete, Skipped
from prefetch_cli.checkpoint.index import Index
from prefetch_cli.checkpoint.selection import Filters
from prefetch_cli.checkpoint.servers import Rules


class Terms(NamedTuple):
    """By which terms a checkpoint is looked for."""

    shown: str  # what the user called it
    load_format: LoadFormat
    rules: Rules
    server_known: bool  # else the rules are vLLM's for want of another
    filters: Filters
    quantisation: str | None = None  # of a GGUF model, as in org/name:Q4_K_M
    of_repo: bool = False  # a repo id, not a path


@dataclass(frozen=True)
class Folder:
    """The paths that a loader reads in one folder, whether they exist or not."""

    load_format: LoadFormat  # resolved
    side: tuple[str, ...]  # config and tokenizer files
    weights: tuple[str, ...]  # in load order
    index: Index | None = None
    absent: tuple[str, ...] = ()  # unusable indexes and missing folders
    unfinished: tuple[str, ...] = ()  # by what a downloader keeps beside them
    specials: tuple[str, ...] = ()  # FIFOs, sockets and devices: kept for their warnings
    incomplete: tuple[Incomplete, ...] = ()  # of what is known without a look at the files
    lone: tuple[str, ...] = ()  # weights whose names promise more, which nothing else does
    hint: str | None = None  # the likely cause if files are missing, and what to do then


class Manifest(NamedTuple):
    """The paths that a loader reads of one checkpoint."""

    root: str  # the folder that holds all others
    server: Server | None  # by whose rules; None for a single file
    folders: tuple[Folder, ...]  # `root` first
    warnings: tuple[str, ...] = ()
    failed: tuple[Skipped, ...] = ()  # folders that cannot be listed
    # In bytes: those that a manifest of Ollama promises.
    sizes: Mapping[str, int] = MappingProxyType({})

    @property
    def load_format(self) -> LoadFormat:
        """The load format of the checkpoint, never AUTO."""
        return self.folders[0].load_format

    @property
    def weights(self) -> list[str]:
        """The weight files of all folders, in load order."""
        return [path for folder in self.folders for path in folder.weights]

    @property
    def incomplete(self) -> list[Incomplete]:
        """What is known to be missing of all folders."""
        return [one for folder in self.folders for one in folder.incomplete]

    @property
    def hint(self) -> str | None:
        """What to do if files are missing, where a folder tells."""
        return next((folder.hint for folder in self.folders if folder.hint), None)
