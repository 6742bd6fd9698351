"""Loads psutil's extension module from the zip through a file in memory.

dlopen(3) takes only files, and nothing may be left behind on a node, or need a place to write to.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import NoReturn
from zipimport import zipimporter

# The number of memfd_create(2) by machine type: Python lacks os.memfd_create if it was built with a
# glibc older than 2.27. The zip has a folder with psutil for each of these.
_MEMFD_CREATE = {"aarch64": 279, "x86_64": 319}
_CLOEXEC = 1


def allow() -> None:
    """Let psutil be imported from the zip; exit where the zip has none for this machine."""
    machine = os.uname().machine
    if machine not in _MEMFD_CREATE:
        _exit(f"expected a machine of type {' or '.join(_MEMFD_CREATE)}, found {machine}")
    archive = os.path.dirname(os.path.dirname(__file__))
    sys.path.insert(1, os.path.join(archive, machine))
    sys.meta_path.insert(0, _Finder(archive, machine))


class _Finder:
    """Finds psutil's extension modules in the zip."""

    def __init__(self, archive: str, machine: str) -> None:
        self._archive = archive
        self._machine = machine

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where psutil's module can be loaded from, None for all others."""
        if not name.startswith("psutil._psutil_"):
            return None
        inside = os.path.join(self._archive, self._machine, f"{name.replace('.', os.sep)}.abi3.so")
        try:
            content = zipimporter(self._archive).get_data(inside)
        except OSError:  # psutil tries modules of other systems
            return None
        # Never closed: dlopen(3) takes two files for the same when they have the same path.
        path = f"/proc/self/fd/{_in_memory(content, _MEMFD_CREATE[self._machine])}"
        return ModuleSpec(name, _Loader(name, path), origin=path)


class _Loader(ExtensionFileLoader):
    """An ExtensionFileLoader whose failure tells the user what to do."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module; exit where the system cannot load it."""
        try:
            return super().create_module(spec)
        except ImportError as error:
            _exit(f"expected psutil to load, found {error}")


def _in_memory(content: bytes, memfd_create: int) -> int:
    """Return the descriptor of a file in memory; exit where the system refuses one."""
    import ctypes  # noqa: PLC0415 - `--help` does without

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(memfd_create, b"psutil", _CLOEXEC))
    try:
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except OSError as error:  # a filter of system calls, or `ulimit -f`
        _exit(f"expected a file in memory for psutil, found {error.strerror}")
    return descriptor


def _exit(message: str) -> NoReturn:
    """Exit with an error in one line; the command's own way to show one needs psutil."""
    sys.exit(f"prefetch-cli: error: {message}; install prefetch-cli with pip on this machine")
