"""The header of a safetensors file -> what is wrong with it, by the rules of its own library.

Mirrors Metadata::validate() and SafeTensors::read_metadata() (safetensors/src/tensor.rs): tensors
lie one after the other from the start of the data to the end of the file, without gaps and
overlaps, and each is as long as its dtype and shape say. A dtype that is not in the list is newer
than this program: its length is not checked.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.headers import HEADER_MOST_BYTES, LENGTH_BYTES
from prefetch_cli.checkpoint.scanner import Json, NotJsonError, Scanner, TooLargeError
from prefetch_cli.linux.files import close, open_to_read

SUFFIX = ".safetensors"
_METADATA = "__metadata__"
_PIECE_BYTES = 128 * 1024
_MOST_DIMENSIONS = 64
_MOST_NAME_CHARACTERS = 8 * 1024 * 1024  # in all names together
_NAME_CHARACTERS = 80
_SHOWN_DIMENSIONS = 8
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class _WrongError(Exception):
    """What is wrong, in words."""


class _Place(NamedTuple):
    """Where a tensor lies, in bytes from the start of the data."""

    start: int
    end: int
    name: str


@dataclass
class _Tensor:
    """What the header says of a tensor, as far as it has been read."""

    dtype: Json = None
    shape: list[Json] | None = None
    offsets: list[Json] | None = None


def fault(path: str, size_bytes: int) -> str | None:
    """Return what is wrong with the header of a file of this size, in words; None: nothing.

    Raises OSError.
    """
    descriptor = open_to_read(path)
    try:
        _check(descriptor, size_bytes)
    except (_WrongError, NotJsonError) as wrong:
        return f"its header is wrong: {printable(str(wrong))}"
    except TooLargeError:
        return "its header is wrong: expected tensors, found JSON far too large or nested for that"
    finally:
        close(descriptor)
    return None


def _check(descriptor: int, size_bytes: int) -> None:
    head = os.pread(descriptor, LENGTH_BYTES, 0)
    header_bytes = int.from_bytes(head, "little")
    data_start = LENGTH_BYTES + header_bytes
    if len(head) < LENGTH_BYTES or data_start > size_bytes:
        raise _WrongError(f"expected at most {size_bytes:,} bytes, found {data_start:,}")
    if header_bytes > HEADER_MOST_BYTES:
        raise _WrongError(f"expected at most {HEADER_MOST_BYTES:,} bytes, found {header_bytes:,}")
    scanner = Scanner(_pieces(descriptor, LENGTH_BYTES, data_start))
    if not scanner.is_object():
        raise _WrongError("expected an object")
    places = sorted(_places(scanner))
    scanner.end()
    end, before = 0, "the start"
    for place in places:
        if place.start != end:
            kind = "a gap" if place.start > end else "an overlap"
            raise _WrongError(
                f"expected {_shown(place.name)} at offset {end:,}, behind {before}, found {kind}: "
                f"{place.start:,}"
            )
        end, before = place.end, _shown(place.name)
    data_bytes = size_bytes - data_start
    if end != data_bytes:
        raise _WrongError(f"expected {end:,} bytes of tensors, found {data_bytes:,}")


def _pieces(descriptor: int, offset: int, end: int) -> Iterator[bytes]:
    while offset < end:
        piece = os.pread(descriptor, min(_PIECE_BYTES, end - offset), offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def _places(scanner: Scanner) -> Iterator[_Place]:
    seen: set[str] = set()
    characters = 0
    for name in scanner.members():
        characters += len(name)
        if characters > _MOST_NAME_CHARACTERS:
            raise TooLargeError
        if name in seen:
            raise _WrongError(f"expected each tensor once, found {_shown(name)} twice")
        seen.add(name)
        if name == _METADATA:
            scanner.value()
        elif not scanner.is_object():
            raise _WrongError(f"expected an object for {_shown(name)}")
        else:
            yield _place(name, _tensor(scanner))


def _tensor(scanner: Scanner) -> _Tensor:
    tensor = _Tensor()
    for key in scanner.members():
        if key == "dtype":
            tensor.dtype = scanner.value()
        elif key == "shape" and scanner.is_array():
            tensor.shape = _numbers(scanner)
        elif key == "data_offsets" and scanner.is_array():
            tensor.offsets = _numbers(scanner)
        else:
            scanner.value()
    return tensor


def _numbers(scanner: Scanner) -> list[Json]:
    numbers: list[Json] = []
    for _ in scanner.elements():
        numbers.append(scanner.value())
        if len(numbers) > _MOST_DIMENSIONS:
            raise TooLargeError
    return numbers


def _place(name: str, tensor: _Tensor) -> _Place:
    shape, offsets = _sizes(tensor.shape), _sizes(tensor.offsets)
    if not isinstance(tensor.dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _WrongError(f"expected dtype, shape and two data_offsets for {_shown(name)}")
    start, end = offsets
    if end < start:
        raise _WrongError(f"{_shown(name)} ends at {end:,}, before its start at {start:,}")
    bits = _BITS.get(tensor.dtype)
    if bits is not None and math.prod(shape, start=bits) != 8 * (end - start):
        raise _WrongError(
            f"expected as many bytes of {_shown(name)} as {tensor.dtype} of shape "
            f"{shape[:_SHOWN_DIMENSIONS]} has, found {end - start:,}"
        )
    return _Place(start, end, name)


def _sizes(numbers: list[Json] | None) -> list[int] | None:
    """Return numbers that can be sizes or offsets, None where one of them cannot."""
    found: list[int] = []
    for number in numbers if numbers is not None else (None,):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            return None
        found.append(number)
    return found


def _shown(name: str) -> str:
    return repr(name[:_NAME_CHARACTERS])
