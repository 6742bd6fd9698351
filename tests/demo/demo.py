"""Warm a real checkpoint and prove it: `python -m tests.demo.demo [CHECKPOINT]`.

Without an argument it first writes a small checkpoint below build/ and evicts it. It neither writes
to nor evicts a checkpoint of yours: a server may be using it.
"""

import argparse
import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OWN_DIRECTORY = os.path.join("build", "demo")
_SHARD_MIB = (96, 224, 160, 120)
_MOST_FILES = 16  # with more, fincore's list would fill the screen
_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_NOT_RESIDENT = 4  # the tool's exit code if --min-resident is not reached


@dataclass(frozen=True)
class Decision:
    """What the tool would do with the checkpoint by default, from its dry run."""

    action: str
    reason: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if the checkpoint ends up resident, else the exit code of the failed step."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.demo", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="", help="one of your own")
    checkpoint = parser.parse_args(arguments).checkpoint
    own = not checkpoint
    try:
        if own:
            checkpoint = _write_own()
            _step("Evict it, so that the demo starts cold")
            _tool("--evict", checkpoint)
        _step("Before")
        _tool("--check", checkpoint)
        _fincore(checkpoint)
        _step("What would be done, and why")
        _tool("--dry-run", checkpoint)
        force = _options_to_read(_decide(checkpoint))
        if force is None:
            return 0
        try:
            _warm(checkpoint, force)
        except subprocess.CalledProcessError as error:
            if error.returncode != _NOT_RESIDENT:
                raise
            # A kernel that reclaims idle pages may take some within a second.
            _say("Less than 99 % stayed resident: once more, in case the kernel took pages back.")
            _warm(checkpoint, force)
    except subprocess.CalledProcessError as error:
        if error.returncode == _NOT_RESIDENT:
            _say("Less than 99 % stayed resident; the lines above say what is known.")
        return int(error.returncode)
    if own:
        _say("\nNow one of your own: make demo CHECKPOINT=/models/x")
    return 0


def _warm(checkpoint: str, force: tuple[str, ...]) -> None:
    """Warm it and show that it is warm; raises the failed step's CalledProcessError."""
    _step("Warm it")
    _tool(*force, checkpoint)
    _step("After")
    enough = () if "--partial" in force else ("--min-resident", "99")
    _tool("--check", *enough, checkpoint)
    _fincore(checkpoint)


def _write_own() -> str:
    """Return the directory of a new checkpoint, relative to the repository."""
    from tests.helpers.checkpoints import write_sharded  # noqa: PLC0415 - a user's own needs no numpy

    os.chdir(_ROOT)
    sizes = ", ".join(map(str, _SHARD_MIB))
    _step(f"Write a checkpoint of {len(_SHARD_MIB)} shards ({sizes} MiB) to {_OWN_DIRECTORY}")
    shutil.rmtree(_OWN_DIRECTORY, ignore_errors=True)
    built = write_sharded(_OWN_DIRECTORY, shard_bytes=[size << 20 for size in _SHARD_MIB])
    _say(f"{built.weight_bytes:,} bytes of weights, and {len(built.side_files)} files beside them:")
    _say(textwrap.fill(", ".join(map(os.path.basename, built.side_files)), width=78))
    return _OWN_DIRECTORY


def _decide(checkpoint: str) -> Decision:
    done = _run(_command("--dry-run", "--json", checkpoint), capture=True)
    decision = json.loads(done)["decision"]
    return Decision(decision["action"], decision["reason"])


def _options_to_read(decision: Decision) -> tuple[str, ...] | None:
    """Return the options that make the tool read; None if there is nothing to do."""
    if decision.action != "skip":
        return ()
    if decision.reason == "local-fits":
        _say("\nIt lies on a local disk, which is skipped by default: --force reads it anyway.")
        return ("--force",)
    if decision.reason.endswith("too-big"):
        _say("\nIt does not fit into memory: --force --partial reads as much as fits.")
        return ("--force", "--partial")
    _say(f"\nNothing to read: {decision.reason}.")
    return None


def _tool(*arguments: str) -> None:
    _say(f"$ prefetch-cli {shlex.join(arguments)}")
    _run(_command(*arguments))


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "prefetch_cli", *arguments)


def _fincore(checkpoint: str) -> None:
    """Show the same with util-linux, which knows nothing of the tool."""
    pattern, files = _weight_files(checkpoint)
    if not files:
        return
    if shutil.which("fincore") is None:
        _say("\n(fincore, of util-linux, would show the same from outside: not installed)")
    elif not all(os.access(path, os.W_OK) for path in files):
        _say("\n(fincore calls all resident that one may not write: left out)")
    elif len(files) > _MOST_FILES:
        _say(f"\n(fincore {pattern} shows the same from outside)")
    else:
        _say(f"\n$ fincore -o RES,SIZE,FILE {pattern}")
        _run(("fincore", "-o", "RES,SIZE,FILE", *files))


def _weight_files(checkpoint: str) -> tuple[str, list[str]]:
    """Return a shell pattern of the weight files, and the files; none for a repo id."""
    if os.path.isfile(checkpoint):
        return shlex.quote(checkpoint), [checkpoint]
    for suffix in _SUFFIXES:
        files = sorted(glob.glob(os.path.join(glob.escape(checkpoint), f"*{suffix}")))
        if files:
            return f"{shlex.quote(checkpoint.rstrip('/'))}/*{suffix}", files
    return "", []


def _run(command: Sequence[str], *, capture: bool = False) -> str:
    """Run a command; return its output if captured, else it prints by itself."""
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.stdout or ""


def _step(title: str) -> None:
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    _say(f"\n\x1b[1m{title}\x1b[0m" if styled else f"\n== {title}")


def _say(text: str) -> None:
    # Flush: the next lines come from another process.
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
