"""The matrix's FUSE file systems: sshfs and the tests' own passthrough.

The kernel drops a file's pages when it is reopened, unless the file system lets it keep them
(FOPEN_KEEP_CACHE). Measuring residency opens the file, and so finds what a server would: nothing.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator

from prefetch_cli.linux.fstypes import LOCAL_FUSE
from tests.vm.local_mounts import unmount
from tests.vm.machine import ROOT, Machine, MachineError
from tests.vm.rows import MODEL, Keeps, Row, Skip

_MOUNT_SECONDS = 60
_END_SECONDS = 30
_SFTP = "/run/sftp"  # in the machine: runs the SFTP server where sshfs would run ssh
_DROPPED = "drops cached pages when a file is opened again"


@contextlib.contextmanager
def passthrough(
    machine: Machine, *, options: tuple[str, ...], source: str = MODEL
) -> Iterator[str]:
    """Yield the checkpoint in `source` through the tests' own FUSE file system."""
    machine.modprobe("fuse")
    point = "/mnt/passthrough"
    machine.run("mkdir", "-p", point)
    server = machine.start_process(
        # It dies with its parent, so it needs one that stays: the shell.
        *("sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.helpers.passthrough"),
        *(source, point, *options),
        folder=ROOT,
    )
    try:
        server.await_text("mounted\n", seconds=_MOUNT_SECONDS)
        yield point
    finally:
        unmount(machine, point)
        # The unmount has ended it, or nothing short of SIGKILL will.
        with contextlib.suppress(MachineError):
            server.end(_END_SECONDS)
        machine.run("kill", "-KILL", str(server.pid), check=False)


@contextlib.contextmanager
def sshfs(machine: Machine, *, options: str = "") -> Iterator[str]:
    """Yield the checkpoint through sshfs, with its server at the other end of a pipe."""
    machine.modprobe("fuse")
    machine.write(_SFTP, "#!/bin/sh\nexec sftp-server\n", mode=0o755)
    point = "/mnt/sshfs"
    machine.run("mkdir", "-p", point)
    words = f"ssh_command={_SFTP},allow_other{options}"
    try:
        machine.run("sshfs", "-o", words, f"here:{MODEL}", point)
        yield point
    finally:
        unmount(machine, point)  # ends sshfs, which ends its server


def _passthrough(name: str, *options: str) -> Row:
    keeps = Keeps.ALL if "--keep-cache" in options else Keeps.NOTHING
    subtype = options[options.index("--subtype") + 1] if "--subtype" in options else ""
    network = subtype not in LOCAL_FUSE
    return Row(
        name,
        functools.partial(passthrough, options=("--allow-other", *options)),
        f"fuse.{subtype}" if subtype else "fuse",
        network=network,
        keeps=keeps,
        skip=None if network else Skip.LOCAL,
        warning="" if keeps is Keeps.ALL else _DROPPED,
        # The mount is read-only, so mincore answers only a file's owner: others get a timed sample.
        # With direct I/O every read of a page takes as long.
        known_to_stranger=False if "--direct-io" in options else None,
    )


ROWS = (
    _passthrough("fuse-keep-cache", "--keep-cache"),
    _passthrough("fuse", "--default-permissions"),
    _passthrough("fuse-direct-io", "--direct-io"),
    _passthrough("fuse-subtype", "--keep-cache", "--subtype", "juicefs"),
    _passthrough("fuse-local", "--keep-cache", "--subtype", "unionfs-fuse"),
    Row(
        "sshfs",
        sshfs,
        "fuse.sshfs",
        network=True,
        keeps=Keeps.NOTHING,
        warning=_DROPPED,
        # sshfs leaves mode checks to the server, so to mincore anybody may write.
        known_to_stranger=True,
    ),
    Row(
        "sshfs-kernel-cache",
        functools.partial(sshfs, options=",kernel_cache"),
        "fuse.sshfs",
        network=True,
        known_to_stranger=True,
    ),
)
