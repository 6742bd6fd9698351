"""The environment of the real servers: `build/servers`, made once for these versions."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.bench.environment import TORCH, EnvironmentFailureError, objection
from tests.helpers.command import ROOT, environment

DIRECTORY = os.path.join(ROOT, "build", "servers")
PYTHON = os.path.join(DIRECTORY, "bin", "python")
LLAMA_SERVER = os.path.join(DIRECTORY, "bin", "llama-server")
HERE = os.path.dirname(os.path.abspath(__file__))
# What they open is compared exactly, so their versions are exact: a new one may open other files.
REQUIRED = (
    TORCH,
    "transformers==5.24.0",
    "sentence-transformers==6.2.0",
    "diffusers==0.42.1",
    "xllamacpp==2026.10.11549",  # has llama.cpp's server compiled in
    "gguf==0.19.0",
)
_STAMP = os.path.join(DIRECTORY, "made-of")
_ERROR_CHARACTERS = 600
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")


def make() -> None:
    """Install the servers, unless they are; 1.5 GB from a package index.

    Raises EnvironmentFailureError if that fails, or would install a torch for GPUs.
    """
    made_of = "\n".join((sys.version, *REQUIRED))
    if not _is(made_of):
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        _run([sys.executable, "-m", "venv", DIRECTORY])
        if note := objection(PYTHON, TORCH):
            raise EnvironmentFailureError(note)
        _run([PYTHON, *_PIP, *REQUIRED])
        with open(_STAMP, "w", encoding="utf-8") as file:
            file.write(made_of)
    _write_command()


def variables() -> dict[str, str]:
    """Return the environment in which they run: no hub, no cache but its own, one thread."""
    return environment(
        HF_HUB_OFFLINE="1",
        HF_HOME=os.path.join(DIRECTORY, "hub"),
        HF_HUB_CACHE=None,
        OMP_NUM_THREADS="1",
        PYTHONPATH=None,
    )


def _is(made_of: str) -> bool:
    try:
        with open(_STAMP, encoding="utf-8") as file:
            return file.read() == made_of
    except FileNotFoundError:
        return False


def _write_command() -> None:
    """Make a command of llama_server.py, under the name that llama.cpp's own has."""
    with open(os.path.join(HERE, "llama_server.py"), encoding="utf-8") as file:
        script = f"#!{PYTHON}\n{file.read()}"
    with open(LLAMA_SERVER, "w", encoding="utf-8") as file:
        file.write(script)
    os.chmod(LLAMA_SERVER, 0o755)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True, errors="replace")
    if done.returncode:
        raise EnvironmentFailureError(done.stderr.strip()[-_ERROR_CHARACTERS:])
