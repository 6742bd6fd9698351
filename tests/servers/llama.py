"""A llama-server that runs: where it listens, and its answer to a request."""

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.helpers.command import ROOT
from tests.servers import environment

_LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Serving:
    """A server that listens."""

    process: subprocess.Popen[str]
    address: str

    def answers(self) -> bool:
        """Return whether it completes a prompt by four tokens."""
        body = json.dumps({"prompt": "hello", "n_predict": 4, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{self.address}/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_LONGEST_SECONDS) as answer:
            return bool(json.load(answer)["tokens_predicted"] == 4)


def start(
    *words: str, before: Sequence[str] = (), errors: str = os.devnull
) -> "subprocess.Popen[str]":
    """Start llama-server with these words and a free port, behind the words in `before`.

    Its standard error goes to the file `errors`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(errors, "w", encoding="utf-8") as stderr:
        return subprocess.Popen(
            [*before, environment.LLAMA_SERVER, *words, "--port", str(port)],
            cwd=ROOT,
            env=environment.variables(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def listening(process: "subprocess.Popen[str]") -> Serving:
    """Return the server once it listens; raises RuntimeError if it ends before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http://"):
            return Serving(process, line.strip())
    raise RuntimeError(f"expected a server that listens, found exit code {process.wait()}")


def stop(process: "subprocess.Popen[str]") -> None:
    """End it, and what runs it."""
    process.terminate()
    process.wait(_LONGEST_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def serving(*words: str, before: Sequence[str] = (), errors: str = os.devnull) -> Iterator[Serving]:
    """Yield a server that listens, and end it."""
    process = start(*words, before=before, errors=errors)
    try:
        yield listening(process)
    finally:
        stop(process)
