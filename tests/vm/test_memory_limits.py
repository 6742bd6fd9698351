"""Real cgroup limits, v1 and v2: what the command finds and decides, and what the kernel keeps."""

import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.helpers import checkpoints
from tests.vm import kernels, nfs
from tests.vm.machine import MIB, Cgroups, Done, Machine
from tests.vm.rows import without_advice

LARGE = "/srv/large"
SHARDS = [30 * MIB, 40 * MIB, 20 * MIB, 38 * MIB]  # 128 MiB
LIMIT = 64 * MIB
# What the command itself uses in the cgroup, plus what the kernel charges ahead in batches.
OWN_BYTES = 12 * MIB
_numbers = itertools.count()


@pytest.fixture(scope="session")
def large(machine: Machine) -> Iterator[list[str]]:
    """A checkpoint's weight files on the machine's ext4, in load order."""
    folder = tempfile.mkdtemp(prefix="model-", dir=kernels.BUILD)
    try:
        built = checkpoints.write_sharded(f"{folder}/model", shard_bytes=SHARDS)
        machine.sh(f"cp -r {built.directory} {LARGE} && chmod -R a+rX {LARGE} && sync")
        yield [f"{LARGE}/{os.path.basename(path)}" for path in built.weight_files]
    finally:
        shutil.rmtree(folder)
    machine.sh(f"rm -r {LARGE}")


def hierarchy(machine: Machine) -> str:
    return "/sys/fs/cgroup/memory" if machine.cgroups is Cgroups.V1 else "/sys/fs/cgroup"


def set_limit(machine: Machine, directory: str, limit_bytes: int) -> None:
    name = "memory.limit_in_bytes" if machine.cgroups is Cgroups.V1 else "memory.max"
    machine.sh(f"echo {limit_bytes} > {directory}/{name}")


@contextmanager
def cgroups(machine: Machine, *limits: int | None) -> Iterator[list[str]]:
    """Yield the directories of nested cgroups with these limits in bytes, outermost first."""
    directory = hierarchy(machine)
    made: list[str] = []
    try:
        for limit in limits:
            if made and machine.cgroups is Cgroups.V2:
                machine.sh(f"echo +memory > {directory}/cgroup.subtree_control")
            directory += f"/job-{next(_numbers)}"
            machine.run("mkdir", directory)
            made.append(directory)
            if limit is not None:
                set_limit(machine, directory, limit)
        yield made
    finally:
        for directory in reversed(made):
            machine.sh(f"while read pid; do kill -9 $pid; done < {directory}/cgroup.procs")
            machine.sh(
                f"for n in $(seq 100); do rmdir {directory} && exit; sleep 0.1; done; exit 1"
            )


@contextmanager
def holding(machine: Machine, directory: str, script: str) -> Iterator[None]:
    """Run a Python script in a cgroup for the duration of the context, once it prints `ready`."""
    process = machine.start_process(sys.executable, "-c", script, cgroup=directory)
    try:
        process.await_text("ready")
        yield
    finally:
        process.send(signal.SIGKILL)
        process.end()


def warmed(machine: Machine, *arguments: str, path: str = LARGE, **how: Any) -> Done:
    machine.drop_caches()
    done = machine.tool("--json", "--progress", "none", *arguments, path, **how)
    assert done.code == 0, done
    return done


def is_the_head(found: list[int], whole: list[int]) -> bool:
    """Whether the files are resident up to one point in load order and not beyond it."""
    states = [
        "all" if resident >= 0.99 * size else "none" if resident <= 0.01 * size else "part"
        for resident, size in zip(found, whole, strict=True)
    ]
    return states == sorted(states, key=["all", "part", "none"].index) and states.count("part") <= 1


def test_a_limit_below_the_size_skips_and_names_the_cgroup(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, LIMIT) as (job,), over_nfs(machine) as path:
        document = warmed(machine, path=path, cgroup=job).document
        assert document["decision"]["reason"] == "network-too-big"
        assert document["decision"]["action"] == "skip"
        assert document["memory"]["limited_by"] == job
        assert LIMIT - OWN_BYTES <= document["memory"]["cgroup_available_bytes"] <= LIMIT
        assert document["result"] is None
        files = [f"{path}/{os.path.basename(name)}" for name in large]
        assert sum(machine.resident_bytes(files)) <= 0.01 * sum(SHARDS)


def test_partial_on_a_network_file_system_keeps_the_head(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, LIMIT) as (job,), over_nfs(machine) as path:
        document = warmed(machine, "--partial", path=path, cgroup=job).document
        files = [f"{path}/{os.path.basename(name)}" for name in large]
        kept_the_head(machine, document, files)


def test_partial_with_force_keeps_the_head_of_a_local_one(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, LIMIT) as (job,):
        document = warmed(machine, "--force", "--partial", cgroup=job).document
        kept_the_head(machine, document, large)


