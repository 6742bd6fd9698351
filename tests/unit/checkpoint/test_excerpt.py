"""What is needed of files, beside what their formats' own libraries say lies where."""

import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prefetch_cli.base.errors import CheckpointError, UsageError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.examine import examine
from prefetch_cli.checkpoint.excerpt import Excerpt, excerpt
from prefetch_cli.checkpoint.files import File, Range
from prefetch_cli.checkpoint.placement import Needs, Numbers, Ranks, Span
from tests.helpers import oracle

SECOND_HALF = Needs(stage=Ranks(1, 1, 2))


def needed(
    paths: Sequence[Path], needs: Needs, cut_short: Sequence[Path] = (), **environ: str
) -> tuple[list[File], Excerpt, list[str]]:
    files = []
    for path in paths:
        found = examine(str(path), weight=path.suffix != ".json")
        assert isinstance(found, File)
        files.append(found)
    ended = {str(path) for path in cut_short}
    root = str(paths[0].parent)
    return excerpt(files, ended, root, needs, Server.VLLM, environ, Monitor(), 4)


def within(place: Range, parts: Sequence[Range]) -> bool:
    return any(
        part.offset <= place.offset and sum(place) <= sum(part) for part in parts if part.length
    )


def places(path: Path) -> dict[str, Range]:
    """Return where each tensor lies, by the format's description."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: Range(8 + length + one["data_offsets"][0], int(np.diff(one["data_offsets"])[0]))
        for name, one in header.items()
    }


def model(path: Path, layers: Sequence[int], *, bytes_each: int = 1000) -> Path:
    """Write a safetensors file with these layers, an embedding and a norm."""
    tensors = {"model.embed_tokens.weight": np.ones(77, dtype=np.uint8)}
    for layer in layers:
        for name in ("mlp.up_proj", "self_attn.q_proj"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(bytes_each, dtype=np.uint8)
    tensors["model.norm.weight"] = np.ones(33, dtype=np.uint8)
    save_file(tensors, str(path))
    return path


@pytest.mark.parametrize("touched", [True, False])
def test_the_parts_hold_the_header_and_what_is_needed_and_nothing_else(
    tmp_path: Path, touched: bool
) -> None:
    """And the first byte of what is not, which torch reads of each tensor that a loader gets."""
    paths = [
        model(tmp_path / "a.safetensors", [0, 3, 1]),
        model(tmp_path / "b.safetensors", [2, 10, 4, 11, 5, 6, 7, 8, 9]),
    ]
    files, found, notes = needed(paths, SECOND_HALF._replace(touched=touched))
    assert notes == []
    assert found.layers == Numbers(range(6, 12), 12)
    assert (found.tensors, found.total_tensors) == (12 + 4, 24 + 4)
    assert found.whole_bytes == sum(map(os.path.getsize, paths))
    for path, file in zip(paths, files, strict=True):
        assert file.parts is not None
        meant = 0
        for name, place in places(path).items():
            layer = re.search(r"layers\.(\d+)\.", name)
            wanted = layer is None or int(layer[1]) >= 6
            assert within(place, file.parts) is wanted, name
            assert within(place._replace(length=1), file.parts) is (wanted or touched), name
            meant += place.length if wanted else touched
        header = min(places(path).values()).offset
        assert within(Range(0, header), file.parts)
        assert file.needed_bytes == header + meant
        assert file.size_bytes == os.path.getsize(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_stages_share_what_has_no_layer_and_have_all_bytes_together(
    tmp_path: Path, data: st.DataObject
) -> None:
    layers = data.draw(st.permutations(range(data.draw(st.integers(1, 9)))))
    stages = data.draw(st.integers(1, 4))
    path = model(tmp_path / "m.safetensors", layers, bytes_each=data.draw(st.integers(0, 50)))
    times = np.zeros(os.path.getsize(path), dtype=np.int64)
    for stage in range(stages):
        whose = Needs(stage=Ranks(stage, stage, stages), touched=False)
        ([file], _, _) = needed([path], whose)
        for part in file.ranges:
            times[part.offset : sum(part)] += 1
    for name, place in places(path).items():
        once = times[place.offset : sum(place)]
        assert set(once) <= {1 if "layers" in name else stages}
    assert set(times) <= {1, stages}


def test_a_model_in_two_files_of_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a"] * 1000)
    writer.add_tensor("token_embd.weight", np.ones((7, 32), dtype=np.float32))
    for layer in range(6):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", np.ones((33, 7), dtype=np.float16))
        block = np.zeros((4, 34 * 2), dtype=np.uint8)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"blk.{layer}.ffn_up_exps.weight", block, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ([file], found, notes) = needed([path], Needs(stage=Ranks(2, 2, 3), experts=Ranks(0, 0, 2)))
    assert notes == [f"{tmp_path}: no tensor carries the number of an expert: all experts are read"]
    assert found.layers == Numbers(range(4, 6), 6)
    assert (found.tensors, found.total_tensors) == (5, 13)
    reader = gguf.GGUFReader(str(path))
    for tensor in reader.tensors:
        place = Range(int(tensor.data_offset), int(tensor.n_bytes))
        wanted = not tensor.name.startswith(("blk.0", "blk.1", "blk.2", "blk.3"))
        assert within(place, file.ranges) is wanted, tensor.name
    assert within(Range(0, int(reader.data_offset)), file.ranges)
    assert file.needed_bytes < file.size_bytes


def test_experts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.w1": np.ones(100, dtype=np.uint8)
        for layer in range(2)
        for expert in range(8)
    }
    save_file(tensors, str(path))
    (tmp_path / "config.json").write_text(json.dumps({"num_experts": 8, "num_hidden_layers": 2}))
    ([file], found, _) = needed([path], Needs(experts=Ranks(1, 1, 3)))
    assert found.experts == Numbers(range(3, 6), 8)
    wanted = {name for name, place in places(path).items() if within(place, file.ranges)}
    assert wanted == {name for name in tensors if re.search(r"experts\.[345]\.", name)}
    ([file], found, _) = needed([path], Needs(experts=Span(0, 0), stage=Ranks(0, 0, 2)))
    wanted = {name for name, place in places(path).items() if within(place, file.ranges)}
    assert wanted == {"model.layers.0.mlp.experts.0.w1"}


def test_globs(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", range(3))
    ([file], found, _) = needed([path], Needs(globs=("*.mlp.*", "!*.1.*")))
    wanted = {name for name, place in places(path).items() if within(place, file.ranges)}
    assert wanted == {"model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"}
    assert found.tensors == 2
    with pytest.raises(CheckpointError, match=r"--tensors mlp leave in, found none of 8 tensors"):
        needed([path], Needs(globs=("mlp",)))


def test_files_without_a_table_are_needed_whole_and_that_is_said_once(tmp_path: Path) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "b.pt", tmp_path / "config.json"]
    for path in paths:
        path.write_bytes(b"x" * 100)
    files, found, notes = needed(paths, SECOND_HALF)
    assert [file.parts for file in files] == [None] * 3
    assert (found.tensors, found.total_tensors) == (0, 0)
    assert [note for note in notes if "a.bin, b.pt" in note and "read whole" in note] == notes[1:]
    assert len(notes) == 2
    # And no glob leaves them out: nobody knows what they hold.
    assert needed(paths, Needs(globs=("nothing",)))[0] == files


def test_a_file_that_is_cut_short_is_needed_whole(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", range(4))
    file = File(str(path), str(path), 900, weight=True, device=1, inode=1)
    found = excerpt([file], {str(path)}, "/", SECOND_HALF, None, {}, Monitor(), 1)
    assert found[0] == [file]
    assert [note for note in found[2] if "m.safetensors" in note]


def test_the_variable_of_the_server_counts(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", range(4))
    _, found, _ = needed([path], SECOND_HALF, VLLM_PP_LAYER_PARTITION="1,3")
    assert found.layers == Numbers(range(1, 4), 4)
    with pytest.raises(UsageError, match="expected 2 numbers of layers, 4 in all, found 1,4"):
        needed([path], SECOND_HALF, VLLM_PP_LAYER_PARTITION="1,4")


def test_the_page_cache_is_left_as_it_was(tmp_path: Path) -> None:
    names = {f"model.layers.{number}.{'x' * 90}.weight": (1000,) for number in range(3000)}
    path = tmp_path / "m.safetensors"
    save_file({name: np.ones(size, dtype=np.uint8) for name, size in names.items()}, str(path))
    oracle.make_cold([str(path)])
    before = oracle.resident_bytes([str(path)])
    _, found, _ = needed([path], SECOND_HALF)
    assert found.total_tensors == 3000
    assert oracle.resident_bytes([str(path)]) == before


# Hostile headers


def written(path: Path, header: object, data_bytes: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    return path


def entry(start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "X", "shape": [1], "data_offsets": [start, end]}


HOSTILE = {
    "overlap": {"layers.0.a": entry(0, 8), "layers.1.a": entry(4, 12)},
    "gap": {"layers.0.a": entry(0, 8), "layers.1.a": entry(9, 12)},
    "before": {"layers.0.a": entry(0, 8), "layers.1.a": entry(-8, 12)},
    "beyond": {"layers.0.a": entry(0, 13)},
    "backwards": {"layers.0.a": entry(0, 12), "layers.1.a": entry(12, 8)},
    "2^63": {"layers.0.a": entry(0, 12), "layers.1.a": entry(12, 2**63)},
    "2^64": {"layers.0.a": entry(0, 12), "layers.1.a": entry(12, 2**64 + 12)},
    "float": {"layers.0.a": entry(0, 12.0)},
    "text": {"layers.0.a": entry(0, "12")},
    "list": [1, 2],
    "no JSON": b'{"layers.0.a":',
    "no UTF-8": b'{"\xff": 1}',
    "nested": b'{"a":' + b"[" * 100_000,
    "too many": b"{" + b",".join(b'"%d":{}' % number for number in range(300_000)) + b"}",
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object) -> None:
    path = written(tmp_path / "m.safetensors", header, 12)
    file = File(str(path), str(path), os.path.getsize(path), weight=True, device=1, inode=1)
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(CheckpointError) as caught:
            excerpt([file], (), str(tmp_path), SECOND_HALF, None, {}, Monitor(), 1)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.message.startswith(f"{path}: its header is wrong: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "leave out --tensors, --stage and --experts to read it whole"
    assert taken < 100 * 1024 * 1024
    assert time.monotonic() - began < 20  # traced: five times as long as otherwise


def gguf_with(path: Path, *tensors: tuple[bytes, int, int], count: int | None = None) -> Path:
    """Write a GGUF file with tensors of name, F32 elements and offset, and 1,024 bytes of data."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors) if count is None else count, 0)
    for name, elements, offset in tensors:
        head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, elements, 0, offset)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(1024))
    return path


