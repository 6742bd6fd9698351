"""What a weight file says of its own size, by its header or its end: what a broken download lacks.

Formats: safetensors' own description; the GGUF specification (ggml/docs/gguf.md) with the block
sizes of gguf-py (constants.py, GGML_QUANT_SIZES); the ZIP file format (APPNOTE.TXT, 4.3), which
torch.save writes. Headers are searched or walked rather than parsed, within bounds, so that a
hostile one costs neither memory nor time.
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prefetch_cli.base.amounts import format_size
from prefetch_cli.linux.pagecache import PAGE_BYTES

Read = Callable[[int, int], bytes]  # offset, at the start of a page, and length

_STEP_BYTES = 128 * 1024  # of each thread; most headers are shorter

LENGTH_BYTES = 8  # of the length of a safetensors header
_LEAST_HEADER_BYTES = len("{}")
# safetensors refuses longer headers (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
HEADER_MOST_BYTES = 100_000_000
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*([0-9]{1,20})\s*,\s*([0-9]{1,20})\s*\]')
_OVERLAP_BYTES = 256  # longer than any match of _OFFSETS

GGUF_MAGIC = b"GGUF"
_GGUF_VERSIONS = (2, 3)  # version 1 had 32-bit lengths, and no file of it is left
_GGUF_ALIGNMENT = 32
_MOST_ITEMS = 4_000_000  # keys, texts and tensors: the largest vocabularies have half a million
_MOST_TENSORS = 100_000  # that are kept: the largest models have some 2,000
_NAME_CHARACTERS = 80
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_TEXT, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32 = 4
_TYPE_WITHIN_BYTES = 128 * 1024  # writers put it among the first keys
_MOST_READS = 1_000  # a hostile table may need another one for each of its texts
# ggml type -> elements and bytes of a block. A tensor of another type counts from its offset only.
# fmt: off
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}
# fmt: on

_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_ZIP_TAIL_BYTES = 22 + 65_535  # the end record, with the longest comment


class WrongError(Exception):
    """What is wrong with a header, in words."""


class Tensor(NamedTuple):
    """Where a tensor lies, in bytes; in the header itself, from the start of the data."""

    start: int
    end: int
    name: str


def what_is_missing(path: str, size_bytes: int, first: bytes, read: Read) -> str | None:
    """Return what a weight file lacks, in words, or None where it does not say.

    `first` is its first page. Raises OSError.
    """
    suffix = os.path.splitext(path)[1]
    if first.startswith(GGUF_MAGIC):
        suffix = ".gguf"  # whatever its name: Ollama's and the hubs' blobs have no suffix
    if suffix not in _PROMISES and suffix not in _ZIPPED:
        return None
    if size_bytes == 0:
        return "it is empty"
    if suffix in _ZIPPED:
        return _without_end(size_bytes, first, read)
    if not any(first[:LENGTH_BYTES]):
        return "it begins with zeros, as where a download has only reserved its space"
    promised_bytes = _PROMISES[suffix](first, read)
    if promised_bytes <= size_bytes:
        return None
    return (
        f"its header promises {format_size(promised_bytes)} ({promised_bytes:,} bytes), "
        f"it has {format_size(size_bytes)} ({size_bytes:,} bytes)"
    )


def _safetensors(first: bytes, read: Read) -> int:
    """Return the size that a safetensors file should have by its header.

    The format: the header's length in 8 bytes, little-endian; the header, JSON with the
    `data_offsets` of each tensor; the data. Quotes inside a JSON string are escaped and do not
    match.
    """
    header_bytes = max(int.from_bytes(first[:LENGTH_BYTES], "little"), _LEAST_HEADER_BYTES)
    data_start = LENGTH_BYTES + header_bytes
    if header_bytes > HEADER_MOST_BYTES:
        return data_start
    largest = 0
    kept = b""
    for chunk in _chunks(first, read, data_start):
        text = kept + chunk
        for match in _OFFSETS.finditer(text):
            largest = max(largest, int(match[2]))
        kept = text[-_OVERLAP_BYTES:]
    return data_start + largest


def _chunks(first: bytes, read: Read, end: int) -> Iterator[bytes]:
    """Yield `first`, then what follows it up to `end` or the end of the file."""
    yield first[:end]
    offset = PAGE_BYTES
    while offset < end and (chunk := read(offset, min(_STEP_BYTES, end - offset))):
        yield chunk
        offset += len(chunk)


class _Walk:
    """Walks through the fields of a header: numbers are little-endian, texts have a length."""

    def __init__(self, first: bytes, read: Read) -> None:
        self.offset = 0  # in the file
        self._buffer = first
        self._start = 0  # of the buffer, in the file
        self._read = read
        self._reads = 0
        self._items = 0

    def number(self, size_bytes: int) -> int:
        """Return an unsigned number; raises EOFError where the file ends before."""
        return int.from_bytes(self.take(size_bytes), "little")

    def text(self) -> bytes:
        """Return a short text; raises EOFError, and OverflowError for a long one."""
        length = self.number(8)
        if length > _STEP_BYTES // 2:
            raise OverflowError
        return self.take(length)

    def take(self, size_bytes: int) -> bytes:
        """Return the next bytes, at most half a step; raises EOFError and OverflowError."""
        at = self.offset - self._start
        if not 0 <= at <= len(self._buffer) - size_bytes:
            self._reads += 1
            if self._reads > _MOST_READS:
                raise OverflowError
            self._start = self.offset // PAGE_BYTES * PAGE_BYTES
            self._buffer = self._read(self._start, _STEP_BYTES)
            at = self.offset - self._start
        self.offset += size_bytes
        if at + size_bytes > len(self._buffer):
            raise EOFError
        return self._buffer[at : at + size_bytes]

    def skip_texts(self, count: int) -> None:
        """Pass over so many texts."""
        self.count(count)
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            at = self.offset - self._start
            if 0 <= at <= len(self._buffer) - 8:
                self.offset += 8 + length_of(self._buffer, at)[0]
            else:
                length = self.number(8)
                self.offset += length

    def count(self, items: int) -> None:
        """Note so many more items; raises OverflowError where no model has as many."""
        self._items += items
        if self._items > _MOST_ITEMS or self.offset > HEADER_MOST_BYTES:
            raise OverflowError


def _gguf(first: bytes, read: Read) -> int:
    """Return the size that a GGUF file should have by its table of tensors.

    A header that the file does not hold promises more than the file; one that is larger than that
    of any model, or no GGUF at all, promises nothing.
    """
    walk = _Walk(first, read)
    try:
        count, alignment = _before_table(walk)
        largest = max((_tensor(walk).end for _ in range(count)), default=0)
    except EOFError:
        return walk.offset if first.startswith(GGUF_MAGIC) else 0
    except (OverflowError, KeyError):
        return 0
    return -(-walk.offset // alignment) * alignment + largest


def gguf_tensors(size_bytes: int, first: bytes, read: Read) -> list[Tensor]:
    """Return the tensors of a GGUF file of this size, in their order, from the start of the file.

    Each ends where the next one begins: a type that is not known has no length. Raises WrongError,
    or OSError.
    """
    walk = _Walk(first, read)
    try:
        count, alignment = _before_table(walk)
        if count > _MOST_TENSORS:
            raise OverflowError
        found = sorted(_tensor(walk) for _ in range(count))
    except EOFError:
        raise WrongError("its header is wrong: expected tensors, found its end") from None
    except (OverflowError, KeyError):
        raise WrongError("its header is wrong: expected that of a GGUF model") from None
    data_start = -(-walk.offset // alignment) * alignment
    starts = [*(one.start for one in found), size_bytes - data_start]
    for tensor, following in zip(found, starts[1:], strict=True):
        if tensor.end > following:
            raise WrongError(
                f"its header is wrong: expected {tensor.name[:_NAME_CHARACTERS]!a} to end at "
                f"{following:,}, where the next one begins or the file ends, found {tensor.end:,}"
            )
    return [
        Tensor(data_start + start, data_start + end, tensor.name)
        for tensor, start, end in zip(found, starts, starts[1:], strict=False)
    ]


def _before_table(walk: _Walk) -> tuple[int, int]:
    """Return how many tensors there are, and how their data are aligned; they come next."""
    if walk.take(4) != GGUF_MAGIC or walk.number(4) not in _GGUF_VERSIONS:
        raise OverflowError
    tensors, keys = walk.number(8), walk.number(8)
    walk.count(keys)
    alignment = _GGUF_ALIGNMENT
    for _ in range(keys):
        key, kind = walk.text(), walk.number(4)
        if key == b"general.alignment" and kind == _UINT32:
            alignment = walk.number(4) or _GGUF_ALIGNMENT
        else:
            _skip_value(walk, kind)
    walk.count(tensors)
    return tensors, alignment


def gguf_type(first: bytes, read: Read) -> str | None:
    """Return the type of a GGUF file: `model`, `mmproj`, `adapter` or `imatrix`, or None.

    That is its `general.type` (gguf-py, constants.py). Older files have none; projectors among
    them have the architecture `clip`. Looks at keys before the vocabulary, 128 KiB at most.
    `first` is the first page. Raises OSError.
    """
    walk = _Walk(first, read)
    try:
        if walk.take(4) != GGUF_MAGIC or walk.number(4) not in _GGUF_VERSIONS:
            return None
        _, keys = walk.number(8), walk.number(8)
        older = None
        while keys > 0 and walk.offset < _TYPE_WITHIN_BYTES:
            key, kind = walk.text(), walk.number(4)
            if key == b"general.type" and kind == _TEXT:
                return walk.text().decode("ascii", "replace")
            if key.startswith(b"tokenizer."):
                break
            if key == b"general.architecture" and kind == _TEXT:
                older = "mmproj" if walk.text() == b"clip" else None
            else:
                _skip_value(walk, kind)
            keys -= 1
    except (EOFError, OverflowError, KeyError):
        return None
    return older


def _skip_value(walk: _Walk, kind: int) -> None:
    """Pass over a value; raises KeyError for a type that there is not."""
    if kind == _TEXT:
        walk.skip_texts(1)
    elif kind == _ARRAY:
        kind, count = walk.number(4), walk.number(8)
        if kind == _TEXT:
            walk.skip_texts(count)
        else:
            walk.offset += count * _VALUE_BYTES[kind]
    else:
        walk.offset += _VALUE_BYTES[kind]


def _tensor(walk: _Walk) -> Tensor:
    """Return the next tensor of the table, from the start of the data."""
    name = walk.text()
    elements = 1
    dimensions = walk.number(4)
    if dimensions > _MOST_DIMENSIONS:
        raise OverflowError
    for _ in range(dimensions):
        elements *= walk.number(8)
    block_elements, block_bytes = _BLOCKS.get(walk.number(4), (1, 0))
    start = walk.number(8)
    end = start + elements // block_elements * block_bytes
    return Tensor(start, end, name.decode("utf-8", "surrogateescape"))


def _without_end(size_bytes: int, first: bytes, read: Read) -> str | None:
    """Return that a zip file has no end record, None where it has one, or is no zip file."""
    if not first.startswith(_ZIP_MAGIC):
        return None
    start = max(0, size_bytes - _ZIP_TAIL_BYTES) // PAGE_BYTES * PAGE_BYTES
    if _ZIP_END in read(start, size_bytes - start):
        return None
    return "it is a zip file without its end"


_PROMISES: dict[str, Callable[[bytes, Read], int]] = {".safetensors": _safetensors, ".gguf": _gguf}
_ZIPPED = {".bin", ".pt", ".pth", ".npz"}
