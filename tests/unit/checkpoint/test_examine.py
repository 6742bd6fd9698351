"""One path: every way to be no complete file, and what examining it leaves behind."""

import contextlib
import errno
import mmap
import os
import socket
import struct
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from prefetch_cli.checkpoint.examine import examine, is_gguf
from prefetch_cli.checkpoint.files import File, Finding, Incomplete, Skipped
from prefetch_cli.linux import cachestat, pagecache
from prefetch_cli.linux.files import open_to_read
from prefetch_cli.linux.pagecache import Counter, Method
from tests.helpers import oracle
from tests.unit.checkpoint.conftest import as_nobody

PAGE = mmap.PAGESIZE
MIB = 1024 * 1024
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)

needs_oracle = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")


def tensors(count: int = 3, size: int = 100) -> dict[str, npt.NDArray[np.uint8]]:
    return {f"layer.{number}.weight": np.ones(size, np.uint8) for number in range(count)}


def shard(path: Path, count: int = 3, size: int = 100) -> Path:
    """Write a real safetensors file; its header takes about 100 bytes a tensor."""
    save_file(tensors(count, size), path, metadata={"format": "pt"})
    return path


def header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def look(path: Path | str, *, weight: bool = True) -> Finding:
    return examine(str(path), weight=weight)


def whole(path: Path) -> File:
    status = path.stat()
    real_path = os.path.realpath(path)
    return File(str(path), real_path, status.st_size, True, status.st_dev, status.st_ino)


# Files


def test_a_whole_file(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors")
    assert look(path) == whole(path)
    link = tmp_path / "link.safetensors"
    link.symlink_to("model.safetensors")
    assert look(link) == whole(link)


@pytest.mark.parametrize(
    ("name", "weight"), [("config.json", False), ("x.gguf", False), ("model.onnx", True)]
)
def test_an_empty_file_is_a_file(tmp_path: Path, name: str, weight: bool) -> None:
    (tmp_path / name).touch()
    found = look(tmp_path / name, weight=weight)
    assert isinstance(found, File)
    assert (found.size_bytes, found.weight) == (0, weight)


def test_a_real_path_is_that_of_the_system(tmp_path: Path) -> None:
    blobs, farm = tmp_path / "blobs", tmp_path / "farm"
    blobs.mkdir()
    farm.mkdir()
    shard(blobs / "abc")
    (tmp_path / "alias").symlink_to("farm")
    (farm / "deep").symlink_to("..")
    (farm / "relative.safetensors").symlink_to("../blobs/abc")
    (farm / "absolute.safetensors").symlink_to(blobs / "abc")
    (farm / "twice.safetensors").symlink_to("relative.safetensors")
    (farm / "around.safetensors").symlink_to("../alias/deep/alias/twice.safetensors")
    for name in ("relative", "absolute", "twice", "around"):
        for folder in (farm, tmp_path / "alias", farm / "deep" / "alias"):
            path = folder / f"{name}.safetensors"
            assert look(path) == whole(path)


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31m", "[red]x", os.fsdecode(b"\xff\xfe"), "x" * 200, "-", " "]
)
def test_names_with_any_byte_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(save(tensors()))
    assert look(path) == whole(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert isinstance(look(path), Incomplete)


# Missing and incomplete files


def test_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        assert look(path) == Incomplete(str(path), "not there", None)
    # Only a folder can have this path.
    assert look(f"{tmp_path}/file/") == Incomplete(f"{tmp_path}/file/", "not there", None)


def test_a_dangling_link(tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to("blobs/none")
    assert look(link) == Incomplete(str(link), "a symbolic link to nothing", None)


def test_an_unfinished_download(tmp_path: Path) -> None:
    unfinished = "its download has not ended"
    beside = tmp_path / "a.safetensors"
    (tmp_path / "a.safetensors.incomplete").write_bytes(b"\0" * 100)
    assert look(beside) == Incomplete(str(beside), unfinished, None)

    blob = tmp_path / "abc.incomplete"
    shard(blob)
    link = tmp_path / "b.safetensors"
    link.symlink_to(blob.name)
    assert look(link) == Incomplete(str(link), unfinished, whole(link))

    before = tmp_path / "c.safetensors"
    before.symlink_to("abc")  # the finished blob's name
    assert look(before) == Incomplete(str(before), unfinished, None)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "tokenizer.model"])
@pytest.mark.parametrize("weight", [True, False])
def test_a_git_lfs_pointer(tmp_path: Path, name: str, weight: bool) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    expected = Incomplete(str(path), "a Git LFS pointer, not the file itself", None)
    assert look(path, weight=weight) == expected


def test_a_file_that_only_mentions_git_lfs(tmp_path: Path) -> None:
    for content in (b"# " + POINTER, POINTER + b"x" * 1024):
        path = tmp_path / "README.txt"
        path.write_bytes(content)
        assert isinstance(look(path, weight=False), File)


