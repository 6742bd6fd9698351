"""The files that another one names as holding its weights: an .onnx, or the .metadata of torch.

ONNX keeps tensors in files of any name beside the model (onnx.proto: TensorProto.external_data).
torch.distributed.checkpoint pickles what lies where; that is searched, and never unpickled. Both
within bounds, so that a hostile one costs neither memory nor time.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress

from prefetch_cli.checkpoint.examine import glance
from prefetch_cli.checkpoint.headers import Read
from prefetch_cli.checkpoint.metadata import names_below

_DCP_METADATA = ".metadata"
_ONNX_SUFFIX = ".onnx"

_STEP_BYTES = 64 * 1024
_MOST_READ_BYTES = 64 * 1024 * 1024  # of one file
_MOST_FIELDS = 1_000_000
_DEEPEST = 32
# A node without this has no tensors in other files: it is passed over without a look inside.
_LOCATION = b"location"

_SHARD = re.compile(rb"__[0-9]{1,9}_[0-9]{1,9}\.distcp")
_LONGEST_SHARD = 32

# Message -> number of a field -> message that it holds (onnx.proto).
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_VARINT_MOST_BYTES = 10


def has_companions(name: str) -> bool:
    """Return whether a file of this name may name others."""
    return name.endswith(_ONNX_SUFFIX) or name == _DCP_METADATA


def companions(path: str) -> list[str]:
    """Return the names, relative to its folder, of the files that the one at `path` names.

    Raises CheckpointError if one leads out of the folder, and OSError.
    """
    with glance(path) as looked:
        if path.endswith(_ONNX_SUFFIX):
            return names_below(path, "external data", external_data(looked.size_bytes, looked.read))
        return sorted(shards_in(looked.size_bytes, looked.read))


def external_data(size_bytes: int, read: Read) -> list[str]:
    """Return the locations of external data in an ONNX model, each once, as far as they are found.

    What is malformed, or beyond the bounds, ends the search.
    """
    found: dict[str, None] = {}
    search = _OnnxSearch(size_bytes, read, found.setdefault)
    with suppress(EOFError, OverflowError):  # the server says what is wrong with it
        search.message("model", 0, size_bytes, 0)
    return list(found)


def shards_in(size_bytes: int, read: Read) -> set[str]:
    """Return the names of shards in the metadata of a distributed checkpoint."""
    found: set[str] = set()
    kept = b""
    for offset in range(0, min(size_bytes, _MOST_READ_BYTES), _STEP_BYTES):
        text = kept + read(offset, _STEP_BYTES)
        found.update(match.decode() for match in _SHARD.findall(text))
        kept = text[-_LONGEST_SHARD:]
    return found


class _OnnxSearch:
    """Walks through the messages of a protobuf file and skips the tensors' own bytes."""

    def __init__(self, size_bytes: int, read: Read, note: Callable[[str], object]) -> None:
        self._size_bytes = size_bytes
        self._read = read
        self._note = note
        self._buffer = b""
        self._start = 0  # of the buffer, in the file
        self._read_bytes = 0
        self._fields = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        """Search a message that lies between these offsets.

        Raises EOFError where it is malformed, OverflowError where it is out of bounds.
        """
        if depth > _DEEPEST:
            raise OverflowError
        if kind == "entry":
            self._entry(start, end)
            return
        for number, inner_start, inner_end in self._messages(start, end):
            inside = _INSIDE[kind].get(number)
            if inside is None or (inside == "node" and not self._may_tell(inner_start, inner_end)):
                continue
            self.message(inside, inner_start, inner_end, depth + 1)

    def _entry(self, start: int, end: int) -> None:
        """Note the value of an entry whose key is `location`."""
        if end - start > _STEP_BYTES:
            return
        fields = {
            number: self._take(inner_start, inner_end - inner_start)
            for number, inner_start, inner_end in self._messages(start, end)
        }
        if fields.get(1) == _LOCATION:
            # A name that is not UTF-8 leads nowhere, and is reported as missing.
            self._note(fields.get(2, b"").decode("utf-8", "surrogateescape"))

    def _may_tell(self, start: int, end: int) -> bool:
        return end - start > _STEP_BYTES or _LOCATION in self._take(start, end - start)

    def _messages(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the number, start and end of each field that has a length."""
        at = start
        while at < end:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise OverflowError
            tag, at = self._varint(at)
            wire = tag & 7
            if wire == _VARINT:
                _, at = self._varint(at)
            elif wire == _EIGHT_BYTES:
                at += 8
            elif wire == _FOUR_BYTES:
                at += 4
            elif wire == _LENGTH:
                length, at = self._varint(at)
                if length > end - at:
                    raise EOFError
                yield tag >> 3, at, at + length
                at += length
            else:
                raise EOFError

    def _varint(self, at: int) -> tuple[int, int]:
        """Return a number of variable length, and where it ends."""
        value = 0
        for place in range(_VARINT_MOST_BYTES):
            byte = self._take(at + place, 1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, at + place + 1
        raise EOFError

    def _take(self, at: int, size_bytes: int) -> bytes:
        """Return bytes, at most a step of them."""
        if at + size_bytes > self._size_bytes:
            raise EOFError
        first = at - self._start
        if not 0 <= first <= len(self._buffer) - size_bytes:
            self._start = at // _STEP_BYTES * _STEP_BYTES
            self._buffer = self._read(self._start, 2 * _STEP_BYTES)
            self._read_bytes += len(self._buffer)
            if self._read_bytes > _MOST_READ_BYTES:
                raise OverflowError
            first = at - self._start
        taken = self._buffer[first : first + size_bytes]
        if len(taken) < size_bytes:
            raise EOFError  # it has become shorter
        return taken
