"""The memory that a checkpoint may fill: what the host has free, and every cgroup above us.

Page cache is charged to the cgroup that reads it in first, and a cgroup at its limit silently
keeps only what came last; so the tightest of all limits counts, not the host's free memory.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefetch_cli.linux.mounts import Mount, MountTable


@dataclass(frozen=True)
class _Controller:
    """How one version of the cgroup memory controller names its files and fields."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]
    tasks: str  # the numbers of the threads in a cgroup, a process's own number among them


# Documentation/admin-guide/cgroup-v2.rst: above memory.high reclaim starts, so cache is dropped.
_V2 = _Controller(
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    reclaimable=("inactive_file", "active_file"),
    tasks="cgroup.threads",
)
# Documentation/admin-guide/cgroup-v1/memory.rst: only the total_ fields count what is below.
_V1 = _Controller(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
    tasks="tasks",
)

_MOST_SEARCHED = 10_000  # cgroups that are looked through for the one of this process


def own_cgroups(root: str) -> Iterator[tuple[_Controller, str]]:
    """Yield the directory of this process's cgroup and of each that can be seen above it.

    With both versions mounted only one of them owns the memory controller; directories of the
    other lack its files, as does the root of v2.
    """
    mounts = MountTable.read(below(root, "/proc/self/mountinfo")).mounts
    for controller, path in _memberships(root):
        mounted = [mount for mount in mounts if _carries(mount, controller)]
        places = [
            (-inside.count("/"), mount.mount_point, inside)
            for mount in mounted
            if (inside := _place(root, mount, path, controller)) is not None
        ]
        # Not to be found: a container that mounts its own cgroup only, under the host's name for
        # it. Its mount point is then the nearest that can be seen.
        places = places or [(0, mount.mount_point, "") for mount in mounted[-1:]]
        if places:
            _, mount_point, inside = min(places)  # the deepest shows most of what is above
            inside = inside.strip("/")
            while inside:
                yield controller, os.path.join(mount_point, inside)
                inside = os.path.dirname(inside)
            yield controller, mount_point


def _memberships(root: str) -> Iterator[tuple[_Controller, str]]:
    """Yield where this process is, by /proc/self/cgroup: `4:memory:/job` (v1), `0::/job` (v2)."""
    try:
        text = _read(below(root, "/proc/self/cgroup"))
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


def _place(root: str, mount: Mount, path: str, controller: _Controller) -> str | None:
    """Return this process's cgroup as seen from what is mounted, or None where it is not there.

    `/x` for each level of it, so that the mount point itself is empty. Both `path` and the root of
    the mount begin at the root of this process's cgroup namespace, so that a mount made outside of
    it has a root like `/../..`, and a process moved out of it a path like `/../other`
    (cgroup_path_ns_locked() and cgroup_show_path() in kernel/cgroup).
    """
    up, names = _steps(path)
    mounted_up, mounted_names = _steps(mount.root)
    if ".." in names or up > mounted_up:
        return None
    top = below(root, mount.mount_point)
    if up < mounted_up:
        # What the levels between are called is not to be seen from inside.
        return None if mounted_names else _search(top, mounted_up - up, names, controller)
    if names[: len(mounted_names)] != mounted_names:
        return None
    inside = _joined(names[len(mounted_names) :])
    return inside if os.path.isdir(top + inside) else None


def _steps(path: str) -> tuple[int, list[str]]:
    """Return how many levels a cgroup's path goes up, and the names that it goes down then."""
    names = [name for name in path.split("/") if name]
    up = next((level for level, name in enumerate(names) if name != ".."), len(names))
    return up, names[up:]


def _joined(names: Sequence[str]) -> str:
    return "".join(f"/{name}" for name in names)


def _search(top: str, levels: int, names: Sequence[str], controller: _Controller) -> str | None:
    """Return the cgroup that has this process, so many levels and then these names below `top`.

    By the numbers of threads, since `cgroup.procs` cannot be read of a threaded cgroup of v2; they
    are those of the reader's own pid namespace.
    """
    above = [""]
    searched = 0
    for _ in range(levels):
        above = [f"{folder}/{name}" for folder in above for name in _folders(top + folder)]
        searched += len(above)
        if searched > _MOST_SEARCHED:
            return None
    own = str(os.getpid()).encode()
    for inside in (folder + _joined(names) for folder in above):
        with contextlib.suppress(OSError, ValueError):
            if own in _read(f"{top}{inside}/{controller.tasks}").split():
                return inside
    return None


def _folders(path: str) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def available(controller: _Controller, directory: str, total: int) -> int | None:
    """Return what a cgroup has left, or None where it sets no limit or cannot be read."""
    try:
        limit = min(_limit(f"{directory}/{name}") for name in controller.limits)
        if limit >= total:
            return None
        used = number(_read(f"{directory}/{controller.usage}"))
        stat = fields(f"{directory}/memory.stat")
        file_pages = sum(number(stat[name]) for name in controller.reclaimable)
    except (OSError, ValueError, KeyError):
        return None
    # The counters are read one after the other, and the kernel sums them up lazily: file pages
    # can come out as more than all that is used.
    return max(0, limit - max(0, used - file_pages))


def _limit(path: str) -> int:
    # v1 has no word for it, but a number: PAGE_COUNTER_MAX, 9223372036854771712 by 4 KiB pages.
    text = _read(path)
    return sys.maxsize if text.strip() == b"max" else number(text)


def number(text: bytes) -> int:
    """Return a plain decimal number; raises ValueError."""
    if not text.strip().isdigit():
        raise ValueError(f"expected a number, found {text!r}")
    return int(text)


def fields(path: str) -> dict[str, bytes]:
    """Return the values of a file of `name value` or `name: value kB` lines."""
    words = (line.split() for line in _read(path).split(b"\n"))
    return {os.fsdecode(name): value for name, value, *_ in (w for w in words if len(w) > 1)}


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def below(root: str, path: str) -> str:
    """Return the path below another root."""
    return os.path.join(root, path.lstrip("/"))
