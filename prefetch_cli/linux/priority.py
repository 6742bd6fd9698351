"""Lowers the CPU and I/O priority, for --background.

Linux keeps both for each thread; a new thread inherits them (ioprio_set(2), nice(2)).
"""

import threading

import psutil

_LOWEST = 19


def give_way() -> str | None:
    """Give this thread, and those that it starts, the lowest CPU and I/O priority.

    The I/O scheduler decides what that means: bfq honours it, mq-deadline in part, `none` does not,
    and neither does any network file system. Returns a warning if the system refused, else None.
    """
    thread = psutil.Process(threading.get_native_id())
    try:
        thread.nice(_LOWEST)
        thread.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (OSError, psutil.Error) as error:
        return f"--background: expected the lowest priority, found it refused: {error}"
    return None
