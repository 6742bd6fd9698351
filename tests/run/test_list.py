"""`--list`: the files that a run would read, for other tools."""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import oracle
from tests.helpers.checkpoints import BuiltCheckpoint
from tests.helpers.command import COMMAND, environment, refused, run, unprivileged


def listed(*arguments: str) -> list[str]:
    """Return the paths of a list, which is all that the command says."""
    done = run("--list", *arguments)
    assert (done.code, done.errors) == (0, ""), done
    assert done.output.endswith("\n") or not done.output
    return done.output.splitlines()


def side(built: BuiltCheckpoint) -> list[str]:
    return sorted(built.side_files)


def test_the_files_are_those_of_a_run_in_its_order(built: BuiltCheckpoint, cold: str) -> None:
    found = listed(cold)
    assert found == [*side(built), *built.weight_files]
    done = run("--verbose", "--dry-run", cold)
    files = [line[13:] for line in done.output.splitlines() if line.startswith("file  ")]
    assert found == [line.partition(": ")[0] for line in files]
    assert listed("--weights-only", cold) == [*built.weight_files]
    assert listed("--exclude", "*-00002-*", "--weights-only", cold) == [
        built.weight_files[0],
        built.weight_files[2],
    ]


def test_no_weight_is_read(built: BuiltCheckpoint, cold: str) -> None:
    listed(cold)
    headers = 3 * 256 * 1024  # what the kernel reads at most with the first bytes of each
    assert oracle.resident_bytes(built.weight_files) <= headers


def test_paths_end_with_nul_where_that_is_asked_for(built: BuiltCheckpoint, cold: str) -> None:
    done = run("--list", "--print0", cold)
    paths = [*side(built), *built.weight_files]
    assert done.output == "".join(f"{path}\0" for path in paths)


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_path_is_given_byte_for_byte(small: Path, locale: dict[str, str]) -> None:
    odd = b"\xff \x1b[31m[red]\n\xc3\xa4\\.safetensors"
    path = os.path.join(os.fsencode(small), odd)
    os.rename(small / "model-00001-of-00003.safetensors", path)
    line = [*COMMAND, "--list", "--print0", os.fsdecode(path)]
    done = subprocess.run(line, capture_output=True, check=True, env=environment(**locale))
    assert done.stdout == path + b"\0"


def test_a_terminal_gets_no_control_characters(small: Path) -> None:
    path = os.path.join(os.fsencode(small), b"\x1b[31m\xff.safetensors")
    os.rename(small / "model-00001-of-00003.safetensors", path)
    ours, theirs = pty.openpty()
    line = [*COMMAND, "--list", os.fsdecode(path)]
    subprocess.run(line, stdout=theirs, check=True, env=environment())
    os.close(theirs)
    assert os.read(ours, 4096) == os.fsencode(f"{small}/\\x1b[31m\\xff.safetensors\r\n")
    os.close(ours)


@pytest.mark.parametrize("split", ["files", "bytes"])
def test_a_rank_lists_its_share(built: BuiltCheckpoint, cold: str, split: str) -> None:
    def of(rank: int) -> list[str]:
        given = ("--rank", str(rank), "--world-size", "2", "--split", split)
        return listed(*given, "--block-size", "1M", cold)

    every = listed(cold)
    ranks = [of(0), of(1)]
    assert set(ranks[0]) | set(ranks[1]) == set(every)
    for one in ranks:
        assert one == sorted(one, key=every.index)
    twice = set(ranks[0]) & set(ranks[1])
    assert twice == (set() if split == "files" else set(built.weight_files))


def test_empty_files_are_listed_once(small: Path) -> None:
    (small / "tokenizer.txt").touch()
    expected = [str(small / "tokenizer.txt")]
    for rank, found in (("0", expected), ("1", [])):
        paths = listed("--rank", rank, "--world-size", "2", str(small))
        assert [path for path in paths if path.endswith(".txt")] == found


def test_libraries_come_first(built: BuiltCheckpoint, cold: str, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"x")
    assert listed("--also", str(library), cold)[:2] == [str(library), side(built)[0]]
    assert listed("--also", str(library)) == [str(library)]


def test_what_else_there_is_to_say_goes_to_standard_error(small: Path) -> None:
    shard = small / "model-00002-of-00003.safetensors"
    shard.unlink()
    done = run("--list", "--allow-incomplete", str(small))
    assert done.code == 0
    assert len(done.output.splitlines()) == 7
    assert done.errors.startswith("prefetch-cli: warning: ")
    assert run("--list", "--quiet", "--allow-incomplete", str(small)).errors == ""
    assert refused("--list", str(small), code=3).startswith(f"{small}: expected a complete")


def test_a_file_that_may_not_be_looked_at_is_an_error(small: Path) -> None:
    folder = small / "locked"
    folder.mkdir()
    shard = small / "model-00002-of-00003.safetensors"
    (folder / "x").write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(folder / "x")
    folder.chmod(0)
    try:
        done = run("--list", str(small), command=[*unprivileged(), *COMMAND])
    finally:
        folder.chmod(0o700)
    assert done.code == 1
    assert f"prefetch-cli: error: {shard}: Permission denied" in done.errors
    assert str(shard) not in done.output


def test_a_reader_that_ends_early_is_no_error(cold: str) -> None:
    line = [*COMMAND, "--list", cold]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        line, stdout=writing, stderr=subprocess.PIPE, check=False, env=environment()
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_vmtouch_takes_the_list(built: BuiltCheckpoint, cold: str) -> None:
    if shutil.which("vmtouch") is None:
        pytest.skip("needs vmtouch")
    done = run("--list", "--print0", cold)
    line = ["vmtouch", "-q", "-t", "-0", "-b", "-"]
    subprocess.run(line, input=done.output.encode(), check=True)
    assert oracle.resident_bytes(built.files) == oracle.about(
        sum(map(os.path.getsize, built.files))
    )
