"""The peers' wheels: which versions, where they lie, and the source in them.

Nothing of them is installed, imported or kept: a wheel lies below build/peers/, and a test reads
the text of a module from it.
"""

import fcntl
import functools
import glob
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass

from tests.launchers.programs import give_up

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDER = os.path.join(_ROOT, "build", "peers")
_LONGEST_SECONDS = 600  # vLLM's wheel has 336 MB


@dataclass(frozen=True)
class Wheel:
    """One version of a package, as an index names it."""

    package: str
    version: str


# Exact versions: our rules follow these, and a newer one is compared when it is put here. These
# are the newest of 2026-11-28, and vLLM's and SGLang's are those that the rules were read in.
VLLM = Wheel("vllm", "0.33.0")
SGLANG = Wheel("sglang", "0.5.23")
TRANSFORMERS = Wheel("transformers", "5.24.0")
DIFFUSERS = Wheel("diffusers", "0.42.1")
SENTENCE_TRANSFORMERS = Wheel("sentence-transformers", "6.2.0")
RUNAI = Wheel("runai-model-streamer", "0.17.1")  # lists the files for vLLM's and SGLang's streamer

# A model of vLLM or SGLang that says itself which files are read.
CHOOSES = re.compile(r"(?:secondary_weights|^    allow_patterns_overrides) = \[", re.MULTILINE)

# Some wheels are for one Python or platform only. They are never run, so any of these will do.
_ANY_PYTHON = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
_ANY_ABI = ("--abi", "abi3", "--abi", "none")
_ANY_PLATFORM = ("--platform", "manylinux_2_34_x86_64", "--platform", "manylinux_2_28_x86_64")


@functools.cache
def path_of(wheel: Wheel) -> str:
    """Return the path of a wheel, downloaded unless it is here; skips or fails without it."""
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes want the same wheels
        if not _found(wheel):
            _download(wheel)
    found = _found(wheel)
    if not found:
        give_up(f"needs a package index that has {wheel.package} {wheel.version}")
    return found[0]


def _found(wheel: Wheel) -> list[str]:
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    return glob.glob(os.path.join(FOLDER, pattern))


def _download(wheel: Wheel) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", *_ANY_PYTHON, *_ANY_ABI, *_ANY_PLATFORM]
    # Moved when it is whole: a copy that was interrupted would be taken for the wheel.
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command += ["--dest", folder, f"{wheel.package}=={wheel.version}"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            give_up(f"needs {wheel.package} {wheel.version} from a package index: {last[0]}")
        for name in os.listdir(folder):
            os.replace(os.path.join(folder, name), os.path.join(FOLDER, name))


@functools.cache
def source_of(wheel: Wheel, module: str) -> str:
    """Return the text of the module `a.b.c`; raises KeyError if the wheel has no such module."""
    member = _members(wheel).get(module)
    if member is None:
        raise KeyError(f"{wheel.package} {wheel.version} has no module {module}")
    return _opened(wheel).read(member).decode()


def modules_of(wheel: Wheel, prefix: str) -> list[str]:
    """Return the modules whose names begin so."""
    return [module for module in _members(wheel) if module.startswith(prefix)]


@functools.cache
def _members(wheel: Wheel) -> dict[str, str]:
    """Return the names in the wheel by module."""
    names = [name for name in _opened(wheel).namelist() if name.endswith(".py")]
    return {_module(name): name for name in names}


@functools.cache
def _opened(wheel: Wheel) -> zipfile.ZipFile:
    """Return a wheel that stays open: its list of contents takes a tenth of a second to read."""
    return zipfile.ZipFile(path_of(wheel))


def _module(name: str) -> str:
    # A wheel may hold its modules below NAME.data/purelib/.
    below = name.partition(".data/purelib/")[2] or name
    return below.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
