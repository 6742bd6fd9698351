"""Which files each server reads, where servers differ, and what a user is told of the rest."""

import json
import os
from pathlib import Path

import pytest

from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import surroundings
from prefetch_cli.checkpoint.config import parse_config
from prefetch_cli.checkpoint.resolve import Checkpoint
from prefetch_cli.checkpoint.servers import rules_of
from tests.unit.checkpoint.test_resolve import names, refusal, resolved, shards, write

HF_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
PYTHON_SERVERS = (Server.SGLANG, Server.TENSORRT_LLM, Server.TRANSFORMERS)


def read_by(folder: Path, server: Server, **options: object) -> list[str]:
    return names(resolved(folder, server=server, **options), folder, weight=True)


def config(folder: Path, **values: object) -> None:
    (folder / "config.json").write_text(json.dumps(values))


# Two sets side by side


@pytest.mark.parametrize(
    ("others", "index"),
    [(["model.safetensors"], {}), (shards(2), {HF_INDEX: shards(2)})],
)
def test_mistrals_own_copy_is_read_by_vllm_only(
    tmp_path: Path, others: list[str], index: dict[str, list[str]]
) -> None:
    write(tmp_path, ["consolidated.safetensors", *others, "params.json"], index=index)
    assert read_by(tmp_path, Server.VLLM) == ["consolidated.safetensors"]
    for server in PYTHON_SERVERS:
        assert read_by(tmp_path, server) == others


@pytest.mark.parametrize("server", [Server.VLLM, *PYTHON_SERVERS])
def test_it_is_read_where_nothing_else_is(tmp_path: Path, server: Server) -> None:
    write(tmp_path, ["consolidated.safetensors", "params.json", "adapter.bin"])
    assert read_by(tmp_path, server) == ["consolidated.safetensors"]


def test_without_a_known_server_one_line_says_which_was_taken(tmp_path: Path) -> None:
    write(tmp_path, ["consolidated.safetensors", "model.safetensors", "config.json"])
    found = resolved(tmp_path)
    assert names(found, tmp_path, weight=True) == ["consolidated.safetensors"]
    (line,) = found.warnings
    assert line == (
        f"{tmp_path}: weights lie there twice: took consolidated.safetensors, as vllm; "
        "model.safetensors with --server sglang or tensorrt-llm or transformers"
    )
    for server in (Server.VLLM, *PYTHON_SERVERS):
        assert resolved(tmp_path, server=server).warnings == ()
    assert resolved(tmp_path, load_format=LoadFormat.MISTRAL).warnings == ()


@pytest.mark.parametrize(
    "others",
    [
        ["pytorch_model.bin"],  # left out by all
        ["adapter.safetensors"],  # read by vLLM, not by all: nothing is missing
        ["model.fp16.gguf", "training_args.bin"],
    ],
)
def test_what_no_server_reads_is_no_second_set(tmp_path: Path, others: list[str]) -> None:
    write(tmp_path, ["model.safetensors", *others, "config.json"])
    assert resolved(tmp_path).warnings == ()


# What a single server does


def test_sglang_opens_in_plain_order(tmp_path: Path) -> None:
    numbered = [f"model-{number}-of-12.safetensors" for number in range(1, 13)]
    write(tmp_path, numbered)
    assert read_by(tmp_path, Server.SGLANG) == sorted(numbered)
    assert read_by(tmp_path, Server.VLLM) == numbered


@pytest.mark.parametrize("architecture", ["Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLMNextN"])
def test_sglang_adds_the_mtp_layers_that_the_index_forgot(
    tmp_path: Path, architecture: str
) -> None:
    write(tmp_path, [*shards(2), "mtp.safetensors"], index={HF_INDEX: shards(2)})
    config(tmp_path, architectures=[architecture], num_nextn_predict_layers=1)
    assert read_by(tmp_path, Server.SGLANG) == [*shards(2), "mtp.safetensors"]
    for server in (Server.VLLM, Server.TRANSFORMERS):
        assert read_by(tmp_path, server) == shards(2)
    config(tmp_path, architectures=[architecture], num_nextn_predict_layers=0)
    assert read_by(tmp_path, Server.SGLANG) == shards(2)
    config(tmp_path, architectures=["LlamaForCausalLM"], num_nextn_predict_layers=1)
    assert read_by(tmp_path, Server.SGLANG) == shards(2)


def test_transformers_prefers_the_whole_file_to_its_index(tmp_path: Path) -> None:
    write(
        tmp_path,
        ["model.safetensors", "pytorch_model.bin", "extra.safetensors"],
        index={HF_INDEX: shards(2), BIN_INDEX: shards(2, "pytorch_model-", ".bin")},
    )
    assert read_by(tmp_path, Server.TRANSFORMERS) == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert "2 files missing" in refusal(tmp_path, server=Server.TRANSFORMERS).message
    (tmp_path / HF_INDEX).unlink()
    assert read_by(tmp_path, Server.TRANSFORMERS) == ["pytorch_model.bin"]


