"""Gives way: the priority of a run that is not to hold up others.

Linux keeps both priorities for each thread, and a thread that is started has those of the one that
starts it (ioprio_set(2), nice(2)).
"""

import threading

import psutil

_LOWEST = 19


def give_way() -> str | None:
    """Let this thread, and those that it starts, have the processor and disks that are idle.

    What comes of it is the scheduler's: of a disk, bfq and in part mq-deadline heed it, `none`
    does not, and no network file system does. Returns what the system refused, None for nothing.
    """
    thread = psutil.Process(threading.get_native_id())
    try:
        thread.nice(_LOWEST)
        thread.ionice(psutil.IOPRIO_CLASS_IDLE)
    except (OSError, psutil.Error) as error:
        return f"--background: expected the lowest priority, found that it is refused: {error}"
    return None
