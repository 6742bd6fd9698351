"""Arguments -> files, on real directories: every layout, and every way to be incomplete."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from prefetch_cli.base.errors import CheckpointError, ExitCode
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.text import printable
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint.files import Skipped
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.checkpoint.resolve import Checkpoint, resolve
from prefetch_cli.linux import threads as linux_threads
from tests.helpers import checkpoints
from tests.helpers.requests import request
from tests.unit.checkpoint.conftest import as_nobody

SHARD = save({"layer.weight": np.zeros(100, np.uint8)})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HF_INDEX = "model.safetensors.index.json"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


def shards(count: int, base: str = "model-", suffix: str = ".safetensors") -> list[str]:
    return [f"{base}{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]


def write(
    folder: Path, names: Iterable[str], *, index: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Write weight files, empty config files, and indexes of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SHARD if name.endswith(".safetensors") else b"{}")
    for name, named in (index or {}).items():
        document = {"weight_map": {f"t{n}": shard for n, shard in enumerate(named)}}
        (folder / name).write_text(json.dumps(document))
    return folder


def resolved(*arguments: str | Path, **given: Any) -> Checkpoint:
    asked = request(*arguments, **given)
    return resolve(asked, {"HOME": "/nonexistent"}, Monitor(), threads=4)


def names(found: Checkpoint, folder: Path, *, weight: bool | None = None) -> list[str]:
    return [
        os.path.relpath(file.path, folder)
        for file in found.files
        if weight is None or file.weight is weight
    ]


def told(found: Checkpoint) -> list[str]:
    """Return the warnings, but for those on weights that lie beside what is read."""
    beside = (
        "which nothing names for",
        "names files in folders",
        "weights lie there twice",
        "--load-format ",
    )
    return [text for text in found.warnings if not any(word in text for word in beside)]


def weights(folder: Path, **options: object) -> list[str]:
    found = resolved(folder, **options)
    assert told(found) == []
    return names(found, folder, weight=True)


def refusal(*arguments: str | Path, **options: object) -> CheckpointError:
    """Return the error of a refused request, after checks that all errors must pass."""
    with pytest.raises(CheckpointError) as caught:
        resolved(*arguments, **options)
    error = caught.value
    assert error.exit_code == ExitCode.CHECKPOINT
    assert error.message.isprintable()
    assert re.search("expected .*found", error.message)
    assert error.hint
    return error


# Directories


def test_a_real_checkpoint_is_resolved_in_load_order(tmp_path: Path) -> None:
    built = checkpoints.write_sharded(str(tmp_path / "model"), shard_bytes=[5000, 100, 70_000])
    found = resolved(built.directory)
    assert found.sources == (
        Source(built.directory, "directory", built.directory, None, LoadFormat.HF, Server.VLLM),
    )
    assert tuple(file.path for file in found.files) == built.side_files + built.weight_files
    assert found.size_bytes == sum(map(os.path.getsize, built.files))
    assert (found.failed, found.warnings) == ((), ())
    for file in found.files:
        status = os.stat(file.path)
        assert (file.device, file.inode) == (status.st_dev, status.st_ino)
        assert file.size_bytes == status.st_size
        assert file.real_path == os.path.realpath(file.path)
        assert file.weight is file.path.endswith(".safetensors")


def test_config_and_tokenizer_files_come_first_unless_left_out(tmp_path: Path) -> None:
    side = ["config.json", "tokenizer.json", "tokenizer.model"]
    write(tmp_path, [*side, "model.safetensors", "README.md", "logo.png"])
    assert names(resolved(tmp_path), tmp_path) == [*side, "model.safetensors"]
    assert names(resolved(tmp_path, weights_only=True), tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("load_format", "found"),
    [
        (LoadFormat.AUTO, ["consolidated.safetensors"]),
        (LoadFormat.HF, shards(2)),
        (LoadFormat.SAFETENSORS, shards(2)),
        (LoadFormat.MISTRAL, ["consolidated.safetensors"]),
        (LoadFormat.PT, ["a.pt"]),
        (LoadFormat.NPCACHE, ["pytorch_model.bin"]),
        (LoadFormat.GGUF, ["m.gguf"]),
        (
            LoadFormat.ALL,
            [
                *("a.pt", "a.pth", "consolidated.safetensors", "m.gguf", *shards(2)),
                *("optimizer.bin", "original/consolidated.00.pth", "original/deep.safetensors"),
                "pytorch_model.bin",
            ],
        ),
    ],
)
def test_each_load_format(tmp_path: Path, load_format: LoadFormat, found: list[str]) -> None:
    others = ["consolidated.safetensors", "pytorch_model.bin", "optimizer.bin", "a.pt", "a.pth"]
    write(tmp_path, [*shards(2), *others, "m.gguf"], index={HF_INDEX: shards(2)})
    write(tmp_path / "original", ["consolidated.00.pth", "deep.safetensors"])
    assert weights(tmp_path, load_format=load_format) == found
    resolved_format = resolved(tmp_path, load_format=load_format).sources[0].load_format
    expected = LoadFormat.MISTRAL if load_format is LoadFormat.AUTO else load_format
    assert resolved_format is expected


def test_natural_order(tmp_path: Path) -> None:
    numbered = [f"model-{number}-of-12.safetensors" for number in range(1, 13)]
    write(tmp_path, numbered)
    assert weights(tmp_path) == numbered


def test_an_index_may_lead_into_folders(tmp_path: Path) -> None:
    named = ["a/x-1.safetensors", "b/x-2.safetensors"]
    write(tmp_path, [*named, "b/x-3.safetensors"], index={HF_INDEX: named})
    assert weights(tmp_path) == named
    assert weights(tmp_path, exclude=("a/*",)) == named[1:]


def test_relative_paths_and_links_to_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write(tmp_path / "store" / "v1" / "model", ["model.safetensors"])
    (tmp_path / "current").symlink_to("store/v1")
    monkeypatch.chdir(tmp_path)
    current = tmp_path / "current" / "model"
    for argument, path in [
        ("store/v1/model", model),
        ("./store/v1/model/", model),
        (str(current), current),
        # `..` is the parent of the link's target.
        ("current/../v1/model", model),
        ("current/model/..//model", model),
        ("current/model/../../v1/model/.", model),
        ("current/../v1/model/model.safetensors", model / "model.safetensors"),
    ]:
        found = resolved(argument)
        assert found.sources[0].argument == argument
        assert found.sources[0].path == str(path)
        assert os.path.realpath(found.files[0].path) == str(model / "model.safetensors")
    monkeypatch.chdir(model)
    assert resolved(".").sources[0].path == str(model)
    assert resolved("..//model").sources[0].path == str(model)


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    (tmp_path / "._model.safetensors").write_bytes(b"\0\5\26\7AppleDouble")
    assert weights(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31mred\x1b[0m", "[red]x", os.fsdecode(b"\xff\xfe"), "--x", "*?[a]"]
)
def test_any_name_is_read_and_shown_escaped(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / name, [f"{name}.safetensors", f"{name}.json"])
    found = resolved(folder)
    assert names(found, folder) == [f"{name}.json", f"{name}.safetensors"]
    os.truncate(folder / f"{name}.safetensors", 100)
    assert "its header promises" in refusal(folder).message
    assert resolved(folder / f"{name}.safetensors", allow_incomplete=True).warnings[0].isprintable()


def test_each_physical_file_counts_once(tmp_path: Path) -> None:
    write(tmp_path, ["a.safetensors", "config.json"])
    os.link(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").symlink_to("a.safetensors")
    (tmp_path / "d.safetensors").symlink_to(tmp_path / "b.safetensors")
    os.link(tmp_path / "config.json", tmp_path / "params.json")
    assert names(resolved(tmp_path), tmp_path) == ["config.json", "a.safetensors"]


def test_a_farm_of_links(tmp_path: Path) -> None:
    """Nix, Bazel and hubs do this: every file and folder is a link, to several places."""
    first = write(tmp_path / "store" / "1", ["x"])
    second = write(tmp_path / "store" / "2", ["y"])
    (first / "x").write_bytes(SHARD)
    (second / "y").write_bytes(SHARD)
    tokenizer = write(tmp_path / "store" / "tokenizer", ["tokenizer.json"])
    farm = write(tmp_path / "farm", ["config.json"])
    (farm / shards(2)[0]).symlink_to("../store/1/x")
    (farm / shards(2)[1]).symlink_to(second / "y")
    (farm / "tokenizer").symlink_to(tokenizer)
    assert weights(farm) == shards(2)
    (tmp_path / "again").symlink_to("farm")
    assert names(resolved(tmp_path / "again"), tmp_path / "again", weight=True) == shards(2)


# Several checkpoints


def test_several_checkpoints_are_read_in_their_order(tmp_path: Path) -> None:
    target = write(tmp_path / "z", ["config.json", *shards(2)])
    draft = write(tmp_path / "a", ["config.json", "m.gguf"])
    found = resolved(target, draft)
    assert [source.load_format for source in found.sources] == [LoadFormat.HF, LoadFormat.GGUF]
    assert names(found, tmp_path) == [
        *("z/config.json", f"z/{shards(2)[0]}", f"z/{shards(2)[1]}"),
        *("a/config.json", "a/m.gguf"),
    ]
    again = resolved(target, draft, target, target / shards(2)[1])
    assert again.files == found.files
    assert len(again.sources) == 4


def test_a_warning_comes_once(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    os.mkfifo(tmp_path / "pipe")
    assert len(resolved(tmp_path, tmp_path).warnings) == 1


def test_one_bad_checkpoint_of_several_is_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good", ["model.safetensors"])
    bad = write(tmp_path / "bad", shards(3)[:2])
    assert refusal(good, bad).message.startswith(f"{bad}: ")


# Files


@pytest.mark.parametrize(
    ("name", "load_format"),
    [
        ("model.safetensors", LoadFormat.SAFETENSORS),
        (shards(4)[1], LoadFormat.SAFETENSORS),
        ("m.gguf", LoadFormat.GGUF),
        ("pytorch_model.bin", LoadFormat.NPCACHE),
        ("a.pt", LoadFormat.PT),
        ("a.pth", LoadFormat.PT),
        ("optimizer.pt", LoadFormat.PT),
        ("config.json", LoadFormat.ALL),
        ("model.onnx_data", LoadFormat.ALL),
        ("rank0.engine", LoadFormat.ALL),
        ("v1-5.ckpt", LoadFormat.ALL),
        ("m.nemo", LoadFormat.ALL),
        ("safetensors", LoadFormat.ALL),
        ("sha256-0b", LoadFormat.ALL),
    ],
)
def test_a_file_stands_for_itself(tmp_path: Path, name: str, load_format: LoadFormat) -> None:
    write(tmp_path, ["config.json", name], index={HF_INDEX: shards(4)})
    found = resolved(tmp_path / name)
    assert names(found, tmp_path) == [name]
    source = Source(str(tmp_path / name), "file", str(tmp_path / name), None, load_format, None)
    assert found.sources == (source,)


def test_one_part_of_a_split_gguf_means_all(tmp_path: Path) -> None:
    parts = shards(3, "m-Q4-", ".gguf")
    write(tmp_path, [*parts, *shards(2, "m-Q8-", ".gguf"), "mmproj.gguf"])
    assert names(resolved(tmp_path / parts[1]), tmp_path) == parts
    assert names(resolved(tmp_path / parts[1], exclude=("*-00001-*",)), tmp_path) == parts[1:]
    (tmp_path / parts[2]).unlink()
    error = refusal(tmp_path / parts[0])
    assert f"1 file missing or cut short: {parts[2]} (not there)" in error.message
    allowed = resolved(tmp_path / parts[0], allow_incomplete=True)
    assert names(allowed, tmp_path) == parts[:2]


@pytest.mark.parametrize("index", [HF_INDEX, "any.safetensors.index.json"])
def test_an_index_file_stands_for_what_it_names(tmp_path: Path, index: str) -> None:
    write(tmp_path, [*shards(3), "other.safetensors", "config.json"], index={index: shards(3)})
    found = resolved(tmp_path / index)
    assert names(found, tmp_path, weight=True) == shards(3)
    assert names(found, tmp_path, weight=False) == sorted(["config.json", index])
    path = str(tmp_path / index)
    assert found.sources == (Source(path, "file", path, None, LoadFormat.HF, None),)
    only = resolved(tmp_path / index, weights_only=True, include=("*-00002-*",))
    assert names(only, tmp_path) == shards(3)[1:2]


def test_an_index_file_in_a_diffusers_layout_stands_for_its_shards(tmp_path: Path) -> None:
    diffusers(tmp_path)
    write(tmp_path, shards(2), index={HF_INDEX: shards(2)})
    assert names(resolved(tmp_path / HF_INDEX), tmp_path, weight=True) == shards(2)


def test_a_link_to_a_blob_has_the_name_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(SHARD)
    (tmp_path / "model.safetensors").symlink_to("blob")
    found = resolved(tmp_path / "model.safetensors")
    assert found.files[0].path == str(tmp_path / "model.safetensors")
    assert found.files[0].real_path == str(tmp_path / "blob")


def test_globs_that_exclude_the_file_itself(tmp_path: Path) -> None:
    write(tmp_path, ["m.gguf", *shards(1)], index={HF_INDEX: shards(1)})
    for name in ("m.gguf", HF_INDEX):
        error = refusal(tmp_path / name, exclude=("*.gguf", "*.safetensors"))
        assert "found none that the globs leave in" in error.message


# GGUF


def test_several_gguf_models_are_ambiguous_until_one_is_chosen(tmp_path: Path) -> None:
    split = shards(2, "it's [big]-", ".gguf")
    write(tmp_path, [*split, "small.gguf", "mmproj-F16.gguf", "config.json"])
    for load_format in (LoadFormat.AUTO, LoadFormat.GGUF):
        error = refusal(tmp_path, load_format=load_format)
        assert error.message.endswith(
            f"expected one GGUF model, found 2: {split[0]} (4 bytes), small.gguf (2 bytes)"
        )
        assert error.message.startswith(f"{tmp_path}: ")
    assert error.hint is not None
    words = shlex.split(
        error.hint.removeprefix("choose one: ").removesuffix(", or give the file itself")
    )
    assert words[0] == "--include"
    assert weights(tmp_path, include=tuple(words[1:])) == split
    assert weights(tmp_path, exclude=("small*",)) == [*split, "mmproj-F16.gguf"]
    assert len(weights(tmp_path, load_format=LoadFormat.ALL)) == 4


def test_a_split_gguf_without_all_its_parts_is_incomplete(tmp_path: Path) -> None:
    write(tmp_path, shards(3, "m-", ".gguf")[1:2])
    message = refusal(tmp_path).message
    assert "2 files missing or cut short: m-00001-of-00003.gguf (not there), m-00003" in message


# Folders of components


def diffusers(folder: Path, **components: object) -> Path:
    """Write a diffusers layout: a sharded unet, a vae, a text encoder in fp16 only."""
    unet = shards(2, "diffusion_pytorch_model-")
    write(
        folder,
        [
            *(f"unet/{name}" for name in unet),
            *("unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"),
            *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
            *("vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"),
            *("text_encoder/config.json", "text_encoder/model.fp16.safetensors"),
            *("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
            "unlisted/model.safetensors",
        ],
    )
    write(folder / "unet", [], index={"diffusion_pytorch_model.safetensors.index.json": unet})
    layout = {
        "_class_name": "Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        **components,
    }
    (folder / "model_index.json").write_text(json.dumps(layout))
    return folder


DIFFUSERS_WEIGHTS = [
    *(f"unet/{name}" for name in shards(2, "diffusion_pytorch_model-")),
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.fp16.safetensors",
]


def test_the_components_of_a_diffusers_layout(tmp_path: Path) -> None:
    diffusers(tmp_path)
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == DIFFUSERS_WEIGHTS
    side = names(found, tmp_path, weight=False)
    assert side[0] == "model_index.json"
    assert {"unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"} < {*side}
    assert not any("unlisted" in name for name in side)
    assert (told(found), found.sources[0].load_format) == ([], LoadFormat.HF)


def test_the_single_file_beside_the_components_is_left_out(tmp_path: Path) -> None:
    diffusers(tmp_path)
    single = ["sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors"]
    write(tmp_path, single)
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == DIFFUSERS_WEIGHTS
    assert len(told(found)) == 1
    assert f"{single[0]}, {single[1]}: left out" in told(found)[0]
    everything = names(resolved(tmp_path, load_format=LoadFormat.ALL), tmp_path, weight=True)
    assert {*single, *DIFFUSERS_WEIGHTS, "vae/diffusion_pytorch_model.bin"} < {*everything}
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in everything


def test_a_single_file_is_read_where_the_components_have_no_weights(tmp_path: Path) -> None:
    diffusers(tmp_path)
    write(tmp_path, ["single.gguf"])
    for folder in ("unet", "vae", "text_encoder"):
        shutil.rmtree(tmp_path / folder)
        (tmp_path / folder).mkdir()
    assert weights(tmp_path) == ["single.gguf"]


def test_globs_reach_into_components(tmp_path: Path) -> None:
    diffusers(tmp_path)
    assert weights(tmp_path, include=("vae/*",)) == DIFFUSERS_WEIGHTS[2:3]
    assert weights(tmp_path, exclude=("unet/*", "text_encoder/*")) == DIFFUSERS_WEIGHTS[2:3]
    assert weights(tmp_path, include=("vae/*.fp16.*",)) == [
        "vae/diffusion_pytorch_model.fp16.safetensors"
    ]


def test_a_missing_component(tmp_path: Path) -> None:
    diffusers(tmp_path, transformer=["diffusers", "X"], vae_2=["diffusers", "Y"])
    (tmp_path / "vae_2").write_text("a file")
    message = refusal(tmp_path).message
    assert "2 files missing or cut short: transformer/ (not there), vae_2/ (not there)" in message
    allowed = resolved(tmp_path, allow_incomplete=True)
    assert names(allowed, tmp_path, weight=True) == DIFFUSERS_WEIGHTS
    assert "transformer/ (not there)" in told(allowed)[0]
    assert weights(tmp_path, exclude=("transformer/*", "vae_2/*")) == DIFFUSERS_WEIGHTS
    assert weights(tmp_path, include=("unet/*",)) == DIFFUSERS_WEIGHTS[:2]


def test_a_missing_shard_of_a_component(tmp_path: Path) -> None:
    diffusers(tmp_path)
    (tmp_path / DIFFUSERS_WEIGHTS[1]).unlink()
    assert f"cut short: {DIFFUSERS_WEIGHTS[1]} (not there)" in refusal(tmp_path).message


def test_components_behind_links(tmp_path: Path) -> None:
    store = diffusers(tmp_path / "store")
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in store.iterdir():
        (farm / path.name).symlink_to(path)
    assert weights(farm) == DIFFUSERS_WEIGHTS


def test_a_layout_without_weights(tmp_path: Path) -> None:
    write(tmp_path, ["scheduler/scheduler_config.json"])
    (tmp_path / "model_index.json").write_text('{"scheduler": ["diffusers", "X"]}')
    assert "expected weight files" in refusal(tmp_path).message


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"../x": ["a", "B"]}'])
def test_a_malformed_layout(tmp_path: Path, content: str) -> None:
    write(tmp_path, ["model.safetensors"])
    (tmp_path / "model_index.json").write_text(content)
    assert refusal(tmp_path).message.startswith(f"{tmp_path}/model_index.json: expected ")


def sentence_transformers(folder: Path, **paths: str) -> Path:
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"st.models.{kind}"}
        for number, (kind, path) in enumerate(paths.items())
    ]
    write(folder, ["config.json", "sentence_bert_config.json"])
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_the_modules_of_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers(
        tmp_path,
        Transformer="",
        Pooling="1_Pooling",
        Dense="2_Dense",
        Router="3_Router/deep",
        Normalize="4_Normalize",  # never in a repo
    )
    files = ["model.safetensors", "pytorch_model.bin", "1_Pooling/config.json"]
    dense = ["2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    write(tmp_path, [*files, *dense, "3_Router/deep/pytorch_model.bin", "onnx/model.bin"])
    found = resolved(tmp_path)
    assert told(found) == []
    assert names(found, tmp_path, weight=True) == [
        *("model.safetensors", "2_Dense/model.safetensors", "3_Router/deep/pytorch_model.bin"),
    ]
    assert "1_Pooling/config.json" in names(found, tmp_path, weight=False)


def test_modules_below_a_folder_without_weights(tmp_path: Path) -> None:
    sentence_transformers(tmp_path, Transformer="0_Transformer", Pooling="1_Pooling")
    write(tmp_path, ["0_Transformer/model.safetensors", "1_Pooling/config.json"])
    assert weights(tmp_path) == ["0_Transformer/model.safetensors"]
    shutil.rmtree(tmp_path / "1_Pooling")
    assert "1_Pooling/ (not there)" in refusal(tmp_path).message


# Incomplete


def incomplete(folder: Path, *missing: tuple[str, str], **options: object) -> None:
    """Check that the error names exactly these files, and that --allow-incomplete warns of them."""
    error = refusal(folder, **options)
    listed = ", ".join(f"{name} ({reason}" for name, reason in missing)
    number = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
    found = f"expected a complete checkpoint, found {number} missing or cut short: "
    assert error.message.replace(")", "").startswith(f"{folder}: {found}{listed}")
    assert error.hint is not None
    assert "--allow-incomplete" in error.hint
    allowed = resolved(folder, allow_incomplete=True, **options)
    assert error.message in allowed.warnings
    assert allowed.failed == ()


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shards(tmp_path: Path, with_index: bool) -> None:
    present = [shards(4)[1], shards(4)[3]]
    write(tmp_path, ["config.json", *present], index={HF_INDEX: shards(4)} if with_index else {})
    incomplete(tmp_path, (shards(4)[0], "not there"), (shards(4)[2], "not there"))
    allowed = resolved(tmp_path, allow_incomplete=True)
    assert names(allowed, tmp_path, weight=True) == present
    # Nobody misses what is filtered out.
    assert weights(tmp_path, exclude=("*-0000[13]-*",)) == present
    assert weights(tmp_path, include=("*-00002-*", "*.json")) == present[:1]


def test_an_index_without_a_single_shard(tmp_path: Path) -> None:
    write(tmp_path, ["config.json"], index={HF_INDEX: shards(2)})
    assert "2 files missing or cut short" in refusal(tmp_path).message
    error = refusal(tmp_path, allow_incomplete=True)
    assert "expected readable weight files, found none: " in error.message


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    write(tmp_path, shards(2000)[:2])
    message = refusal(tmp_path).message
    assert "found 1,998 files missing or cut short: model-00003-of-02000" in message
    assert message.endswith(" and 1,993 more")


def test_shards_that_are_cut_short(tmp_path: Path) -> None:
    write(tmp_path, shards(3))
    os.truncate(tmp_path / shards(3)[0], len(SHARD) - 1)
    os.truncate(tmp_path / shards(3)[2], 20)
    message = refusal(tmp_path).message
    assert f"{shards(3)[0]} (its header promises {len(SHARD)} bytes" in message
    assert f"{shards(3)[2]} (its header promises" in message
    found = resolved(tmp_path, allow_incomplete=True)
    assert [file.size_bytes for file in found.files] == [len(SHARD) - 1, len(SHARD), 20]


def test_git_lfs_pointers(tmp_path: Path) -> None:
    reason = "a Git LFS pointer, not the file itself"
    write(tmp_path, ["config.json", *shards(2)])
    (tmp_path / shards(2)[1]).write_bytes(POINTER)
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    incomplete(tmp_path, ("tokenizer.json", reason), (shards(2)[1], reason))
    assert names(resolved(tmp_path, allow_incomplete=True), tmp_path) == [
        "config.json",
        shards(2)[0],
    ]
    assert weights(tmp_path, exclude=("tokenizer*", "*-00002-*")) == shards(2)[:1]
    incomplete(tmp_path, (shards(2)[1], reason), weights_only=True)


def test_a_repository_of_nothing_but_pointers(tmp_path: Path) -> None:
    for name in ("tokenizer.json", HF_INDEX, *shards(2)):
        (tmp_path / name).write_bytes(POINTER)
    message = refusal(tmp_path).message
    assert "4 files missing or cut short" in message
    assert HF_INDEX in message
    refusal(tmp_path, allow_incomplete=True)


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("way", ["pointer", "dangling", "download"])
def test_an_incomplete_index(tmp_path: Path, way: str, weights_only: bool) -> None:
    write(tmp_path, shards(2))
    index = tmp_path / HF_INDEX
    if way == "pointer":
        index.write_bytes(POINTER)
        reason = "a Git LFS pointer"
    elif way == "dangling":
        index.symlink_to("../blobs/none")
        reason = "a symbolic link to nothing"
    else:
        (tmp_path / f"{HF_INDEX}.incomplete").write_text('{"weight_map": {"a": "../')
        reason = "its download has not ended"
    incomplete(tmp_path, (HF_INDEX, reason), weights_only=weights_only)
    allowed = resolved(tmp_path, allow_incomplete=True, weights_only=weights_only)
    assert names(allowed, tmp_path) == shards(2)
    if way == "pointer":
        assert "found an incomplete file" in refusal(index).message


def test_an_incomplete_layout(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    (tmp_path / "model_index.json").write_bytes(POINTER)
    incomplete(tmp_path, ("model_index.json", "a Git LFS pointer"))


def test_dangling_links(tmp_path: Path) -> None:
    write(tmp_path, shards(2)[:1])
    (tmp_path / shards(2)[1]).symlink_to("../blobs/none")
    (tmp_path / "tokenizer.json").symlink_to("/nonexistent")
    (tmp_path / "notes.md").symlink_to("/nonexistent")
    reason = "a symbolic link to nothing"
    incomplete(tmp_path, ("tokenizer.json", reason), (shards(2)[1], reason))


def test_unfinished_downloads(tmp_path: Path) -> None:
    reason = "its download has not ended"
    write(tmp_path, ["a.safetensors"])
    (tmp_path / "b.safetensors.incomplete").write_bytes(b"\0" * 10)
    (tmp_path / "blob.incomplete").write_bytes(SHARD)
    (tmp_path / "c.safetensors").symlink_to("blob.incomplete")
    incomplete(tmp_path, ("b.safetensors", reason), ("c.safetensors", reason))
    allowed = resolved(tmp_path, allow_incomplete=True)
    assert names(allowed, tmp_path) == ["a.safetensors", "c.safetensors"]


@pytest.mark.parametrize("suffix", [".incomplete", ".aria2", ".part", ".crdownload"])
def test_what_a_downloader_keeps_beside_a_file_says_that_it_is_incomplete(
    tmp_path: Path, suffix: str
) -> None:
    write(tmp_path, [*shards(2), f"{shards(2)[1]}{suffix}", "config.json"])
    incomplete(tmp_path, (shards(2)[1], "its download has not ended"))
    # So it is where only that is there, and where the file itself is named.
    (tmp_path / shards(2)[1]).unlink()
    incomplete(tmp_path, (shards(2)[1], "its download has not ended"))
    (tmp_path / f"{shards(2)[0]}{suffix}").write_bytes(b"")
    message = refusal(tmp_path / shards(2)[0]).message
    assert f"{shards(2)[0]} (its download has not ended)" in message
    (tmp_path / f"config.json{suffix}").write_bytes(b"")
    assert "config.json (its download has not ended)" in refusal(tmp_path).message


def test_a_stale_total_size_is_only_a_warning(tmp_path: Path) -> None:
    write(tmp_path, shards(2))
    document = {"metadata": {"total_size": 3 << 20}, "weight_map": dict(enumerate(shards(2)))}
    (tmp_path / HF_INDEX).write_text(json.dumps(document))
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == shards(2)
    assert len(found.warnings) == 1
    assert "its index claims 3 MiB, the files have " in found.warnings[0]
    assert weights(tmp_path, exclude=("*-00002-*",)) == shards(2)[:1]
    for size in (2 * len(SHARD), 10**400, -1, "many"):
        document["metadata"] = {"total_size": size}
        (tmp_path / HF_INDEX).write_text(json.dumps(document))
        assert weights(tmp_path) == shards(2)


def test_an_empty_shard_is_incomplete_and_survives_where_that_is_allowed(tmp_path: Path) -> None:
    write(tmp_path, shards(2))
    os.truncate(tmp_path / shards(2)[0], 0)
    with pytest.raises(CheckpointError, match="it is empty"):
        weights(tmp_path)
    found = resolved(tmp_path, allow_incomplete=True)
    assert names(found, tmp_path, weight=True) == shards(2)
    assert "it is empty" in found.warnings[0]


# Other than files


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if something takes longer: a blocking open would wait forever."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def left_out(folder: Path, *lines: tuple[str, str], **options: object) -> list[str]:
    """Return the weights that are read, after checking that only these names are left out."""
    with within(20):
        found = resolved(folder, **options)
    assert found.warnings == tuple(f"{folder}/{name}: left out: {why}" for name, why in lines)
    assert found.failed == ()
    return names(found, folder, weight=True)


FIFO, LOOP = "expected a file, found a FIFO", "a symbolic link that leads to itself"


def test_special_files_beside_the_weights(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    os.mkfifo(tmp_path / "config.json")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "tokenizer.safetensors")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "lock"))
    lines = [
        ("config.json", FIFO),
        ("lock", "expected a file, found a socket"),
        ("pipe", FIFO),
        ("tokenizer.safetensors", FIFO),
    ]
    assert left_out(tmp_path, *lines) == ["model.safetensors"]
    assert left_out(tmp_path, ("pipe", FIFO), exclude=("[clt]*",)) == ["model.safetensors"]


@pytest.mark.parametrize("as_link", [True, False])
def test_a_fifo_among_the_shards(tmp_path: Path, as_link: bool) -> None:
    write(tmp_path, [shards(3)[0], shards(3)[2]])
    if as_link:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / shards(3)[1]).symlink_to("pipe")
    else:
        os.mkfifo(tmp_path / shards(3)[1])
    lines = [("pipe", FIFO)] * as_link + [(shards(3)[1], FIFO)]
    assert left_out(tmp_path, *lines) == [shards(3)[0], shards(3)[2]]


@pytest.mark.parametrize("name", [HF_INDEX, "model_index.json", "modules.json"])
@pytest.mark.parametrize("way", ["FIFO", "link to a FIFO", "loop", "directory"])
def test_an_index_of_another_file_type(tmp_path: Path, name: str, way: str) -> None:
    write(tmp_path, shards(2))
    if way == "directory":
        (tmp_path / name).mkdir()
        lines = []
    elif way == "loop":
        (tmp_path / name).symlink_to(name)
        lines = [(name, LOOP)]
    elif way == "FIFO":
        os.mkfifo(tmp_path / name)
        lines = [(name, FIFO)]
    else:
        os.mkfifo(tmp_path / "pipe.x")
        (tmp_path / name).symlink_to("pipe.x")
        lines = [(name, FIFO), ("pipe.x", FIFO)]
    assert left_out(tmp_path, *lines) == shards(2)
    assert left_out(tmp_path, *lines, weights_only=True) == shards(2)


@needs_root
def test_a_device_among_the_shards(tmp_path: Path) -> None:
    write(tmp_path, shards(2)[:1])
    os.mknod(tmp_path / shards(2)[1], 0o020666, os.makedev(1, 5))  # /dev/zero has no end
    device = "expected a file, found a character device"
    assert left_out(tmp_path, (shards(2)[1], device)) == shards(2)[:1]


def test_a_looping_link_among_the_files(tmp_path: Path) -> None:
    write(tmp_path, shards(3)[:2])
    (tmp_path / shards(3)[2]).symlink_to(shards(3)[2])
    (tmp_path / "a.json").symlink_to("b.json")
    (tmp_path / "b.json").symlink_to("a.json")
    (tmp_path / "loop").symlink_to("loop")
    lines = [("a.json", LOOP), ("b.json", LOOP), (shards(3)[2], LOOP)]
    assert left_out(tmp_path, *lines) == shards(3)[:2]


@needs_root
@pytest.mark.parametrize("way", ["FIFO", "link to a FIFO", "loop", "directory", "device"])
def test_what_the_index_names_and_is_no_file_is_incomplete(tmp_path: Path, way: str) -> None:
    write(tmp_path, shards(2)[:1], index={HF_INDEX: shards(2)})
    second = tmp_path / shards(2)[1]
    if way == "directory":
        second.mkdir()
        (tmp_path / "tokenizer.json").mkdir()  # named by nobody
        reason = "expected a file, found a directory"
    elif way == "loop":
        second.symlink_to(second.name)
        reason = LOOP
    elif way == "device":
        os.mknod(second, 0o020666, os.makedev(1, 5))
        reason = "expected a file, found a character device"
    else:
        reason = FIFO
        os.mkfifo(second if way == "FIFO" else tmp_path / "pipe")
        if way != "FIFO":
            second.symlink_to("pipe")
    with within(20):
        message = refusal(tmp_path).message
    assert message == (
        f"{tmp_path}: expected a complete checkpoint, found 1 file missing or cut short: "
        f"{second.name} ({reason})"
    )
    with within(20):
        allowed = resolved(tmp_path, allow_incomplete=True)
    assert names(allowed, tmp_path, weight=True) == shards(2)[:1]


def test_nothing_but_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with within(20):
        message = refusal(tmp_path).message
    assert message == (
        f"{tmp_path}: expected readable weight files, found none: "
        f"{tmp_path}/model.safetensors: left out: {FIFO}"
    )


# Permissions


def resolved_by_nobody(path: Path) -> dict[str, list[str]]:
    """Return what a user who owns nothing finds, or the error."""
    imports = """if True:
        import json
        from prefetch_cli.base.errors import CheckpointError
        from tests.unit.checkpoint.test_resolve import resolved
    """
    code = """
        try:
            found = resolved(sys.argv[1])
        except CheckpointError as error:
            print(json.dumps({"error": [error.message, error.hint]}))
        else:
            files = [os.path.basename(file.path) for file in found.files]
            failed = [f"{one.path}: {one.reason}" for one in found.failed]
            print(json.dumps({"files": files, "failed": failed, "warnings": found.warnings}))
    """
    found: dict[str, list[str]] = json.loads(as_nobody(imports, code, path))
    return found


@needs_root
def test_an_unlistable_directory(public: Path) -> None:
    folder = write(public / "model", ["model.safetensors"])
    folder.chmod(0o711)
    message, _ = resolved_by_nobody(folder)["error"]
    assert message == (
        f"{folder}: expected a directory that can be listed, found: Permission denied"
    )
    # Naming its files still works.
    assert resolved_by_nobody(folder / "model.safetensors")["files"] == ["model.safetensors"]
    folder.chmod(0)
    message, _ = resolved_by_nobody(folder / "model.safetensors")["error"]
    assert message.endswith("expected a checkpoint, found: Permission denied")


@needs_root
def test_an_unreadable_shard_is_left_to_the_reader(public: Path) -> None:
    write(public, shards(2), index={HF_INDEX: shards(2)})
    (public / shards(2)[1]).chmod(0)
    found = resolved_by_nobody(public)
    assert found == {"files": [HF_INDEX, *shards(2)], "failed": [], "warnings": []}


@needs_root
def test_an_unreadable_index(public: Path) -> None:
    write(public, shards(2), index={HF_INDEX: shards(2)})
    (public / HF_INDEX).chmod(0)
    message, hint = resolved_by_nobody(public)["error"]
    assert message == (f"{public}/{HF_INDEX}: expected a readable file, found: Permission denied")
    assert hint == "check its permissions"


@needs_root
def test_unreachable_files_have_failed(public: Path) -> None:
    closed = write(public / "store", shards(2)[1:])
    write(public, shards(2)[:1])
    (public / shards(2)[1]).symlink_to(closed / shards(2)[1])
    closed.chmod(0)
    found = resolved_by_nobody(public)
    assert found["files"] == shards(2)[:1]
    assert found["failed"] == [f"{public}/{shards(2)[1]}: Permission denied"]


def test_failures_are_kept_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, shards(2))
    real_stat = os.stat

    def stat(path: str, **options: object) -> os.stat_result:
        if str(path).endswith(shards(2)[1]):
            raise OSError(5, "Input/output error")
        return real_stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    found = resolved(tmp_path)
    assert names(found, tmp_path) == shards(2)[:1]
    failed = Skipped(str(tmp_path / shards(2)[1]), "Input/output error", failed=True)
    assert found.failed == (failed,)


# Arguments that are no checkpoint


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "https", "S3", "file", "runai+s3"])
def test_a_uri(scheme: str) -> None:
    error = refusal(f"{scheme}://bucket/model")
    assert error.message == (
        f"{scheme}://bucket/model: expected a path or a repo id, found an object store's URI"
    )


@pytest.mark.parametrize(
    "argument",
    [
        *("/nonexistent/model", "./nonexistent", "../nonexistent", "a/b/c", "", "x" * 5000),
        *("nul\0byte", "\ud800", "with space", "/etc/passwd/x", "a\nb"),
    ],
)
def test_a_path_that_does_not_exist(argument: str) -> None:
    message = refusal(argument).message
    assert message.startswith(f"{printable(argument) if argument else repr(argument)}: expected ")
    assert message.endswith("found no such path")


def test_a_directory_that_was_removed_below_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for argument in (".", "..", "./x"):
        refusal(argument)


def test_an_empty_directory(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path).message == f"{tmp_path}: expected a checkpoint, found an empty directory"
    )


def test_a_directory_without_weights(tmp_path: Path) -> None:
    write(tmp_path, ["config.json", "README.md", "deep/model.safetensors"])
    assert refusal(tmp_path).message == (
        f"{tmp_path}: expected weight files for --load-format auto, found 1 .md, 1 .json "
        "and 1 folder"
    )
    write(tmp_path, ["a.pth"])
    error = refusal(tmp_path, load_format=LoadFormat.PT)
    assert error.message.endswith("for --load-format pt, found a.pth")
    assert error.hint is not None
    assert "--load-format all" in error.hint
    write(tmp_path, ["model.safetensors"])
    assert "found a.pth, model.safetensors" in refusal(tmp_path, include=("*.bin",)).message


def test_the_folder_of_a_repo_in_a_cache(tmp_path: Path) -> None:
    repo = cached(tmp_path, ["model.safetensors"]).parents[1]
    error = refusal(repo)
    assert "found no files and 3 folders" in error.message
    assert error.hint is not None
    assert "give its repo id" in error.hint


def test_a_link_to_nothing_and_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("none")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "dangling").message.endswith("found: a symbolic link to nothing")
    for argument in ("loop", "loop/x", "loop/../loop"):
        message = refusal(f"{tmp_path}/{argument}").message
        assert message.endswith("found: a symbolic link that leads to itself")


def test_an_argument_of_another_file_type(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / HF_INDEX)
    with within(20):
        for name in ("model.safetensors", HF_INDEX):
            message = refusal(tmp_path / name).message
            assert message.endswith("expected a file or a directory, found a FIFO")
    assert refusal("/dev/zero").message.endswith("found a character device")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "expected JSON, found none"),
        ("", "expected JSON, found none"),
        ("{}", "expected an object weight_map that names the shards, found none"),
        ('{"weight_map": ["a"]}', "expected an object weight_map"),
        ('{"weight_map": {"a": "../../etc/x"}}', "inside the checkpoint, found '../../etc/x'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "inside the checkpoint, found '/etc/passwd'"),
        ('{"weight_map": {"a": 1}}', "inside the checkpoint, found a number"),
        ('{"weight_map": {"a": "b\\u0000"}}', r"inside the checkpoint, found 'b\x00'"),
        ('{"weight_map": {"a": "\\ud800"}}', r"inside the checkpoint, found '\ud800'"),
        ("[" * 100_000, "found JSON far too large or nested"),
    ],
)
@pytest.mark.parametrize("allow_incomplete", [True, False])
def test_a_malformed_index(
    tmp_path: Path, content: str, message: str, allow_incomplete: bool
) -> None:
    write(tmp_path, shards(2))
    (tmp_path / HF_INDEX).write_text(content)
    for argument in (tmp_path, tmp_path / HF_INDEX):
        error = refusal(argument, allow_incomplete=allow_incomplete)
        assert error.message.startswith(f"{tmp_path}/{HF_INDEX}: ")
        assert message in error.message


def test_an_endless_index_is_read_to_its_bound(tmp_path: Path) -> None:
    write(tmp_path, shards(2))
    (tmp_path / HF_INDEX).touch()
    os.truncate(tmp_path / HF_INDEX, 1 << 40)
    assert "found JSON far too large" in refusal(tmp_path).message


def test_an_index_with_impossible_names(tmp_path: Path) -> None:
    named = ["config.json/x.safetensors", "y" * 300, "z/" * 3000 + "z", "\udcff.safetensors"]
    write(tmp_path, ["config.json", "a.safetensors"], index={HF_INDEX: ["a.safetensors", *named]})
    assert "found 4 files missing or cut short" in refusal(tmp_path).message


# Repo ids


def cached(cache: Path, files: Sequence[str]) -> Path:
    """Write a snapshot as huggingface_hub does: links into a folder of blobs."""
    repo = cache / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(files):
        blob = repo / "blobs" / f"{number:064x}"
        blob.write_bytes(SHARD if name.endswith(".safetensors") else b"{}")
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_repo_id(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, ["config.json", *shards(2)])
    found = resolved("org/name", cache_dir=tmp_path)
    assert found.sources == (
        Source("org/name", "huggingface", str(snapshot), COMMIT, LoadFormat.HF, Server.VLLM),
    )
    assert names(found, snapshot) == ["config.json", *shards(2)]
    assert {os.path.dirname(file.real_path) for file in found.files} == {
        str(snapshot.parents[1] / "blobs")
    }


def test_an_incomplete_snapshot(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, shards(3))
    blobs = snapshot.parents[1] / "blobs"
    os.rename(blobs / f"{1:064x}", blobs / f"{1:064x}.incomplete")
    (snapshot / shards(3)[2]).unlink()
    message = refusal("org/name", cache_dir=tmp_path).message
    assert message == (
        "org/name: expected a complete checkpoint, found 2 files missing or cut short: "
        f"{shards(3)[1]} (its download has not ended), {shards(3)[2]} (not there)"
    )


def test_a_path_wins_over_a_repo_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path / "cache", ["model.safetensors"])
    write(tmp_path / "org" / "name", ["m.gguf"])
    monkeypatch.chdir(tmp_path)
    assert resolved("org/name", cache_dir=tmp_path / "cache").sources[0].kind == "directory"
    shutil.rmtree(tmp_path / "org")
    assert resolved("org/name", cache_dir=tmp_path / "cache").sources[0].kind == "huggingface"


def test_a_modelscope_id(tmp_path: Path) -> None:
    folder = write(tmp_path / "models" / "org" / "name", ["model.safetensors", ".mdl"])
    found = resolved("org/name", cache_dir=tmp_path, hub=Hub.MODELSCOPE)
    source = Source("org/name", "modelscope", str(folder), None, LoadFormat.HF, Server.VLLM)
    assert found.sources == (source,)


def test_a_repo_that_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        resolved("org/name", cache_dir=tmp_path)


# Many files, and threads


def test_many_files_cost_a_few_calls_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is linear: no path is examined again because of another."""
    calls: dict[str, int] = {}
    count = 2_000

    def counting(name: str) -> None:
        real = getattr(os, name)

        def counted(*arguments: object, **options: object) -> object:
            calls[name] = calls.get(name, 0) + 1
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, counted)

    write(tmp_path, shards(count), index={HF_INDEX: shards(count)})
    for name in ("stat", "lstat", "open", "pread", "fstat", "readlink", "scandir"):
        counting(name)
    assert len(resolved(tmp_path).files) == count + 1
    few = 20
    assert calls["open"] <= count + few
    assert calls["pread"] <= count + few
    assert calls["stat"] <= count + few
    assert calls["lstat"] <= count + few
    assert calls["scandir"] == 1
    assert calls.get("readlink", 0) <= few


