"""Starts every process in the machine; the command itself runs in a fork that has it imported.

Under emulation, starting Python and importing take ten times as long as a run. Each process gets
its own arguments, environment, streams, user, cgroup and namespace, as from a shell. No process
that forks here has threads.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from prefetch_cli.cli import main, meaning  # noqa: F401
from prefetch_cli.process import beside, supervisor  # noqa: F401
from tests.bench import mapper, vllm_loop

Request = dict[str, Any]
ENTRIES: dict[str, Callable[[], None]] = {
    "prefetch-cli": main.main,
    "vllm-loop": vllm_loop.main,
    "mapper": mapper.main,
}

_libc = ctypes.CDLL(None, use_errno=True)


def serve(path: str) -> NoReturn:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these children
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(connection)
            os._exit(0)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Fork the run, report its pid, wait for it, and report how it ended."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
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
    # Even if the host is gone, wait for the run to end.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status, usage = os.wait4(pid, 0)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        ended = json.dumps({"code": code, "cpu_seconds": cpu_seconds})
        connection.sendall(ended.encode() + b"\n")


def run(request: Request, streams: Sequence[int]) -> NoReturn:
    """Become the requested program, as if freshly started; never returns."""
    try:
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            if descriptor > 2:
                os.close(descriptor)
        os.chdir(request.get("folder") or "/")
        entry = ENTRIES.get(request.get("entry", ""))
        if entry is not None:
            os.environ.clear()
            os.environ.update({"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})
        os.environ.update(request["env"])
        enter(request)
        if entry is None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
            os.execvp(request["argv"][0], request["argv"])
        sys.argv = ["prefetch-cli", *request["argv"]]
        entry()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - else this fork would go on as its parent
        os.write(2, traceback.format_exc().encode())
        os._exit(127)


def enter(request: Request) -> None:
    """Enter the requested cgroup and namespaces and become the requested user."""
    if "cgroup" in request:
        with open(os.path.join(request["cgroup"], "cgroup.procs"), "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    if "netns" in request:
        descriptor = os.open(f"/run/netns/{request['netns']}", os.O_RDONLY)
        _checked(_libc.setns(descriptor, 0))
        os.close(descriptor)
    if user := request.get("user"):
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def _checked(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    serve(sys.argv[1])
