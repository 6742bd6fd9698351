"""The builder's checkpoints are what they claim: the safetensors library reads them."""

import json
import os
from collections.abc import Callable

import pytest
from safetensors import safe_open

from tests.helpers.checkpoints import BuiltCheckpoint, Fill, write_sharded, write_streamed

SHARD_BYTES = (3 << 20, 1_000_000, 4097, 1)

Build = Callable[[str], BuiltCheckpoint]


def _streamed_hole(directory: str) -> BuiltCheckpoint:
    return write_streamed(directory, shard_bytes=SHARD_BYTES, fill=Fill.HOLE, durable=False)


@pytest.fixture(
    params=[
        lambda directory: write_sharded(directory, shard_bytes=SHARD_BYTES),
        lambda directory: write_streamed(directory, shard_bytes=SHARD_BYTES),
        _streamed_hole,
    ],
    ids=["sharded", "streamed", "hole"],
)
def built(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> BuiltCheckpoint:
    build: Build = request.param
    return build(os.path.join(tmp_path, "model"))


def _tensor_bytes(path: str) -> dict[str, int]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118


def test_each_shard_opens_and_holds_the_bytes_asked_for(built: BuiltCheckpoint) -> None:
    sizes = [sum(_tensor_bytes(path).values()) for path in built.weight_files]
    assert sizes == list(SHARD_BYTES)
    assert built.tensor_bytes == sum(SHARD_BYTES)
    assert built.weight_bytes == sum(map(os.path.getsize, built.weight_files))


def test_the_index_names_every_tensor_in_its_shard(built: BuiltCheckpoint) -> None:
    with open(os.path.join(built.directory, "model.safetensors.index.json"), "rb") as file:
        index = json.load(file)
    found = {
        name: os.path.basename(path) for path in built.weight_files for name in _tensor_bytes(path)
    }
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == built.tensor_bytes


def test_a_shard_holds_several_tensors_of_unequal_size(built: BuiltCheckpoint) -> None:
    sizes = _tensor_bytes(built.weight_files[0]).values()
    assert len(sizes) >= 5
    assert len(set(sizes)) >= 3


def test_the_files_are_those_on_disk(built: BuiltCheckpoint) -> None:
    on_disk = {os.path.join(built.directory, name) for name in os.listdir(built.directory)}
    assert set(built.files) == on_disk
    for path in built.side_files:
        with open(path, "rb") as file:
            assert isinstance(json.load(file), dict)


@pytest.mark.parametrize("write", [write_sharded, write_streamed])
def test_one_shard_has_no_index(write: Callable[..., BuiltCheckpoint], tmp_path: str) -> None:
    built = write(os.path.join(tmp_path, "model"), shard_bytes=[5000])
    assert [os.path.basename(path) for path in built.weight_files] == ["model.safetensors"]
    assert not any(path.endswith(".index.json") for path in built.side_files)


@pytest.mark.parametrize("write", [write_sharded, write_streamed])
def test_a_seed_gives_the_same_bytes_again_and_no_block_twice(
    write: Callable[..., BuiltCheckpoint], tmp_path: str
) -> None:
    def contents(name: str, seed: int) -> list[bytes]:
        built = write(os.path.join(tmp_path, name), shard_bytes=[100_000, 100_000], seed=seed)
        found = []
        for path in built.weight_files:
            with open(path, "rb") as file:
                found.append(file.read()[-50_000:])
        return found

    first, again, other = contents("a", 0), contents("b", 0), contents("c", 1)
    assert first == again
    assert len({*first, *other}) == 4


def test_a_hole_takes_no_room(tmp_path: str) -> None:
    size_bytes = 1 << 30
    built = write_streamed(
        os.path.join(tmp_path, "model"), shard_bytes=[size_bytes] * 2, fill=Fill.HOLE
    )
    assert built.weight_bytes > 2 * size_bytes
    if sum(os.stat(path).st_blocks for path in built.weight_files) * 512 > size_bytes:
        pytest.skip("this file system stores holes as zeros")


@pytest.mark.parametrize("sizes", [[], [0], [10, -1]])
def test_shards_without_a_byte_are_refused(sizes: list[int], tmp_path: str) -> None:
    with pytest.raises(ValueError, match="expected shards of at least 1 byte"):
        write_sharded(os.path.join(tmp_path, "model"), shard_bytes=sizes)
