"""The agent in the machine: runs commands for the host, over a virtio port or a named terminal.

Each line is a JSON object; requests may overlap, and each answer carries its request's `id`. The
agent is the machine's process 1, so it also reaps orphans. It imports only the standard library,
and little of that: imports are slow under emulation.
"""

import base64
import contextlib
import glob
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tty
from typing import Any, NoReturn

PORT = "agent"
_NURSERY_SOCKET = "/run/nursery"
Message = dict[str, Any]


class Job:
    """A started process, and what it has printed."""

    def __init__(self) -> None:
        self.pid = 0
        self.code: int | None = None
        self.texts: dict[int, list[bytes]] = {1: [], 2: []}
        self.followers: list[threading.Thread] = []
        self.began = time.monotonic()
        self.seconds: float | None = None
        self.cpu_seconds: float | None = None
        self.changed = threading.Condition()

    def follow(self, number: int, descriptor: int) -> None:
        while True:
            text = os.read(descriptor, 65536)
            if not text:
                os.close(descriptor)
                return
            with self.changed:
                self.texts[number].append(text)
                self.changed.notify_all()

    def end(self, code: int, cpu_seconds: float) -> None:
        with self.changed:
            self.code = code
            self.cpu_seconds = cpu_seconds
            self.seconds = time.monotonic() - self.began
            self.changed.notify_all()

    def shown(self) -> Message:
        out, err = (b"".join(self.texts[number]) for number in (1, 2))
        return {
            "pid": self.pid,
            "code": self.code,
            "out": _text(out),
            "err": _text(err),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }


class Agent:
    """Answers the host."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}

    def serve(self) -> NoReturn:
        buffer = b""
        while True:
            buffer += os.read(self._port, 1 << 20)
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def say(self, **answer: Any) -> None:
        line = json.dumps(answer).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._port, line) :]

    def _answer(self, line: bytes) -> None:
        request = json.loads(line)
        try:
            answer = getattr(self, "do_" + request["do"])(request)
        except Exception as error:  # noqa: BLE001 - the host raises it in the caller
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.say(id=request["id"], **answer)

    def do_start(self, request: Message) -> Message:
        """Have the nursery start a process: a fork of this one, which has threads, might hang."""
        job = Job()
        self._jobs[request["id"]] = job
        pipes = [os.pipe() for _ in range(3)]
        (given, feed), *outputs = pipes
        if "input" not in request:
            os.close(given)
            given = os.open(os.devnull, os.O_RDONLY)
        streams = [given, *(write for _, write in outputs)]
        child = socket.socket(socket.AF_UNIX)
        child.connect(_NURSERY_SOCKET)
        text = json.dumps(request).encode()
        socket.send_fds(child, [struct.pack("<I", len(text))], streams)
        child.sendall(text)
        for descriptor in streams:
            os.close(descriptor)
        job.followers = [
            threading.Thread(target=job.follow, args=(number, read), daemon=True)
            for number, (read, _) in enumerate(outputs, start=1)
        ]
        answers = child.makefile("rb")
        job.pid = json.loads(answers.readline())["pid"]

        def wait() -> None:
            line = answers.readline()
            ended = json.loads(line) if line else {"code": -9, "cpu_seconds": 0}
            job.end(ended["code"], ended["cpu_seconds"])
            child.close()

        def write() -> None:
            with contextlib.suppress(OSError), open(feed, "wb") as file:
                file.write(base64.b64decode(request.get("input", "")))

        for thread in (
            *job.followers,
            *(threading.Thread(target=t, daemon=True) for t in (wait, write)),
        ):
            thread.start()
        return {"pid": job.pid}

    def do_wait(self, request: Message) -> Message:
        """Wait until a job ends or, if `part` is given, has printed it."""
        job = self._jobs[request["job"]]
        part = request.get("part")
        deadline = time.monotonic() + request["seconds"]

        def there() -> bool:
            shown = b"".join(job.texts[1]) + b"".join(job.texts[2])
            times: int = request.get("times", 1)
            return part is not None and _text(shown).count(part) >= times

        with job.changed:
            job.changed.wait_for(
                lambda: job.code is not None or there(), max(0.0, deadline - time.monotonic())
            )
        if job.code is not None:
            # Processes left behind may hold the pipes open: do not wait long for them.
            for follower in job.followers:
                follower.join(request.get("streams_seconds", 2))
        return {"found": there(), **job.shown()}

    def do_signal(self, request: Message) -> Message:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._jobs[request["job"]].pid, request["signal"])
        return {}

    def do_write(self, request: Message) -> Message:
        with open(request["path"], "wb") as file:
            file.write(base64.b64decode(request["content"]))
        os.chmod(request["path"], request.get("mode", 0o644))
        return {}

    def do_read(self, request: Message) -> Message:
        with open(request["path"], "rb") as file:
            return {"content": base64.b64encode(file.read()).decode()}


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _reap() -> NoReturn:
    """Reap orphans: process 1 is their parent."""
    while True:
        os.wait()


def _port() -> int:
    for folder in glob.glob("/sys/class/virtio-ports/*"):
        with open(f"{folder}/name") as file:
            if file.read().strip() == PORT:
                device = f"/dev/{os.path.basename(folder)}"
                return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    raise OSError("no virtio port")


def _terminal(path: str) -> int:
    """Return a terminal's descriptor, as a plain channel: no echo, no line discipline."""
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    tty.setraw(port)
    return port


def main() -> NoReturn:
    port = _terminal(sys.argv[1]) if len(sys.argv) > 1 else _port()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    nursery = [sys.executable, "-m", "tests.vm.nursery", _NURSERY_SOCKET]
    subprocess.Popen(nursery, stdin=subprocess.DEVNULL, cwd=root)
    agent = Agent(port)
    while not os.path.exists(_NURSERY_SOCKET):
        time.sleep(0.05)
    threading.Thread(target=_reap, daemon=True).start()
    agent.say(id=0, release=os.uname().release)
    agent.serve()


if __name__ == "__main__":
    main()
