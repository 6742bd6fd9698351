"""A virtual environment for the stand-in server, whose files no other process has open."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.run import ROOT
from tests.bench.throughput import Say

NAME = "prefetch-bench-server"
TORCH = "torch==2.13.0"
_MODULE = "prefetch_bench_server"
_SERVER = os.path.join(ROOT, "tests", "bench", "server.py")
_REQUIRED = ("numpy", "safetensors", "scipy")
_STAMP = "made-of.json"
_ERROR_CHARACTERS = 300
# Gigabytes of use only on machines with a GPU: leave torch out if it requires any.
_TOO_MUCH = ("nvidia-", "cuda-", "triton")


class EnvironmentFailureError(Exception):
    """Why there is no environment, in one line."""


@dataclass(frozen=True)
class ServerEnvironment:
    """Where the server is installed, and what its cold start reads."""

    directory: str
    packages: tuple[str, ...]  # what pip installed, as `name==version`
    note: str  # why torch is missing, else empty

    @property
    def python(self) -> str:
        """Its interpreter."""
        return os.path.join(self.directory, "bin", "python")

    @property
    def server(self) -> str:
        """The server's script, owned by the distribution of the same name."""
        return os.path.join(self.directory, "bin", NAME)

    @property
    def heaviest(self) -> tuple[str, str]:
        """A distribution and its module that take long to import."""
        return ("scipy", "scipy.stats") if self.note else ("torch", "torch")

    def files(self) -> list[str]:
        """Return its regular files; not the interpreter, which other processes run."""
        return [
            path
            for folder, _, names in os.walk(self.directory)
            for path in (os.path.join(folder, name) for name in names)
            if not os.path.islink(path)
        ]


def make(directory: str, say: Say, *, torch: str = TORCH) -> ServerEnvironment:
    """Return the environment at `directory`, rebuilt unless it was made for this server.

    Needs a package index. Raises EnvironmentFailureError if pip cannot install it.
    """
    stamp = os.path.join(directory, _STAMP)
    with open(_SERVER, "rb") as file:
        made_of = {"server": hashlib.sha256(file.read()).hexdigest(), "torch": torch}
    try:
        with open(stamp, encoding="utf-8") as file:
            known = json.load(file)
        if known["made_of"] == made_of:
            return ServerEnvironment(directory, tuple(known["packages"]), known["note"])
    except (OSError, ValueError, KeyError):
        pass
    say(f"server: installing it into {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    _run(sys.executable, "-m", "venv", directory)
    found = ServerEnvironment(directory, (), "")
    note = objection(found.python, torch)
    required = _REQUIRED if note else (*_REQUIRED, torch)
    with open(_SERVER, encoding="utf-8") as file:
        wheel = write_wheel(directory, file.read(), required)
    _run(found.python, "-m", "pip", "install", "--quiet", wheel)
    os.unlink(wheel)
    _run(found.server)  # writes any bytecode still missing
    frozen = _run(found.python, "-m", "pip", "freeze").splitlines()
    packages = tuple(one for one in frozen if "==" in one)  # not the server itself
    with open(stamp, "w", encoding="utf-8") as file:
        json.dump({"made_of": made_of, "packages": packages, "note": note}, file)
    return ServerEnvironment(directory, packages, note)


def objection(python: str, torch: str) -> str:
    """Return why torch must be left out, else an empty string."""
    try:
        found = _run(python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", torch)
    except EnvironmentFailureError as error:
        return f"no torch: {error}"
    names = [one["metadata"]["name"].lower() for one in json.loads(found)["install"]]
    heavy = [name for name in names if name.startswith(_TOO_MUCH)]
    return f"no torch: this build requires {', '.join(heavy[:3])}" if heavy else ""


def write_wheel(directory: str, source: str, required: Sequence[str]) -> str:
    """Return the path of a wheel with the server, its script and its requirements."""
    info = f"{_MODULE}-1.dist-info"
    requires = "".join(f"Requires-Dist: {one}\n" for one in required)
    parts = {
        f"{_MODULE}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n{requires}",
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
        f"{info}/entry_points.txt": f"[console_scripts]\n{NAME} = {_MODULE}:main\n",
    }
    record = [f"{name},{_digest(text)},{len(text.encode())}" for name, text in parts.items()]
    parts[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"])
    path = os.path.join(directory, f"{_MODULE}-1-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return f"sha256={digest.decode().rstrip('=')}"


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise EnvironmentFailureError(f"{command[0]}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        text = " ".join(error.stderr.split())
        raise EnvironmentFailureError(text[-_ERROR_CHARACTERS:]) from None
    return str(done.stdout)
