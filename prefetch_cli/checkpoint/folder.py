"""One folder of a checkpoint: its names, its index and layout files, what a loader reads there."""

import fnmatch
import functools
import os
import posixpath
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from prefetch_cli.base.errors import CheckpointError, error_words, unreachable
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import layouts, metadata, selection, subfolders
from prefetch_cli.checkpoint.companions import companions, has_companions
from prefetch_cli.checkpoint.config import CONFIG, Config, parse_config
from prefetch_cli.checkpoint.contents import contents_of
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.families import DIFFUSERS_WEIGHTS, index_missed
from prefetch_cli.checkpoint.files import File, Skipped
from prefetch_cli.checkpoint.index import Index, parse_index
from prefetch_cli.checkpoint.layouts import Component
from prefetch_cli.checkpoint.manifest import Folder, Terms
from prefetch_cli.checkpoint.names import NUMBERED, is_hidden
from prefetch_cli.checkpoint.quantisations import Chooser
from prefetch_cli.checkpoint.selection import Selection
from prefetch_cli.checkpoint.servers import MISTRAL_PARAMETERS, TORCH_SHARDS
from prefetch_cli.linux.files import close, open_to_read, pieces

_NP_LIST = "weight_names.json"
_AS_CONFIG_SAYS = {LoadFormat.AUTO, LoadFormat.HF, LoadFormat.SAFETENSORS}


