"""Memory: crafted cgroup trees of every shape, and this machine's real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.linux import memory
from prefetch_cli.linux.memory import Memory, measure
from tests.helpers.cgroups import V1, V2, own_memory_cgroup, real_cgroups
from tests.helpers.command import ROOT

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
V1_NO_LIMIT = 9223372036854771712


class Machine:
    """A /proc and a /sys/fs/cgroup below a directory; 64 GiB of memory, 40 GiB available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]
        self.memberships: list[str] = []
        self.write("/proc/meminfo", f"MemTotal: {64 * MIB} kB\nMemAvailable: {40 * MIB} kB\n")

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def mount(self, point: str, type_: str, options: str = "rw", root: str = "/") -> None:
        number = len(self.mounts) + 1
        self.mounts.append(f"{number} 1 0:{number} {root} {point} rw - {type_} cgroup {options}")

    def v2(self, path: str, **files: int | str) -> None:
        """Write a cgroup's files: `max`, `high`, `current`, and `file` pages of both kinds."""
        folder = V2 + path.rstrip("/")
        self.write(f"{folder}/memory.max", f"{files.get('max', 'max')}\n")
        self.write(f"{folder}/memory.high", f"{files.get('high', 'max')}\n")
        self.write(f"{folder}/memory.current", f"{files.get('current', 0)}\n")
        half = int(files.get("file", 0)) // 2
        self.write(
            f"{folder}/memory.stat",
            f"anon 4096\nfile 1\ninactive_file {half}\nactive_file {half}\nworkingset_x 0\n",
        )

    def v1(self, path: str, limit: int = V1_NO_LIMIT, usage: int = 0, file: int = 0) -> None:
        folder = V1 + path.rstrip("/")
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
        self.write(
            f"{folder}/memory.stat",
            f"inactive_file 0\nactive_file 0\ntotal_inactive_file {file}\ntotal_active_file 0\n",
        )

    def measure(self) -> Memory:
        self.write("/proc/self/mountinfo", "\n".join(self.mounts) + "\n")
        self.write("/proc/self/cgroup", "\n".join(self.memberships) + "\n")
        return measure(str(self.root))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def v2(machine: Machine) -> Machine:
    machine.mount(V2, "cgroup2")
    machine.memberships = ["0::/job/step"]
    # The root of the hierarchy has memory.stat, but no limits.
    machine.write(f"{V2}/memory.stat", "inactive_file 1\nactive_file 1\n")
    return machine


@pytest.fixture
def v1(machine: Machine) -> Machine:
    machine.mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    machine.mount(V1, "cgroup", "rw,memory")
    machine.memberships = ["9:name=systemd:/job", "4:memory:/job/step", "2:cpu,cpuacct:/else"]
    return machine


UNLIMITED = Memory(40 * GIB, 40 * GIB, None, "host")


def limited(available: int, directory: str) -> Memory:
    return Memory(available, 40 * GIB, available, directory)


def test_no_cgroup_at_all(machine: Machine) -> None:
    assert machine.measure() == UNLIMITED


def test_a_host_without_a_table_of_cgroups(machine: Machine) -> None:
    machine.write("/proc/self/mountinfo", "")
    assert measure(str(machine.root)) == UNLIMITED


# v2


def test_v2_without_limits(v2: Machine) -> None:
    v2.v2("/job/step", current=GIB)
    v2.v2("/job", current=GIB)
    assert v2.measure() == UNLIMITED


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"max": 8 * GIB, "current": 3 * GIB}, 5 * GIB),
        ({"max": 8 * GIB, "high": 6 * GIB, "current": 3 * GIB}, 3 * GIB),
        ({"high": 6 * GIB, "current": 3 * GIB}, 3 * GIB),
        ({"max": 8 * GIB, "high": 9 * GIB, "current": 3 * GIB}, 5 * GIB),
        # File pages can be dropped: they do not count as used.
        ({"max": 8 * GIB, "current": 8 * GIB, "file": 7 * GIB}, 7 * GIB),
        ({"max": 8 * GIB, "current": GIB, "file": 2 * GIB}, 8 * GIB),
        ({"max": 8 * GIB, "current": 9 * GIB}, 0),
        ({"max": 0, "current": GIB}, 0),
    ],
)
def test_v2_arithmetic(v2: Machine, files: dict[str, int], available: int) -> None:
    v2.v2("/job/step", **files)
    assert v2.measure() == limited(available, f"{V2}/job/step")


def test_v2_the_tightest_may_be_any_above(v2: Machine) -> None:
    v2.v2("/job/step", max=8 * GIB)
    v2.v2("/job", max=5 * GIB, current=GIB)
    v2.v2("/job/step/below", max=1)
    v2.v2("/other", max=1)
    assert v2.measure() == limited(4 * GIB, f"{V2}/job")


