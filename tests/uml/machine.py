"""User-mode Linux as a test machine: a Linux that is a process, on the host's own root.

It has one processor, and its processes run natively. It counts their CPU time by ticks of 10 ms, so
`cpu_seconds` asks the host instead. Needs no privileges.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading

import psutil

from tests.helpers.command import ROOT
from tests.uml import kernel
from tests.vm import agent, kernels
from tests.vm.kernels import NoMachineError
from tests.vm.machine import MIB, Cgroups, Machine

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_BOOT_SECONDS = 60
_IN_MEMORY = "/dev/shm"


class UserMode(Machine):
    """User-mode Linux; as a context manager it boots on entry and is killed on exit."""

    def __init__(self, *, memory_bytes: int = 6 * 1024 * MIB) -> None:
        kernels.prepare()
        super().__init__(kernel.built(), Cgroups.V2, disks=(), memory_bytes=memory_bytes)

    def start(self) -> None:
        """Boot; raises NoMachineError if it does not answer in time."""
        self.accelerator = "user-mode"
        ours, theirs = socket.socketpair()
        # Its processes hand over to each other at each system call, which takes ten times as long
        # where another processor must be woken for it.
        processor = max(os.sched_getaffinity(0))
        line = [
            *(kernels.command("taskset") or "taskset", "--cpu-list", f"{processor}"),
            *(kernels.command("setpriv") or "setpriv", "--pdeathsig", "KILL", self.kernel.image),
            *(f"mem={self._memory_bytes // MIB}M", f"uml_dir={self.folder}/", "panic=-1"),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
            *(f"init={_FOLDER}/init.sh", "quiet", "random.trust_cpu=on"),
            *("con=null", "con0=fd:0,fd:1", "ssl=null", f"ssl0=fd:{theirs.fileno()}"),
            *(f"uml.agent={agent.__file__}", "uml.port=/dev/ttyS0"),
            *(f"uml.python={sys.executable}", f"uml.project={ROOT}"),
        ]
        with open(os.path.join(self.folder, "console"), "wb") as console:
            self._linux = subprocess.Popen(
                line,
                stdin=subprocess.PIPE,  # at its end the console would close
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "TMPDIR": self._place()},
            )
        theirs.close()
        self._helpers.append(self._linux)
        self._talk = ours
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        if not self._hello(_BOOT_SECONDS):
            raise NoMachineError(f"user-mode Linux did not boot: {self.console()[-2000:]}")

    def _place(self) -> str:
        """Return where its memory is kept: in the host's, or in a file if that is too small."""
        with contextlib.suppress(OSError):
            if psutil.disk_usage(_IN_MEMORY).free > self._memory_bytes:
                return _IN_MEMORY
        return self.folder

    def modprobe(self, *names: str) -> None:
        """Do nothing: what there is, is built in."""

    def cpu_seconds(self) -> float:
        """Return the host's CPU time of the whole machine so far."""
        main = psutil.Process(self._linux.pid)
        seconds = 0.0
        # Each of its processes is one of the host's, too, and counts for its parent once it ended.
        for process in (*main.children(recursive=True), main):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(process.cpu_times()[:4])
        return seconds