def test_no_more_threads_than_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    real = linux_threads.spawn

    def spawn(target: Callable[[], None]) -> linux_threads.Thread:
        nonlocal started
        started += 1
        return real(target)

    monkeypatch.setattr(linux_threads, "spawn", spawn)
    write(tmp_path, shards(30))
    for threads in (1, 2, 64):
        started = 0
        found = resolve(request(tmp_path), {}, Monitor(), threads)
        assert names(found, tmp_path) == shards(30)
        assert started <= (0 if threads == 1 else min(threads, 30))


def test_nothing_stays_open_or_awaited(tmp_path: Path) -> None:
    write(tmp_path, shards(5), index={HF_INDEX: shards(5)})
    monitor = Monitor()
    before = os.listdir("/proc/self/fd")
    resolve(request(tmp_path), {}, monitor, threads=4)
    with contextlib.suppress(CheckpointError):
        resolve(request(tmp_path, tmp_path / "none"), {}, monitor, threads=4)
    assert os.listdir("/proc/self/fd") == before
    assert monitor.snapshot().longest_wait is None


def test_nothing_is_written_to_a_checkpoint(tmp_path: Path) -> None:
    diffusers(tmp_path)

    def state() -> list[tuple[str, int, int]]:
        paths = itertools.chain([tmp_path], sorted(tmp_path.rglob("*")))
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in paths]

    before = state()
    resolved(tmp_path)
    assert state() == before
