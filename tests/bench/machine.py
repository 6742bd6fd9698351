"""The shape of the machine, without which figures mean nothing."""

import os
import platform
import re
import subprocess

_QUEUE_SETTINGS = ("scheduler", "nr_requests", "max_sectors_kb", "read_ahead_kb", "rotational")
_VERSIONS = {  # each program, and the command that shows its version
    "vmtouch": ("vmtouch", "-h"),
    "fio": ("fio", "--version"),
    "cat": ("cat", "--version"),
    "fincore": ("fincore", "--version"),
}


def machine_shape(directory: str) -> dict[str, str]:
    """Return by name what the figures depend on; the files will be in `directory`."""
    return {
        "cores": f"{len(os.sched_getaffinity(0))} ({_cpu_model()})",
        "memory": f"{_meminfo('MemTotal') / 2**30:.1f} GiB, "
        f"{_meminfo('MemAvailable') / 2**30:.1f} GiB available",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": _file_system(directory),
        "disk queue": _disk_queue(directory),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "tools": ", ".join(filter(None, map(_version, _VERSIONS))),
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _file_system(directory: str) -> str:
    """Return the file system's type, and its options if mountinfo lists the device."""
    name = _output("stat", "--file-system", "--format=%T", directory).strip()
    device = _device(directory)
    for line in _read("/proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split()
        if fields[2] == device:
            file_system_type, name_of_device, *_ = source.split()
            return f"{file_system_type} on {name_of_device} ({fields[5]})"
    return name or "unknown"


def _disk_queue(directory: str) -> str:
    place = os.path.realpath(f"/sys/dev/block/{_device(directory)}")
    if not os.path.isdir(os.path.join(place, "queue")):
        place = os.path.dirname(place)  # a partition has no queue of its own
    settings = []
    for name in _QUEUE_SETTINGS:
        if value := _read(os.path.join(place, "queue", name)).strip():
            chosen = re.search(r"\[(.+)\]", value)
            settings.append(f"{name} {chosen[1] if chosen else value}")
    return ", ".join(settings) or "not a block device"


def _device(directory: str) -> str:
    device = os.stat(directory).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _version(name: str) -> str:
    output = _output(*_VERSIONS[name])
    found = re.search(r"\d+\.\d+(\.\d+)?", output)
    return f"{name} {found[0]}" if found else ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