def test_transformers_reads_what_config_json_names(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors", "other.safetensors", *shards(2)])
    config(tmp_path, transformers_weights="other.safetensors")
    assert read_by(tmp_path, Server.TRANSFORMERS) == ["other.safetensors"]
    (tmp_path / "b.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": shards(2)[0], "v": shards(2)[1]}})
    )
    config(tmp_path, transformers_weights="b.safetensors.index.json")
    assert read_by(tmp_path, Server.TRANSFORMERS) == shards(2)
    config(tmp_path, transformers_weights="../other.safetensors")
    assert read_by(tmp_path, Server.TRANSFORMERS) == ["model.safetensors"]


def test_a_stale_index_of_bin_files_is_ignored_where_the_file_is_whole(tmp_path: Path) -> None:
    absent = shards(2, "pytorch_model-", ".bin")
    write(tmp_path, ["pytorch_model.bin"], index={BIN_INDEX: absent})
    for server in (Server.VLLM, *PYTHON_SERVERS):
        assert read_by(tmp_path, server) == ["pytorch_model.bin"]


def test_tensorrt_llm_reads_pth_but_no_pt(tmp_path: Path) -> None:
    write(tmp_path, ["a.pt", "b.pth"])
    assert read_by(tmp_path, Server.TENSORRT_LLM) == ["b.pth"]


def test_tgi_leaves_out_adapters_and_arguments(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors", "adapter_model.safetensors", "training.safetensors"])
    assert read_by(tmp_path, Server.TGI) == ["model.safetensors"]


# Extra weights of some architectures


def test_vllm_reads_the_audio_tower_of_kimi_audio(tmp_path: Path) -> None:
    write(tmp_path, shards(1), index={HF_INDEX: shards(1)})
    write(tmp_path / "whisper-large-v3", ["model.safetensors", "config.json"])
    write(tmp_path / "vocoder", ["model.pt"])
    config(tmp_path, architectures=["MoonshotKimiaForCausalLM"])
    found = resolved(tmp_path, server=Server.VLLM)
    assert names(found, tmp_path, weight=True) == [
        shards(1)[0],
        "whisper-large-v3/model.safetensors",
    ]
    (line,) = found.warnings
    assert "left out 1 weight file" in line
    assert "in vocoder/, which nothing names for vllm" in line
    config(tmp_path, architectures=["LlamaForCausalLM"])
    assert read_by(tmp_path, Server.VLLM) == shards(1)


@pytest.mark.parametrize(
    ("architecture", "heads"),
    [
        ("BgeM3EmbeddingModel", ["sparse_linear.pt", "colbert_linear.pt"]),
        ("D3ForSequenceClassification", ["readout.safetensors"]),
        ("ClefFlashForJointSchema", ["joint_head.safetensors"]),
    ],
)
def test_vllm_reads_small_heads_behind_the_weights(
    tmp_path: Path, architecture: str, heads: list[str]
) -> None:
    write(tmp_path, [*shards(2), *heads], index={HF_INDEX: shards(2)})
    config(tmp_path, architectures=[architecture])
    assert read_by(tmp_path, Server.VLLM) == [*shards(2), *heads]
    assert read_by(tmp_path, Server.TRANSFORMERS) == shards(2)
    # They do not stand alone.
    options = {"server": Server.VLLM, "load_format": LoadFormat.MISTRAL}
    assert "expected weight files" in refusal(tmp_path, **options).message


def test_vllm_reads_two_folders_of_cosmos_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    write(tmp_path / "transformer", shards(2))
    write(tmp_path / "vision_encoder", ["model.safetensors"])
    write(tmp_path / "vae", ["model.safetensors"])
    config(tmp_path, architectures=["Cosmos3ForConditionalGeneration"])
    expected = [f"transformer/{name}" for name in shards(2)]
    assert read_by(tmp_path, Server.VLLM) == [*expected, "vision_encoder/model.safetensors"]


def test_other_repos_that_the_config_names_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    config(tmp_path, text_model_id="meta/Llama", audio_model_id=None)
    (line,) = resolved(tmp_path, server=Server.VLLM).warnings
    assert "names meta/Llama, which the server loads too" in line
    assert resolved(tmp_path, server=Server.SGLANG).warnings == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"architectures": 3}', b'{"architectures": [1, null]}', b"[" * 100_000,
     b'{"num_nextn_predict_layers": "many"}', b'{"transformers_weights": ["x"]}', b"\xff\xfe"],
)  # fmt: skip
def test_a_config_that_cannot_be_used_says_nothing(content: bytes) -> None:
    found = parse_config(content)
    assert (found.architectures, found.next_layers, found.weights) == ((), 0, None)


