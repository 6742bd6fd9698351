"""The header of a safetensors file -> its tensors, or what is wrong, by its own library's rules.

Mirrors Metadata::validate() and SafeTensors::read_metadata() (safetensors/src/tensor.rs): tensors
lie one after the other from the start of the data to the end of the file, without gaps and
overlaps, and each is as long as its dtype and shape say. A dtype that is not in the list is newer
than this program: its length is not checked.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from prefetch_cli.base.text import printable
from prefetch_cli.checkpoint.headers import (
    HEADER_MOST_BYTES,
    LENGTH_BYTES,
    Read,
    Tensor,
    WrongError,
)
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


@dataclass
class _Entry:
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
        tensors(size_bytes, lambda offset, length: os.pread(descriptor, length, offset))
    except WrongError as wrong:
        return str(wrong)
    finally:
        close(descriptor)
    return None


def tensors(size_bytes: int, read: Read) -> list[Tensor]:
    """Return the tensors of a file of this size, in their order, from the start of the file.

    They cover what follows the header without gaps. Raises WrongError, or OSError.
    """
    try:
        return _checked(size_bytes, read)
    except NotJsonError as wrong:
        raise _wrong(str(wrong)) from None
    except TooLargeError:
        raise _wrong("expected tensors, found JSON far too large or nested for that") from None


def _wrong(found: str) -> WrongError:
    return WrongError(f"its header is wrong: {printable(found)}")


def _checked(size_bytes: int, read: Read) -> list[Tensor]:
    head = read(0, LENGTH_BYTES)
    header_bytes = int.from_bytes(head, "little")
    data_start = LENGTH_BYTES + header_bytes
    if len(head) < LENGTH_BYTES or data_start > size_bytes:
        raise _wrong(f"expected at most {size_bytes:,} bytes, found {data_start:,}")
    if header_bytes > HEADER_MOST_BYTES:
        raise _wrong(f"expected at most {HEADER_MOST_BYTES:,} bytes, found {header_bytes:,}")
    scanner = Scanner(_pieces(read, data_start))
    if not scanner.is_object():
        raise _wrong("expected an object")
    places = sorted(_tensors(scanner))
    scanner.end()
    end, before = 0, "the start"
    for place in places:
        if place.start != end:
            kind = "a gap" if place.start > end else "an overlap"
            raise _wrong(
                f"expected {_shown(place.name)} at offset {end:,}, behind {before}, found {kind}: "
                f"{place.start:,}"
            )
        end, before = place.end, _shown(place.name)
    data_bytes = size_bytes - data_start
    if end != data_bytes:
        raise _wrong(f"expected {end:,} bytes of tensors, found {data_bytes:,}")
    return [
        Tensor(data_start + place.start, data_start + place.end, place.name) for place in places
    ]


def _pieces(read: Read, end: int) -> Iterator[bytes]:
    """Yield the header, which ends there."""
    offset = 0
    while offset < end and (piece := read(offset, min(_PIECE_BYTES, end - offset))):
        yield piece[LENGTH_BYTES:] if offset == 0 else piece
        offset += len(piece)


def _tensors(scanner: Scanner) -> Iterator[Tensor]:
    seen: set[str] = set()
    characters = 0
    for name in scanner.members():
        characters += len(name)
        if characters > _MOST_NAME_CHARACTERS:
            raise TooLargeError
        if name in seen:
            raise _wrong(f"expected each tensor once, found {_shown(name)} twice")
        seen.add(name)
        if name == _METADATA:
            scanner.value()
        elif not scanner.is_object():
            raise _wrong(f"expected an object for {_shown(name)}")
        else:
            yield _tensor(name, _entry(scanner))


def _entry(scanner: Scanner) -> _Entry:
    entry = _Entry()
    for key in scanner.members():
        if key == "dtype":
            entry.dtype = scanner.value()
        elif key == "shape" and scanner.is_array():
            entry.shape = _numbers(scanner)
        elif key == "data_offsets" and scanner.is_array():
            entry.offsets = _numbers(scanner)
        else:
            scanner.value()
    return entry


def _numbers(scanner: Scanner) -> list[Json]:
    numbers: list[Json] = []
    for _ in scanner.elements():
        numbers.append(scanner.value())
        if len(numbers) > _MOST_DIMENSIONS:
            raise TooLargeError
    return numbers


def _tensor(name: str, entry: _Entry) -> Tensor:
    shape, offsets = _sizes(entry.shape), _sizes(entry.offsets)
    if not isinstance(entry.dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _wrong(f"expected dtype, shape and two data_offsets for {_shown(name)}")
    start, end = offsets
    if end < start:
        raise _wrong(f"{_shown(name)} ends at {end:,}, before its start at {start:,}")
    bits = _BITS.get(entry.dtype)
    if bits is not None and math.prod(shape, start=bits) != 8 * (end - start):
        raise _wrong(
            f"expected as many bytes of {_shown(name)} as {entry.dtype} of shape "
            f"{shape[:_SHOWN_DIMENSIONS]} has, found {end - start:,}"
        )
    return Tensor(start, end, name)


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
