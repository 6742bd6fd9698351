"""The test machine: boots a kernel under qemu on the host's own root, and runs commands in it.

The host's root is shared read-only under an in-memory overlay, so the project's own environment
runs inside and nothing outside is written. Needs no privileges. Every wait has a timeout: a machine
that stops answering is killed, and so is one whose tests have ended.
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
from typing import Any, TypeVar

from tests.helpers.command import ROOT
from tests.vm import kernels
from tests.vm.kernels import Kernel, NoMachineError

STRANGER = 4321  # a user who owns none of the files
MIB = 1024 * 1024

# The 9p tag under which the machine can mount the host's build/vm.
BUILD_TAG = "build"

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_BOOT_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"),
    *("9pnet_virtio", "9p", "overlay", "ext4"),
)
_KVM_SECONDS = 20  # some hosts have a KVM that hangs
_BOOT_SECONDS = 180
_DISK_BYTES = 3 * 1024 * MIB
SLOW_DISK = "slow"  # the name of one that qemu throttles, as far as reading goes
_SLOW_BYTES_PER_SECOND = 60_000_000


class Cgroups(enum.Enum):
    """The version of the cgroup hierarchy that owns the memory controller."""

    V1 = 1
    V2 = 2


class MachineError(RuntimeError):
    """Something went wrong in the machine or with it."""


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float  # excluding children that it did not wait for

    @property
    def document(self) -> dict[str, Any]:
        """Standard output, parsed: one JSON document and nothing else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


@dataclass(frozen=True)
class Share:
    """A host directory that virtiofsd exports to the machine under a tag."""

    tag: str
    directory: str
    options: tuple[str, ...] = ()  # for virtiofsd's -o


class Process:
    """A command running in the machine."""

    def __init__(self, machine: "Machine", job: int, pid: int) -> None:
        self.pid = pid
        self._machine = machine
        self._job = job

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._machine.ask("signal", job=self._job, signal=int(number))

    def await_text(self, part: str, *, seconds: float = 60, times: int = 1) -> str:
        """Return everything printed so far, once it contains `part` this many times.

        Raises MachineError if the command ends or the time is up first.
        """
        found = self._ask(seconds, part=part, times=times)
        if not found["found"]:
            raise MachineError(f"expected {part!r} within {seconds} s, found {found}")
        return str(found["out"]) + str(found["err"])

    def shown(self) -> tuple[str, str]:
        """Return standard output and standard error so far."""
        found = self._ask(0)
        return found["out"], found["err"]

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self._ask(0)["code"] is None

    def end(self, seconds: float = 120) -> Done:
        """Return the result once it has exited by itself; raises MachineError if it does not."""
        found = self._ask(seconds)
        if found["code"] is None:
            raise MachineError(f"expected an end within {seconds} s, found {found}")
        return Done(
            found["code"], found["out"], found["err"], found["seconds"], found["cpu_seconds"]
        )

    def _ask(self, seconds: float, **more: Any) -> dict[str, Any]:
        return self._machine.ask("wait", job=self._job, seconds=seconds, limit=seconds, **more)


Booted = TypeVar("Booted", bound="Machine")