@pytest.mark.parametrize(
    ("tensors", "count"),
    [
        pytest.param([(b"blk.0.a", 64, 0), (b"blk.1.a", 64, 128)], None, id="overlap"),
        pytest.param([(b"blk.0.a", 64, 0), (b"blk.1.a", 64, 1024)], None, id="beyond"),
        pytest.param([(b"blk.0.a", 64, 2**63)], None, id="2^63"),
        pytest.param([(b"blk.0.a", 2**63, 0)], None, id="as-long"),
        pytest.param([(b"blk.0.a", 64, 2**64 - 4)], None, id="2^64"),
        pytest.param([(b"blk.0.a", 64, 0)], 10**6, id="count"),
        pytest.param([(b"blk.0.a", 64, 0)], 2**64 - 1, id="count-2^64"),
        pytest.param([(b"a" * 70_000, 64, 0)], None, id="name"),
        pytest.param([(b"blk.0.a", 64, 0)] * 3, None, id="same"),
    ],
)
def test_a_table_that_lies_is_refused(
    tmp_path: Path, tensors: list[tuple[bytes, int, int]], count: int | None
) -> None:
    path = gguf_with(tmp_path / "m.gguf", *tensors, count=count)
    file = File(str(path), str(path), os.path.getsize(path), weight=True, device=1, inode=1)
    with pytest.raises(CheckpointError, match="its header is wrong: expected") as caught:
        excerpt([file], (), str(tmp_path), SECOND_HALF, None, {}, Monitor(), 1)
    assert caught.value.message.isprintable()


