"""An environment in which the recipes run: the tool and a stand-in for vLLM on PATH."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.helpers import oracle
from tests.helpers.command import ROOT, Done, environment
from tests.recipes import standin

_LIBRARY_BYTES = 3 << 20
_LONGEST_SECONDS = 60
# The test's checkpoint is on a local disk, a recipe's on a network file system.
_ON_A_DISK = {"PREFETCH_CLI_FORCE": "true"}


@dataclass(frozen=True)
class Notes:
    """What the stand-in noted about one start, see standin.py."""

    words: list[str]
    pid: int
    environment: dict[str, str]
    started: float  # seconds since the epoch
    total_bytes: int  # of the weights
    resident_at_start: int
    resident_at_load: int
    library_bytes: int
    library_resident: int

    @property
    def part_at_start(self) -> float:
        """The part of the weights that was resident when it started."""
        return self.resident_at_start / self.total_bytes

    @property
    def part_at_load(self) -> float:
        """The part of the weights that was resident when it loaded."""
        return self.resident_at_load / self.total_bytes


@dataclass(frozen=True)
class Server:
    """A folder with `bin/prefetch-cli`, `bin/vllm` from a distribution `vllm`, and the notes."""

    folder: str

    @classmethod
    def built(cls, folder: str) -> "Server":
        """Return a new one: a virtual environment with the distribution `vllm` and its script."""
        venv.create(folder, symlinks=True)
        os.mkdir(f"{folder}/notes")
        with open(standin.__file__, encoding="utf-8") as file:
            _write_script(f"{folder}/bin/vllm", f"#!{folder}/bin/python\n{file.read()}")
        tool = f'#!/bin/sh\nexec {sys.executable} -m prefetch_cli "$@"\n'
        _write_script(f"{folder}/bin/prefetch-cli", tool)
        _write_distribution(folder)
        return cls(folder)

    @property
    def bin(self) -> str:
        """The folder of both commands."""
        return f"{self.folder}/bin"

    @property
    def library(self) -> list[str]:
        """The files the stand-in would import."""
        return standin.below(f"{self.folder}/lib/vllm", ".so")

    def variables(self, **more: str) -> dict[str, str]:
        """Return a recipe's environment, without PATH."""
        return {
            "PYTHONPATH": ROOT,
            "STANDIN_NOTES": f"{self.folder}/notes",
            **_ON_A_DISK,
            **more,
        }

    def run(self, words: Sequence[str], **more: str) -> Done:
        """Run a command line with both commands first on PATH, and return how it ended."""
        path = os.pathsep.join((self.bin, os.environ.get("PATH", os.defpath)))
        done = subprocess.run(
            words,
            capture_output=True,
            check=False,
            cwd=self.folder,
            env=environment(PATH=path, **self.variables(**more)),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_LONGEST_SECONDS,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def reset(self) -> None:
        """Forget the notes, and drop the library from the page cache."""
        for path in standin.below(f"{self.folder}/notes", ".json"):
            os.remove(path)
        oracle.evict(self.library)

    def starts(self) -> list[Notes]:
        """Return the notes of each start since the last reset, in order of their start."""
        found: list[dict[str, Any]] = []
        for path in standin.below(f"{self.folder}/notes", ".json"):
            with open(path, encoding="utf-8") as file:
                found.append(json.load(file))
        return sorted((Notes(**one) for one in found), key=lambda notes: notes.started)


def _write_script(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)


def _write_distribution(folder: str) -> None:
    """Write the files and the RECORD of a distribution `vllm`, as an installer would."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = f"{folder}/lib/{version}/site-packages"
    os.mkdir(f"{folder}/lib/vllm")
    info = "vllm-0.0.dist-info"
    os.mkdir(f"{packages}/{info}")
    files = {
        "../../vllm/_C.so": os.urandom(_LIBRARY_BYTES),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: vllm\nVersion: 0.0\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nvllm = vllm:main\n",
    }
    rows = ["../../../bin/vllm,,", f"{info}/RECORD,,"]
    for name, data in files.items():
        with open(f"{packages}/{name}", "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}")
    with open(f"{packages}/{info}/RECORD", "w", encoding="utf-8") as file:
        file.write("".join(f"{row}\n" for row in rows))
