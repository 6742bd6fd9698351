"""The test machine: boots a kernel under qemu on the host's own root, and runs commands in it.

The host's root is shared read-only with an overlay in memory over it, so that the project's own
environment runs inside and nothing is written outside. Needs no privileges. Every wait has an
end: a machine that does not answer is killed, and so is one whose tests have ended.
"""

import base64
import enum
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.helpers.command import ROOT
from tests.vm import kernels
from tests.vm.kernels import Kernel, NoMachineError

STRANGER = 4321  # a user who owns no file
MIB = 1024 * 1024

# The host's build/vm, that a 9p mount in the machine may show under this tag.
BUILD_TAG = "build"

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_BOOT_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"),
    *("9pnet_virtio", "9p", "overlay", "ext4"),
)
_KVM_SECONDS = 20  # it is there on some machines and hangs
_BOOT_SECONDS = 180
_DISK_BYTES = 3 * 1024 * MIB


class Cgroups(enum.Enum):
    """The version of the cgroup hierarchy that owns the memory controller."""

    V1 = 1
    V2 = 2


class MachineError(RuntimeError):
    """What went wrong in or with the machine."""


@dataclass(frozen=True)
class Done:
    """A command that has ended in the machine."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float  # its own, without children that it did not wait for

    @property
    def document(self) -> dict[str, Any]:
        """What standard output holds, which is one JSON document and nothing else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


@dataclass(frozen=True)
class Share:
    """A directory of the host that virtiofsd shows the machine under a tag."""

    tag: str
    directory: str
    options: tuple[str, ...] = ()  # of virtiofsd, each given with -o


class Process:
    """A command that runs in the machine."""

    def __init__(self, machine: "Machine", job: int, pid: int) -> None:
        self.pid = pid
        self._machine = machine
        self._job = job

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._machine.ask("signal", job=self._job, signal=int(number))

    def await_text(self, part: str, *, seconds: float = 60, times: int = 1) -> str:
        """Return all it has printed as soon as that holds `part` so many times.

        Raises MachineError when it ends, or the time is up, without.
        """
        found = self._ask(seconds, part=part, times=times)
        if not found["found"]:
            raise MachineError(f"expected {part!r} within {seconds} s, found {found}")
        return str(found["out"]) + str(found["err"])

    def shown(self) -> tuple[str, str]:
        """Return what it has printed so far, on standard output and on standard error."""
        found = self._ask(0)
        return found["out"], found["err"]

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._ask(0)["code"] is None

    def end(self, seconds: float = 120) -> Done:
        """Return it when it has ended by itself; raises MachineError where it does not."""
        found = self._ask(seconds)
        if found["code"] is None:
            raise MachineError(f"expected an end within {seconds} s, found {found}")
        return Done(
            found["code"], found["out"], found["err"], found["seconds"], found["cpu_seconds"]
        )

    def _ask(self, seconds: float, **more: Any) -> dict[str, Any]:
        return self._machine.ask("wait", job=self._job, seconds=seconds, limit=seconds, **more)