def test_a_table_that_is_right_is_taken(tmp_path: Path) -> None:
    tensors = [(b"blk.%d.a" % number, 64, 256 * number) for number in range(4)]
    path = gguf_with(tmp_path / "m.gguf", *tensors)
    ([file], found, notes) = needed([path], SECOND_HALF)
    assert (found.tensors, notes) == (2, [])
    header = os.path.getsize(path) - 1024
    assert file.ranges == (Range(0, header), Range(header + 512, 512))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300), suffix=st.sampled_from(["safetensors", "gguf"]))
def test_any_bytes_are_refused_or_lie_within_the_file(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(b"GGUF\3\0\0\0" + content if suffix == "gguf" else content)
    size = os.path.getsize(path)
    file = File(str(path), str(path), size, weight=True, device=1, inode=1)
    try:
        [[found], _, _] = excerpt([file], (), str(tmp_path), SECOND_HALF, None, {}, Monitor(), 1)
    except CheckpointError:
        return
    end = 0
    for part in found.ranges:
        assert part.offset >= end
        assert part.length >= 0
        end = sum(part)
    assert end <= size


def test_forty_thousand_tensors_take_seconds(tmp_path: Path) -> None:
    header = {
        f"model.layers.{number // 640}.mlp.experts.{number // 5 % 128}.w{number % 5}.weight": {
            "dtype": "BF16",
            "shape": [1, 1],
            "data_offsets": [2 * number, 2 * number + 2],
        }
        for number in range(38_400)
    }
    path = written(tmp_path / "m.safetensors", header, 2 * 38_400)
    began = time.monotonic()
    ([file], found, notes) = needed([path], Needs(stage=Ranks(1, 1, 2), experts=Ranks(3, 3, 8)))
    assert time.monotonic() - began < 20
    assert notes == []
    assert found.tensors == 30 * 16 * 5
    # The header, 30 layers, and the first byte of what the others have of these experts.
    assert len(file.ranges) == 1 + 30 + 30 * 16 * 5