def test_v2_in_a_private_namespace_the_mount_point_itself_counts(v2: Machine) -> None:
    v2.memberships = ["0::/"]
    v2.v2("/", max=4 * GIB, current=GIB)
    assert v2.measure() == limited(3 * GIB, V2)


def test_a_limit_of_all_memory_or_more_is_none(v2: Machine) -> None:
    v2.v2("/job/step", max=64 * GIB, current=64 * GIB)
    assert v2.measure() == UNLIMITED


@pytest.mark.parametrize("limit", [64 * GIB - 4 * KIB, 50 * GIB, 40 * GIB])
def test_a_cgroup_that_has_as_much_as_the_host_or_more(v2: Machine, limit: int) -> None:
    v2.v2("/job/step", max=limit)
    assert v2.measure() == Memory(40 * GIB, 40 * GIB, limit, "host")


def test_a_line_without_a_value_is_passed_over(v2: Machine) -> None:
    v2.v2("/job/step", max=8 * GIB, current=8 * GIB, file=7 * GIB)
    stat = v2.root / f"{V2[1:]}/job/step/memory.stat"
    stat.write_text(f"odd\n{stat.read_text()}")
    assert v2.measure() == limited(7 * GIB, f"{V2}/job/step")


# v1


def test_v1_without_limits(v1: Machine) -> None:
    v1.v1("/job/step", usage=GIB)
    v1.v1("/job")
    v1.v1("/")
    assert v1.measure() == UNLIMITED


def test_v1_nested(v1: Machine) -> None:
    v1.v1("/job/step")
    v1.v1("/job", limit=8 * GIB, usage=7 * GIB, file=4 * GIB)
    v1.v1("/", limit=20 * GIB)
    assert v1.measure() == limited(5 * GIB, f"{V1}/job")


def test_v1_together_with_other_controllers(v1: Machine) -> None:
    v1.mounts.pop()
    v1.mount(V1, "cgroup", "rw,cpuset,memory")
    v1.memberships = ["4:cpuset,memory:/job/step"]
    v1.v1("/job/step", limit=GIB)
    assert v1.measure() == limited(GIB, f"{V1}/job/step")


def test_hybrid_v1_owns_the_controller(v1: Machine) -> None:
    v1.mount("/sys/fs/cgroup/unified", "cgroup2")
    v1.memberships.append("0::/job/step")
    v1.write("/sys/fs/cgroup/unified/job/step/cgroup.procs", "1\n")
    v1.v1("/job/step", limit=GIB)
    assert v1.measure() == limited(GIB, f"{V1}/job/step")


# Where the cgroup is found


@pytest.mark.parametrize(
    ("mount_root", "path", "found"),
    [
        ("/", "/job/step", "/job/step"),
        ("/job", "/job/step", "/step"),
        ("/job/", "/job/step", "/step"),
        ("/job/step", "/job/step", ""),
        # A container that mounts only its own cgroup, but sees the host's path.
        ("/docker/1234", "/docker/1234", ""),
        ("/docker/1234", "/elsewhere", ""),
        ("/job/st", "/job/step", ""),
        ("/zoo", "/job/etc", ""),
        ("/bar", "/job/etc", ""),
        # Cgroup namespaces: the mount, or the process, is outside ours.
        ("/../..", "/", ""),  # our path below that mount cannot be known
        ("/../../other", "/", ""),
        ("/..", "/../step", "/step"),
        ("/", "/../step", ""),
        ("/", "/../etc", ""),
        ("/", "/-job/step", "/-job/step"),
        ("/", "/etc/../etc", ""),
        ("/", "/job/../../../etc", ""),
        ("/", "/gone (deleted)", ""),
    ],
)
def test_the_directory_of_the_process(
    machine: Machine, mount_root: str, path: str, found: str
) -> None:
    machine.mount(V2, "cgroup2", root=mount_root)
    machine.memberships = [f"0::{path}"]
    machine.v2("/", max=9 * GIB)
    machine.v2("/etc", max=1)
    if found:
        machine.v2(found, max=2 * GIB)
    expected = limited(2 * GIB, V2 + found) if found else limited(9 * GIB, V2)
    assert machine.measure() == expected


@pytest.mark.parametrize(
    ("type_", "options"),
    [
        ("autofs", "rw,memory"),
        ("tmpfs", "rw,memory"),
        ("cgroup", "rw,xattr,name=systemd"),
        ("cgroup3", "rw"),
    ],
)
def test_what_is_mounted_otherwise_has_no_limits(
    v2: Machine, v1: Machine, type_: str, options: str
) -> None:
    assert v1 is v2
    v2.mount("/aaa", type_, options)
    v2.write("/aaa/job/step/tasks", "")
    for membership in ("0::/job/step", "4:memory:/job/step"):
        v2.memberships = [membership]
        hierarchy = V2 if membership.startswith("0") else V1
        v2.v2("/job/step", max=2 * GIB)
        v2.v1("/job/step", limit=2 * GIB)
        assert v2.measure() == limited(2 * GIB, f"{hierarchy}/job/step")