class Machine:
    """A test machine; as a context manager it boots on entry and is killed on exit."""

    def __init__(
        self,
        kernel: Kernel,
        cgroups: Cgroups,
        *,
        disks: Sequence[str] = ("data", "xfs", "btrfs", "spare", SLOW_DISK),
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
        """Boot, with KVM if it answers in time.

        Raises NoMachineError if the machine does not come up at all.
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
        """Kill the machine and remove its folder."""
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self: Booted) -> Booted:
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
        """Return the kernel's console output so far."""
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
        """Start a command in the machine, as root or as `user`, and return it.

        It joins the cgroup whose directory is `cgroup` and the network namespace `netns`;
        `content` is its standard input. If `entry` names one of nursery.py's ENTRIES, `argv` holds
        only that entry's arguments.
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
        """Run a command and return the result; takes what `start_process` takes.

        Raises MachineError if it does not finish in time or, unless `check` is false, if it fails.
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
        """Return a shell script's standard output; raises MachineError if a command fails."""
        return self.run("sh", "-ec", script, **how).out

    def tool(self, *arguments: str, seconds: float = 120, **how: Any) -> Done:
        """Run the project's command and return the result."""
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
        """Start the project's command and return it."""
        return self.start_process(*arguments, entry="prefetch-cli", **how)

    def modprobe(self, *names: str) -> None:
        """Load kernel modules; raises MachineError if the kernel lacks one."""
        self.run("modprobe", "--all", *names)

    def has_module(self, name: str) -> bool:
        """Whether the kernel has this module, loadable or built in."""
        return self.run("modprobe", "--show-depends", name, check=False).code == 0

    def drop_caches(self) -> None:
        """Drop the machine's page cache, except for pages that are dirty or in use."""
        self.sh("sync; echo 3 > /proc/sys/vm/drop_caches")

    def resident_bytes(self, files: Sequence[str]) -> list[int]:
        """Return the resident bytes of each file, by fincore, which opens it and calls mincore."""
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
        """Return the content of a file in the machine."""
        return base64.b64decode(self.ask("read", path=path)["content"])

    def ask(
        self, what: str, *, number: int | None = None, limit: float = 60, **request: Any
    ) -> dict[str, Any]:
        """Return the agent's answer; raises MachineError for an error or if none comes."""
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
            # A controller belongs to one hierarchy at a time: keep v1 off those that v2 needs.
            *(("cgroup_no_v1=all",) if self.cgroups is Cgroups.V2 else ()),
        ]
        share = "security_model=none,readonly=on,multidevs=remap"
        memory = f"memory-backend-memfd,id=memory,size={self._memory_bytes},share=on"
        if self._touched:
            memory += ",prealloc=on"
        # With erms or fsrm the kernel copies with `rep movsb`, which is emulated byte by byte.
        processor = "host" if accelerator == "kvm" else "max,-erms,-fsrm"
        line = [
            *(_path("setpriv"), "--pdeathsig", "KILL", _path("qemu-system-x86_64")),
            *("-accel", accelerator, "-cpu", processor),
            *("-smp", "1", "-no-reboot", "-nodefaults", "-display", "none"),
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
            if name == SLOW_DISK:
                disk += f",throttling.bps-read={_SLOW_BYTES_PER_SECOND}"
            line += ["-drive", f"{disk},discard=unmap", "-device", f"virtio-blk-pci,drive={name}"]
        for shared in self.shares:
            path = os.path.join(self.folder, shared.tag)
            self._share(shared, path)
            line += ["-chardev", f"socket,id=c{shared.tag},path={path}"]
            line += ["-device", f"vhost-user-fs-pci,chardev=c{shared.tag},tag={shared.tag}"]
        with open(os.path.join(self.folder, "qemu.log"), "wb") as log:
            # If qemu aborts (on some hosts KVM makes it), its core dump lands in this folder.
            self._qemu = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def _share(self, shared: Share, path: str) -> None:
        """Start the virtiofsd that qemu still ships in 7.2."""
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
            # With more than 8 arenas malloc counts the CPUs, with a system call for which
            # virtiofsd's own seccomp filter kills it.
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
        """Whether qemu came up far enough to accept our connection."""
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
    """Return the path of qemu's own virtiofsd, or None if it is not installed."""
    return shutil.which("virtiofsd", path="/usr/lib/qemu:/usr/libexec")


def _path(name: str) -> str:
    found = kernels.command(name)
    if found is None:
        raise NoMachineError(f"needs {name}")
    return found


__all__ = ["MIB", "ROOT", "STRANGER", "Cgroups", "Done", "Machine", "MachineError", "Process"]
