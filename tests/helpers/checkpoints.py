"""Real checkpoints on disk, laid out as on a model hub: shards, index, side files."""

import enum
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

_BLOCK_BYTES = 32 << 20
_ROW_BYTES = 2048  # a row of 1,024 half-precision numbers
_LAYER = (  # a Llama layer's tensors and their relative sizes
    ("self_attn.q_proj.weight", 4),
    ("self_attn.k_proj.weight", 1),
    ("self_attn.v_proj.weight", 1),
    ("self_attn.o_proj.weight", 4),
    ("mlp.gate_proj.weight", 11),
    ("mlp.up_proj.weight", 11),
    ("mlp.down_proj.weight", 11),
)
_DTYPES: dict[str, type[np.generic]] = {"F16": np.float16, "U8": np.uint8}
_SIDE_FILES: dict[str, dict[str, object]] = {
    "config.json": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 1024,
        "vocab_size": 4,
        "torch_dtype": "float16",
    },
    "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False},
    "tokenizer.json": {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "hello": 3},
            "unk_token": "<unk>",
        },
    },
    "tokenizer_config.json": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
}


class Fill(enum.Enum):
    """What a streamed shard holds: random numbers, or a hole that takes no disk space."""

    RANDOM = "random"
    HOLE = "hole"


@dataclass(frozen=True)
class BuiltCheckpoint:
    """A checkpoint on disk: absolute paths, the weight files in load order."""

    directory: str
    weight_files: tuple[str, ...]
    side_files: tuple[str, ...]
    weight_bytes: int  # of the files, headers included
    tensor_bytes: int  # of the tensors alone: the index's total_size

    @property
    def files(self) -> tuple[str, ...]:
        """Every file: weights, then index, configuration and tokenizer."""
        return self.weight_files + self.side_files

    def at(self, directory: str) -> "BuiltCheckpoint":
        """Return the same where another directory shows it."""

        def move(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(
                os.path.join(directory, os.path.relpath(path, self.directory)) for path in paths
            )

        return replace(
            self,
            directory=directory,
            weight_files=move(self.weight_files),
            side_files=move(self.side_files),
        )


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def write_sharded(directory: str, *, shard_bytes: Sequence[int], seed: int = 0) -> BuiltCheckpoint:
    """Return a new checkpoint, written by the safetensors library one shard at a time.

    `shard_bytes` gives the tensor bytes of each shard, at least 1; the header comes on top. One
    shard in full is held in memory. A single shard is `model.safetensors` without an index, as on
    the hub.
    """

    def write(path: str, number: int, tensors: Sequence[_Tensor]) -> None:
        generator = np.random.Generator(np.random.SFC64((seed, number)))
        arrays = {
            tensor.name: _random(generator, tensor.size_bytes)
            .view(_DTYPES[tensor.dtype])
            .reshape(tensor.shape)
            for tensor in tensors
        }
        save_file(arrays, path, metadata={"format": "pt"})
        _sync(path)

    return _write(directory, shard_bytes, write, durable=True)


def write_streamed(
    directory: str,
    *,
    shard_bytes: Sequence[int],
    seed: int = 0,
    fill: Fill = Fill.RANDOM,
    durable: bool = True,
) -> BuiltCheckpoint:
    """Return a new checkpoint like `write_sharded`'s, of any size, in 32 MiB of memory.

    No block repeats, because storage that finds duplicates would read faster. `durable=False` skips
    the fsyncs, for many small files that nobody evicts.
    """

    def write(path: str, number: int, tensors: Sequence[_Tensor]) -> None:
        header = _header(tensors)
        size_bytes = sum(tensor.size_bytes for tensor in tensors)
        with open(path, "wb") as file:
            file.write(header)
            if fill is Fill.HOLE:
                file.truncate(len(header) + size_bytes)
            else:
                generator = np.random.Generator(np.random.SFC64((seed, number)))
                for length in _blocks(size_bytes):
                    file.write(_random(generator, length).data)
        if durable:
            _sync(path)

    return _write(directory, shard_bytes, write, durable=durable)


_WriteShard = Callable[[str, int, Sequence[_Tensor]], None]  # path, number, tensors


def _write(
    directory: str, shard_bytes: Sequence[int], write_shard: _WriteShard, *, durable: bool
) -> BuiltCheckpoint:
    if not shard_bytes or min(shard_bytes) < 1:
        raise ValueError(f"expected shards of at least 1 byte each, found {list(shard_bytes)}")
    directory = os.path.abspath(directory)
    os.makedirs(directory, exist_ok=True)
    count = len(shard_bytes)
    weight_map: dict[str, str] = {}
    weight_files = []
    for number, size_bytes in enumerate(shard_bytes, start=1):
        name = (
            f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        )
        tensors = _layer(number - 1, size_bytes)
        path = os.path.join(directory, name)
        write_shard(path, number, tensors)
        weight_files.append(path)
        weight_map.update((tensor.name, name) for tensor in tensors)
    documents = dict(_SIDE_FILES)
    if count > 1:
        documents["model.safetensors.index.json"] = {
            "metadata": {"total_size": sum(shard_bytes)},
            "weight_map": dict(sorted(weight_map.items())),
        }
    for name, document in documents.items():
        path = os.path.join(directory, name)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
        if durable:
            _sync(path)
    return BuiltCheckpoint(
        directory=directory,
        weight_files=tuple(weight_files),
        side_files=tuple(os.path.join(directory, name) for name in sorted(documents)),
        weight_bytes=sum(os.path.getsize(path) for path in weight_files),
        tensor_bytes=sum(shard_bytes),
    )


def _layer(number: int, size_bytes: int) -> list[_Tensor]:
    """Return one layer's tensors, unequal in size, exactly `size_bytes` in total."""
    prefix = f"model.layers.{number}."
    parts = sum(part for _, part in _LAYER)
    tensors = []
    shape: tuple[int, ...]
    for name, part in _LAYER:
        rows = size_bytes * part // parts // _ROW_BYTES
        if rows:
            shape = (rows, _ROW_BYTES // 2)
            tensors.append(_Tensor(prefix + name, "F16", shape, rows * _ROW_BYTES))
    rest = size_bytes - sum(tensor.size_bytes for tensor in tensors)
    if rest:
        dtype, shape = ("U8", (rest,)) if rest % 2 else ("F16", (rest // 2,))
        tensors.append(_Tensor(prefix + "input_layernorm.weight", dtype, shape, rest))
    return tensors


def _header(tensors: Sequence[_Tensor]) -> bytes:
    """Return the start of a safetensors file: the length of the header, then the header."""
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        document[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _blocks(size_bytes: int) -> Iterator[int]:
    """Yield the lengths of the blocks that make up `size_bytes`."""
    for offset in range(0, size_bytes, _BLOCK_BYTES):
        yield min(_BLOCK_BYTES, size_bytes - offset)


def _random(generator: np.random.Generator, size_bytes: int) -> npt.NDArray[np.uint8]:
    # 64 bits at a time: drawing single bytes takes eight times as long.
    words = generator.integers(0, 2**64 - 1, -(-size_bytes // 8), dtype=np.uint64, endpoint=True)
    return words.view(np.uint8)[:size_bytes]


def _sync(path: str) -> None:
    """Flush a file to disk: dirty pages cannot be evicted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
