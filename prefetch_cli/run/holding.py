"""What of a part is to stay, whether it may be locked, and who watches COMMAND load it."""

import os
from collections.abc import Iterable, Iterator

from prefetch_cli.base.amounts import format_size
from prefetch_cli.base.errors import LimitError
from prefetch_cli.base.stop import Stop
from prefetch_cli.linux import locking
from prefetch_cli.plan.extents import Extent
from prefetch_cli.run import stages
from prefetch_cli.run.loading import Watch
from prefetch_cli.run.options import Keep
from prefetch_cli.run.states import Decided, Looked, Proven, Read, Wanted


def check_lock(wanted: Wanted, looked: Looked, decided: Decided) -> None:
    """Raise LimitError where the kernel refuses to lock what will be warm."""
    extents = stages.held(wanted, looked.survey, decided.plan.extents)
    size_bytes = min(_pages_bytes(extents), wanted.budget.size_bytes)
    refused = locking.refusal(size_bytes)
    if refused is None:
        return
    limit_bytes = locking.limit_bytes()
    found = f"found {refused.strerror}"
    if limit_bytes is not None and limit_bytes < size_bytes:
        found = f"found a limit of {format_size(limit_bytes)} (RLIMIT_MEMLOCK)"
    raise LimitError(
        f"--lock: expected to be allowed to lock {format_size(size_bytes)} of memory, {found}",
        "raise it (ulimit -l, systemd: LimitMEMLOCK=, docker: --ulimit memlock=), grant "
        "CAP_IPC_LOCK, or leave out --lock",
    )


def to_hold(
    wanted: Wanted, looked: Looked, decided: Decided, read: Read | None, proven: Proven | None
) -> tuple[Extent, ...]:
    """Return what is to stay in the end: what is resident, and what was read.

    What was read and is gone already is read again at the first look. Behind an interrupted or
    limited reading only that is to stay which is known to be there.
    """
    found = looked.survey if proven is None else proven.survey
    if read is None:
        return stages.held(wanted, found, ())
    failed = {path for path, _ in read.result.failed}
    files = wanted.found.files
    extents = [one for one in decided.plan.extents if files[one.file].path not in failed]
    if not read.result.complete and not failed:
        extents = [] if found.method.exact else list(_first(extents, read.result.bytes_read))
    return stages.held(wanted, found, extents)


def watch(
    keep: Keep | None, wanted: Wanted, looked: Looked, decided: Decided, stop: Stop
) -> Watch | None:
    """Return a watch on COMMAND's use of the weights, None where nobody waits for that.

    It has begun to look: COMMAND may load faster than we read.
    """
    if keep is None or not keep.until_loaded or keep.command_pid is None:
        return None
    extents = stages.held(wanted, looked.survey, decided.plan.extents)
    files = [wanted.found.files[number] for number in sorted({one.file for one in extents})]
    weights = [file for file in files if file.weight]
    found = Watch(keep.command_pid, weights or files, stop)
    found.start()
    return found


def _first(extents: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """Yield the first bytes of extents."""
    for extent in extents:
        length = min(extent.length, size_bytes)
        if length > 0:
            yield extent._replace(length=length)
        size_bytes -= length


def _pages_bytes(extents: Iterable[Extent]) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-extent.length // page) * page for extent in extents)
