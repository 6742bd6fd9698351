"""What the NFS client counts of a mount: /proc/self/mountstats (fs/nfs/super.c)."""

import os
import re
from collections.abc import Sequence

from prefetch_cli.linux import mountinfo, procfs

_MOST_BYTES = 4 << 20
_SERVER_READ = 4  # of the fields behind "bytes:" (nfs_show_stats())


def lines_of(mount_point: str, root: str = "/") -> Sequence[str]:
    """Return the lines about an NFS mount; none where it is none. Tests give another `root`."""
    try:
        content = procfs.read(procfs.below(root, "/proc/self/mountstats"), _MOST_BYTES)
        lines = os.fsdecode(content).splitlines()
    except OSError:
        return ()
    found: list[str] = []
    ours = False
    for line in lines:
        if line.startswith(("device ", "no device ")):
            ours = f" mounted on {_escaped(mount_point)} with fstype nfs" in line
        elif ours:
            found.append(line)
    return found


def server_read_bytes(device: int, root: str = "/") -> int | None:
    """Return the bytes that all READs of an NFS mount have brought; None where it is none.

    `device` is st_dev of a file on it. The READ line would miss READ_PLUS of NFSv4.2.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = mountinfo.read(procfs.below(root, "/proc/self/mountinfo"))
    for mount in mounts:
        if mount.device != number or not mount.type.startswith("nfs"):
            continue
        for line in lines_of(mount.mount_point, root):
            words = line.split()
            if words[:1] == ["bytes:"] and len(words) > 1 + _SERVER_READ:
                return int(words[1 + _SERVER_READ])
    return None


def _escaped(path: str) -> str:
    """Return a path as seq_path() writes it."""
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", path)