@pytest.mark.parametrize("count", [1, 3, 40, 400, 3000])
def test_a_shard_is_as_long_as_its_header_promises(tmp_path: Path, count: int) -> None:
    path = shard(tmp_path / "model.safetensors", count)
    size = path.stat().st_size
    assert look(path) == whole(path)
    for short in (size - 1, size - size // 3, header_bytes(path), header_bytes(path) - 1, 8, 7, 1):
        os.truncate(path, short)
        found = look(path)
        assert isinstance(found, Incomplete)
        assert found.file == whole(path)
        assert found.reason.startswith("its header promises ")
        assert f"({short:,} bytes)" in found.reason
        if short >= header_bytes(path):
            assert f"({size:,} bytes), it has" in found.reason


def test_a_file_longer_than_promised_is_complete(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors")
    with path.open("ab") as file:
        file.write(b"x")
    assert look(path) == whole(path)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=300), st.integers(0, 50)), max_size=60, unique_by=lambda t: t[0]
    )
)
def test_the_promised_size_is_that_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, named: list[tuple[str, int]]
) -> None:
    content = save(
        {name: np.zeros(size, np.uint8) for name, size in named if name != "__metadata__"}
    )
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    assert isinstance(look(path), File)
    path.write_bytes(content[:-1])
    assert isinstance(look(path), Incomplete)


def test_the_header_is_searched_across_its_chunks(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    offsets = b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0, 9]},"b":"'
    for step in (PAGE - 8, PAGE + 128 * 1024 - 8):
        for shift in range(len(offsets) + 2):
            header = b" " * (step - shift) + offsets
            header += b"x" * (300_000 - len(header)) + b'"}'
            path.write_bytes(struct.pack("<Q", len(header)) + header + b"12345678")
            assert isinstance(look(path), Incomplete), (step, shift)


def test_names_and_metadata_cannot_pose_as_offsets(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    pose = '"data_offsets":[0,99999]'
    save_file({f"x{pose}": np.ones(9, np.uint8)}, path, metadata={pose: pose})
    assert look(path) == whole(path)


def test_only_weights_have_a_header(tmp_path: Path) -> None:
    for name, weight in (("x.safetensors", False), ("x.bin", True), ("x.gguf", True)):
        (tmp_path / name).write_bytes(b"\xff" * 2000)
        assert isinstance(look(tmp_path / name, weight=weight), File)


# Hostile headers


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001])
def test_an_impossible_header_is_not_read(
    tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    os.truncate(path, 90_000_000)
    asked: list[int] = []
    real = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        asked.append(size)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    found = look(path)
    assert asked == [PAGE]
    assert isinstance(found, Incomplete)
    assert f"({length + 8:,} bytes)" in found.reason


def test_an_enormous_header_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_999_992))
        file.seek(99_999_980)
        file.write(b'"data_offsets":[0,1]')
    tracemalloc.start()
    found = look(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, Incomplete)
    assert "(100,000,001 bytes), it has" in found.reason
    assert peak < MIB


@pytest.mark.parametrize(
    ("digits", "kind"), [(1, File), (20, Incomplete), (21, File), (5000, File)]
)
def test_an_offset_beyond_64_bits_is_ignored(tmp_path: Path, digits: int, kind: type) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"data_offsets":[0,%s]}}' % (b"9" * digits)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"123456789")
    assert isinstance(look(path), kind)


# Other than files


def test_other_file_types_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    for name, found in (("fifo", "a FIFO"), ("folder", "a directory"), ("socket", "a socket")):
        link = tmp_path / f"link-to-{name}.safetensors"
        link.symlink_to(name)
        for path in (tmp_path / name, link):
            expected = Skipped(str(path), f"expected a file, found {found}", failed=False)
            assert look(path) == expected


@needs_root
def test_devices_are_left_out(tmp_path: Path) -> None:
    os.mknod(tmp_path / "disk", 0o660 | 0o060000, os.makedev(7, 250))
    for path, found in (("/dev/zero", "a character device"), (tmp_path / "disk", "a block device")):
        assert look(path) == Skipped(str(path), f"expected a file, found {found}", failed=False)


def test_a_link_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    reason = "a symbolic link that leads to itself"
    assert look(tmp_path / "a") == Skipped(str(tmp_path / "a"), reason, failed=False)


def test_a_fifo_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    start = time.monotonic()
    with pytest.raises(OSError, match="expected a file, found a FIFO") as caught:
        open_to_read(str(path))
    assert caught.value.errno == errno.EINVAL
    assert time.monotonic() - start < 5  # a blocking open would wait forever


