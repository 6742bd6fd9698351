"""The GGUF files of a folder and of those below it -> the one model that is read."""

import glob
import os
import posixpath
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import listing, printable
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import gguf
from prefetch_cli.checkpoint.examine import gguf_type
from prefetch_cli.checkpoint.manifest import Terms
from prefetch_cli.checkpoint.names import is_hidden
from prefetch_cli.checkpoint.selection import Want
from prefetch_cli.checkpoint.subfolders import Below

_HOSTS = ("hf.co/", "huggingface.co/")  # as Ollama writes a repo of the hub
# One header each, and a round trip or two. More models than that are ambiguous anyway.
_MOST_HEADERS = 64
_MOST_SHOWN = 12
_NO_MODELS = {"mmproj": "a projector", "adapter": "an adapter", "imatrix": "an importance matrix"}


def split(argument: str) -> tuple[str, str | None]:
    """Return what stands before and behind the last colon of `org/name:QUANT` or `DIR:QUANT`."""
    before, _, behind = argument.rpartition(":")
    if not before or not behind or "/" in behind:
        return argument, None
    return before, behind


def split_file(argument: str) -> tuple[str, str | None]:
    """Return the repo and the file of `org/name/FILE.gguf`, as vLLM takes it."""
    repo, name = posixpath.split(argument)
    return (repo, name) if "/" in repo and name.endswith(gguf.SUFFIX) else (argument, None)


def without_host(argument: str) -> str:
    """Return `org/name` for `hf.co/org/name`."""
    for host in _HOSTS:
        if argument.startswith(host):
            return argument.removeprefix(host)
    return argument


class Chosen(NamedTuple):
    """One GGUF model."""

    names: tuple[str, ...]  # its parts, then its projector: paths relative to the checkpoint
    warnings: tuple[str, ...]