# Formats


@pytest.mark.parametrize("server", [Server.VLLM, Server.SGLANG])
def test_npcache_reads_the_arrays_that_it_has_made(tmp_path: Path, server: Server) -> None:
    write(tmp_path, ["a.bin", "b.bin", "optimizer.bin"])
    write(tmp_path / "np", ["layer.10", "layer.2", "left"])
    options = {"server": server, "load_format": LoadFormat.NPCACHE}
    assert names(resolved(tmp_path, **options), tmp_path, weight=True) == ["a.bin", "b.bin"]
    (tmp_path / "np" / "weight_names.json").write_text('["layer.10", "layer.2"]')
    found = names(resolved(tmp_path, **options), tmp_path, weight=True)
    assert found == ["np/layer.10", "np/layer.2"]
    for hostile in ('["../../etc/passwd"]', "{", "[1]"):
        (tmp_path / "np" / "weight_names.json").write_text(hostile)
        assert "np/weight_names.json: expected " in refusal(tmp_path, **options).message
    assert names(resolved(tmp_path, server=server), tmp_path, weight=True) == ["a.bin", "b.bin"]


def test_sharded_state_needs_a_file_of_each_rank_whatever_an_index_says(tmp_path: Path) -> None:
    name = "model-rank-{}-part-{}.safetensors"
    files = [name.format(rank, part) for rank in (0, 1, 10) for part in (0, 1)]
    write(tmp_path, files, index={HF_INDEX: shards(2)})
    message = refusal(tmp_path, load_format=LoadFormat.SHARDED_STATE).message
    assert "found 8 files missing" in message
    for rank in range(2, 10):
        write(tmp_path, [name.format(rank, 0)])
    expected = [name.format(rank, part) for rank in (0, 1) for part in (0, 1)]
    expected += [name.format(rank, 0) for rank in range(2, 10)]
    expected += [name.format(10, part) for part in (0, 1)]
    assert read_by(tmp_path, Server.VLLM, load_format=LoadFormat.SHARDED_STATE) == expected


def test_sharded_state_in_stages_needs_each_rank_of_each_stage(tmp_path: Path) -> None:
    name = "model-pp-{}-tp-{}-part-0.safetensors"
    write(tmp_path, [name.format(0, rank) for rank in (0, 1)])
    # A single stage would have the other names.
    message = refusal(tmp_path, load_format=LoadFormat.SHARDED_STATE).message
    assert f"{name.format(1, 0)} (not there), {name.format(1, 1)} (not there)" in message
    write(tmp_path, [name.format(1, 1)])
    message = refusal(tmp_path, load_format=LoadFormat.SHARDED_STATE).message
    assert "found 1 file missing" in message
    write(tmp_path, [name.format(1, 0)])
    found = read_by(tmp_path, Server.VLLM, load_format=LoadFormat.SHARDED_STATE)
    assert found == [name.format(stage, rank) for stage in (0, 1) for rank in (0, 1)]


@pytest.mark.parametrize("load_format", [LoadFormat.DUMMY, LoadFormat.IPC_CACHE])
def test_a_format_without_weights_reads_config_and_tokenizer(
    tmp_path: Path, load_format: LoadFormat
) -> None:
    write(tmp_path, ["model.safetensors", "config.json", "tokenizer.json"])
    found = resolved(tmp_path, load_format=load_format)
    assert names(found, tmp_path) == ["config.json", "tokenizer.json"]
    assert "reads no weights" in found.warnings[0]


@pytest.mark.parametrize(
    ("load_format", "taken"),
    [
        (LoadFormat.FASTSAFETENSORS, shards(2)),
        (LoadFormat.INSTANTTENSOR, shards(2)),
        (LoadFormat.RUNAI_STREAMER, ["extra.safetensors", *shards(2)]),
        (LoadFormat.MODELEXPRESS, shards(2)),
        (LoadFormat.BITSANDBYTES, shards(2)),
        (LoadFormat.TENSORIZER, ["model.tensors"]),
    ],
)
def test_the_other_formats_of_vllm(
    tmp_path: Path, load_format: LoadFormat, taken: list[str]
) -> None:
    write(tmp_path, [*shards(2), "extra.safetensors", "model.tensors"], index={HF_INDEX: shards(2)})
    found = resolved(tmp_path, load_format=load_format)
    assert names(found, tmp_path, weight=True) == taken
    past = load_format not in {LoadFormat.BITSANDBYTES, LoadFormat.TENSORIZER}
    assert any("past the page cache" in line for line in found.warnings) is past