def kept_the_head(machine: Machine, document: dict[str, Any], files: list[str]) -> None:
    found, whole = machine.resident_bytes(files), machine.size_bytes(files)
    budget = document["memory"]["budget_bytes"]
    assert document["decision"]["reason"] == "partial"
    assert 0.9 * (LIMIT - OWN_BYTES) <= budget <= 0.9 * LIMIT
    assert document["result"]["complete"]
    assert without_advice(document["warnings"]) == []
    assert is_the_head(found, whole), found
    assert abs(sum(found) - budget) <= 0.01 * budget + MIB  # the config files count too
    assert abs(document["residency"]["after_bytes"] - budget) <= 0.01 * budget


def test_force_reads_all_keeps_the_tail_and_says_so(machine: Machine, large: list[str]) -> None:
    with cgroups(machine, LIMIT) as (job,):
        document = warmed(machine, "--force", cgroup=job).document
        found = sum(machine.resident_bytes(large))
    assert document["decision"]["reason"] == "forced-too-big"
    assert document["result"]["complete"]
    total = document["share"]["bytes"]
    assert document["result"]["bytes_read"] + document["result"]["bytes_already_resident"] == total
    assert found <= LIMIT
    after = document["residency"]["after_bytes"]
    assert abs(after - found) <= 0.02 * total
    decided, proven = document["warnings"]
    assert "--partial keeps the head" in decided
    assert f"the memory limit of the cgroup {job}" in proven
    says_what_was_dropped(document, proven, total - found)


def test_the_tightest_of_nested_limits_counts_wherever_it_is(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, 1024 * MIB, LIMIT, 512 * MIB) as (_, tight, inner):
        document = warmed(machine, "--dry-run", cgroup=inner).document
        assert document["memory"]["limited_by"] == tight
        assert LIMIT - OWN_BYTES <= document["memory"]["available_bytes"] <= LIMIT
        document = warmed(machine, "--force", "--partial", cgroup=inner).document
        kept_the_head(machine, document, large)


def test_cache_that_can_be_dropped_is_no_usage(machine: Machine, large: list[str]) -> None:
    machine.sh("head -c 150M /dev/urandom > /srv/other; sync")
    machine.drop_caches()
    with cgroups(machine, 200 * MIB) as (job,):
        machine.sh("cat /srv/other > /dev/null", cgroup=job)
        usage = "memory.usage_in_bytes" if machine.cgroups is Cgroups.V1 else "memory.current"
        assert int(machine.read(f"{job}/{usage}")) > 140 * MIB
        done = machine.tool("--json", "--force", LARGE, cgroup=job)
        document = done.document
        assert document["decision"]["reason"] == "forced"
        assert document["memory"]["cgroup_available_bytes"] >= 200 * MIB - OWN_BYTES
        found, whole = machine.resident_bytes(large), machine.size_bytes(large)
        assert document["warnings"] == []
        assert sum(found) >= 0.99 * sum(whole)
    machine.sh("rm /srv/other")


def test_memory_in_use_is_usage(machine: Machine, large: list[str]) -> None:
    hold = "import time; held = b'x' * (100 << 20); print('ready', flush=True); time.sleep(600)"
    with cgroups(machine, 200 * MIB) as (job,), holding(machine, job, hold):
        document = warmed(machine, "--dry-run", "--force", cgroup=job).document
        available = document["memory"]["cgroup_available_bytes"]
        assert 100 * MIB - 2 * OWN_BYTES <= available <= 100 * MIB
        assert document["decision"]["reason"] == "forced-too-big"
        document = warmed(machine, "--force", "--partial", cgroup=job).document
        found, whole = machine.resident_bytes(large), machine.size_bytes(large)
        assert is_the_head(found, whole), found
        assert abs(sum(found) - document["memory"]["budget_bytes"]) <= 2 * MIB


def test_a_limit_of_all_memory_or_more_is_none(machine: Machine, large: list[str]) -> None:
    with cgroups(machine, 64 * 1024 * MIB) as (job,):
        memory = warmed(machine, "--dry-run", cgroup=job).document["memory"]
    assert memory["limited_by"] == "host"
    assert memory["cgroup_available_bytes"] is None


def test_memory_high_bounds_as_max_does(machine: Machine, large: list[str]) -> None:
    if machine.cgroups is Cgroups.V1:
        pytest.skip("cgroup v1 has no memory.high")
    with cgroups(machine, 512 * MIB) as (job,):
        machine.sh(f"echo {LIMIT} > {job}/memory.high")
        document = warmed(machine, "--force", "--partial", cgroup=job).document
        assert document["memory"]["limited_by"] == job
        kept_the_head(machine, document, large)


