"""Surroundings that lack what is usually there: /proc, /sys, a place to write, a home, a locale."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefetch_cli.base.words import Engine
from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, ROOT, Done, run


def inside(preparation: str, *arguments: str) -> Done:
    """Return a run in a mount namespace of its own, prepared by these shell commands."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (util-linux)")
    space = [unshare, "--mount"]
    if os.geteuid() != 0:
        space += ["--user", "--map-root-user"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to a mount namespace of its own")
    shell = ("sh", "-ec", f'{preparation}; exec "$@"', "sh")
    return run(*arguments, command=(*space, *shell, *COMMAND))


def assert_all_read(done: Done, built: BuiltCheckpoint) -> None:
    """Assert that everything is warm and nothing failed."""
    assert done.code == 0, done
    assert done.document["result"]["complete"] is True
    assert oracle.resident_bytes(built.weight_files) == oracle.about(built.weight_bytes)


def test_without_proc(built: BuiltCheckpoint, cold: str) -> None:
    done = inside("mount -t tmpfs none /proc", "--force", "--json", cold)
    assert_all_read(done, built)
    assert [one["type"] for one in done.document["filesystems"]] == ["unknown"]
    assert done.document["memory"]["available_bytes"] > 0
    for action in ("--check", "--evict", "--dry-run"):
        assert inside("mount -t tmpfs none /proc", action, cold).code == 0


def test_without_sys(built: BuiltCheckpoint, cold: str) -> None:
    done = inside("mount -t tmpfs none /sys", "--force", "--json", cold)
    assert_all_read(done, built)
    assert done.document["warnings"] == []
    assert done.document["memory"]["limited_by"] == "host"


@pytest.mark.parametrize("engine", [engine.value for engine in Engine])
def test_without_dev(built: BuiltCheckpoint, cold: str, engine: str) -> None:
    done = inside("mount -t tmpfs none /dev", "--force", "--json", "--engine", engine, cold)
    assert_all_read(done, built)
    assert done.document["result"]["engine"] in {"read", engine} - {"splice"}


def test_without_dev_command_starts_and_is_warmed_for(built: BuiltCheckpoint, cold: str) -> None:
    command = ("--", "sh", "-c", "echo started; sleep 5")
    done = inside("mount -t tmpfs none /dev", "--force", "--time-limit", "20s", cold, *command)
    assert (done.code, done.output) == (0, "started\n"), done
    assert "error" not in done.errors
    assert oracle.resident_bytes(built.weight_files) == oracle.about(built.weight_bytes)


def test_a_read_only_root(built: BuiltCheckpoint, cold: str) -> None:
    preparation = (
        "mount --make-rprivate /; mount --bind / /; mount -o remount,bind,ro /; cd /; "
        "! touch /there 2>/dev/null"
    )
    assert_all_read(inside(preparation, "--force", "--json", cold), built)


def test_no_home(built: BuiltCheckpoint, cold: str) -> None:
    nowhere: dict[str, str | None] = dict.fromkeys(
        ("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE")
    )
    assert_all_read(run("--force", "--json", cold, env=nowhere), built)
    done = run("nobody/there", env=nowhere)
    assert done.code == 3
    assert done.errors.count("\n") == 1


LOCALE_C: dict[str, str | None] = {
    "LC_ALL": "C",
    "LANG": None,
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


@pytest.mark.parametrize("name", ["modèle-名前", "mod\udcff"])
def test_locale_c(built: BuiltCheckpoint, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    try:
        shutil.copytree(built.directory, folder)
    except OSError as error:
        pytest.skip(f"needs a file system that takes any byte: {error}")
    done = run("--force", "--verbose", str(folder), env=LOCALE_C)
    assert done.code == 0, done
    assert done.output.isascii()
    assert done.errors.isascii()
    missing = run(str(folder / "none"), env=LOCALE_C)
    assert missing.code == 3
    assert missing.errors.isascii()
    # Streams whose encoding cannot represent the file names.
    narrow = run("--force", str(folder), env={"PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii"})
    assert narrow.code == 0
    assert narrow.output.isascii()
    shown = narrow.lines["checkpoint"].removesuffix(" (as vllm reads it)")
    assert shown.partition("/mod\\x")[2] in {"e8le-\\u540d\\u524d", "ff"}


def test_names_that_files_of_text_hold_in_locale_c(tmp_path: Path) -> None:
    """A shard index and a RECORD are UTF-8, whatever the locale is."""
    model, site = tmp_path / "model", tmp_path / "site"
    info = site / "lib-1.0.dist-info"
    for folder in (model, site / "größe", info):
        folder.mkdir(parents=True)
    header = b'{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    shard = len(header).to_bytes(8, "little") + header + bytes(8)
    for name in ("modèle-1.safetensors", "名前-2.safetensors"):
        (model / name).write_bytes(shard)
    names = {"a": "modèle-1.safetensors", "b": "名前-2.safetensors"}
    index = json.dumps({"weight_map": names}, ensure_ascii=False)
    (model / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (site / "größe" / "ä.py").write_bytes(bytes(20))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n")
    (info / "RECORD").write_text("größe/ä.py,,\n", encoding="utf-8")
    env = LOCALE_C | {"PYTHONPATH": f"{ROOT}:{site}"}
    asked = ("--force", "--json", "--package", "lib", "--python", sys.executable)
    found = run(*asked, str(model), env=env).document
    assert (found["checkpoint"]["files"], found["libraries"]["files"]) == (3, 1)
    for part in (found, found["libraries"]):
        assert part["residency"]["after_bytes"] == part["residency"]["total_bytes"] > 0