class FolderReader:
    """Finds what a loader reads in one folder of a checkpoint."""

    def __init__(
        self,
        root: str,
        below: str,  # the folder's path below `root`; empty: `root` itself
        terms: Terms,
        monitor: Monitor,
        *,
        component: bool = False,
    ) -> None:
        self._component = component
        self._root = root
        self.path = os.path.join(root, below) if below else root
        self.name = below
        self.terms = terms
        self._monitor = monitor
        self._found = contents_of(self.path, terms.shown)
        self._unusable: list[str] = []  # index and layout files
        self._indexes: dict[str, Index | None] = {}
        self.names = self._found.files
        self.folders = self._found.folders
        self.warnings: tuple[str, ...] = ()  # of what was selected

    def want(self, name: str) -> bool:
        """Return whether the user's globs keep this file."""
        return self.terms.filters.want(os.path.join(self.name, name))

    def components(self) -> list[Component]:
        """Return the parts of the model that layout files name, each once."""
        found: dict[str, Component] = {}
        for name in self._layouts():
            content = self._read_small(name)
            if content is not None and (
                name != layouts.OLD_ROUTER_LAYOUT or layouts.is_old_router(content)
            ):
                for one in layouts.components(os.path.join(self.path, name), content):
                    found.setdefault(one.folder or f"{one.origin}", one)
        return list(found.values())

    def below(self, name: str, *, component: bool = True) -> "FolderReader":
        """Return the reader of a folder below this one, a component or a checkpoint itself."""
        terms = self.terms._replace(shown=os.path.join(self.path, name), quantisation=None)
        below = os.path.join(self.name, name)
        return FolderReader(self._root, below, terms, self._monitor, component=component)

    def matching(self, pattern: str) -> list[str]:
        """Return the paths of the wanted files here whose names match a glob."""
        return [
            os.path.join(self.path, name)
            for name in fnmatch.filter(self.names, pattern)
            if self.want(name) and not is_hidden(name)
        ]

    @functools.cached_property
    def config(self) -> Config:
        """What config.json says of the weights."""
        try:
            content = self._read_small(CONFIG) if CONFIG in self.names else None
        except CheckpointError:
            content = None  # it is reported as a file that cannot be read
        return parse_config(content or b"{}")

    def np_arrays(self) -> tuple[str, ...] | None:
        """Return the paths in the list of a numpy cache, in its order, None without such a list."""
        content = self._read_small(_NP_LIST) if _NP_LIST in self.names else None
        if content is None:
            return None
        path = os.path.join(self.path, _NP_LIST)
        listed = metadata.parsed(path, lambda: metadata.bounded_json(content))
        names = listed if isinstance(listed, list) else []
        return self._paths(
            [
                name
                for name in metadata.names_below(path, "names of arrays", names)
                if self.want(name)
            ]
        )

    def read_index(self, name: str) -> Index | None:
        """Return an index, or None if its file is unusable; each is read once."""
        if name not in self._indexes:
            with self._opened(name) as descriptor:
                read = None if descriptor is None else pieces(descriptor, sys.maxsize)
                path = os.path.join(self.path, name)
                self._indexes[name] = None if read is None else parse_index(path, read)
        return self._indexes[name]

    def selected(self) -> Folder:
        """Return what a loader reads in this folder."""
        load_format = self.terms.load_format
        if load_format is LoadFormat.AUTO and self._is_mistral_by_path():
            load_format = LoadFormat.MISTRAL
        selected = self._named_by_config() or self._select(load_format)
        if load_format is LoadFormat.AUTO and self._belong_to_onnx(selected.weights):
            selected = self._select(LoadFormat.ONNX)
        if selected.load_format is LoadFormat.GGUF or self.terms.quantisation is not None:
            selected = self._one_gguf() or selected
        if self.is_component and selected.index is None:
            self._unusable += index_missed(selected.weights)
        named = list(filter(self.want, self._named_by(selected.weights)))
        if named:
            in_order = selection.in_order({*selected.weights, *named}, self.terms.rules.order)
            selected = replace(selected, weights=in_order)
        return self.folder(selected)

    def selected_below(self) -> tuple[Folder, ...]:
        """Return what a loader reads in the folders below this one, where it reads nothing here.

        That is the one GGUF model in them, or else the weights that `--include` globs with a slash
        name: each folder that holds some counts like a checkpoint of its own. The first of what
        is returned is this folder.
        """
        families = self.terms.rules.of_format(self.terms.load_format)
        if any(family.load_format is LoadFormat.GGUF for family in families):
            chosen = self._one_gguf()
            if chosen is not None:
                return (self.folder(chosen),)
        if not any("/" in glob for glob in self.terms.filters.include):
            return ()
        found = [
            self.below(folder, component=False).selected()
            for folder, names in self._all_below.files.items()
            if any(
                name.endswith(selection.WEIGHT_SUFFIXES) and self.want(posixpath.join(folder, name))
                for name in names
            )
        ]
        if not found:
            return ()
        return self.folder(Selection(found[0].load_format, (), None)), *found

    def folder(self, selected: Selection) -> Folder:
        """Return the paths of the selected weights and of the other files that go with them."""
        chosen = set(selected.weights)
        unfinished = self._found.unfinished
        if selected.load_format is LoadFormat.GGUF and any("/" in name for name in chosen):
            unfinished += self._all_below.unfinished
        side = selection.side_files(self.names)
        return Folder(
            load_format=selected.load_format,
            side=self._paths([name for name in side if self.want(name) and name not in chosen]),
            weights=self._paths(selected.weights),
            index=selected.index,
            absent=self._paths(self._unusable),
            unfinished=self._paths(unfinished),
            specials=self._paths([name for name in self._found.specials if self.want(name)]),
            lone=self._paths(selected.lone),
            hint=self._about_stale_index(selected),
        )

    def _named_by(self, weights: Iterable[str]) -> list[str]:
        """Return the files that some of these name as holding weights."""
        found = []
        for name in weights:
            path = os.path.join(self.path, name)
            if has_companions(name):
                with self._monitor.waiting(path), suppress(OSError):  # reading it reports the error
                    found += companions(path)
        return found

    def _belong_to_onnx(self, weights: Sequence[str]) -> bool:
        """Return whether these are no weights by themselves: an .onnx keeps its tensors there."""
        models = [] if not weights else fnmatch.filter(self.names, "*.onnx")
        if not models or weights[0].endswith((".safetensors", ".onnx")):
            return False
        return set(weights) <= set(self._named_by(models))

    def _about_stale_index(self, selected: Selection) -> str | None:
        """Return a hint where the index names no file that is here, and a whole one is."""
        if self.name or selected.index is None or not selected.index.shards.isdisjoint(self.names):
            return None
        whole = [
            name
            for name in self.names
            if name.endswith(selection.WEIGHT_SUFFIXES)
            and not is_hidden(name)
            and not NUMBERED.fullmatch(name)
            and self.want(name)
        ]
        if len(whole) != 1:
            return None
        path = printable(shlex.quote(os.path.join(self.path, whole[0])))
        return f"the index names none of the files here, it may be stale: give {path} itself"

    @functools.cached_property
    def is_component(self) -> bool:
        """Whether diffusers or sentence-transformers read this folder by their own names.

        diffusers reads a folder with a model of its own, a ControlNet, like that of a component.
        """
        return (
            self._component
            or self.terms.rules.server is Server.DIFFUSERS
            or (
                not self.terms.server_known
                and any(name.startswith(DIFFUSERS_WEIGHTS) for name in self.names)
            )
        )

    def _select(self, load_format: LoadFormat) -> Selection:
        return selection.select(
            self.names,
            load_format,
            self.terms.rules,
            self.want,
            self.read_index,
            component=self.is_component,
        )

    def _layouts(self) -> list[str]:
        """Return the layout files here. Only sentence-transformers' parts have parts again."""
        named = [layouts.ROUTER_LAYOUT]
        if not self.name:
            named = [*layouts.OF_WHOLE_MODELS, *named]
        found = [name for name in named if name in self.names]
        is_module = self.name or layouts.SENTENCE_TRANSFORMERS_LAYOUT in found
        if is_module and layouts.ROUTER_LAYOUT not in found and CONFIG in self.names:
            found.append(layouts.OLD_ROUTER_LAYOUT)
        return found

    def _named_by_config(self) -> Selection | None:
        """Return the weights that config.json names for transformers."""
        rules = self.terms.rules
        name = self.config.weights if rules.config_names_weights else None
        if name is None or self.terms.load_format not in _AS_CONFIG_SAYS:
            return None
        if fnmatch.filter(self.names, TORCH_SHARDS):
            return None
        if not name.endswith(selection.INDEX_SUFFIX):
            return Selection(LoadFormat.HF, tuple(filter(self.want, [name])), None)
        found = self.read_index(name) if name in self.names else None
        return selection.select_by_index(name, found, rules, self.want) if found else None

    def _is_mistral_by_path(self) -> bool:
        path = self.path.lower()
        return MISTRAL_PARAMETERS in self.names and any(
            word in path for word in self.terms.rules.mistral_paths
        )

    def _paths(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(os.path.join(self.path, name) for name in names)

    def _read_small(self, name: str) -> bytes | None:
        """Return a small file up to its largest size, or None if it is unusable."""
        with self._opened(name) as descriptor:
            if descriptor is None:
                return None
            return b"".join(pieces(descriptor, metadata.MOST_BYTES + 1))

    @contextmanager
    def _opened(self, name: str) -> Iterator[int | None]:
        """Yield the descriptor of a metadata file, or note that it is unusable and yield None.

        Raises CheckpointError if it cannot be read.
        """
        path = os.path.join(self.path, name)
        with self._monitor.waiting(path):
            found = examine(path, weight=False)
            # Where the look itself failed, opening says why, or succeeds this time.
            if not isinstance(found, File) and not (isinstance(found, Skipped) and found.failed):
                self._unusable.append(name)
                yield None
                return
            descriptor = None
            try:
                descriptor = open_to_read(path)
                yield descriptor
            except OSError as error:
                raise unreachable(
                    error,
                    f"{printable(path)}: expected a readable file, found: {error_words(error)}",
                    "check its permissions",
                ) from None
            finally:
                if descriptor is not None:
                    close(descriptor)

    def _one_gguf(self) -> Selection | None:
        """Return the GGUF model here, or else below, or None where there is no GGUF file."""
        chooser = Chooser(
            self.path, self.names, self.terms, self.want, lambda: self._all_below, self._monitor
        )
        chosen = chooser.chosen()
        if chosen is None:
            return None
        self.warnings = chosen.warnings
        return Selection(LoadFormat.GGUF, chosen.names, None)

    @functools.cached_property
    def _all_below(self) -> subfolders.Below:
        folders = () if self.name else self.folders
        return subfolders.below(self.path, folders, self.terms.filters, self._monitor)