def test_a_container_that_mounts_its_own_cgroup(machine: Machine, large: list[str]) -> None:
    """The mount shows only the container's own cgroup, which carries the container's limit."""
    v1 = machine.cgroups is Cgroups.V1
    place = hierarchy(machine)
    kind = "-t cgroup -o memory memory" if v1 else "-t cgroup2 cgroup2"
    program = (
        "import sys; from prefetch_cli.cli import main; sys.argv[0] = 'prefetch-cli'; main.main()"
    )
    machine.write("/run/program.py", program)
    script = (
        f"umount -l {place}; mount {kind} {place};"
        f" exec {sys.executable} /run/program.py --json --force --partial {LARGE}"
    )
    # Python starts inside the cgroup, which is charged for its files, 10 MiB of them: the spare
    # tenth of a small limit would not hold them, and they would push the first pages out.
    limit = 112 * MIB
    with cgroups(machine, 1024 * MIB, limit) as (_, job):
        machine.drop_caches()
        words = ("unshare", "--mount", "--cgroup", "sh", "-ec", script)
        document = machine.run(*words, cgroup=job).document
        assert document["memory"]["limited_by"] == place
        found = machine.resident_bytes(large)
    budget = document["memory"]["budget_bytes"]
    assert budget <= 0.9 * limit
    assert is_the_head(found, machine.size_bytes(large)), found
    assert abs(sum(found) - budget) <= 0.02 * budget + MIB


def test_a_limit_that_is_lowered_meanwhile_is_seen_in_the_proof(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, 512 * MIB) as (job,):
        machine.drop_caches()
        words = ("--json", "--force", "--max-rate", "16M", LARGE)
        process = machine.start_tool(*words, cgroup=job)
        process.await_text("10%")
        set_limit(machine, job, LIMIT)
        done = process.end()
        assert done.code == 0, done
        found = sum(machine.resident_bytes(large))
    document = done.document
    assert document["decision"]["reason"] == "forced"
    assert found <= LIMIT
    assert abs(document["residency"]["after_bytes"] - found) <= 0.01 * sum(SHARDS)
    (warning,) = document["warnings"]
    assert "stayed in the page cache" in warning
    assert f"the cgroup {job}, or its limit was lowered" in warning
    says_what_was_dropped(document, warning, sum(SHARDS) - found)


def says_what_was_dropped(document: dict[str, Any], warning: str, lost_bytes: int) -> None:
    """Check the kernel's own count, which it keeps from Linux 6.5 on."""
    residency = document["residency"]
    if residency["method"] == "cachestat":
        assert abs(residency["evicted_bytes"] - lost_bytes) <= 0.02 * sum(SHARDS)
        assert "were dropped again to free memory, likely because" in warning
    else:
        assert residency["evicted_bytes"] is None
        assert "dropped again" not in warning


def test_what_a_lower_limit_drops_is_read_again_once_it_is_raised(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, 512 * MIB) as (job,):
        machine.drop_caches()
        process = machine.start_tool("--force", "--keep", "10m", LARGE, cgroup=job)
        process.await_text("keeping 128")
        set_limit(machine, job, LIMIT)
        assert sum(machine.resident_bytes(large)) <= LIMIT
        set_limit(machine, job, 512 * MIB)
        deadline = time.monotonic() + 120
        while sum(machine.resident_bytes(large)) < 0.99 * sum(SHARDS):
            assert time.monotonic() < deadline, process.shown()
            time.sleep(1)
        process.send(signal.SIGINT)
        done = process.end()
    assert done.code == 130, done
    assert re.search(r"^kept +128.* MiB read again; interrupted by SIGINT$", done.out, re.MULTILINE)


def test_a_stranger_in_a_limited_cgroup_finds_the_same_limit(
    machine: Machine, large: list[str]
) -> None:
    with cgroups(machine, 1024 * MIB, LIMIT) as (_, job):
        memory = warmed(machine, "--dry-run", cgroup=job, user=4321).document["memory"]
    assert memory["limited_by"] == job
    assert memory["budget_bytes"] <= 0.9 * LIMIT


@contextmanager
def over_nfs(machine: Machine) -> Iterator[str]:
    with nfs.serving(machine), nfs.mounted(machine) as mount_point:
        yield f"{mount_point}/large"


@pytest.mark.parametrize("limit", [LIMIT, 512 * MIB])
def test_what_an_ended_container_read_stays_up_to_its_own_limit(
    machine: Machine, large: list[str], limit: int
) -> None:
    """Like an init container: the pod may hold more, and the container's cgroup ends with it."""
    with cgroups(machine, 1024 * MIB) as (pod,):
        if machine.cgroups is Cgroups.V2:
            machine.sh(f"echo +memory > {pod}/cgroup.subtree_control")
        init = f"{pod}/init"
        machine.run("mkdir", init)
        set_limit(machine, init, limit)
        warmed(machine, "--force", "--partial", cgroup=init)
        machine.sh(f"for n in $(seq 100); do rmdir {init} && exit; sleep 0.1; done; exit 1")
        found, whole = machine.resident_bytes(large), machine.size_bytes(large)
        if limit == LIMIT:
            assert is_the_head(found, whole), found
            assert 0.8 * (LIMIT - OWN_BYTES) <= sum(found) <= LIMIT
        else:
            assert sum(found) >= 0.99 * sum(whole)