def test_where_no_mount_shows_the_process_the_last_one_counts(machine: Machine) -> None:
    machine.mount("/mnt/other", "cgroup2", root="/other")
    machine.mount(V2, "cgroup2", root="/elsewhere")
    machine.memberships = ["0::/job/step"]
    machine.v2("/", max=9 * GIB)
    assert machine.measure() == limited(9 * GIB, V2)


def test_of_two_mounts_the_one_that_shows_more_counts(machine: Machine) -> None:
    machine.mount("/mnt/own", "cgroup2", root="/job/step")
    machine.mount(V2, "cgroup2")
    machine.mount("/mnt/foreign", "cgroup2", root="/other")
    machine.memberships = ["0::/job/step"]
    machine.write("/mnt/own/cgroup.procs", "1\n")
    machine.v2("/job/step", max=9 * GIB)
    machine.v2("/job", max=2 * GIB)
    assert machine.measure() == limited(2 * GIB, f"{V2}/job")


def test_of_two_mounts_below_the_top_the_one_that_shows_more_counts(machine: Machine) -> None:
    machine.mount("/mnt/own", "cgroup2", root="/job")
    machine.mount(V2, "cgroup2")
    machine.memberships = ["0::/job/step"]
    machine.write("/mnt/own/step/memory.max", "max\n")
    machine.v2("/job/step")
    machine.v2("/job", max=2 * GIB)
    assert machine.measure() == limited(2 * GIB, f"{V2}/job")


def test_names_that_are_odd(machine: Machine) -> None:
    machine.mount(r"/sys/fs/cg\040roup", "cgroup2")
    machine.memberships = ["0::/a:b/c d"]
    folder = "/sys/fs/cg roup/a:b/c d"
    machine.v2("/x", max=2 * GIB)
    (machine.root / folder[1:]).parent.mkdir(parents=True)
    (machine.root / f"{V2[1:]}/x").rename(machine.root / folder[1:])
    assert machine.measure() == limited(2 * GIB, folder)


def test_a_name_that_is_not_utf8(v2: Machine) -> None:
    v2.v2("/x", max=2 * GIB)
    name = os.fsdecode(b"/caf\xe9")
    (v2.root / f"{V2[1:]}/x").rename(f"{v2.root}{V2}{name}")
    v2.write("/proc/self/mountinfo", "\n".join(v2.mounts))
    v2.write("/proc/self/cgroup", b"0::/caf\xe9\n")
    assert measure(str(v2.root)) == limited(2 * GIB, V2 + name)


# What cannot be read


@pytest.mark.parametrize("name", ["max", "high", "current", "stat"])
@pytest.mark.parametrize(
    "text", [b"", b"\n", b"garbage\n", b"-1\n", b"1 2\n", b"\xff\n", b"1_0\n", b"0x10\n"]
)
def test_a_malformed_file_leaves_its_cgroup_out(v2: Machine, name: str, text: bytes) -> None:
    v2.v2("/job/step", max=GIB)
    v2.v2("/job", max=2 * GIB)
    v2.write(f"{V2}/job/step/memory.{name}", text)
    assert v2.measure() == limited(2 * GIB, f"{V2}/job")


@pytest.mark.parametrize("name", ["max", "current", "stat"])
def test_a_missing_file_leaves_its_cgroup_out(v2: Machine, name: str) -> None:
    v2.v2("/job/step", max=GIB)
    v2.v2("/job", max=2 * GIB)
    (v2.root / f"{V2[1:]}/job/step/memory.{name}").unlink()
    assert v2.measure() == limited(2 * GIB, f"{V2}/job")
    (v2.root / f"{V2[1:]}/job/step/memory.{name}").mkdir()
    assert v2.measure() == limited(2 * GIB, f"{V2}/job")


numbers = st.one_of(st.integers(0, 2**64), st.just("max"), st.text("0123456789 -xm", max_size=5))


