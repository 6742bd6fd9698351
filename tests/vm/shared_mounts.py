"""The matrix's shared mounts: 9p and virtiofs from the host, by qemu, and SMB from a server."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm import kernels
from tests.vm.local_mounts import mounted
from tests.vm.machine import BUILD_TAG, Machine, MachineError, Process
from tests.vm.rows import Keeps, Mounting, Row, Skip

# A file in the machine that holds the checkpoint's path on the host, below the host's build/vm.
SOURCE = "/run/source"

_9P_OPTIONS = "ro,trans=virtio,version=9p2000.L,msize=512000"
_9P_BY_BITS = (6, 4)  # since then a cache mode is made of bits, e.g. one for read-ahead
_DROPS_AT_OPEN = "drops cached pages when a file is opened again"

_SMB_OPTIONS = "ro,vers=3.1.1,guest"
_SMB_URL = "//127.0.0.1/srv"
_SMB_PORT = 445
_SERVER_SECONDS = 60
_CLOSES_LATE = "likely the SMB client dropped the pages when it closed the files"
_SAMBA = "/run/samba"
_SAMBA_CONFIG = f"""[global]
interfaces = lo
bind interfaces only = yes
server role = standalone
smb ports = {_SMB_PORT}
disable netbios = yes
map to guest = bad user
guest account = root
load printers = no
disable spoolss = yes
log file = {_SAMBA}/log
pid directory = {_SAMBA}
lock directory = {_SAMBA}
state directory = {_SAMBA}
cache directory = {_SAMBA}
private dir = {_SAMBA}/private
ncalrpc dir = {_SAMBA}/ncalrpc
[srv]
path = /srv
read only = yes
guest ok = yes
"""

_KSMBD = os.path.join(kernels.BUILD, "ksmbd-tools")
# ksmbd.mountd's default folder: the option for its user database differs between versions.
_KSMBD_FOLDER = "/etc/ksmbd"
_KSMBD_CONFIG = """[global]
	interfaces = lo
	bind interfaces only = yes
	map to guest = bad user
	guest account = root
	smb2 leases = yes
[srv]
	path = /srv
	read only = yes
	guest ok = yes
"""
_KSMBD_TOO_OLD = (
    "this kernel's ksmbd refuses the share that ksmbd-tools describes: needs 3.5.2, the first to"
    " fill in payload_sz"
)


@contextlib.contextmanager
def plan9(machine: Machine, *, cache: str | None = None) -> Iterator[str]:
    """Yield the host's checkpoint over 9p in a cache mode."""
    folder = os.path.relpath(machine.read(SOURCE).decode(), kernels.BUILD)
    options = _9P_OPTIONS if cache is None else f"{_9P_OPTIONS},cache={cache}"
    with mounted(machine, "/mnt/9p", "-t", "9p", "-o", options, BUILD_TAG) as point:
        yield f"{point}/{folder}"


def bits_in_9p(machine: Machine) -> str | None:
    """Return why this kernel's 9p cache modes are not made of bits, or None."""
    return None if machine.version >= _9P_BY_BITS else "9p has no cache modes by bits before 6.4"


def names_in_9p(machine: Machine) -> str | None:
    """Return why this kernel lacks the older 9p cache modes, or None."""
    return None if machine.version < _9P_BY_BITS else "9p has cache modes by bits since 6.4"


@contextlib.contextmanager
def virtiofs(machine: Machine, *, cache: str) -> Iterator[str]:
    """Yield the host's checkpoint over virtiofs in a cache mode."""
    with mounted(machine, "/mnt/virtiofs", "-t", "virtiofs", f"virtiofs-{cache}") as point:
        yield f"{point}/{os.path.basename(machine.read(SOURCE).decode())}"


def no_virtiofsd(machine: Machine) -> str | None:
    """Return why virtiofs cannot be mounted, or None."""
    if machine.shares:
        return None
    return "needs root, and qemu's own virtiofsd, which later versions lack"


