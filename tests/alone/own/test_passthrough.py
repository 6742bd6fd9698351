"""The file system with which other tests inject faults, checked against its source and fincore."""

import contextlib
import filecmp
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import command, oracle
from tests.helpers.passthrough import answered, mounted

MIB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
# The kernel caches names and attributes for one second, by a clock that lags on a busy machine.
BELIEVED_SECONDS = 2
SIZES = (0, 1, 4096, 4097, 3_000_001)

Mount = Callable[..., str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with files of several sizes, one in a nested folder, and symlinks."""
    folder = tmp_path / "source"
    (folder / "outer" / "inner").mkdir(parents=True)
    for size in SIZES:
        (folder / str(size)).write_bytes(os.urandom(size))
    (folder / "outer" / "inner" / "deep").write_bytes(os.urandom(70_000))
    (folder / "outer" / "link").symlink_to("../4097")
    (folder / "outer" / "broken").symlink_to("nowhere")
    os.chmod(folder / "1", 0o640)
    os.utime(folder / "1", ns=(0, 1_234_567_890_123_456_789))
    return folder


@pytest.fixture
def mount(tmp_path: Path, source: Path) -> Iterator[Mount]:
    """Mounts the source with the given options until the end of the test."""
    with contextlib.ExitStack() as stack:

        def mounting(*options: str) -> str:
            folder = tmp_path / "mount"
            folder.mkdir()
            try:
                return stack.enter_context(mounted(str(source), str(folder), *options))
            except OSError as error:
                pytest.skip(f"needs the right to mount FUSE: {error}")

        yield mounting


def python(script: str, *arguments: str) -> str:
    """Return what a script prints when run in a process that may safely hang."""
    return answered(sys.executable, "-c", textwrap.dedent(script), *arguments)


def resident_bytes(path: str) -> int:
    """Return what fincore, which opens the file, finds in the page cache."""
    if oracle.oracle_name() is None:
        pytest.skip("needs fincore (util-linux) or vmtouch as the oracle")
    return int(
        python(
            "import sys; from tests.helpers.oracle import resident_bytes as resident\n"
            "print(resident(sys.argv[1:]))",
            path,
        )
    )


@pytest.mark.parametrize(
    "options",
    [(), ("--keep-cache",), ("--direct-io",), ("--delay", "0.001"), ("--max-background", "1")],
)
def test_every_byte_and_name_is_that_of_the_source(
    mount: Mount, source: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    copy = tmp_path / "copy"
    answered("cp", "--recursive", "--preserve", mount(*options), str(copy))
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == names
    links = [name for name in names if (source / name).is_symlink()]
    assert len(links) == 2
    assert [os.readlink(copy / name) for name in links] == [
        os.readlink(source / name) for name in links
    ]
    files = [name for name in names if (source / name).is_file()]
    assert filecmp.cmpfiles(source, copy, files, shallow=False) == (files, [], [])


def test_a_listing_has_every_name_once_and_dots(mount: Mount, source: Path) -> None:
    many = source / "many"
    many.mkdir()
    for number in range(700):  # more than fit into one answer
        (many / f"model-{number:05}-of-00700.safetensors").touch()
    folder = mount()
    names = answered("ls", "-1aU", f"{folder}/many").split("\n")[:-1]
    assert sorted(names) == sorted([".", "..", *os.listdir(many)])
    assert answered("ls", "-1a", f"{folder}/outer").split() == [
        ".",
        "..",
        "broken",
        "inner",
        "link",
    ]


def test_attributes_are_those_of_the_source_and_stay(mount: Mount, source: Path) -> None:
    folder = mount()
    shape = ("stat", "--format=%i %f %h %u %g %s %Y %y %N")
    names = [".", *(str(path.relative_to(source)) for path in source.rglob("*"))]

    def attributes(root: str) -> list[str]:
        found = answered(*shape, *(f"{root}/{name}" for name in names))
        return found.replace(root, "").splitlines()

    first = attributes(folder)
    assert first == attributes(str(source))
    time.sleep(BELIEVED_SECONDS)
    assert attributes(folder) == first


def test_hard_links_share_their_pages(mount: Mount, source: Path) -> None:
    os.link(source / "3000001", source / "other")
    folder = mount("--keep-cache")
    answered("cmp", f"{folder}/other", str(source / "other"))
    assert resident_bytes(f"{folder}/3000001") == oracle.about(3_000_001)


def test_a_file_that_is_replaced_is_read_anew(mount: Mount, source: Path) -> None:
    folder = mount("--keep-cache")
    answered("cmp", f"{folder}/4096", str(source / "4096"))
    (source / "new").write_bytes(os.urandom(4096))
    os.replace(source / "new", source / "4096")
    time.sleep(BELIEVED_SECONDS)
    answered("cmp", f"{folder}/4096", str(source / "4096"))


READ_AND_HOLD = """
    import os, subprocess, sys
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    while os.read(descriptor, 1 << 20):
        pass
    print("read")
"""


@pytest.mark.parametrize(
    ("option", "kept"), [("--keep-cache", True), (None, False), ("--direct-io", False)]
)
def test_only_with_keep_cache_do_pages_outlive_the_next_open(
    mount: Mount, option: str | None, *, kept: bool
) -> None:
    path = mount(*filter(None, [option])) + "/3000001"
    assert resident_bytes(path) == 0
    python(READ_AND_HOLD, path)
    # The oracle has to open the file: without --keep-cache that drops its pages.
    assert resident_bytes(path) == (oracle.about(3_000_001) if kept else 0)


COUNT_BY_ONE_DESCRIPTOR = """
    import ctypes, os, sys
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(descriptor).st_size
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    def pages():
        address = libc.mmap(None, size, 1, 2, descriptor, 0)  # to be read, private
        vector = ctypes.create_string_buffer(-(-size // os.sysconf("SC_PAGE_SIZE")))
        assert libc.mincore(address, size, vector) == 0
        return sum(byte & 1 for byte in vector.raw)
    before = pages()
    while os.read(descriptor, 1 << 20):
        pass
    print(before, pages())
"""


@pytest.mark.parametrize(
    ("option", "cached"), [("--keep-cache", True), (None, True), ("--direct-io", False)]
)
def test_until_the_next_open_only_direct_io_caches_nothing(
    mount: Mount, option: str | None, *, cached: bool
) -> None:
    path = mount(*filter(None, [option])) + "/3000001"
    before, after = map(int, python(COUNT_BY_ONE_DESCRIPTOR, path).split())
    assert (before, after * PAGE) == (0, oracle.about(3_000_001) if cached else 0)


TRY_EACH_PAGE = """
    import errno, os, sys
    path, page = sys.argv[1], int(sys.argv[2])
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for offset in range(0, os.fstat(descriptor).st_size, page):
        try:
            os.pread(descriptor, page, offset)
        except OSError as error:
            print(offset // page, errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("option", ["--keep-cache", "--direct-io"])
def test_a_read_fails_where_it_touches_the_offset_and_nowhere_else(
    mount: Mount, option: str
) -> None:
    folder = mount(option, "--fail-read", str(7 * PAGE + 5))
    assert python(TRY_EACH_PAGE, f"{folder}/3000001", str(PAGE)) == "7 EIO\n"
    assert python(TRY_EACH_PAGE, f"{folder}/4097", str(PAGE)) == ""


def test_opening_fails_for_files_and_not_for_folders(mount: Mount) -> None:
    folder = mount("--fail-open")
    script = "import sys\ntry: open(sys.argv[1])\nexcept OSError as error: print(error.strerror)"
    assert python(script, f"{folder}/1") == "Input/output error\n"
    assert "inner" in answered("ls", f"{folder}/outer")


HANG = """
    import os, sys, threading
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    print(len(os.pread(descriptor, 1 << 20, 0)), flush=True)
    print(len(os.pread(descriptor, 1, 1 << 20)), flush=True)
"""


@pytest.mark.parametrize("option", ["--keep-cache", "--direct-io"])
def test_a_read_beyond_the_offset_hangs_and_those_before_return(
    mount: Mount, tmp_path: Path, option: str
) -> None:
    folder = mount("--hang-from", str(MIB), option)
    with hanging(
        folder, sys.executable, "-c", textwrap.dedent(HANG), f"{folder}/3000001"
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == f"{MIB}\n"
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(0.5)
        # Meanwhile reads that end before the offset are served, and so is the rest of the tree.
        answered("cmp", f"{folder}/4097", str(tmp_path / "source" / "4097"))
        answered("umount", "--force", "--lazy", folder)
        assert reader.wait(10) == 1  # an error, not a hang
        assert reader.stdout.read() == ""


def test_a_flush_hangs_and_what_was_read_before_is_there(mount: Mount) -> None:
    folder = mount("--hang-flush")
    script = (
        "import os, sys\n"
        "descriptor = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print(len(os.read(descriptor, 100)), flush=True)\n"
        "os.close(descriptor)\n"
    )
    with hanging(folder, sys.executable, "-c", script, f"{folder}/4096") as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "100\n"
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(0.5)
        answered("umount", "--force", "--lazy", folder)
        reader.wait(10)


DELAYED = """
    import os, sys, threading, time
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    threads = [
        threading.Thread(target=os.pread, args=(descriptor, 1, number * 100_000))
        for number in range(int(sys.argv[2]))
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.monotonic() - began)
"""


def test_delayed_reads_wait_side_by_side(mount: Mount) -> None:
    path = mount("--delay", "0.3") + "/3000001"
    assert 0.3 <= float(python(DELAYED, path, "1")) < 0.6
    assert 0.3 <= float(python(DELAYED, path, "24")) < 1.2  # in sequence: 7 seconds


def test_a_read_ahead_beyond_the_bound_waits(mount: Mount) -> None:
    script = """
        import os, sys, time
        descriptor = os.open(sys.argv[1], os.O_RDONLY)
        began = time.monotonic()
        for offset in range(0, 8 * 131_072, 131_072):
            os.posix_fadvise(descriptor, offset, 131_072, os.POSIX_FADV_WILLNEED)
        for offset in range(0, 8 * 131_072, 131_072):
            os.pread(descriptor, 1, offset)
        print(time.monotonic() - began)
    """
    path = mount("--delay", "0.1", "--max-background", "2") + "/3000001"
    assert 0.4 <= float(python(script, path)) < 0.8


def test_it_is_mounted_for_reading_with_its_subtype_and_options(mount: Mount) -> None:
    folder = mount("--subtype", "sshfs", "--allow-other", "--default-permissions")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        line = next(line for line in file if f" {folder} " in line)
    before, behind = line.split(" - ")
    assert before.split()[5].split(",")[0] == "ro"
    assert behind.split()[:2] == ["fuse.sshfs", "passthrough"]
    assert {"allow_other", "default_permissions"} < set(behind.split()[2].split(","))


def test_the_mount_is_gone_at_the_end_though_a_read_hangs(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    script = f"""
        import subprocess, sys, time
        from tests.helpers.passthrough import mounted
        with mounted({str(source)!r}, {str(folder)!r}, "--hang-from", "0") as path:
            reader = subprocess.Popen(["cat", path + "/3000001"], stderr=subprocess.DEVNULL)
            time.sleep(0.3)
            assert reader.poll() is None
        print(reader.wait(10))
    """
    skip_where_mounting_is_refused(source, folder)
    assert python(script) == "1\n"
    assert not is_mounted(folder)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, None])
def test_the_program_unmounts_when_it_is_told_to(
    tmp_path: Path, source: Path, ending: signal.Signals | None
) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    skip_where_mounting_is_refused(source, folder)
    with started(source, folder) as server:
        assert is_mounted(folder)
        assert server.stdin is not None
        if ending is None:
            server.stdin.close()
        else:
            server.send_signal(ending)
        assert server.wait(10) == 0
    assert not is_mounted(folder)


def test_the_program_ends_when_it_is_unmounted(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    skip_where_mounting_is_refused(source, folder)
    with started(source, folder) as server:
        answered("umount", str(folder))
        assert server.wait(10) == 0


def test_the_server_dies_with_its_parent_and_frees_who_waits(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    skip_where_mounting_is_refused(source, folder)
    script = (
        "import os, sys, time\nfrom tests.helpers.passthrough import mounted\n"
        "with mounted(*sys.argv[1:]):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    line = [sys.executable, "-c", script, str(source), str(folder), "--hang-from", "0"]
    try:
        with subprocess.Popen(line, cwd=command.ROOT, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "up\n"
            with hanging(str(folder), "cat", f"{folder}/3000001") as reader:
                time.sleep(0.3)
                assert reader.poll() is None
                parent.kill()
                assert reader.wait(10) == 1
    finally:
        subprocess.run(["umount", "--force", "--lazy", str(folder)], check=False)


def test_wrong_arguments_are_no_reason_to_skip(tmp_path: Path, source: Path) -> None:
    (tmp_path / "mount").mkdir()
    for options in (["--no-such-option"], ["--delay", "soon"], ["--hang-from"]):
        with pytest.raises(RuntimeError), mounted(str(source), str(tmp_path / "mount"), *options):
            pass
    if os.geteuid() == 0:
        with pytest.raises(RuntimeError), mounted(str(source), str(tmp_path / "not there")):
            pass


@contextlib.contextmanager
def hanging(folder: str, *line: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a command that may hang in the mount; unmount before ending it, or its end would hang."""
    reader = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
    )
    try:
        yield reader
    finally:
        subprocess.run(
            ["umount", "--force", "--lazy", folder], check=False, stderr=subprocess.DEVNULL
        )
        reader.kill()
        reader.communicate(timeout=10)


@contextlib.contextmanager
def started(source: Path, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    line = [sys.executable, "-m", "tests.helpers.passthrough", str(source), str(folder)]
    with subprocess.Popen(
        line, cwd=command.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        try:
            yield server
        finally:
            server.kill()
            if is_mounted(folder):
                subprocess.run(["umount", "--force", "--lazy", str(folder)], check=False)


def is_mounted(folder: Path) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return any(line.split()[4] == str(folder) for line in file)


def skip_where_mounting_is_refused(source: Path, folder: Path) -> None:
    try:
        with mounted(str(source), str(folder)):
            pass
    except OSError as error:
        pytest.skip(f"needs the right to mount FUSE: {error}")