class Chooser:
    """Finds the GGUF model of a checkpoint."""

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        terms: Terms,
        want: Want,
        below: Callable[[], Below],
        monitor: Monitor,
    ) -> None:
        self._root = root
        self._terms = terms
        self._want = want
        self._monitor = monitor
        self._below = below
        self._unlisted: tuple[str, ...] = ()
        self._no_models: dict[str, str] = {}
        self._names: list[str] = []
        self._add(names)

    def chosen(self) -> Chosen | None:
        """Return the model, or None where there is no GGUF file.

        Raises CheckpointError if several fit, if the quantisation that the user wants is not
        there, or if what is there is no model.
        """
        if self._terms.quantisation is not None:
            self._look_below()
            return self._of_quantisation(self._terms.quantisation)
        if self._llama_cpp_chooses:
            self._look_below()
            first = gguf.llama_cpp_choice(self._candidates(), None)
            if first is not None:
                return self._model(first)
        candidates = self._real(self._candidates())
        if not candidates:
            self._look_below()
            candidates = self._real(self._candidates())
        if not self._names:
            return None
        if not candidates:
            raise self._no_model()
        if len(candidates) > 1:
            raise self._several(candidates)
        adapters = [
            f"{printable(os.path.join(self._root, name))}: left out: {what}; give it too to warm it"
            for name, what in self._no_models.items()
            if what == _NO_MODELS["adapter"]
        ]
        return self._model(candidates[0], adapters)

    @property
    def _llama_cpp_chooses(self) -> bool:
        # `-hf org/name` takes one quantisation of several. There is nothing like it for a path.
        return self._terms.of_repo and self._terms.rules.server is Server.LLAMA_CPP

    def _add(self, names: Iterable[str]) -> None:
        """Note the GGUF files that the user wants."""
        for name in names:
            last = posixpath.basename(name)
            if not name.endswith(gguf.SUFFIX) or is_hidden(last) or not self._want(name):
                continue
            self._names.append(name)
            if not gguf.may_be_model(name):
                kind = "mmproj" if gguf.is_projector(name) else "imatrix"
                self._no_models[name] = _NO_MODELS[kind]

    def _look_below(self) -> None:
        found = self._below()
        self._unlisted = found.unlisted
        known = set(self._names)
        self._add(path for path in found.paths if path not in known)

    def _candidates(self) -> list[str]:
        return list(gguf.models(set(self._names).difference(self._no_models)).values())

    def _of_quantisation(self, wanted: str) -> Chosen:
        candidates = self._candidates()
        matching = self._real(gguf.of_quantisation(candidates, wanted))
        llama_cpp = gguf.llama_cpp_choice(candidates, wanted)
        if llama_cpp and self._terms.rules.server is Server.LLAMA_CPP:
            return self._model(llama_cpp)
        if not matching:
            found = f"only {self._described(candidates)}" if candidates else "no GGUF model"
            raise CheckpointError(
                f"{printable(self._terms.shown)}: expected a GGUF model of the quantisation "
                f"{printable(wanted)}, found {found}",
                self._hint("give one that is there, or download it"),
            )
        taken, warnings = matching[0], []
        if not self._terms.server_known and llama_cpp not in (None, taken):
            warnings.append(
                f"{printable(self._terms.shown)}: took {printable(taken)} for {printable(wanted)}; "
                f"llama.cpp takes {printable(str(llama_cpp))}: give --server llama.cpp for that"
            )
        return self._model(taken, warnings)

    def _model(self, first: str, warnings: Sequence[str] = ()) -> Chosen:
        names = [name for name in gguf.parts(first) if self._want(name)]
        projectors = [
            name for name, what in self._no_models.items() if what == _NO_MODELS["mmproj"]
        ]
        if projector := gguf.projector(projectors, first):
            names.append(projector)
        return Chosen(tuple(names), tuple(warnings))

    def _real(self, candidates: Sequence[str]) -> list[str]:
        """Return the candidates without those whose header says that they are no models."""
        real: list[str] = []
        for name in candidates:
            kind = self._type(name) if len(candidates) <= _MOST_HEADERS else None
            if kind in _NO_MODELS:
                self._no_models[name] = _NO_MODELS[kind]
            else:
                real.append(name)
        return real

    def _type(self, name: str) -> str | None:
        path = os.path.join(self._root, name)
        with self._monitor.waiting(path):
            return gguf_type(path)

    def _no_model(self) -> CheckpointError:
        found = [f"{name} ({what})" for name, what in self._no_models.items()]
        return CheckpointError(
            f"{printable(self._terms.shown)}: expected a GGUF model, found only {listing(found)}",
            self._hint("download the model, or give the file itself to warm it alone"),
        )

    def _several(self, candidates: Sequence[str]) -> CheckpointError:
        model = candidates[0]
        label, pattern = self._label(model, candidates), self._pattern(model, candidates)
        other = "give the file itself"
        if label != model:
            other = printable(shlex.quote(f"{self._terms.shown}:{label}"))
        return CheckpointError(
            f"{printable(self._terms.shown)}: expected one GGUF model, found {len(candidates)}: "
            f"{self._described(candidates)}",
            self._hint(f"choose one: --include {printable(shlex.quote(pattern))}, or {other}"),
        )

    def _pattern(self, model: str, candidates: Sequence[str]) -> str:
        """Return a glob that leaves only this model: of its folder, or of its parts."""
        folder = posixpath.dirname(model)
        others = [name for name in candidates if name.startswith(f"{folder}/")]
        if folder and others == [model]:
            return f"{glob.escape(folder)}/*"
        return next(pattern for pattern, first in gguf.models([model]).items() if first == model)

    def _label(self, model: str, candidates: Sequence[str]) -> str:
        """Return the quantisation of a model, or its path where that is not its alone."""
        label = gguf.quantisation(model)
        alone = label is not None and gguf.of_quantisation(candidates, label) == [model]
        return label if label is not None and alone else model

    def _described(self, candidates: Sequence[str]) -> str:
        """Return the quantisations with their sizes."""
        shown = [
            f"{self._label(name, candidates)} ({format_size(self._size_bytes(name))})"
            for name in candidates[:_MOST_SHOWN]
        ]
        return listing([*shown, *candidates[_MOST_SHOWN:]], most=_MOST_SHOWN)

    def _size_bytes(self, model: str) -> int:
        """Return the size of the parts that are there."""
        parts = set(gguf.parts(model)) & set(self._names)
        return sum(self._size_of_file(os.path.join(self._root, part)) for part in parts)

    def _size_of_file(self, path: str) -> int:
        try:
            with self._monitor.waiting(path):
                return os.stat(path).st_size
        except OSError:
            return 0

    def _hint(self, hint: str) -> str:
        if not self._unlisted:
            return hint
        return f"{hint}; not looked into: {listing(self._unlisted)}"


def is_asked(terms: Terms) -> bool:
    """Return whether the user asks for a quantisation; raises CheckpointError for no GGUF."""
    if terms.quantisation is None:
        return False
    if terms.load_format not in (LoadFormat.AUTO, LoadFormat.GGUF):
        raise CheckpointError(
            f"{printable(terms.shown)}: expected --load-format gguf for a quantisation, found "
            f"{terms.load_format.value}",
            f"leave --load-format out, or the :{printable(terms.quantisation)}",
        )
    return True
