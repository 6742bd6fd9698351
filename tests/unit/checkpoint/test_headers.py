"""What weight files lack by their own headers: files of the formats' own libraries, cut short."""

import io
import os
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prefetch_cli.checkpoint import headers
from prefetch_cli.checkpoint.examine import examine, gguf_type, is_gguf
from prefetch_cli.checkpoint.files import File, Incomplete
from tests.helpers import gguf_files
from tests.helpers.command import run

KIB = 1024


def reason(path: Path) -> str | None:
    """Return what is missing of a weight file, None where it is whole."""
    found = examine(str(path), weight=True)
    assert isinstance(found, (File, Incomplete))
    return found.reason if isinstance(found, Incomplete) else None


def write_gguf(
    path: Path, *, texts: int = 3, alignment: int | None = None, quantized: bool = False
) -> Path:
    """Write a GGUF file with a vocabulary of so many texts and two tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("a model")
    writer.add_context_length(4096)
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(texts)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * texts)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((33, 7), dtype=np.float16))
    if quantized:
        block = np.zeros((4, 34 * 2), dtype=np.uint8)
        writer.add_tensor("blk.0.ffn_up.weight", block, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor("blk.0.ffn_up.weight", np.ones((5, 11), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unpadded_end(path: Path) -> int:
    """Return where the last tensor ends, by gguf's own reader."""
    reader = gguf.GGUFReader(str(path))
    return max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("alignment", [None, 64])
@pytest.mark.parametrize("texts", [1, 40_000])
def test_a_gguf_lacks_what_its_tensors_need(
    tmp_path: Path, texts: int, alignment: int | None, quantized: bool
) -> None:
    path = write_gguf(tmp_path / "m.gguf", texts=texts, alignment=alignment, quantized=quantized)
    assert reason(path) is None
    end = unpadded_end(path)
    os.truncate(path, end)
    assert reason(path) is None  # the padding behind the last tensor is nobody's
    os.truncate(path, end - 1)
    found = reason(path)
    assert found is not None
    assert f"({end:,} bytes), it has" in found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_gguf_that_is_cut_anywhere_is_incomplete(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write_gguf(tmp_path_factory.getbasetemp() / "any.gguf", texts=200)
    os.truncate(path, data.draw(st.integers(4, unpadded_end(path) - 1)))
    assert reason(path) is not None


@pytest.mark.parametrize("name", ["sha256-0123", "m", "m.bin", "m.safetensors", "m.gguf.old"])
def test_what_begins_with_gguf_is_one_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / name)
    assert is_gguf(str(path))
    end = unpadded_end(path)
    os.truncate(path, end)
    assert reason(path) is None
    os.truncate(path, end - 1)
    assert "its header promises" in (reason(path) or "")


def test_what_is_no_gguf_or_cannot_be_read_is_none(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", b"GGU"), ("c", b" GGUF")):
        (tmp_path / name).write_bytes(content)
        assert not is_gguf(str(tmp_path / name))
    assert not is_gguf(str(tmp_path))
    assert not is_gguf(str(tmp_path / "absent"))


def test_the_sizes_of_blocks_are_those_of_gguf() -> None:
    known = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert headers._BLOCKS.items() <= known.items()


def test_a_tensor_of_an_unknown_type_counts_from_its_offset(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    name = b"t"
    table = struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 64, 999, 4096)
    path = tmp_path / "m.gguf"
    path.write_bytes((head + table).ljust(64, b"\0") + bytes(4096))
    assert reason(path) is None
    os.truncate(path, 64 + 4095)
    assert reason(path) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"GGU",
        b"GGUF" + struct.pack("<I", 1) + bytes(100),
        b"GGUF" + struct.pack(">I", 3) + bytes(100),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + b"\xff" * 4,
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(100),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(100),
    ],
)
def test_what_is_no_gguf_of_a_model_promises_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert reason(path) is None


