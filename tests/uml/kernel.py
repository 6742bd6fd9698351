"""User-mode Linux, built once from Debian's source below `build/uml/`.

Debian's own `user-mode-linux` does not start on processors with AMX, whose registers need more room
than it has.
"""

import os
import re
import shutil
import subprocess

from tests.helpers.command import ROOT
from tests.vm import kernels
from tests.vm.kernels import Kernel, NoMachineError

BUILD = os.path.join(ROOT, "build", "uml")
_PACKAGE = "linux-source-6.12"
_IMAGE = os.path.join(BUILD, "linux")
_SOURCE = os.path.join(BUILD, "source")

# What the build needs, with Debian's packages: commands, then headers.
_COMMANDS = {
    "gcc": "build-essential",
    "make": "build-essential",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
}
_HEADERS = {"libelf.h": "libelf-dev", "openssl/ssl.h": "libssl-dev"}
# What the measurements need.
_TOOLS = {
    "exportfs": "nfs-kernel-server",
    "fincore": "util-linux-extra",
    "ip": "iproute2",
    "mount.nfs": "nfs-common",
    "rpcbind": "rpcbind",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "vmtouch": "vmtouch",
}

# Beside its defaults. Nothing is a module: there would be no place to load it from.
WANTED = (
    *("NFS_FS", "NFS_V3", "NFS_V4", "NFS_V4_1", "NFS_V4_2", "NFSD", "NFSD_V4"),
    *("NETDEVICES", "VETH", "NET_NS", "NET_SCHED", "NET_SCH_NETEM", "NET_SCH_TBF"),
    *("NET_9P", "NET_9P_FD", "9P_FS", "VIRTIO_UML", "VIRTIO_FS"),
    *("FUSE_FS", "EXT4_FS", "XFS_FS", "OVERLAY_FS", "TMPFS", "HOSTFS"),
    *("BLK_DEV", "BLK_DEV_UBD", "BLK_DEV_LOOP", "CGROUPS", "MEMCG"),
    # Without it a delay is rounded up to whole ticks of 10 ms.
    "HIGH_RES_TIMERS",
)
_OFF = ("MODULES", "DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT")
# A smaller stack overflows at times under NFS on overlay: each is 2 ** 5 pages.
_STACK_ORDER = 5
# The bytes in which the registers of a process are kept. AMX has 8 KiB of them.
_REGISTERS = ("arch/x86/um/user-offsets.c", "DEFINE_LONGS(HOST_FP_SIZE, 2696)", "2696", "11008")


def missing_packages() -> list[str]:
    """Return the Debian packages that are missing here, sorted; those to build only if we must."""
    missing = {name for tool, name in _TOOLS.items() if kernels.command(tool) is None}
    if not os.path.exists(_IMAGE):
        missing |= {name for tool, name in _COMMANDS.items() if kernels.command(tool) is None}
        missing |= {name for header, name in _HEADERS.items() if not _included(header)}
    return sorted(missing)


def built() -> Kernel:
    """Return the kernel, built first if there is none: 10 minutes on 2 cores.

    Raises NoMachineError if apt has no source or the build fails.
    """
    os.makedirs(BUILD, exist_ok=True)
    with kernels.locked(os.path.join(BUILD, ".lock")):
        if not os.path.exists(_IMAGE):
            _unpack()
            _configure()
            _make()
    with open(os.path.join(BUILD, "release"), encoding="ascii") as file:
        return Kernel(file.read().strip(), _IMAGE, BUILD)


def _included(header: str) -> bool:
    words = ("gcc", "-E", "-x", "c", "-include", header, os.devnull)
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return True  # gcc itself is reported


def _unpack() -> None:
    packed = os.path.join(BUILD, "package")
    try:
        kernels.unpack(_PACKAGE, packed)
    except NoMachineError:
        # The package lists were never fetched, or name a version that the archive has replaced.
        kernels.run("apt-get", "update", "-qq")
        kernels.unpack(_PACKAGE, packed)
    shutil.rmtree(_SOURCE, ignore_errors=True)
    os.makedirs(_SOURCE)
    archive = os.path.join(packed, "usr", "src", f"{_PACKAGE}.tar.xz")
    kernels.run("tar", "-xf", archive, "--strip-components=1", "-C", _SOURCE)
    shutil.rmtree(packed)
    name, line, old, new = _REGISTERS
    path = os.path.join(_SOURCE, name)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if line not in text:
        raise NoMachineError(f"{name}: expected {line!r}, found another size of the registers")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(line, line.replace(old, new)))


def _configure() -> None:
    kernels.run("make", "ARCH=um", "defconfig", folder=_SOURCE)
    words = [word for name in WANTED for word in ("--enable", name)]
    words += [word for name in _OFF for word in ("--disable", name)]
    words += ["--enable", "DEBUG_INFO_NONE", "--set-val", "KERNEL_STACK_ORDER", str(_STACK_ORDER)]
    kernels.run("scripts/config", *words, folder=_SOURCE)
    kernels.run("make", "ARCH=um", "olddefconfig", folder=_SOURCE)
    with open(os.path.join(_SOURCE, ".config"), encoding="utf-8") as file:
        if lacking := lacks(file.read()):
            raise NoMachineError(f"this source has no {', '.join(lacking)}")


def lacks(config: str) -> list[str]:
    """Return the wanted options that a configuration does not have built in."""
    there = set(re.findall(r"^CONFIG_(\w+)=y$", config, re.MULTILINE))
    return [name for name in WANTED if name not in there]


def _make() -> None:
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    kernels.run("make", "ARCH=um", jobs, "linux", folder=_SOURCE)
    with open(os.path.join(_SOURCE, "include", "config", "kernel.release"), "rb") as file:
        release = file.read()
    with open(os.path.join(BUILD, "release"), "wb") as file:
        file.write(release)
    # Its presence says that the build is complete.
    shutil.move(os.path.join(_SOURCE, "linux"), _IMAGE)
    shutil.rmtree(_SOURCE)