def test_all_is_every_file_below(tmp_path: Path) -> None:
    write(tmp_path, ["a-10.bin", "a-2.bin", "optimizer.pt", ".hidden", "config.json", "x"])
    write(tmp_path / "deep" / "er", ["w-2.onnx_data", "w-10.onnx_data"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    found = resolved(tmp_path, load_format=LoadFormat.ALL)
    assert names(found, tmp_path) == [
        *("config.json", ".hidden", "a-2.bin", "a-10.bin", "deep/er/w-2.onnx_data"),
        *("deep/er/w-10.onnx_data", "optimizer.pt", "x"),
    ]
    assert found.warnings == (f"{tmp_path}/pipe: left out: expected a file, found a FIFO",)
    wanted = resolved(tmp_path, load_format=LoadFormat.ALL, include=("deep/*",))
    assert len(wanted.files) == 2


# Folders that nothing names


def lines(found: Checkpoint, word: str) -> list[str]:
    return [line for line in found.warnings if word in line]


def test_weights_in_folders_that_nothing_names_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    write(tmp_path / "it's here" / "deep", ["model.safetensors", "notes.txt"])
    write(tmp_path / "original", ["consolidated.00.pth"])
    write(tmp_path / ".cache", ["model.safetensors"])
    write(tmp_path / "assets", ["picture.png"])
    (line,) = resolved(tmp_path).warnings
    quoted = f"'{tmp_path}/it'\"'\"'s here'"
    assert line == (
        f"{tmp_path}: left out 2 weight files (182 bytes) in it's here/, original/, which nothing "
        f"names for vllm; --also {quoted} warms the first too"
    )
    assert resolved(tmp_path, exclude=("it's here/*", "original/*")).warnings == ()


def test_the_look_into_folders_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["model.safetensors"])
    for number in range(5):
        write(tmp_path / f"f{number}" / "a" / "b" / "c" / "d", ["deep.bin"])
        write(tmp_path / f"f{number}", ["w.bin"])
    monkeypatch.setattr(surroundings, "_MOST_FOLDERS", 3)
    (line,) = resolved(tmp_path).warnings
    assert "left out at least " in line
    monkeypatch.undo()
    (line,) = resolved(tmp_path).warnings
    assert "left out 5 weight files" in line  # those that lie very deep are not looked for


def test_a_folder_that_cannot_be_listed_makes_it_at_least(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    write(tmp_path / "a", ["w.bin"])
    (tmp_path / "b").mkdir()
    found = surroundings.unread_weights(
        str(tmp_path), ["a", "b", "gone"], lambda _: True, Monitor()
    )
    assert (found.paths, found.whole) == (("a/w.bin",), False)


# Layouts on which the server itself fails


def test_a_nested_consolidated_file_makes_vllm_fail(tmp_path: Path) -> None:
    write(tmp_path, ["model.safetensors"])
    write(tmp_path / "original", ["consolidated.safetensors"])
    (line,) = lines(resolved(tmp_path, server=Server.VLLM), "finds no weights")
    assert "original/consolidated.safetensors" in line
    assert line.endswith("start it with --load-format hf")
    hf = resolved(tmp_path, server=Server.VLLM, load_format=LoadFormat.HF)
    assert lines(hf, "finds no weights") == []
    assert lines(resolved(tmp_path, server=Server.SGLANG), "finds no weights") == []
    write(tmp_path, ["consolidated.safetensors"])
    assert lines(resolved(tmp_path, server=Server.VLLM), "finds no weights") == []


def test_an_index_that_names_folders_makes_vllm_fail(tmp_path: Path) -> None:
    write(tmp_path, [], index={HF_INDEX: ["a/x.safetensors"]})
    write(tmp_path / "a", ["x.safetensors"])
    (line,) = resolved(tmp_path, server=Server.VLLM).warnings
    assert line.startswith("vllm ends on an index that names files in folders: a/x.safetensors")
    assert resolved(tmp_path, server=Server.TRANSFORMERS).warnings == ()


@pytest.mark.parametrize("server", [Server.VLLM, Server.SGLANG])
def test_training_args_beside_a_pt_file_make_a_server_fail(tmp_path: Path, server: Server) -> None:
    write(tmp_path, ["model.pt", "training_args.bin", "config.json"])
    found = resolved(tmp_path, server=server)
    assert names(found, tmp_path, weight=True) == ["model.pt"]
    (line,) = found.warnings
    assert line.endswith("start it with --load-format pt")
    write(tmp_path, ["model.safetensors"])
    assert resolved(tmp_path, server=server).warnings == ()


def test_each_server_has_a_row() -> None:
    for server in set(Server) - {Server.AUTO}:
        assert rules_of(server).server is server
    assert rules_of(Server.AUTO).server is Server.VLLM
