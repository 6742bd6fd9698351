"""A real Slurm on this one machine: munged, slurmctld and one slurmd per node.

It writes only to one folder, nothing to /etc or /var. All its processes end with the context, and
with this process however it ends.
"""

import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tests.helpers import command
from tests.helpers.command import Done
from tests.launchers import programs, supervisor

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
}
CPUS = 8  # per node; may be more than the machine has
MEMORY_MIB = 2048  # per node
_LONGEST_START_SECONDS = 60.0
_LONGEST_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_LOG_LINES = 20
# A UNIX socket's path has at most 107 bytes, and slurmd puts `spool/node0/node0_1.4294967291`
# below the folder.
_LONGEST_FOLDER = 70
# Variables of a surrounding job, or of the user, that would change the layout of a step.
_LAUNCHERS = re.compile(r"(SLURM|SRUN|SBATCH|SALLOC|SQUEUE|SINFO|OMPI|PMI|PMIX|MPI|HYDRA|PRTE)_?")
_LOCAL = re.compile(r"(LOCAL_(RANK|WORLD_SIZE|SIZE)|RANK|WORLD_SIZE)$")

_CONFIGURATION = """\
ClusterName=launchers
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/logs/slurmctld
SlurmdLogFile={folder}/logs/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{task_plugin}
MpiDefault=none
JobAcctGatherType=jobacct_gather/{accounting}
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=64
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
LaunchParameters=use_interactive_step
ReturnToService=2
KillWait=2
PartitionName=all Nodes=ALL Default=YES OverTimeLimit=0 State=UP
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
    " RealMemory={memory_mib}\n"
)
# Only memory: the tests ask what a step's end does to its page cache.
_CGROUPS = """\
CgroupPlugin={version}
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainDevices=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
"""

Value = TypeVar("Value")


class SlurmError(RuntimeError):
    """Slurm did not do something, or not in time; the message has the ends of its logs."""


@dataclass(frozen=True)
class Job(Done):
    """A finished batch job: the script's exit code and streams, and Slurm's verdict."""

    state: str  # e.g. COMPLETED, FAILED, CANCELLED, TIMEOUT
    signal_number: int  # the signal that ended the script, 0 for none


@dataclass(frozen=True)
class Cluster:
    """A running Slurm whose nodes are all this machine."""

    folder: str
    nodes: tuple[str, ...]
    environment: dict[str, str]  # for its clients: srun, sbatch, scontrol
    _supervisor: "subprocess.Popen[str]"

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, folder: str | None = None, nodes: int = 1, task_plugin: str = "none"
    ) -> Iterator["Cluster"]:
        """Yield a cluster that runs in this folder, or in a temporary one.

        `task_plugin` is `none`, or `cgroup` to limit the memory of steps. Raises SlurmError if the
        cluster is not up within a minute. Needs root and the programs in PACKAGES.
        """
        with contextlib.ExitStack() as stack:
            if folder is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
            cluster = cls._prepared(str(folder), nodes, task_plugin)
            stack.callback(cluster._close)
            cluster._start()
            yield cluster

    def srun(self, *words: str, timeout: float = _LONGEST_SECONDS) -> Done:
        """Run srun with these words and return the result; outside a job it creates its own."""
        return self.client("srun", *words, timeout=timeout)

    def sbatch(self, script: str, *words: str, timeout: float = _LONGEST_SECONDS) -> Job:
        """Run a script's text as a batch job and return the finished job."""
        return self.ended(self.submit(script, *words), timeout=timeout)

    def submit(self, script: str, *words: str) -> str:
        """Submit a script's text as a batch job and return the job's number."""
        done = self.client(
            "sbatch",
            "--parsable",
            f"--chdir={self.folder}",
            f"--output={self.folder}/jobs/%j.out",
            f"--error={self.folder}/jobs/%j.err",
            *words,
            input_text=script,
        )
        if done.code != 0:
            raise SlurmError(f"sbatch failed: {done.errors}{self.logs()}")
        return done.output.strip()

    def ended(self, job: str, timeout: float = _LONGEST_SECONDS) -> Job:
        """Return the batch job as soon as it and all its steps have ended."""

        def end() -> dict[str, str] | None:
            shown = self.describe(job)
            state = shown["JobState"]
            return None if state in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} else shown

        shown = self.await_it(end, f"the end of job {job}", timeout)
        code, _, number = shown["ExitCode"].partition(":")
        output, errors = (self._text(f"jobs/{job}.{kind}") for kind in ("out", "err"))
        return Job(int(code), output, errors, shown["JobState"], int(number))

    def describe(self, job: str) -> dict[str, str]:
        """Return Slurm's fields for a job: JobState, ExitCode, NodeList and many more."""
        done = self.client("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", done.output))

    def job_output(self, job: str) -> str:
        """Return a batch job's standard output so far."""
        return self._text(f"jobs/{job}.out")

    def client(
        self,
        program: str,
        *words: str,
        timeout: float = _LONGEST_SECONDS,
        input_text: str = "",
    ) -> Done:
        """Run one of Slurm's clients with these words and return the result.

        Kills it and raises SlurmError if it is still running after `timeout` seconds.
        """
        with subprocess.Popen(
            [program, *words],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="surrogateescape",
        ) as process:
            try:
                output, errors = process.communicate(input_text, timeout)
            except subprocess.TimeoutExpired as late:
                raise SlurmError(
                    f"{program} {' '.join(words)}: no end within {timeout} s{self.logs()}"
                ) from late
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return Done(process.returncode, output, errors)

    def await_it(
        self, look: Callable[[], Value | None], what: str, timeout: float = _LONGEST_SECONDS
    ) -> Value:
        """Return the first result of `look` that is not None."""
        end = time.monotonic() + timeout
        while True:
            found = look()
            if found is not None:
                return found
            if self._supervisor.poll() is not None:
                raise SlurmError(f"waiting for {what}: a daemon of Slurm has ended{self.logs()}")
            if time.monotonic() > end:
                raise SlurmError(f"waited {timeout} s for {what}{self.logs()}")
            time.sleep(_PAUSE_SECONDS)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        parts = []
        names = os.listdir(f"{self.folder}/logs")
        for name in sorted(names):
            if name.removesuffix(".out") in set(names) - {name}:
                continue  # the same lines: the daemon has opened its log
            lines = self._text(f"logs/{name}").splitlines()[-_LOG_LINES:]
            parts.append("\n".join((f"\n--- {name}", *lines)))
        return "".join(parts)

    @classmethod
    def _prepared(cls, folder: str, nodes: int, task_plugin: str) -> "Cluster":
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            raise ValueError(f"expected a path of at most {_LONGEST_FOLDER} bytes, found {folder}")
        for name in ("logs", "jobs", "state", "spool"):
            os.makedirs(os.path.join(folder, name))
        with open(os.open(f"{folder}/munge.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(os.urandom(128))
        # The cgroup plugin names its cgroups after the node: two clusters must not share a name.
        tag = os.path.basename(folder).lower().encode().hex()[-12:]
        names = tuple(f"node{number}x{tag}" for number in range(nodes))
        host = socket.gethostname().partition(".")[0]
        controller_port, *ports = _free_ports(1 + nodes)
        with open(f"{folder}/slurm.conf", "w", encoding="ascii") as file:
            for name, port in zip(names, ports, strict=True):
                file.write(
                    _NODE.format(name=name, host=host, port=port, cpus=CPUS, memory_mib=MEMORY_MIB)
                )
            file.write(
                _CONFIGURATION.format(
                    folder=folder,
                    host=host,
                    controller_port=controller_port,
                    task_plugin=task_plugin,
                    accounting="cgroup" if task_plugin == "cgroup" else "none",
                )
            )
        if task_plugin == "cgroup":
            with open(f"{folder}/cgroup.conf", "w", encoding="ascii") as file:
                file.write(_CGROUPS.format(version=cgroup_version()))
        environment = without_launchers(command.environment())
        environment.update({"PATH": programs.PLACES, "SLURM_CONF": f"{folder}/slurm.conf"})
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__],
            env=environment,
            stdin=subprocess.PIPE,
            text=True,
        )
        return cls(folder, names, environment, process)

    def _start(self) -> None:
        at = f"{self.folder}/munge."
        self._daemon(
            "munged",
            # --force, because munged considers a folder for temporary files unsafe.
            *("munged", "--foreground", "--force", "--num-threads=2", f"--socket={at}socket"),
            *(f"--key-file={at}key", f"--pid-file={at}pid", f"--seed-file={at}seed"),
            f"--log-file={self.folder}/logs/munged",
        )
        self.await_it(lambda: os.path.exists(f"{at}socket") or None, "munged")
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in self.nodes:
            self._daemon(name, "slurmd", "-D", "-N", name)
        self.await_it(self._idle, "idle nodes", _LONGEST_START_SECONDS)

    def _daemon(self, name: str, *words: str) -> None:
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # await_it reports it, with the logs
            print(
                json.dumps([f"{self.folder}/logs/{name}.out", *words]),
                file=self._supervisor.stdin,
                flush=True,
            )

    def _idle(self) -> bool | None:
        done = self.client("sinfo", "--noheader", "--Node", "--format=%T")
        return done.output.split() == ["idle"] * len(self.nodes) or None

    def _close(self) -> None:
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()
        try:
            self._supervisor.wait(_LONGEST_SECONDS)
        finally:
            self._supervisor.kill()
            self._supervisor.wait()
            self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        for node in self.nodes:
            for top in glob.glob(f"/sys/fs/cgroup/*/slurm_{node}"):
                for folder, _, _ in os.walk(top, topdown=False):
                    os.rmdir(folder)

    def _text(self, name: str) -> str:
        try:
            with open(
                os.path.join(self.folder, name), encoding="utf-8", errors="surrogateescape"
            ) as file:
                return file.read()
        except FileNotFoundError:
            return ""


def missing_programs() -> list[str]:
    """Return the Debian packages that a cluster needs and that are missing here."""
    return programs.missing_packages(PACKAGES)


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those of any launcher that runs these tests."""
    return {
        name: value
        for name, value in environment.items()
        if not _LAUNCHERS.match(name) and not _LOCAL.match(name)
    }


def cgroup_version() -> str:
    """Return Slurm's plugin for the cgroup version that has this machine's memory controller."""
    return "cgroup/v1" if os.path.isdir("/sys/fs/cgroup/memory") else "cgroup/v2"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