@settings(deadline=None)
@given(
    st.binary(max_size=80),
    st.binary(max_size=80),
    st.fixed_dictionaries(dict.fromkeys(("max", "high", "current", "file"), numbers)),
)
def test_never_negative_and_never_above_the_host(
    tmp_path_factory: pytest.TempPathFactory,
    membership: bytes,
    mounts: bytes,
    files: dict[str, int | str],
) -> None:
    machine = Machine(tmp_path_factory.getbasetemp() / "property")
    machine.mount(V2, "cgroup2")
    machine.v2("/", **{**files, "file": 0})
    machine.write(f"{V2}/memory.stat", f"inactive_file {files['file']}\nactive_file 0\n")
    machine.write("/proc/self/mountinfo", "\n".join(machine.mounts).encode() + b"\n" + mounts)
    machine.write("/proc/self/cgroup", b"0::/\n" + membership)
    found = measure(str(machine.root))
    assert 0 <= found.available_bytes <= found.host_available_bytes == 40 * GIB
    if found.cgroup_available_bytes is not None:
        assert 0 <= found.cgroup_available_bytes < 64 * GIB
        assert found.available_bytes == min(found.cgroup_available_bytes, 40 * GIB)
    assert (found.limited_by == "host") == (found.available_bytes == 40 * GIB)


# This machine


def meminfo(name: str) -> int:
    for text in Path("/proc/meminfo").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return int(text.split()[1]) * KIB
    raise KeyError(name)


def test_the_host_agrees_with_proc_meminfo() -> None:
    low = meminfo("MemAvailable")
    found = measure().host_available_bytes
    high = meminfo("MemAvailable")
    # Other processes come and go meanwhile.
    assert min(low, high) - 512 * MIB <= found <= max(low, high) + 512 * MIB


def test_the_host_is_measured_by_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    known = psutil.virtual_memory()._replace(total=64 * GIB, available=1234)
    monkeypatch.setattr("psutil.virtual_memory", lambda: known)
    assert memory.host("/") == (64 * GIB, 1234)


def test_without_proc_the_free_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    total, available = memory.host("/")
    assert total == meminfo("MemTotal")
    assert isinstance(available, int)
    assert 0.5 * meminfo("MemFree") <= available <= total
    assert measure().host_available_bytes <= total


MEASURE = """
import json
from prefetch_cli.linux.memory import measure
print(json.dumps(measure()._asdict()))
"""


def measure_inside(cgroup: Path, *before: str) -> Memory:
    """Return what a process in a cgroup measures after running commands there."""
    enter = 'echo $$ > "$0/cgroup.procs"; '
    command = ["sh", "-ec", enter + "; ".join([*before, 'exec "$@"']), str(cgroup)]
    environ = {**os.environ, "PYTHONPATH": ROOT}
    output = subprocess.check_output([*command, sys.executable, "-c", MEASURE], env=environ)
    return Memory(**json.loads(output))


def test_a_real_limit_in_the_middle() -> None:
    with real_cgroups(2 * GIB, 512 * MIB, None) as (_, middle, inner):
        found = measure_inside(inner)
    if found.host_available_bytes < 512 * MIB:
        pytest.skip("less than 512 MiB of memory is available")
    assert found.limited_by == str(middle)
    assert found.cgroup_available_bytes == found.available_bytes
    assert 448 * MIB < found.available_bytes < 512 * MIB


def test_a_real_cache_does_not_count_as_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(200 * MIB))
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    usage = "memory.current" if own_memory_cgroup()[1] == "memory.max" else "memory.usage_in_bytes"
    with real_cgroups(256 * MIB) as (cgroup,):
        found = measure_inside(cgroup, f"cat '{file}' > /dev/null")
        charged = int((cgroup / usage).read_text())
    if charged < 150 * MIB:
        pytest.skip(f"only {charged} bytes of cache were charged to the cgroup")
    assert found.limited_by == str(cgroup)
    assert 200 * MIB < found.available_bytes <= 256 * MIB


def test_a_real_private_namespace_with_a_mount_of_its_own(tmp_path: Path) -> None:
    is_v1 = str(own_memory_cgroup()[0]).startswith(V1)
    kind = "-t cgroup -o memory cgroup" if is_v1 else "-t cgroup2 cgroup2"
    with real_cgroups(512 * MIB) as (cgroup,):
        umount = f"umount -l {V1 if is_v1 else V2}"
        found = measure_in_namespaces(cgroup, "-mC", f"{umount}; mount {kind} {tmp_path};")
    assert found.limited_by == str(tmp_path)


def measure_in_namespaces(cgroup: Path, namespaces: str, setup: str) -> Memory:
    """Return what a process measures whose cgroup is the root of a new cgroup namespace."""
    enter = (
        f"echo $$ > {cgroup}/cgroup.procs;"
        f' exec unshare {namespaces} sh -ec \'{setup} exec "$@"\' "$@"'
    )
    environ = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        ["sh", "-ec", enter, "sh", "sh", sys.executable, "-c", MEASURE],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no cgroup namespace can be made: {done.stderr.strip()}")
    return Memory(**json.loads(done.stdout))
