"""The lines of /proc/PID/mountinfo (proc(5)): which mounts there are, and which can be reached."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefetch_cli.linux import procfs

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


class Mount(NamedTuple):
    """One line of mountinfo, unescaped; `root` is the directory that is mounted."""

    id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    type: str
    source: str
    options: tuple[str, ...]


def parse(text: bytes | str) -> tuple[Mount, ...]:
    """Return the mounts in `text`, without malformed lines; never raises.

    Bytes that are not UTF-8 become surrogates (PEP 383), as in all of Python's paths.
    """
    lines = (text if isinstance(text, bytes) else os.fsencode(text)).split(b"\n")
    return tuple(mount for line in lines if (mount := _parse_line(line)))


def read(path: str) -> tuple[Mount, ...]:
    """Return the mounts of a table; none if it cannot be read."""
    try:
        return parse(procfs.read(path))
    except OSError:
        return ()


def visible(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Return the mounts that a path can still reach, in the order of the table.

    Mounting over a directory hides the mounts below it that share its parent. Later mounts below it
    have the new mount as their parent.
    """
    later_points: dict[int, set[str]] = {}
    hidden = set()
    for mount in reversed(mounts):
        later = later_points.setdefault(mount.parent_id, set())
        if not later.isdisjoint(above(mount.mount_point)):
            hidden.add(mount.id)
        later.add(mount.mount_point)
    while inside := {mount.id for mount in mounts if mount.parent_id in hidden} - hidden:
        hidden |= inside
    return tuple(mount for mount in mounts if mount.id not in hidden)


def above(path: str) -> Iterator[str]:
    """Yield each directory above a path, nearest first."""
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _parse_line(line: bytes) -> Mount | None:
    """Return the mount of a line of mountinfo, None if it is malformed."""
    place, _, what = line.partition(b" - ")
    # Split at single spaces: a source may be empty.
    fields, tail = place.split(b" "), what.split(b" ")
    try:
        id_, parent_id, device, root, mount_point, mount_options = fields[:6]
        type_, source, super_options = tail
        if not type_:
            return None
        return Mount(
            id=int(id_),
            parent_id=int(parent_id),
            device=_decode(device),
            root=_decode(root),
            mount_point=_decode(mount_point),
            type=_decode(type_),
            source=_decode(source),
            # A comma inside a value is escaped, so split first, then unescape.
            options=tuple(map(_decode, mount_options.split(b",") + super_options.split(b","))),
        )
    except ValueError:
        return None


def _decode(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
