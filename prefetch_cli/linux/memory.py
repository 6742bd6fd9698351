"""The memory that a checkpoint may fill: what the host and our cgroups have left."""

import os
from typing import NamedTuple

import psutil

from prefetch_cli.linux import cgroups
from prefetch_cli.linux.procfs import below, fields, number
from prefetch_cli.linux.unified import shared_with_gpu


class Memory(NamedTuple):
    """What can be taken now without swapping or dropping pages that are in use.

    `cgroup_available_bytes` is None if no cgroup limits us; `limited_by` is "host" or the
    directory of the tightest cgroup. `shared_with_gpu` names the hardware if its GPU has no memory
    of its own.
    """

    available_bytes: int
    host_available_bytes: int
    cgroup_available_bytes: int | None
    limited_by: str
    shared_with_gpu: str | None = None


def measure(root: str = "/") -> Memory:
    """Return the memory that is available to this process now, in bytes.

    The host's figure is MemAvailable, as in free(1). A cgroup's is its limit less what it uses,
    file pages not counted. Tests give another `root`, with `proc` and `sys` below it. Never raises.
    """
    total, available = host(root)
    cgroup, directory = cgroups.tightest(root, total) or (None, "host")
    if cgroup is None or cgroup >= available:
        directory = "host"
    return Memory(
        available_bytes=available if cgroup is None else min(available, cgroup),
        host_available_bytes=available,
        cgroup_available_bytes=cgroup,
        limited_by=directory,
        shared_with_gpu=shared_with_gpu(root),
    )


def host(root: str) -> tuple[int, int]:
    """Return the host's memory in bytes: all of it, and what is available."""
    if root == "/":
        try:
            memory = psutil.virtual_memory()
        except OSError:
            # Without /proc: sysinfo(2) knows free memory, but not cache that could be dropped.
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        except (LookupError, TypeError, ValueError):
            pass  # psutil takes an answer that said "try again" for an empty file
        else:
            return memory.total, memory.available
    kib = fields(below(root, "/proc/meminfo"))
    return number(kib["MemTotal:"]) * 1024, number(kib["MemAvailable:"]) * 1024
