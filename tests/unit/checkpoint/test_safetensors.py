"""Headers of safetensors files: what we refuse is what safetensors' own library refuses."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefetch_cli.checkpoint import safetensors


def written(path: Path, header: object, data_bytes: int, *, length: int | None = None) -> str:
    """Write a file with this header, as JSON or bytes, and return its path."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(data_bytes))
    return str(path)


def tensor(start: Any, end: Any, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def fault(path: str) -> str | None:
    return safetensors.fault(path, os.path.getsize(path))


def accepted(path: str) -> bool:
    """Return whether safetensors opens the file."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


WRONG = {
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "found an overlap: 4"),
    "gap": ({"a": tensor(0, 8), "b": tensor(9, 12)}, 12, "found a gap: 9"),
    "gap at the start": ({"a": tensor(1, 8)}, 8, "behind the start, found a gap: 1"),
    "out of bounds": ({"a": tensor(0, 8)}, 7, "expected 8 bytes of tensors, found 7"),
    "data behind the last": ({"a": tensor(0, 8)}, 9, "expected 8 bytes of tensors, found 9"),
    "dtype x shape": ({"a": tensor(0, 8, "F32", [3])}, 8, "as F32 of shape [3] has, found 8"),
    "half a byte": ({"a": tensor(0, 1, "F4", [1])}, 1, "as F4 of shape [1]"),
    "backwards": ({"a": tensor(8, 0, "U8", [0])}, 8, "before its start at 8"),
    "negative": ({"a": tensor(0, 8, "U8", [-8])}, 8, "expected dtype, shape and two"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 8]}}, 8, "expected dtype, shape"),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}},
        8,
        "two data_offsets",
    ),
    "offsets that are no numbers": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": ["0", 8]}},
        8,
        "two data_offsets",
    ),
    "no tensor": ({"a": 1}, 0, "expected an object for 'a'"),
    "a list": ([], 0, "expected an object"),
    "no JSON": (b'{"a": ', 0, "its header is wrong"),
    "huge shape": ({"a": tensor(0, 8, "F64", [2**62] * 8)}, 8, "found 8"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        2,
        "found 'a' twice",
    ),
}


@pytest.mark.parametrize("lie", WRONG)
def test_a_header_that_lies(tmp_path: Path, lie: str) -> None:
    header, data_bytes, found = WRONG[lie]
    path = written(tmp_path / "x.safetensors", header, data_bytes)
    assert not accepted(path), "safetensors itself takes it"
    reason = fault(path)
    assert reason is not None
    assert found in reason
    assert len(reason) < 400


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {}, 0, length=1000)
    assert "expected at most 10 bytes, found 1,008" in str(fault(path))
    path = written(tmp_path / "y.safetensors", b"", 3, length=5)
    assert "its header is wrong" in str(fault(path))


def test_real_files_are_right(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.zeros((), np.float64),
        "a": np.zeros((3, 5), np.float16),
        'names \u00e9 "quoted" \\': np.zeros(7, np.int8),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    assert fault(path) is None


def test_a_dtype_of_the_future_is_not_measured(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"a": tensor(0, 8, "F3", [20])}, 8)
    assert fault(path) is None


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=3),
    dtype=st.sampled_from(["U8", "F16", "BOOL", "F8_E4M3"]),
    data_bytes=st.integers(0, 24),
)
def test_we_refuse_what_safetensors_refuses(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[tuple[int, int]],
    dtype: str,
    data_bytes: int,
) -> None:
    width = 2 if dtype == "F16" else 1
    header = {
        f"t{number}": tensor(start, end, dtype, [max(0, end - start) // width])
        for number, (start, end) in enumerate(places)
    }
    path = written(tmp_path_factory.getbasetemp() / "p.safetensors", header, data_bytes)
    assert (fault(path) is None) == accepted(path)


def test_a_hostile_header_is_refused(tmp_path: Path) -> None:
    names = b",".join(b'"%d%s":{"a":0}' % (number, b"x" * 900_000) for number in range(12))
    path = written(tmp_path / "x.safetensors", b"{" + names + b"}", 0)
    assert "expected dtype" in str(fault(path))
    many = b",".join(
        b'"%d%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % (number, b"x" * 900_000)
        for number in range(12)
    )
    path = written(tmp_path / "y.safetensors", b"{" + many + b"}", 0)
    assert "far too large or nested" in str(fault(path))
    shape = b"[" + b"0," * 100 + b"0]"
    header = b'{"a":{"dtype":"U8","shape":' + shape + b',"data_offsets":[0,0]}}'
    assert "far too large or nested" in str(fault(written(tmp_path / "z.safetensors", header, 0)))