class Machine:
    """A machine that runs; a context manager that ends it."""

    def __init__(
        self,
        kernel: Kernel,
        cgroups: Cgroups,
        *,
        disks: Sequence[str] = ("data", "xfs", "btrfs", "spare"),
        shares: Sequence[Share] = (),
        memory_bytes: int = 3 * 1024 * MIB,
        touched: bool = False,
    ) -> None:
        self.kernel = kernel
        self.cgroups = cgroups
        self.disks = {name: f"/dev/vd{chr(ord('a') + at)}" for at, name in enumerate(disks)}
        self.folder = tempfile.mkdtemp(prefix="vm-", dir=kernels.BUILD)
        self.shares = tuple(shares)
        self.accelerator = ""
        self._memory_bytes = memory_bytes
        self._touched = touched
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._lock = threading.Lock()
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._qemu: subprocess.Popen[bytes] | None = None
        self._talk: socket.socket | None = None
        self._gone = False

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of the kernel's release."""
        major, minor = self.kernel.release.split(".")[:2]
        return int(major), int(minor)

    def start(self) -> None:
        """Boot, by KVM where that answers in time.

        Raises NoMachineError where the machine does not come up at all.
        """
        ramdisk = os.path.join(self.folder, "initramfs")
        init = os.path.join(_FOLDER, "init.sh")
        kernels.initramfs(self.kernel, init, _BOOT_MODULES, ramdisk)
        for name in self.disks:
            with open(os.path.join(self.folder, name), "wb") as file:
                file.truncate(_DISK_BYTES)
        tries = [("tcg,thread=multi", _BOOT_SECONDS)]
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            tries.insert(0, ("kvm", _KVM_SECONDS))
        for accelerator, seconds in tries:
            self._launch(accelerator, ramdisk)
            if self._connect() and self._hello(seconds):
                self.accelerator = accelerator
                return
            self._kill()
        raise NoMachineError(f"the machine did not boot: {self._said()}")

    def close(self) -> None:
        """End the machine, and remove what it left in its folder."""
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Machine":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def console(self) -> str:
        """Return what the kernel has printed."""
        try:
            with open(os.path.join(self.folder, "console"), "rb") as file:
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _said(self) -> str:
        with open(os.path.join(self.folder, "qemu.log"), "rb") as log:
            return log.read().decode("utf-8", "replace") + self.console()[-2000:]

    def start_process(
        self,
        *argv: str,
        user: int | None = None,
        cgroup: str | None = None,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        folder: str | None = None,
        content: bytes | None = None,
        entry: str | None = None,
    ) -> Process:
        """Return a command that has been started in the machine, as root or as `user`.

        `cgroup` is the directory of its cgroup, `netns` names a network namespace, and `content`
        is its standard input. With an `entry` of nursery.py's, `argv` are its arguments.
        """
        request: dict[str, Any] = {"argv": list(argv), "env": dict(env or {})}
        request |= {
            name: value
            for name, value in (
                ("user", user),
                ("cgroup", cgroup),
                ("netns", netns),
                ("folder", folder),
                ("entry", entry),
            )
            if value
        }
        if content is not None:
            request["input"] = base64.b64encode(content).decode()
        job = next(self._numbers)
        return Process(self, job, self.ask("start", number=job, **request)["pid"])

    def run(self, *argv: str, seconds: float = 120, check: bool = True, **how: Any) -> Done:
        """Return a command that has ended; takes what `start_process` takes.

        Raises MachineError where it fails, unless `check` is false, or where it does not end.
        """
        process = self.start_process(*argv, **how)
        try:
            done = process.end(seconds)
        except MachineError:
            process.send(signal.SIGKILL)
            raise
        if check and done.code != 0:
            raise MachineError(f"{' '.join(argv)} failed ({done.code}): {done.err}{done.out}")
        return done

    def sh(self, script: str, **how: Any) -> str:
        """Return the standard output of a shell script, each of whose commands succeeded."""
        return self.run("sh", "-ec", script, **how).out

    def tool(self, *arguments: str, seconds: float = 120, **how: Any) -> Done:
        """Return a run of the project's command, which has ended."""
        process = self.start_tool(*arguments, **how)
        try:
            done = process.end(seconds)
        except MachineError:
            process.send(signal.SIGKILL)
            raise
        if "Traceback" in done.err or "defect" in done.err:
            raise MachineError(f"the command has a defect: {done.err}")
        return done

    def start_tool(self, *arguments: str, **how: Any) -> Process:
        """Return a run of the project's command, which has been started."""
        return self.start_process(*arguments, entry="prefetch-cli", **how)

    def modprobe(self, *names: str) -> None:
        """Load modules of the kernel; raises MachineError where it does not have one."""
        self.run("modprobe", "--all", *names)

    def has_module(self, name: str) -> bool:
        """Whether the kernel brings this module, or has it built in."""
        return self.run("modprobe", "--show-depends", name, check=False).code == 0

    def drop_caches(self) -> None:
        """Empty the machine's page cache, as far as its pages are clean and not in use."""
        self.sh("sync; echo 3 > /proc/sys/vm/drop_caches")

    def resident_bytes(self, files: Sequence[str]) -> list[int]:
        """Return what is resident of each file, by fincore, which opens it and asks mincore."""
        words = ("--bytes", "--raw", "--noheadings", "--output", "RES")
        return [int(size) for size in self.run("fincore", *words, *files).out.split()]

    def size_bytes(self, files: Sequence[str]) -> list[int]:
        """Return the size of each file."""
        return [int(size) for size in self.run("stat", "-c", "%s", *files).out.split()]

    def write(self, path: str, content: bytes | str, mode: int = 0o644) -> None:
        """Write a file in the machine."""
        raw = content.encode() if isinstance(content, str) else content
        self.ask("write", path=path, content=base64.b64encode(raw).decode(), mode=mode)

    def read(self, path: str) -> bytes:
        """Return what a file in the machine holds."""
        return base64.b64decode(self.ask("read", path=path)["content"])

    def ask(
        self, what: str, *, number: int | None = None, limit: float = 60, **request: Any
    ) -> dict[str, Any]:
        """Return the agent's answer; raises MachineError for its errors and where it has none."""
        number = next(self._numbers) if number is None else number
        line = json.dumps({"id": number, "do": what, **request}).encode() + b"\n"
        if self._talk is None:
            raise MachineError("the machine does not run")
        try:
            with self._lock:
                self._talk.sendall(line)
        except OSError as error:
            raise MachineError(f"the machine is gone: {self.console()[-2000:]}") from error
        with self._arrived:
            self._arrived.wait_for(lambda: self._gone or number in self._answers, limit + 60)
            answer = self._answers.pop(number, None)
        if answer is None:
            raise MachineError(f"no answer to {what}: {self.console()[-2000:]}")
        if "error" in answer:
            raise MachineError(f"{what}: {answer['error']}")
        return answer

    def _launch(self, accelerator: str, ramdisk: str) -> None:
        self._answers.clear()
        self._gone = False
        port = os.path.join(self.folder, "agent")
        words = [
            *("console=ttyS0", "panic=-1", "quiet", "loglevel=4", "mitigations=off", "nokaslr"),
            *(f"vm.cgroups={self.cgroups.value}", f"vm.python={sys.executable}"),
            *(f"vm.modules={self.kernel.root}", f"vm.agent={_FOLDER}/agent.py"),
            *(f"vm.project={ROOT}", "random.trust_cpu=on", "audit=0"),
            # Otherwise v1 cannot have the controller that v2 has taken.
            *(("cgroup_no_v1=all",) if self.cgroups is Cgroups.V2 else ()),
        ]
        share = "security_model=none,readonly=on,multidevs=remap"
        memory = f"memory-backend-memfd,id=memory,size={self._memory_bytes},share=on"
        if self._touched:
            memory += ",prealloc=on"
        # With these two the kernel copies by an instruction that is emulated byte for byte.
        processor = "host" if accelerator == "kvm" else "max,-erms,-fsrm"
        line = [
            *(_path("setpriv"), "--pdeathsig", "KILL", _path("qemu-system-x86_64")),
            *("-accel", accelerator, "-cpu", processor),
            *("-smp", "2", "-no-reboot", "-nodefaults", "-display", "none"),
            *("-object", memory),
            *("-machine", "q35,memory-backend=memory", "-m", f"{self._memory_bytes // MIB}M"),
            *("-kernel", self.kernel.image, "-initrd", ramdisk, "-append", " ".join(words)),
            *("-serial", f"file:{self.folder}/console"),
            *("-virtfs", f"local,path=/,mount_tag=host,{share}", "-device", "virtio-rng-pci"),
            *("-virtfs", f"local,path={kernels.BUILD},mount_tag={BUILD_TAG},{share}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=a,name=agent"),
            *("-chardev", f"socket,id=a,path={port},server=on,wait=off"),
        ]
        for name in self.disks:
            disk = f"file={self.folder}/{name},format=raw,if=none,id={name},cache=unsafe"
            line += ["-drive", f"{disk},discard=unmap", "-device", f"virtio-blk-pci,drive={name}"]
        for shared in self.shares:
            path = os.path.join(self.folder, shared.tag)
            self._share(shared, path)
            line += ["-chardev", f"socket,id=c{shared.tag},path={path}"]
            line += ["-device", f"vhost-user-fs-pci,chardev=c{shared.tag},tag={shared.tag}"]
        with open(os.path.join(self.folder, "qemu.log"), "wb") as log:
            # Where qemu aborts (KVM does on some machines) its core is left in that folder.
            self._qemu = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def _share(self, shared: Share, path: str) -> None:
        """Start virtiofsd, which qemu 7.2 still brings itself."""
        daemon = virtiofsd()
        assert daemon is not None, "whoever asks for a share has looked whether it is there"
        options = ",".join((f"source={shared.directory}", *shared.options))
        with open(f"{path}.log", "wb") as log:
            words = ("-o", options, "-o", "sandbox=chroot", "--thread-pool-size=4", "-f")
            line = [
                _path("setpriv"),
                "--pdeathsig",
                "KILL",
                daemon,
                f"--socket-path={path}",
                *words,
            ]
            # With more than 8 arenas malloc counts the CPUs, by a call for which virtiofsd's own
            # seccomp filter kills it.
            env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
            self._helpers.append(
                subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
            )
        deadline = time.monotonic() + 10
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                with open(f"{path}.log", "rb") as log:
                    said = log.read().decode("utf-8", "replace")
                raise NoMachineError(f"virtiofsd did not start: {said}")
            time.sleep(0.05)

    def _connect(self) -> bool:
        """Whether qemu has come up so far that it talks."""
        assert self._qemu is not None
        deadline = time.monotonic() + 20
        while self._qemu.poll() is None and time.monotonic() < deadline:
            talk = socket.socket(socket.AF_UNIX)
            try:
                talk.connect(os.path.join(self.folder, "agent"))
            except OSError:
                talk.close()
                time.sleep(0.05)
                continue
            self._talk = talk
            threading.Thread(target=self._listen, args=(talk,), daemon=True).start()
            return True
        return False

    def _listen(self, talk: socket.socket) -> None:
        buffer = b""
        while True:
            try:
                piece = talk.recv(1 << 20)
            except OSError:
                piece = b""
            if not piece:
                break
            buffer += piece
            *lines, buffer = buffer.split(b"\n")
            with self._arrived:
                for line in lines:
                    answer = json.loads(line)
                    self._answers[answer["id"]] = answer
                self._arrived.notify_all()
        with self._arrived:
            if self._talk is talk:
                self._gone = True
            self._arrived.notify_all()

    def _hello(self, seconds: float) -> bool:
        with self._arrived:
            self._arrived.wait_for(lambda: self._gone or 0 in self._answers, seconds)
            return 0 in self._answers

    def _kill(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.close()
        for process in (self._qemu, *self._helpers):
            if process is not None:
                process.kill()
                process.wait()
        self._qemu = None
        self._helpers.clear()


def virtiofsd() -> str | None:
    """Return the path of qemu's own virtiofsd, or None where it is not installed."""
    return shutil.which("virtiofsd", path="/usr/lib/qemu:/usr/libexec")


def _path(name: str) -> str:
    found = kernels.command(name)
    if found is None:
        raise NoMachineError(f"needs {name}")
    return found


__all__ = ["MIB", "ROOT", "STRANGER", "Cgroups", "Done", "Machine", "MachineError", "Process"]
