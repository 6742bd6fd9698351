"""Debian's kernels, the newest patch of a series: downloaded and unpacked, never installed.

`apt-get download` and `dpkg -x` write only below `build/vm/`; unpacked kernels are reused.
"""

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.helpers.command import ROOT

BUILD = os.path.join(ROOT, "build", "vm")
SERIES = ("6.1", "6.12")  # without and with cachestat(2)

# Commands that the machine and its mounts need, with the Debian packages that provide them.
_COMMANDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "ip": "iproute2",
    "exportfs": "nfs-kernel-server",
    "mount.nfs": "nfs-common",
    "smbd": "samba",
    "mount.cifs": "cifs-utils",
    "sshfs": "sshfs",
    "sftp-server": "openssh-sftp-server",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mksquashfs": "squashfs-tools",
    "mkfs.erofs": "erofs-utils",
    "automount": "autofs",
    "dmsetup": "dmsetup",
    "nbdkit": "nbdkit",
    "nbd-client": "nbd-client",
    "iscsiadm": "open-iscsi",
    "setpriv": "util-linux",
    "fincore": "util-linux-extra",
    "vmtouch": "vmtouch",
}
# Some of these are not on every user's PATH.
_PLACES = os.pathsep.join(
    (os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/openssh")
)


_STALE_SECONDS = 6 * 3600


class NoMachineError(RuntimeError):
    """No test machine can run here; the message is one line, fit for a skip reason."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release, its image, and the directory above `lib/modules`."""

    release: str
    image: str
    root: str

    def modules(self, *names: str) -> list[str]:
        """Return the files of these modules and their dependencies, in load order.

        Modules that are built in, or that this kernel lacks, are left out.
        """
        folder = os.path.join(self.root, "lib", "modules", self.release)
        needs: dict[str, tuple[str, list[str]]] = {}
        with open(os.path.join(folder, "modules.dep"), encoding="ascii") as file:
            for line in file:
                module, _, needed = line.partition(":")
                needs[_name(module)] = (module, needed.split())
        ordered: list[str] = []
        nothing: list[str] = []
        for name in names:
            path, others = needs.get(name, ("", nothing))
            for one in (*reversed(others), path):
                if one and one not in ordered:
                    ordered.append(one)
        return [os.path.join(folder, path) for path in ordered]


def missing_packages() -> list[str]:
    """Return the Debian packages of the commands that are missing here, sorted."""
    return sorted({package for name, package in _COMMANDS.items() if command(name) is None})


def command(name: str) -> str | None:
    """Return the path of a system command, or None if it is not installed."""
    return shutil.which(name, path=_PLACES)


def prepare() -> None:
    """Create the build folder and remove what killed runs left in it."""
    os.makedirs(BUILD, exist_ok=True)
    now = time.time()
    for name in os.listdir(BUILD):
        path = os.path.join(BUILD, name)
        if name.startswith(("vm-", "model-")) and now - os.stat(path).st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def fetch(series: str) -> Kernel:
    """Return apt's newest kernel of a series, unpacked.

    Raises NoMachineError if apt cannot provide it.
    """
    prepare()
    with locked(os.path.join(BUILD, ".lock")):
        try:
            return _fetched(series)
        except NoMachineError:
            # The package lists were never fetched, or name versions that the archive has replaced.
            run("apt-get", "update", "-qq")
            return _fetched(series)


def _fetched(series: str) -> Kernel:
    package, version = _newest(series)
    release = package.removeprefix("linux-image-")
    root = os.path.join(BUILD, f"{release}_{version}")
    if not os.path.exists(os.path.join(root, ".done")):
        unpack(package, root)
        run("depmod", "-b", root, release)
        with open(os.path.join(root, ".done"), "w", encoding="ascii"):
            pass
    return Kernel(release, os.path.join(root, "boot", f"vmlinuz-{release}"), root)


def _newest(series: str) -> tuple[str, str]:
    """Return the package name and version of apt's newest kernel of a series."""
    pattern = rf"^linux-image-{re.escape(series)}\.[0-9].*[0-9]-amd64$"
    if series == "6.1":
        pattern = r"^linux-image-6\.1\.0-[0-9]+-amd64$"
    names = _output("apt-cache", "search", "--names-only", pattern).split("\n")
    found = []
    for name in (line.split(" ")[0] for line in names):
        shown = re.search(r"Candidate: (\S+)", _output("apt-cache", "policy", name))
        if re.fullmatch(pattern[1:-1], name) and shown and shown[1] != "(none)":
            found.append((name, shown[1].replace(":", "_")))
    if not found:
        raise NoMachineError(
            f"needs a kernel {series} of Debian's: apt-cache finds none (apt-get update?)"
        )
    return max(found, key=lambda one: [int(number) for number in re.findall(r"\d+", one[0])])


def unpack(package: str, root: str) -> None:
    """Download a Debian package and unpack it into a folder that is emptied first."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    run("apt-get", "download", "-qq", package, folder=root)
    for name in os.listdir(root):
        if name.endswith(".deb"):
            run("dpkg", "-x", name, ".", folder=root)
            os.unlink(os.path.join(root, name))


def run(name: str, *arguments: str, folder: str | None = None) -> None:
    """Run a system command; raises NoMachineError with its last words if it fails."""
    done = subprocess.run(
        [command(name) or name, *arguments],
        capture_output=True,
        check=False,
        cwd=folder,
        text=True,
    )
    if done.returncode != 0:
        raise NoMachineError(f"{name} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _output(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, check=False, text=True).stdout
    except FileNotFoundError:
        raise NoMachineError(f"needs Debian's apt: {words[0]} is not here") from None


def _name(path: str) -> str:
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a file lock: two machines start at once, each in its own process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def initramfs(kernel: Kernel, init: str, modules: Sequence[str], path: str) -> None:
    """Write the machine's initial root: static busybox, an init and the boot modules.

    Raises NoMachineError if cpio fails or is missing.
    """
    busybox = command("busybox")
    assert busybox is not None
    root = f"{path}.d"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "dev", "proc", "sys", "modules", "host", "top", "root"):
        os.makedirs(os.path.join(root, folder))
    shutil.copy(busybox, os.path.join(root, "bin", "busybox"))
    shutil.copy(init, os.path.join(root, "init"))
    os.chmod(os.path.join(root, "init"), 0o755)
    for number, module in enumerate(kernel.modules(*modules)):
        with lzma.open(module) if module.endswith(".xz") else open(module, "rb") as packed_module:
            content = packed_module.read()
        with open(os.path.join(root, "modules", f"{number:03d}.ko"), "wb") as file:
            file.write(content)
    with open(path, "wb") as target:
        packed = subprocess.run(
            [busybox, "sh", "-c", f"{busybox} find . | {busybox} cpio -o -H newc"],
            stdout=target,
            stderr=subprocess.PIPE,
            check=False,
            cwd=root,
        )
    shutil.rmtree(root)
    if packed.returncode != 0:
        raise NoMachineError(f"cpio failed: {packed.stderr.decode(errors='replace').strip()}")
