"""The memory that a checkpoint may fill: what the host has free, and every cgroup above us."""

import os
from dataclasses import dataclass

import psutil

from prefetch_cli.linux.cgroups import available, below, fields, number, own_cgroups


@dataclass(frozen=True)
class Memory:
    """What can be taken now without swapping or dropping pages that are in use.

    `cgroup_available_bytes` is None where no cgroup limits; `limited_by` is "host" or the
    directory of the tightest cgroup.
    """

    available_bytes: int
    host_available_bytes: int
    cgroup_available_bytes: int | None
    limited_by: str


def measure(root: str = "/") -> Memory:
    """Return the memory that is available to this process now, in bytes.

    The host's as free(1) says it (MemAvailable); each cgroup's is its limit less what it uses,
    where file pages do not count as used. Another `root` is for tests, which lay `proc` and
    `sys` out below it. Never raises: a cgroup that cannot be read is left out.
    """
    total, host = _host(root)
    limits = [
        (left, directory)
        for controller, directory in own_cgroups(root)
        if (left := available(controller, below(root, directory), total)) is not None
    ]
    cgroup, tightest = min(limits, default=(None, "host"))
    if cgroup is None or cgroup >= host:
        return Memory(host, host, cgroup, "host")
    return Memory(cgroup, host, cgroup, tightest)


def _host(root: str) -> tuple[int, int]:
    """Return the bytes of memory that the host has, and those of them that are available."""
    if root == "/":
        try:
            memory = psutil.virtual_memory()
        except OSError:
            # No /proc: sysinfo(2) knows what is free, and nothing of cache that could be dropped.
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        return memory.total, memory.available
    kib = fields(below(root, "/proc/meminfo"))
    return number(kib["MemTotal:"]) * 1024, number(kib["MemAvailable:"]) * 1024