def test_an_open_file_blocks_and_is_not_inherited(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors")
    descriptor = open_to_read(str(path))
    try:
        assert os.get_blocking(descriptor)
        assert not os.get_inheritable(descriptor)
        assert os.pread(descriptor, 8, 0) == path.read_bytes()[:8]
    finally:
        os.close(descriptor)


def test_examining_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors", 400)
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    look(path)
    look(tmp_path / "fifo")
    os.truncate(path, 100)
    look(path)
    with contextlib.suppress(OSError):
        open_to_read(str(tmp_path / "fifo"))
    assert os.listdir("/proc/self/fd") == before


# Permissions


def examined_by_nobody(path: Path) -> str:
    """Return the finding of a user who owns nothing, printed."""
    return as_nobody(
        "from prefetch_cli.checkpoint.examine import examine",
        "print(examine(sys.argv[1], weight=True))",
        path,
    )


def test_an_unreadable_shard_is_still_a_file(public: Path) -> None:
    path = shard(public / "model.safetensors")
    os.truncate(path, 100)  # nobody cannot tell
    path.chmod(0)
    pointer = public / "tokenizer.model"
    pointer.write_bytes(POINTER)
    pointer.chmod(0)
    for each in (path, pointer):
        printed = examined_by_nobody(each)
        assert printed.startswith("File(")


def test_an_unreachable_file_has_failed(public: Path) -> None:
    folder = public / "closed"
    folder.mkdir()
    path = shard(folder / "model.safetensors")
    folder.chmod(0)
    printed = examined_by_nobody(path)
    assert printed == f"{Skipped(str(path), 'Permission denied', failed=True)}\n"


def test_an_unfinished_download_needs_no_permission(public: Path) -> None:
    blob = public / "abc.incomplete"
    blob.write_bytes(b"\0" * 100)
    blob.chmod(0)
    link = public / "model.safetensors"
    link.symlink_to(blob.name)
    assert examined_by_nobody(link).startswith("Incomplete(")


# The page cache


def resident_pages(path: Path) -> list[bool]:
    """Return which pages are resident; mincore tells the truth about our own file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = path.stat().st_size
        cold = {
            page
            for start, length in pagecache.missing(descriptor, 0, size)
            for page in range(start // PAGE, -(-(start + length) // PAGE))
        }
        return [page not in cold for page in range(-(-size // PAGE))]
    finally:
        os.close(descriptor)


def make_warm(path: Path, pages: range) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pagecache.read_only_what_is_asked(descriptor)
        for page in pages:
            os.pread(descriptor, PAGE, page * PAGE)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class ColdShard:
    path: Path
    pages: int
    header_pages: int  # the last of them may hold data too


@pytest.fixture(params=[3, 400, 4000], ids=["header of a page", "of pages", "of several steps"])
def cold(request: pytest.FixtureRequest, tmp_path: Path) -> ColdShard:
    """A shard of 4 MiB and more."""
    path = shard(tmp_path / "model.safetensors", request.param, (4 << 20) // request.param)
    found = ColdShard(path, -(-path.stat().st_size // PAGE), -(-header_bytes(path) // PAGE))
    oracle.make_cold([str(path)])
    if any(resident_pages(path)):
        pytest.skip("pages of this file stay in the cache")
    return found


@needs_oracle
def test_a_look_at_a_cold_shard_leaves_it_cold(cold: ColdShard) -> None:
    assert not is_gguf(str(cold.path))
    assert oracle.resident_bytes([str(cold.path)]) == 0
    assert isinstance(look(cold.path), File)
    assert oracle.resident_bytes([str(cold.path)]) == 0


@needs_oracle
@pytest.mark.parametrize("method", [Method.CACHESTAT, Method.MINCORE])
@pytest.mark.parametrize("where", ["all", "first", "rest", "data", "every other"])
def test_a_look_leaves_what_was_warm(
    cold: ColdShard, where: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method is Method.MINCORE:  # as on a kernel before 6.5
        monkeypatch.setattr(cachestat, "ask", lambda *_: None)
    warm = {
        "all": range(cold.pages),
        "first": range(1),
        "rest": range(1, cold.pages),
        "data": range(cold.header_pages, cold.pages),
        "every other": range(0, cold.pages, 2),
    }[where]
    make_warm(cold.path, warm)
    before = resident_pages(cold.path)
    assert isinstance(look(cold.path), File)
    after = resident_pages(cold.path)
    assert not any(now and not then for now, then in zip(after, before, strict=True))
    # Under pressure the kernel drops pages by itself.
    lost = sum(then and not now for now, then in zip(after, before, strict=True))
    assert lost <= oracle.ALLOWED_WARM * cold.pages


@needs_oracle
def test_a_look_at_a_cold_config_leaves_it_cold(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for size in (1, 1000, 1023):
        path.write_bytes(b"x" * size)
        oracle.make_cold([str(path)])
        assert isinstance(look(path, weight=False), File)
        assert oracle.resident_bytes([str(path)]) == 0


@needs_oracle
def test_a_look_reads_no_more_than_the_header(
    cold: ColdShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "drop", lambda *_: None)
    assert isinstance(look(cold.path), File)
    found = resident_pages(cold.path)
    assert found == [page < cold.header_pages for page in range(cold.pages)]


@needs_oracle
def test_what_is_not_known_to_be_cold_is_not_dropped(
    cold: ColdShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counter, "count", lambda *_: None)
    monkeypatch.setattr(pagecache, "drop", lambda *_: pytest.fail("dropped"))
    assert isinstance(look(cold.path), File)
