"""What is refused, in one line with its exit code, and what is survived."""

import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from prefetch_cli.cli import main
from tests.helpers import checkpoints
from tests.helpers.command import COMMAND, refused, run, unprivileged

COUNT = "expected a whole number of at least"
SIZE = "expected a size from 1 byte to 2^63 - 1 bytes"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--threads", "0"], f"--threads: {COUNT} 1 or auto, found '0'"),
        (["--threads", "-1"], f"--threads: {COUNT} 1 or auto, found '-1'"),
        (["--threads=1.5"], f"--threads: {COUNT} 1 or auto, found '1.5'"),
        (["-t", ""], f"--threads: {COUNT} 1 or auto, found ''"),
        (["-t", "\u0664"], f"--threads: {COUNT} 1 or auto, found '\u0664'"),
        (["-t", "9" * 5000], "--threads: expected at most 1,000,000 or auto, found '999"),
        (["--block-size", "0"], f"--block-size: {SIZE}, such as 16MiB, found '0'"),
        (["--block-size", "-1"], f"--block-size: {SIZE}, such as 16MiB, found '-1'"),
        (["-b", "abc"], f"--block-size: {SIZE}, such as 16MiB, found 'abc'"),
        (["-b", "1e400"], f"--block-size: {SIZE}, such as 16MiB, found '1e400'"),
        (["--max-bytes", "0"], f"--max-bytes: {SIZE}"),
        (["--max-rate", "nan"], f"--max-rate: {SIZE}"),
        (["--rank", "2", "--world-size", "2"], "--rank: expected a number below --world-size 2"),
        (["--rank", "5", "--world-size", "2"], "--rank: expected a number below --world-size 2"),
        (["--rank", "-1", "--world-size", "2"], f"--rank: {COUNT} 0 or auto, found '-1'"),
        (["--rank", "0", "--world-size", "0"], f"--world-size: {COUNT} 1 or auto, found '0'"),
        (["--rank", "0"], "expected --rank and --world-size as two numbers"),
        (["--world-size", "2"], "expected --rank and --world-size as two numbers"),
        (["--world-size", "auto"], "expected --rank and --world-size as two numbers"),
        (["--rank", "auto", "--world-size", "2"], "expected --rank and --world-size as two"),
        (["--rank", "x"], f"--rank: {COUNT} 0 or auto, found 'x'"),
        (["--check", "--evict"], "expected --check or --evict, found both; give one"),
        (["--check", "-n"], "expected --dry-run or --check, found both; give one"),
        (["--quiet", "-v"], "expected --quiet or --verbose, found both; give one"),
        (["--ram-threshold", "0"], "--ram-threshold: expected 1 to 100, found '0'"),
        (["--ram-threshold", "0.99"], "--ram-threshold: expected 1 to 100, found '0.99'"),
        (["--ram-threshold", "100.01"], "--ram-threshold: expected 1 to 100, found '100.01'"),
        (["--ram-threshold", "nan"], "--ram-threshold: expected 1 to 100, found 'nan'"),
        (["--ram-threshold", "inf"], "--ram-threshold: expected 1 to 100, found 'inf'"),
        (["--ram-threshold", "all"], "--ram-threshold: expected 1 to 100, found 'all'"),
        (["--min-resident", "101"], "--min-resident: expected 0 to 100, found '101'"),
        (["--time-limit", "0"], "--time-limit: expected a duration such as 90s"),
        (["--time-limit", "soon"], "--time-limit: expected a duration such as 90s"),
        (
            ["--engine", "warp"],
            "--engine: expected auto, populate, advise, splice or read, found 'warp'",
        ),
        (["--split", "AUTO"], "--split: expected auto, files or bytes, found 'AUTO'"),
        (["--hub", "x"], "--hub: expected huggingface, modelscope or ollama, found 'x'"),
        (["--nope"], "expected an option, found --nope; see prefetch-cli --help"),
        (["--thread", "4"], "expected an option, found --thread; did you mean --threads?"),
        (["--cold"], "expected an option, found --cold; see prefetch-cli --help"),
        (["--chekc"], "expected an option, found --chekc; did you mean --check?"),
        (["-x"], "expected an option, found -x; see prefetch-cli --help"),
        (["-fx"], "expected an option, found -x; see prefetch-cli --help"),
        (["--force=1"], "--force: expected no value, found one; see prefetch-cli --help"),
        (["--no\x1b[31m\n\udcff"], r"expected an option, found --no\x1b[31m \xff;"),
    ],
)
def test_usage_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], given: Sequence[str], expected: str
) -> None:
    assert main.run([*given, "/m"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"prefetch-cli: error: {expected}")
    assert shown.err.count("\n") == 1


def test_what_is_missing_is_refused_in_one_line() -> None:
    assert refused() == "expected at least one CHECKPOINT, found none; see prefetch-cli --help"
    assert refused("--check").startswith("expected at least one CHECKPOINT, found none")
    line = refused("/m", "--threads")
    assert line == "--threads: expected a value, found none; see prefetch-cli --help"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("THREADS", "0", f"PREFETCH_CLI_THREADS: {COUNT} 1 or auto, found '0'"),
        (
            "ENGINE",
            "x",
            "PREFETCH_CLI_ENGINE: expected auto, populate, advise, splice or read, found 'x'",
        ),
        ("FORCE", "maybe", "PREFETCH_CLI_FORCE: expected 1 or 0, found 'maybe'"),
        ("JSON", "maybe", "PREFETCH_CLI_JSON: expected 1 or 0, found 'maybe'"),
        ("RANK", "1", "expected --rank and --world-size as two numbers"),
        ("MAX_BYTES", "\x1b[31m", f"PREFETCH_CLI_MAX_BYTES: {SIZE}, such as 16MiB, found '\\x1b"),
    ],
)
def test_a_variable_is_named_by_its_error(name: str, value: str, expected: str) -> None:
    assert refused("/m", env={f"PREFETCH_CLI_{name}": value}).startswith(expected)