def test_a_hostile_gguf_ends_soon(tmp_path: Path) -> None:
    """Texts of no length, as many as 64 bits can say, in a file that never ends."""
    text_array = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**62)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text_array)
    os.truncate(path, 1 << 40)
    assert reason(path) is None


def test_texts_far_apart_do_not_cost_a_read_each() -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    head += struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 3_000_000)
    reads = 0

    def read(_offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return struct.pack("<Q", 200_000) * (length // 8)  # each text ends behind this chunk

    first = head.ljust(4096, b"\x01")
    assert headers.what_is_missing("m.gguf", 1 << 60, first, read) is None
    assert reads <= 1_000
    assert headers.gguf_type(first, read) is None
    assert reads <= 2_000


@pytest.mark.parametrize("kind", ["model", "mmproj", "adapter", "imatrix", "another"])
@pytest.mark.parametrize("texts", [1, 40_000])
def test_the_type_of_a_gguf(tmp_path: Path, kind: str, texts: int) -> None:
    path = gguf_files.write_gguf(tmp_path / "m", kind, texts=texts)
    assert gguf_type(str(path)) == kind


def test_the_type_is_not_looked_for_behind_a_vocabulary(tmp_path: Path) -> None:
    path = gguf_files.write_gguf(tmp_path / "m", None, texts=40_000)

    def read(offset: int, _length: int) -> bytes:
        raise AssertionError(offset)

    assert headers.gguf_type(path.read_bytes()[:4096], read) is None


def test_a_gguf_without_a_type(tmp_path: Path) -> None:
    old = gguf_files.write_gguf(tmp_path / "m", None)
    clip = gguf_files.write_gguf(tmp_path / "c", None, architecture="clip")
    typed = gguf_files.write_gguf(tmp_path / "t", "model", architecture="clip")
    assert [gguf_type(str(path)) for path in (old, clip, typed)] == [None, "mmproj", "model"]
    for content in (b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 0, 9), b"{}", bytes(9000)):
        old.write_bytes(content)
        assert gguf_type(str(old)) is None
    assert gguf_type(str(tmp_path)) is None
    assert gguf_type(str(tmp_path / "none")) is None


@pytest.mark.parametrize("name", ["m.safetensors", "m.gguf", "m.bin", "m.pt", "m.pth"])
def test_an_empty_weight_file_is_incomplete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert reason(path) == "it is empty"


@pytest.mark.parametrize("name", ["m.safetensors", "m.gguf"])
def test_reserved_space_is_incomplete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    os.truncate(path, 4_000_000)
    assert reason(path) == "it begins with zeros, as where a download has only reserved its space"


def test_a_safetensors_file_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for size in range(1, 10):
        path.write_bytes(b"\x02" + bytes(size - 1))
        assert "its header promises 10 bytes" in str(reason(path))
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert reason(path) is None
    save_file({"w": np.zeros(100, dtype=np.uint8)}, str(path))
    assert reason(path) is None
    os.truncate(path, path.stat().st_size - 1)
    assert "its header promises" in str(reason(path))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
@pytest.mark.parametrize("comment", [b"", b"c" * 65_535])
def test_a_zip_file_needs_its_end(tmp_path: Path, suffix: str, comment: bytes) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(200 * KIB))
        archive.comment = comment
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content.getvalue())
    assert reason(path) is None
    os.truncate(path, path.stat().st_size - len(comment) - 22)
    assert reason(path) == "it is a zip file without its end"
    path.write_bytes(b"\x80\x02}q\x00.")  # a pickle, as torch.save wrote before 1.6
    assert reason(path) is None


def test_an_incomplete_file_ends_the_run(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    os.truncate(path, path.stat().st_size // 2)
    done = run("--json", str(path))
    assert done.code == 3, done
    assert "1 file missing or cut short" in done.document["error"]["message"]
    assert run("--dry-run", "--allow-incomplete", str(path)).code == 0
