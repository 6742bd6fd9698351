"""Lustre's client: what it may keep, how far it reads ahead, how a file is striped.

Written from the Lustre manual and the client's source (lproc_llite.c, lustre_user.h), and tested by
crafted values: none could be mounted. Nothing is ever written there.
"""

import contextlib
import glob
import os
import re
import struct
from collections.abc import Iterator

from prefetch_cli.linux import procfs
from prefetch_cli.linux.filesystem import FileSystem
from prefetch_cli.linux.procfs import below

_MIB = 1024 * 1024
_PLACES = ("/sys/fs/lustre/llite", "/proc/fs/lustre/llite", "/sys/kernel/debug/lustre/llite")
_CACHED = re.compile(r"^max_cached_mb:\s*([0-9]{1,12})\s*$", re.MULTILINE)

# lov_user_md_v1 and v3, and lov_comp_md_v1 with its entries, in this machine's byte order.
_V1, _V3, _COMPOSITE = 0x0BD10BD0, 0x0BD30BD0, 0x0BD60BD0
_STRIPE_COUNT = struct.Struct("=28xH")
_COMPONENTS = struct.Struct("=14xH")
_FIRST_ENTRY_BYTES, _ENTRY = 32, struct.Struct("=4xI16xII16x")
_IN_USE = 0x10  # LCME_FL_INIT: this part has data, so targets


def max_cached_bytes(fs: FileSystem, root: str = "/") -> int | None:
    """Return how much of a file system its client keeps in memory, None where that is hidden.

    The file is for root only on newer clients.
    """
    for text in _parameter(fs, "max_cached_mb", root):
        match = _CACHED.search(text) or re.fullmatch(r"([0-9]{1,12})\s*", text)
        if match and int(match[1]) > 0:
            return int(match[1]) * _MIB
    return None


def read_ahead_bytes(fs: FileSystem, root: str = "/") -> int | None:
    """Return how far the client reads ahead of one file at most, None where that is hidden."""
    for text in _parameter(fs, "max_read_ahead_per_file_mb", root):
        with contextlib.suppress(ValueError, OverflowError):
            return int(float(text) * _MIB)
    return None


def stripe_count(path: str) -> int | None:
    """Return over how many targets a file is spread, None where Lustre does not tell."""
    try:
        return parse_layout(os.getxattr(path, "lustre.lov"))
    except (OSError, ValueError):
        return None


def parse_layout(layout: bytes) -> int | None:
    """Return the stripe count of a layout, of one with several parts the largest; never raises."""
    with contextlib.suppress(struct.error):
        [magic] = struct.unpack_from("=I", layout)
        if magic in {_V1, _V3}:
            return int(_STRIPE_COUNT.unpack_from(layout)[0])
        if magic == _COMPOSITE:
            return max(_counts(layout), default=None)
    return None


def _counts(layout: bytes) -> Iterator[int]:
    [entries] = _COMPONENTS.unpack_from(layout)
    for number in range(entries):
        flags, offset, size = _ENTRY.unpack_from(layout, _FIRST_ENTRY_BYTES + number * _ENTRY.size)
        part = layout[offset : offset + size]
        nested = part.startswith(struct.pack("=I", _COMPOSITE))
        if flags & _IN_USE and not nested and (count := parse_layout(part)) is not None:
            yield count


def _parameter(fs: FileSystem, name: str, root: str) -> Iterator[str]:
    """Yield the contents of a parameter, one for each mount of the file system.

    The source of a mount is `MGS@NET:/FSNAME`, with a folder behind it or not.
    """
    fsname = fs.source.rpartition(":/")[2].partition("/")[0]
    if fs.type != "lustre" or not fsname:
        return
    for place in _PLACES:
        folder = glob.escape(below(root, place))
        for path in sorted(glob.glob(f"{folder}/{glob.escape(fsname)}-*/{name}")):
            if found := procfs.text(path):
                yield found