def write_index(folder: Path, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "model.safetensors.index.json").write_text(text)


def mapped(*names: str) -> dict[str, dict[str, str]]:
    return {"weight_map": {f"tensor.{number}": name for number, name in enumerate(names)}}


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "",
        "[]",
        "{}",
        {"weight_map": []},
        {"weight_map": None},
        {"weight_map": {"a": 1}},
        mapped("../../etc/x"),
        mapped("/etc/passwd"),
        mapped("a/../../x.safetensors"),
        "[" * 100_000,
    ],
)
def test_a_malformed_index_is_refused(small: Path, content: object) -> None:
    write_index(small, content)
    line = refused("--force", str(small), code=3)
    assert "model.safetensors.index.json" in line
    assert "expected" in line
    assert "found" in line


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "nowhere", "expected a file, a directory or a repo id"),
        (lambda folder: folder, "found an empty directory"),
        (lambda folder: _written(folder / "notes.md").parent, "expected weight files"),
        (lambda folder: _linked(folder / "loop", "loop"), "symbolic link that leads to itself"),
        (lambda folder: _linked(folder / "gone", "nothing"), "symbolic link to nothing"),
        (
            lambda folder: _fifo(folder / "x.safetensors"),
            "expected a file or a directory, found a FIFO",
        ),
        (lambda _: "s3://bucket/model", "object store"),
        (lambda _: "gs://bucket/model", "object store"),
        (lambda _: "", "expected"),
        (lambda _: "x" * 300, "expected"),
        (lambda _: "nobody/never-cached", "never-cached"),
    ],
    ids=[
        "no such path",
        "empty directory",
        "no weights",
        "symlink loop",
        "symlink to nothing",
        "FIFO",
        "s3",
        "gs",
        "nothing",
        "name too long",
        "repo id",
    ],
)
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, make: Callable[[Path], Path | str], expected: str
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    line = refused("--force", str(make(folder)), code=3, env={"HF_HUB_CACHE": str(tmp_path)})
    assert expected in line


def _written(path: Path) -> Path:
    path.write_text("text")
    return path