@contextlib.contextmanager
def samba(machine: Machine, *, options: str = "", kind: str = "cifs") -> Iterator[str]:
    """Yield the checkpoint over SMB from a Samba server in the machine."""
    config = f"{_SAMBA}/smb.conf"
    machine.sh(f"rm -rf {_SAMBA} && mkdir -p {_SAMBA}/private")
    machine.write(config, _SAMBA_CONFIG)
    daemon = machine.start_process("smbd", "--foreground", "--no-process-group", "-s", config)
    try:
        await_server(machine, daemon)
        with smb(machine, options, kind) as point:
            yield point
    finally:
        # Its group includes the processes that serve the mount.
        end(machine, f"-{daemon.pid}", daemon)


@contextlib.contextmanager
def ksmbd(machine: Machine, *, options: str = "") -> Iterator[str]:
    """Yield the checkpoint over SMB from the kernel's own server.

    Skips if that server is newer than its tools.
    """
    machine.modprobe("ksmbd")
    machine.sh(f"mkdir -p {_KSMBD_FOLDER} && : > {_KSMBD_FOLDER}/ksmbdpwd.db")
    machine.write(f"{_KSMBD_FOLDER}/ksmbd.conf", _KSMBD_CONFIG)
    sbin = f"{_KSMBD}/usr/sbin"
    daemon = machine.start_process(f"{sbin}/ksmbd.mountd", "-n")
    try:
        await_server(machine, daemon)
        with contextlib.ExitStack() as stack:
            try:
                point = stack.enter_context(smb(machine, options, "cifs"))
            except MachineError as error:
                # The client maps BAD_NETWORK_NAME to ENOENT.
                if "mount error(2)" not in str(error) or fills_in_payload_size(machine):
                    raise
                pytest.skip(_KSMBD_TOO_OLD)
            yield point
    finally:
        machine.run(f"{sbin}/ksmbd.control", "-s", check=False)
        end(machine, str(daemon.pid), daemon)
        machine.run("modprobe", "-r", "ksmbd", check=False)


def no_ksmbd(machine: Machine) -> str | None:
    """Return why the kernel's SMB server cannot run, or None; fetches its tools."""
    if not machine.has_module("ksmbd"):
        return "needs a kernel with the module ksmbd"
    return fetch_ksmbd_tools()


def fetch_ksmbd_tools() -> str | None:
    """Download and unpack ksmbd-tools unless already done; return why that failed, or None.

    They are never installed: the package conflicts with samba's.
    """
    if os.path.exists(_KSMBD):
        return None
    folder = tempfile.mkdtemp(prefix="vm-", dir=kernels.BUILD)
    try:
        for script in ("apt-get download -qq ksmbd-tools", "dpkg -x ./*.deb unpacked"):
            done = subprocess.run(
                ["sh", "-c", script], capture_output=True, check=False, cwd=folder, text=True
            )
            if done.returncode != 0:
                return f"needs Debian's ksmbd-tools: {done.stderr.strip()}"
        try:
            os.rename(f"{folder}/unpacked", _KSMBD)
        except OSError:
            # Another machine's tests may have been faster.
            if not os.path.exists(_KSMBD):
                raise
    finally:
        shutil.rmtree(folder)
    return None


def fills_in_payload_size(machine: Machine) -> bool:
    """Whether ksmbd-tools is 3.5.2 or later."""
    done = machine.run(f"{_KSMBD}/usr/sbin/ksmbd.mountd", "-V", check=False)
    version = (done.out + done.err).rpartition(":")[2].strip()
    return tuple(map(int, version.split("."))) >= (3, 5, 2)


@contextlib.contextmanager
def smb(machine: Machine, options: str, kind: str) -> Iterator[str]:
    """Yield the checkpoint over SMB from the server that listens in the machine."""
    given = ",".join(filter(None, (_SMB_OPTIONS, options)))
    with mounted(machine, "/mnt/smb", "-t", kind, "-o", given, _SMB_URL) as point:
        yield f"{point}/model"


