"""Why a snapshot lacks files: downloads that were killed, and snapshots that have them.

The caches are huggingface_hub's own: it writes them, from a server that may stall.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import Hub, LoadFormat
from prefetch_cli.checkpoint import snapshots
from prefetch_cli.checkpoint.resolve import Checkpoint, resolve
from prefetch_cli.checkpoint.snapshots import elsewhere
from tests.helpers.hub_caches import Download, FakeHub, commit, lay_huggingface, write_caches
from tests.helpers.requests import request
from tests.unit.checkpoint.test_resolve import HF_INDEX, SHARD, shards

MAIN, OLDER, OLDEST = commit("main"), commit("v1"), commit("v0")
REVISIONS = {"main": MAIN, "v1": OLDER, "v0": OLDEST}
INDEX = json.dumps({"weight_map": dict(zip("ab", shards(2), strict=True))}).encode()
FILES = {
    "config.json": b"{}",
    HF_INDEX: INDEX,
    shards(2)[0]: SHARD,
    shards(2)[1]: save({"b": np.zeros(1000, np.uint8)}),
}


def resolved(name: str | Path, cache: Path, **given: Any) -> Checkpoint:
    asked = request(name, cache_dir=cache, hub=Hub.HUGGINGFACE, **given)
    return resolve(asked, {"HOME": "/nonexistent"}, Monitor(), threads=2)


def hint(name: str | Path, cache: Path, **given: Any) -> str:
    """Return the hint of a refused request."""
    with pytest.raises(CheckpointError) as caught:
        resolved(name, cache, **given)
    assert caught.value.hint is not None
    assert caught.value.hint.isprintable()
    return caught.value.hint


def single(cache: Path, names: Sequence[str], revision: str | None = None) -> list[Download]:
    """Return a download of each of these files alone."""
    return [Download(cache, "org/name", revision, filename=name) for name in names]


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with several caches, all written by huggingface_hub itself."""
    top = tmp_path_factory.mktemp("written")
    config, without, partly = (top / name for name in ("config", "without", "partly"))
    hub = FakeHub(REVISIONS, FILES)
    downloads = [
        # The weights are of the older commit: the newer one brought its config files only.
        Download(config, "org/name", "v1"),
        *single(config, ["config.json", HF_INDEX]),
        Download(without, "org/name", "v1"),
        *single(without, ["config.json"]),
        *single(partly, ["config.json", HF_INDEX, shards(2)[0]]),
        *single(partly, [shards(2)[1]], "v1"),
    ]
    write_caches(hub, downloads, home=top)
    return top


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache and a directory, whose downloads were killed at the second shard."""
    top = tmp_path_factory.mktemp("killed")
    for download in (
        Download(top / "cache", "org/name", filename=shards(2)[1]),
        Download(top / "cache", "org/pinned", OLDER, filename=shards(2)[1]),
        Download(top / "cache", "org/name", filename=shards(2)[1], local_dir=top / "local"),
    ):
        hub = FakeHub(REVISIONS, FILES)
        steps = [
            Download(download.cache, download.repo_id, download.revision, name, download.local_dir)
            for name in ("config.json", HF_INDEX, shards(2)[0])
        ]
        write_caches(hub, steps, home=top)
        write_caches(FakeHub(REVISIONS, FILES, stalls_at=shards(2)[1]), [download], home=top)
    return top


def test_shards_in_another_snapshot_are_named(top: Path) -> None:
    found = hint("org/name", top / "config")
    assert found == (
        f"snapshot {OLDER} of this repo has them: give --revision or its path; or give "
        "--allow-incomplete to warm what is there"
    )
    assert len(resolved("org/name", top / "config", revision=OLDER).files) == len(FILES)
    snapshot = top / "config" / "models--org--name" / "snapshots"
    assert hint(snapshot / MAIN, top) == found
    assert len(resolved(snapshot / OLDER, top).files) == len(FILES)


def test_all_weights_in_another_snapshot_are_named(top: Path) -> None:
    found = hint("org/name", top / "without")
    assert found == f"snapshot {OLDER} of this repo has them: give --revision or its path"


def test_a_snapshot_with_a_part_of_what_is_missing_is_no_help(top: Path, tmp_path: Path) -> None:
    assert "snapshot" in hint("org/name", top / "partly")
    repo = shutil.copytree(top / "partly", tmp_path / "cache", symlinks=True) / "models--org--name"
    os.unlink(repo / "snapshots" / MAIN / shards(2)[0])
    assert hint("org/name", tmp_path / "cache").startswith("finish the download")


def test_the_same_blob_that_is_cut_short_is_no_help(top: Path, tmp_path: Path) -> None:
    repo = shutil.copytree(top / "config", tmp_path / "cache", symlinks=True) / "models--org--name"
    shutil.rmtree(repo / "snapshots" / MAIN)
    shutil.copytree(repo / "snapshots" / OLDER, repo / "snapshots" / MAIN, symlinks=True)
    blob = os.path.realpath(repo / "snapshots" / MAIN / shards(2)[1])
    os.truncate(blob, len(FILES[shards(2)[1]]) - 1)
    assert hint("org/name", tmp_path / "cache").startswith("finish the download")
    shard = repo / "snapshots" / OLDER / shards(2)[1]
    shard.unlink()
    shard.write_bytes(FILES[shard.name])
    assert f"snapshot {OLDER} " in hint("org/name", tmp_path / "cache")


def test_another_load_format_is_not_sought_elsewhere(top: Path) -> None:
    # This snapshot has weights, of another format.
    found = hint("org/name", top / "config", revision=OLDER, load_format=LoadFormat.PT)
    assert "--load-format" in found


def test_a_download_that_was_killed_is_named(killed: Path) -> None:
    blobs = killed / "cache" / "models--org--name" / "blobs"
    assert [path.suffix for path in blobs.iterdir()].count(".incomplete") == 1
    assert hint("org/name", killed / "cache") == (
        "1 download of this repo has not ended: run `hf download org/name` again; or give "
        "--allow-incomplete to warm what is there"
    )


def test_a_download_of_another_commit_names_it(killed: Path) -> None:
    ref = killed / "cache" / "models--org--pinned" / "refs" / "main"
    again = f"`hf download org/pinned --revision {OLDER}` again"
    assert not ref.exists()
    assert again in hint("org/pinned", killed / "cache")
    ref.parent.mkdir()
    ref.write_text(MAIN)
    assert again in hint("org/pinned", killed / "cache", revision=OLDER)


def test_a_download_to_a_directory_that_was_killed_is_named(killed: Path) -> None:
    found = hint(killed / "local", killed)
    assert found.startswith("1 download of this directory has not ended: run `hf download` again")


def test_both_causes_are_named(killed: Path, tmp_path: Path) -> None:
    repo = (
        shutil.copytree(killed / "cache", tmp_path / "cache", symlinks=True) / "models--org--name"
    )
    shutil.copytree(repo / "snapshots" / MAIN, repo / "snapshots" / OLDER, symlinks=True)
    (repo / "snapshots" / OLDER / shards(2)[1]).write_bytes(SHARD)
    found = hint("org/name", tmp_path / "cache")
    assert "has not ended" in found
    assert f"; snapshot {OLDER} of this repo has them" in found


def test_what_is_complete_or_allowed_needs_no_cause(top: Path, killed: Path) -> None:
    assert resolved("org/name", top / "config", revision="v1").warnings == ()
    found = resolved("org/name", killed / "cache", allow_incomplete=True)
    assert "found 1 file missing" in found.warnings[0]


# Caches that huggingface_hub would not write


def test_the_newest_of_several_snapshots_is_named(tmp_path: Path) -> None:
    repo = lay_huggingface(tmp_path, refs={"main": MAIN}, commits=[MAIN, OLDER, OLDEST])
    for each, age in ((OLDER, 10), (OLDEST, 20)):
        (repo / "snapshots" / each / "model.safetensors").write_bytes(SHARD)
        os.utime(repo / "snapshots" / each, (time.time() - age,) * 2)
    assert f"snapshot {OLDER} " in hint("org/name", tmp_path)
    (repo / "snapshots" / OLDER / "model.safetensors").unlink()
    (repo / "snapshots" / OLDER / "model.safetensors").symlink_to("nowhere")
    assert f"snapshot {OLDEST} " in hint("org/name", tmp_path)


def test_a_directory_that_is_no_snapshot(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x.incomplete").write_bytes(b"")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    assert elsewhere(str(tmp_path / "folder" / "a"), ["model.safetensors"]) is None
    assert elsewhere(str(tmp_path / "folder"), ()) is None
    assert elsewhere("/", ()) is None


def test_only_so_many_snapshots_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_MOST_SNAPSHOTS", 2)
    folder = tmp_path / "models--org--name" / "snapshots"
    for number in range(4):
        (folder / str(number)).mkdir(parents=True)
        os.utime(folder / str(number), (number, number))
    (folder / "1" / "m.safetensors").write_bytes(SHARD)
    os.utime(folder / "1", (1, 1))
    assert elsewhere(str(folder / "0"), ()) is None
    (folder / "2" / "m.safetensors").write_bytes(SHARD)
    os.utime(folder / "2", (2, 2))
    assert "snapshot 2 " in (elsewhere(str(folder / "0"), ()) or "")


def test_names_of_a_hostile_cache_are_printable(tmp_path: Path) -> None:
    repo = tmp_path / "models--\x1b[2J--name"
    for name in ("a", "\x1b[31m\n"):
        (repo / "snapshots" / name).mkdir(parents=True)
    (repo / "snapshots" / "\x1b[31m\n" / "m.safetensors").write_bytes(SHARD)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "x.incomplete").write_bytes(b"")
    found = elsewhere(str(repo / "snapshots" / "a"), ())
    assert found is not None
    assert found.isprintable()
