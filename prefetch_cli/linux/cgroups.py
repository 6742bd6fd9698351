"""The memory limits of our cgroup and of every cgroup above it.

Page cache is charged to the cgroup that reads it first. A cgroup at its limit silently keeps only
what it read last, so the tightest limit of all counts, not the host's free memory.
"""

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from prefetch_cli.linux import mountinfo
from prefetch_cli.linux.mountinfo import Mount
from prefetch_cli.linux.procfs import below, fields, number, read


class _Controller(NamedTuple):
    """The file and field names of one version of the memory controller."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


# Documentation/admin-guide/cgroup-v2.rst: above memory.high the kernel reclaims, so drops cache.
_V2 = _Controller(
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    reclaimable=("inactive_file", "active_file"),
)
# Documentation/admin-guide/cgroup-v1/memory.rst: only the total_ fields include child cgroups.
_V1 = _Controller(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
)


def tightest(root: str, total_bytes: int) -> tuple[int, str] | None:
    """Return the bytes left in the cgroup that has least left, and its directory.

    None if no cgroup has a limit below `total_bytes`, the host's memory. Never raises: a cgroup
    that cannot be read is left out. `root` is "/", or a tree that a test laid out.
    """
    limits = (
        (left, directory)
        for controller, directory in _own_cgroups(root)
        if (left := _available(controller, below(root, directory), total_bytes)) is not None
    )
    return min(limits, default=None)


def _own_cgroups(root: str) -> Iterator[tuple[_Controller, str]]:
    """Yield the directory of our cgroup and of each cgroup above it, as far as they are mounted.

    With both versions mounted only one of them owns the memory controller; directories of the
    other lack its files, as does the root of v2.
    """
    mounts = mountinfo.visible(mountinfo.read(below(root, "/proc/self/mountinfo")))
    for controller, path in _memberships(root):
        mounted = [mount for mount in mounts if _carries(mount, controller)]
        places = [
            (-len(inside), mount.mount_point, inside)
            for mount in mounted
            if (inside := _levels_below(root, mount, path)) is not None
        ]
        # A path that fits no mount was written for another namespace. All that is visible is
        # then above us: the mount point is the nearest.
        places = places or [(0, mount.mount_point, []) for mount in mounted[-1:]]
        if places:
            _, mount_point, names = min(places)  # the deepest one shows most cgroups above us
            for depth in range(len(names), -1, -1):
                yield controller, os.path.join(mount_point, *names[:depth])


def _memberships(root: str) -> Iterator[tuple[_Controller, str]]:
    """Yield our cgroup's path, from /proc/self/cgroup: `4:memory:/job` (v1), `0::/job` (v2)."""
    try:
        text = read(below(root, "/proc/self/cgroup"))
    except OSError:
        return
    for line in text.split(b"\n"):
        _, _, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if colon and not controllers:
            yield _V2, os.fsdecode(path)
        elif b"memory" in controllers.split(b","):
            yield _V1, os.fsdecode(path)


def _carries(mount: Mount, controller: _Controller) -> bool:
    if controller is _V2:
        return mount.type == "cgroup2"
    return mount.type == "cgroup" and "memory" in mount.options


def _levels_below(root: str, mount: Mount, path: str) -> list[str] | None:
    """Return the directories from the mount point down to our cgroup, None if it is not there.

    Both paths are relative to our cgroup namespace: a mount from outside it has a root like
    `/../..`, and a process moved out of it a path like `/../other` (cgroup_path_ns_locked() and
    cgroup_show_path() in kernel/cgroup).
    """
    names, above = _levels(path), _levels(mount.root)
    inside = names[len(above) :]
    if names[: len(above)] != above or ".." in inside:
        return None
    return inside if os.path.isdir(os.path.join(below(root, mount.mount_point), *inside)) else None


def _levels(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _available(controller: _Controller, directory: str, total_bytes: int) -> int | None:
    """Return the bytes that a cgroup has left, None if it has no limit or cannot be read."""
    try:
        limit = min(_limit(f"{directory}/{name}") for name in controller.limits)
        if limit >= total_bytes:
            return None
        used = number(read(f"{directory}/{controller.usage}"))
        stat = fields(f"{directory}/memory.stat")
        file_pages = sum(number(stat[name]) for name in controller.reclaimable)
    except (OSError, ValueError, KeyError):
        return None
    # We read the counters one after the other, and the kernel sums them up lazily: there can seem
    # to be more file pages than memory in use.
    return max(0, limit - max(0, used - file_pages))


def _limit(path: str) -> int:
    # "No limit" is `max` in v2, and in v1 a huge number: PAGE_COUNTER_MAX, 9223372036854771712.
    text = read(path)
    return sys.maxsize if text.strip() == b"max" else number(text)
