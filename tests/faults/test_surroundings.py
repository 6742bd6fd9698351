"""Surroundings that lack what is usually there: /proc, /sys, a place to write, a home, a locale."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import oracle
from tests.checkpoints import BuiltCheckpoint
from tests.command import COMMAND, Done, run


def inside(preparation: str, *arguments: str) -> Done:
    """Return a run in a mount namespace of its own, after these commands of a shell."""
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
    """Assert that it is all warm, and that nothing failed."""
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


@pytest.mark.parametrize("name", ["modèle-名前", "mod\udcff"])
def test_locale_c(built: BuiltCheckpoint, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    try:
        shutil.copytree(built.directory, folder)
    except OSError as error:
        pytest.skip(f"needs a file system that takes any byte: {error}")
    plain = {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("--force", "--verbose", str(folder), env=plain)
    assert done.code == 0, done
    assert done.output.isascii()
    assert done.errors.isascii()
    missing = run(str(folder / "none"), env=plain)
    assert missing.code == 3
    assert missing.errors.isascii()
    # With streams that know less than the names of files do.
    narrow = run("--force", str(folder), env={"PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii"})
    assert narrow.code == 0
    assert narrow.output.isascii()
    assert narrow.lines["checkpoint"].partition("/mod\\x")[2] in {"e8le-\\u540d\\u524d", "ff"}