def await_server(
    machine: Machine, daemon: Process, address: str = "127.0.0.1", port: int = _SMB_PORT
) -> None:
    """Return as soon as the server answers; raises MachineError if it does not."""
    deadline = time.monotonic() + _SERVER_SECONDS
    connect = ("bash", "-c", f": < /dev/tcp/{address}/{port}")
    while machine.run(*connect, check=False).code != 0:
        if not daemon.running or time.monotonic() > deadline:
            raise MachineError(f"no server: {daemon.shown()}")
        time.sleep(0.1)


def end(machine: Machine, target: str, daemon: Process) -> None:
    """End a daemon, by force if necessary; `target` is its process or group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        machine.run("kill", f"-{int(number)}", "--", target, check=False)
        with contextlib.suppress(MachineError):
            daemon.end(20)
            return


def _9p(name: str, cache: str | None, keeps: Keeps, **how: Any) -> Row:
    return Row(
        name,
        functools.partial(plan9, cache=cache),
        "9p",
        network=True,
        keeps=keeps,
        # Without a cache every read of a page takes as long.
        known_to_stranger=None if cache else False,
        **how,
    )


def _virtiofs(cache: str, keeps: Keeps, warning: str = "") -> Row:
    return Row(
        f"virtiofs-{cache}",
        functools.partial(virtiofs, cache=cache),
        "virtiofs",
        network=True,
        keeps=keeps,
        warning=warning,
        unavailable=no_virtiofsd,
    )


def _smb(name: str, mounting: Mounting, keeps: Keeps, *, type_: str = "cifs", **how: Any) -> Row:
    # Each read of a page brings in more.
    return Row(name, mounting, type_, network=True, keeps=keeps, known_to_stranger=False, **how)


ROWS = (
    _9p("9p", None, Keeps.NOTHING, skip=Skip.NO_CACHE),
    _9p("9p-loose", "loose", Keeps.ALL),
    _9p("9p-fscache", "fscache", Keeps.ALL),
    _9p("9p-mmap-by-name", "mmap", Keeps.NOTHING, skip=Skip.NO_CACHE, unavailable=names_in_9p),
    _9p("9p-mmap-by-bits", "mmap", Keeps.NOTHING, warning="likely 9p", unavailable=bits_in_9p),
    _9p("9p-readahead", "readahead", Keeps.NOTHING, warning="likely 9p", unavailable=bits_in_9p),
    _virtiofs("auto", Keeps.NOTHING, _DROPS_AT_OPEN),
    _virtiofs("always", Keeps.ALL),
    _virtiofs("none", Keeps.NOTHING, _DROPS_AT_OPEN),
    # By default the pages live as long as the handle, which closes a second after the file.
    _smb("smb", samba, Keeps.NOTHING, warning=_CLOSES_LATE),
    _smb("smb-late-close", functools.partial(samba, options="closetimeo=300"), Keeps.ALL),
    # Without a lease the handle closes with the file.
    _smb(
        "smb-without-lease",
        functools.partial(samba, options="closetimeo=300,nolease"),
        Keeps.NOTHING,
        warning=_CLOSES_LATE,
    ),
    _smb(
        "smb3-loose",
        functools.partial(samba, options="cache=loose", kind="smb3"),
        Keeps.ALL,
        type_="smb3",
    ),
    _smb(
        "smb-uncached",
        functools.partial(samba, options="cache=none"),
        Keeps.NOTHING,
        skip=Skip.NO_CACHE,
    ),
    _smb("smb-ksmbd", ksmbd, Keeps.NOTHING, warning=_CLOSES_LATE, unavailable=no_ksmbd),
    _smb(
        "smb-ksmbd-late-close",
        functools.partial(ksmbd, options="closetimeo=300"),
        Keeps.ALL,
        unavailable=no_ksmbd,
    ),
)
