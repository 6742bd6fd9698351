"""Run one command and print its time, CPU and peak memory as JSON.

A child inherits the peak memory of the process that forks it. So this is a small process of its
own, `python -I -S launch.py SPEC`, and imports nothing more.
"""

import json
import os
import sys
import time

MAXRSS_UNIT = 1024  # Linux counts ru_maxrss in KiB


def _main() -> None:
    spec = json.loads(sys.argv[1])
    command = spec["command"]
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, spec["stdin"], os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, spec["stdout"], write, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, spec["stderr"], write, 0o600),
    ]
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    wall_seconds = time.perf_counter() - start
    measured = {
        "wall_seconds": wall_seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * MAXRSS_UNIT,
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    _main()
