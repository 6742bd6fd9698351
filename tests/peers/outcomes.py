"""What a server, or we, do with a directory: the files in their order, or a refusal."""

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import safetensors

# What a peer raises where it cannot load. NameError and AttributeError are not among them: those
# come from a stub that is missing.
_REFUSALS = (
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AssertionError,
    safetensors.SafetensorError,
)


@dataclass(frozen=True)
class Outcome:
    """The files that are opened, relative to the directory, or why it is refused."""

    files: tuple[str, ...] = ()
    refusal: str | None = None
    ordered: bool = True  # else in the order in which the file system lists them
    warnings: tuple[str, ...] = ()  # ours

    def agrees_with(self, other: "Outcome") -> bool:
        """Return whether both refuse, or both open the same files, in one order if there is one."""
        if self.refusal is not None or other.refusal is not None:
            return self.refusal is not None and other.refusal is not None
        if self.ordered and other.ordered:
            return self.files == other.files
        return sorted(self.files) == sorted(other.files)

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"refuses: {self.refusal}"
        order = "" if self.ordered else " in any order"
        return f"opens {len(self.files)}{order}: {', '.join(self.files)}"


class Shelf:
    """Stands for the libraries that open files for a peer, and notes each file once.

    Each file is opened for real, and a safetensors file has its header read by safetensors.
    """

    def __init__(self, *, backwards: bool) -> None:
        self._backwards = backwards
        self._opened: dict[str, None] = {}
        self.ordered = True  # set to False where several processes open the files
        self.lists = False  # whether a glob found several files
        self.glob = SimpleNamespace(glob=self._glob)
        self.torch = SimpleNamespace(
            load=self._load,
            device=_Device,
            cuda=SimpleNamespace(current_device=lambda: 0),
            distributed=SimpleNamespace(is_initialized=lambda: False),
            from_numpy=lambda array: array,
            nn=SimpleNamespace(Module=_Module),
        )
        self.numpy = SimpleNamespace(load=self._load_array)

    @property
    def opened(self) -> list[str]:
        """The paths so far."""
        return list(self._opened)

    def safe_open(self, path: str, *_args: Any, **_options: Any) -> "_Tensors":
        """Stand for safetensors.safe_open: a file without tensors."""
        with safetensors.safe_open(path, framework="numpy"):
            self._opened[path] = None
        return _Tensors()

    def open_all(self, paths: Sequence[str], *_args: Any, **_options: Any) -> Iterator[Any]:
        """Stand for a library that streams many safetensors files."""
        for path in paths:
            self.safe_open(path)
        return iter(())

    def note(self, path: str) -> None:
        """Note a file that is opened by other means; raises OSError if it cannot be read."""
        with open(path, "rb"):
            self._opened[path] = None

    def _glob(self, pattern: str) -> list[str]:
        found = glob.glob(pattern)
        self.lists = self.lists or len(found) > 1
        return sorted(found, reverse=self._backwards)

    def _load(self, path: str, **_options: Any) -> dict[str, Any]:
        self.note(path)
        return {}

    def _load_array(self, file: Any) -> None:
        self._opened[file.name] = None


def outcome_of(directory: str, peer: Callable[[str, Shelf], None]) -> Outcome:
    """Return what a peer does with a directory; what it writes there is removed.

    Where it lists files, it runs twice, with globs that list forwards and backwards: an order that
    depends on that is the file system's.
    """
    shelf = Shelf(backwards=False)
    found = _outcome(directory, peer, shelf)
    if shelf.lists and found != _outcome(directory, peer, Shelf(backwards=True)):
        return Outcome(found.files, found.refusal, ordered=False)
    return found


def _outcome(directory: str, peer: Callable[[str, Shelf], None], shelf: Shelf) -> Outcome:
    with _restored(directory):
        try:
            peer(directory, shelf)
        except _REFUSALS as error:
            return Outcome(refusal=f"{type(error).__name__}: {error}".replace(directory, "DIR"))
    names = tuple(os.path.relpath(path, directory) for path in shelf.opened)
    return Outcome(names, ordered=shelf.ordered)


@contextmanager
def _restored(directory: str) -> Iterator[None]:
    """Remove afterwards what was not there before (npcache writes)."""
    before = set(_below(directory))
    yield
    for path in set(_below(directory)) - before:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


def _below(directory: str) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        yield from (os.path.join(folder, name) for name in (*folders, *files))


class Silent:
    """A logger that takes any message."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_options: None


class Bar:
    """Stands for tqdm: an iterable without a bar."""

    def __init__(self, items: Sequence[Any] = (), **_options: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    @staticmethod
    def _get_free_pos() -> int:
        return 0


class Words:
    """Stands for typing.Literal: its item is the words themselves."""

    def __getitem__(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return words


class Context:
    """A context manager that does nothing, whatever it is given."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class _Device(Context):
    """Stands for torch.device."""


class _Module:
    """Stands for torch.nn.Module."""


class _Tensors(Context):
    """Stands for an open safetensors file."""

    @staticmethod
    def keys() -> list[str]:
        return []
