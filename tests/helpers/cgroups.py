"""Real memory cgroups below that of this process, v1 or v2."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

V2 = "/sys/fs/cgroup"
V1 = "/sys/fs/cgroup/memory"


def own_memory_cgroup() -> tuple[Path, str]:
    """Return the directory of this process's own memory cgroup, and its limit's file name."""
    for text in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = text.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(V1 + path), "memory.limit_in_bytes"
    path = Path("/proc/self/cgroup").read_text().strip().split("::")[-1]
    return Path(V2 + path), "memory.max"


@contextlib.contextmanager
def real_cgroups(*limits: int | None) -> Iterator[list[Path]]:
    """Nest new memory cgroups with these limits below our own; remove them at the end."""
    above, limit_file = own_memory_cgroup()
    made: list[Path] = []
    with contextlib.ExitStack() as undo:
        for limit in limits:
            try:
                if limit_file == "memory.max":
                    # v2 passes a controller down only on request, and only the root cgroup may
                    # do so while it has processes of its own.
                    control = above / "cgroup.subtree_control"
                    if "memory" not in control.read_text().split():
                        control.write_text("+memory")
                        undo.callback(control.write_text, "-memory")
                above /= f"prefetch-test-{uuid.uuid4().hex[:8]}"
                above.mkdir()
                undo.callback(above.rmdir)
                if limit is not None:
                    (above / limit_file).write_text(str(limit))
            except OSError as error:
                pytest.skip(f"no cgroup with a limit can be made: {error}")
            made.append(above)
        yield made
