"""Folders below a checkpoint: what `--include` globs with a slash name there, within bounds."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import subfolders
from prefetch_cli.checkpoint.selection import Filters
from tests.unit.checkpoint.conftest import as_nobody
from tests.unit.checkpoint.test_gguf import refusal, resolved, split, weights

SHARD = save({"w": np.zeros(100, np.uint8)})


def write(folder: Path, *names: str, index: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(SHARD if name.endswith(".safetensors") else b"{}")
    if index:
        shards = {f"t{n}": name for n, name in enumerate(names)}
        document = json.dumps({"weight_map": shards})
        (folder / "model.safetensors.index.json").write_text(document)


def shards(count: int) -> list[str]:
    return [name.replace(".gguf", ".safetensors") for name in split("model", count)]


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """A checkpoint in two precisions, each in a folder, with the old format inside one."""
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path / "fp8", *shards(2), index=True)
    write(tmp_path / "fp8", "config.json", "pytorch_model.bin")
    write(tmp_path / "bf16", "model.safetensors")
    write(tmp_path / "deep" / "er", "model.safetensors")
    return tmp_path


def test_a_glob_with_a_slash_names_a_folder_below(variants: Path) -> None:
    assert weights(resolved(variants, include=("fp8/*.safetensors",)), variants) == [
        f"fp8/{name}" for name in shards(2)
    ]
    whole = resolved(variants, include=("fp8/*",))
    assert [os.path.relpath(file.path, variants) for file in whole.files] == [
        "fp8/config.json",
        "fp8/model.safetensors.index.json",
        *(f"fp8/{name}" for name in shards(2)),
    ]
    assert whole.sources[0].load_format is LoadFormat.HF
    assert weights(resolved(variants, include=("fp8/*.bin",)), variants) == [
        "fp8/pytorch_model.bin"
    ]
    both = weights(resolved(variants, include=("[bf]*/*.safetensors",)), variants)
    assert both == ["bf16/model.safetensors", *(f"fp8/{name}" for name in shards(2))]
    assert weights(resolved(variants, include=("deep/er/*",)), variants) == [
        "deep/er/model.safetensors"
    ]


def test_the_rules_of_the_format_hold_below(variants: Path) -> None:
    (variants / "fp8" / shards(2)[1]).unlink()
    message = refusal(variants, include=("fp8/*.safetensors",)).message
    assert f"1 file missing or cut short: fp8/{shards(2)[1]} (not there)" in message
    for load_format in (LoadFormat.PT, LoadFormat.GGUF):
        error = refusal(variants, include=("fp8/*.safetensors",), load_format=load_format)
        assert "expected weight files" in error.message


@pytest.mark.parametrize("server", [Server.SGLANG, Server.TRANSFORMERS, Server.TENSORRT_LLM])
def test_the_rules_of_the_server_hold_below(tmp_path: Path, server: Server) -> None:
    write(tmp_path / "a", "consolidated.safetensors", *shards(2), index=True)
    write(tmp_path / "a", *shards(2), index=True)
    found = resolved(tmp_path, include=("a/*",), server=server)
    assert weights(found, tmp_path) == [f"a/{name}" for name in shards(2)]


def test_a_folder_below_is_a_checkpoint_not_a_component(tmp_path: Path) -> None:
    write(tmp_path / "a", "consolidated.safetensors", "model.safetensors", "model.fp16.safetensors")
    found = resolved(tmp_path, include=("a/*",))
    assert weights(found, tmp_path) == ["a/consolidated.safetensors"]
    assert found.sources[0].load_format is LoadFormat.MISTRAL
    found = resolved(tmp_path, include=("a/m*",))
    assert len(weights(found, tmp_path)) == 2


def test_a_glob_without_a_slash_does_not_look_below(variants: Path) -> None:
    assert "expected weight files" in refusal(variants, include=("*.safetensors",)).message
    assert "expected weight files" in refusal(variants, include=("nowhere/*",)).message


def test_what_lies_here_wins(variants: Path) -> None:
    write(variants, "model.safetensors")
    found = resolved(variants, include=("fp8/*.safetensors", "model*"))
    assert weights(found, variants) == ["model.safetensors"]
    found = resolved(variants, include=("fp8/*.safetensors",))
    assert weights(found, variants) == [f"fp8/{name}" for name in shards(2)]


def test_a_glob_reaches_folders_that_a_layout_does_not_name(tmp_path: Path) -> None:
    write(tmp_path / "unet", "diffusion_pytorch_model.safetensors")
    write(tmp_path / "unlisted", "model.safetensors")
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "unet": ["diffusers", "U"]}')
    assert weights(resolved(tmp_path, include=("unlisted/*",)), tmp_path) == [
        "unlisted/model.safetensors"
    ]
    assert weights(resolved(tmp_path, include=("un*/*",)), tmp_path) == [
        "unet/diffusion_pytorch_model.safetensors"
    ]


def look(root: Path, *include: str) -> subfolders.Below:
    folders = [path.name for path in root.iterdir()]
    return subfolders.below(str(root), folders, Filters(include), Monitor())


def test_the_look_below_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to("..")
    (tmp_path / ".hidden").mkdir()
    assert list(look(tmp_path).files) == ["loop", "loop/again"]
    for number in range(300):
        (tmp_path / f"f{number}").mkdir()
    found = look(tmp_path)
    assert (len(found.files), len(found.unlisted)) == (200, 1)
    assert list(look(tmp_path, "f299/*").files) == ["f299"]
    assert list(look(tmp_path, "f29*/x").files) == ["f29", *(f"f{n}" for n in range(290, 300))]


def test_a_folder_of_many_files_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subfolders, "_MOST_ENTRIES", 50)
    for name in ("a", "b"):
        write(tmp_path / name, *(f"{number}.gguf" for number in range(100)))
    found = look(tmp_path)
    assert len(found.paths) == 50
    assert found.unlisted == ("b",)


def test_an_unfinished_download_below_is_found(variants: Path) -> None:
    (variants / "fp8" / f"{shards(2)[0]}.aria2").touch()
    message = refusal(variants, include=("fp8/*.safetensors",)).message
    assert f"fp8/{shards(2)[0]} (its download has not ended)" in message


def test_a_folder_that_cannot_be_listed_is_named(public: Path) -> None:
    write(public / "mmproj.gguf".removesuffix(".gguf"), "mmproj.gguf")
    (public / "closed").mkdir(mode=0o700)
    said = as_nobody(
        "from prefetch_cli.base.errors import CheckpointError\n"
        "from tests.unit.checkpoint.test_gguf import resolved",
        """
        try:
            resolved(sys.argv[1])
        except CheckpointError as error:
            print(error.hint)
        """,
        public,
    )
    assert "not looked into: closed" in said
