"""Runs the command in processes forked from one that has imported it, at once.

Under emulation the start of Python and the imports take ten times as long as a run. What is
forked has its own arguments, environment, streams, user, cgroup and namespace, as if started anew.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# What a run imports on its way, so that it need not.
from prefetch_cli import arguments, cli, display, pipeline, supervisor  # noqa: F401
from tests.bench import vllm_loop
from tests.vm import agent

ENTRIES: dict[str, Callable[[], None]] = {"prefetch-cli": cli.main, "vllm-loop": vllm_loop.main}


def serve(path: str) -> NoReturn:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the midwives
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(connection)
            os._exit(0)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Fork the run, say its pid, wait for its end, and say how it ended."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 2)
    (size,) = struct.unpack("<I", head)
    text = b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    request = json.loads(text)
    pid = os.fork()
    if pid == 0:
        connection.close()
        run(request, streams)
    for descriptor in streams:
        os.close(descriptor)
    # Where the host has gone away, the run ends all the same.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, usage = os.wait4(pid, 0)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        ended = json.dumps({"code": code, "cpu_seconds": cpu_seconds})
        connection.sendall(ended.encode() + b"\n")


def run(request: agent.Message, streams: Sequence[int]) -> NoReturn:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, *streams)):
        os.dup2(descriptor, number)
        if descriptor > 2:
            os.close(descriptor)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **request.get("env", {})})
    os.chdir(request.get("folder") or "/")
    agent.enter(request)
    sys.argv = ["prefetch-cli", *request["argv"]]
    ENTRIES[request.get("entry", "prefetch-cli")]()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