def _linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_a_repo_id_that_is_not_cached_names_where_was_looked(tmp_path: Path) -> None:
    line = refused("org/name", code=3, env={"HF_HUB_CACHE": str(tmp_path)})
    assert str(tmp_path) in line


def test_an_incomplete_checkpoint_is_refused_and_can_be_allowed(small: Path) -> None:
    (small / "model-00002-of-00003.safetensors").unlink()
    os.truncate(small / "model-00003-of-00003.safetensors", 1000)
    line = refused("--force", str(small), code=3)
    assert "model-00002-of-00003.safetensors" in line
    assert "model-00003-of-00003.safetensors" in line
    assert "--allow-incomplete" in line
    done = run("--force", "--allow-incomplete", str(small))
    assert done.code == 0
    assert done.resident_percent >= 99


def test_special_files_are_left_out_with_a_warning(small: Path) -> None:
    os.mkfifo(small / "extra.safetensors")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(small / "tokenizer.sock.json"))
        (small / "loop.json").symlink_to("loop.json")
        done = run("--force", str(small))
    assert done.code == 0, done
    for name in ("extra.safetensors", "tokenizer.sock.json", "loop.json"):
        assert re.search(rf"^prefetch-cli: warning: .*{name}", done.errors, re.MULTILINE), name


def test_a_shard_that_may_not_be_read_fails_and_the_others_are_read(small: Path) -> None:
    (small / "model-00001-of-00003.safetensors").chmod(0)
    done = run("--force", "--verbose", str(small), command=[*unprivileged(), *COMMAND])
    assert done.code == 1
    line = re.compile(
        r"prefetch-cli: error: \S+model-00001-of-00003.safetensors: Permission denied"
    )
    assert len(line.findall(done.errors)) == 1
    assert re.search(r"model-00003-of-00003.safetensors: (\S+ KiB) of \1", done.output)


@pytest.mark.parametrize("out_of_reach", [True, False])
@pytest.mark.parametrize("flags", [("--dry-run",), ()])
def test_what_cannot_be_looked_at_is_said_though_nothing_is_read(
    small: Path, tmp_path: Path, flags: tuple[str, ...], out_of_reach: bool
) -> None:
    shard, secret = small / "model-00002-of-00003.safetensors", tmp_path / "secret"
    before = run("--dry-run", str(small)).lines["size"]
    if out_of_reach:
        secret.mkdir()
        shard.rename(secret / shard.name)
        shard.symlink_to(secret / shard.name)
        secret.chmod(0)
    else:
        shard.chmod(0)
    prefix = [*unprivileged(), *COMMAND]
    done = run(*flags, str(small), command=prefix)
    assert done.code == 0
    said = f"prefetch-cli: warning: {shard}: Permission denied\n"
    assert done.errors.count(said) == 1
    expected = r"at least .* in 2 weight files and \d other files, 1 out of reach"
    assert re.fullmatch(expected if out_of_reach else re.escape(before), done.lines["size"])
    found = run(*flags, "--json", str(small), command=prefix).document
    failed = [{"path": str(shard), "error": "Permission denied"}]
    assert found["checkpoint"]["failed"] == failed
    check = run("--check", "--json", str(small), command=prefix)
    assert (check.code, check.document["checkpoint"]["failed"]) == (1, failed)
    if out_of_reach:
        secret.chmod(0o700)


def test_an_empty_shard_is_incomplete(tmp_path: Path) -> None:
    built = checkpoints.write_sharded(str(tmp_path / "m"), shard_bytes=[100_000])
    (tmp_path / "m" / "extra.safetensors").touch()
    arguments = ("--load-format", "all", built.directory)
    assert "extra.safetensors (it is empty)" in refused(*arguments, code=3)
    assert run("--force", "--allow-incomplete", *arguments).code == 0


def test_ten_thousand_files_are_survived(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"w{number}.bin").write_bytes(b"12")
    done = run("--dry-run", "--json", str(tmp_path))
    assert done.code == 0
    assert done.document["checkpoint"]["files"] == 10_000
