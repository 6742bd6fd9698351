"""--verify, as users meet it: real caches and lists, and every way in which a file differs."""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.command import Done, Running, refused, run
from tests.helpers.hub_caches import (
    Download,
    FakeHub,
    blobs_of,
    commit,
    etag_of,
    lay_ollama,
    ollama_manifest,
    write_caches,
)
from tests.run import test_json_contract as contract
from tests.unit.checkpoint.test_ollama import MODEL, PROJECTOR, TINY

MIB = 1024 * 1024
SECOND = "model-00002-of-00003.safetensors"
REPO = "org/name"


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache as huggingface_hub itself writes it, with a model of three shards."""
    top = tmp_path_factory.mktemp("hub")
    sizes = (2 * MIB, 3 * MIB, MIB)
    built = checkpoints.write_sharded(str(top / "source"), shard_bytes=sizes)
    files = {os.path.basename(path): Path(path).read_bytes() for path in built.files}
    files["added_tokens.json"] = b"{}"
    hub = FakeHub({"main": commit("main")}, files)
    write_caches(hub, [Download(top / "cache", REPO)], home=top)
    return top / "cache"


@pytest.fixture
def cache(cached: Path, tmp_path: Path) -> Path:
    """Return a copy of the cache that a test may damage, with its links."""
    return shutil.copytree(cached, tmp_path / "cache", symlinks=True)


def snapshot(cache: Path) -> Path:
    (found,) = cache.glob("models--org--name/snapshots/*")
    return found


def verify(cache: Path, *flags: str) -> Done:
    return run("--verify", "--json", "--cache-dir", str(cache), *flags, REPO)


def counts(done: Done) -> tuple[int, int, int]:
    """Return how many files are verified, mismatched and unchecked."""
    found = done.document["verification"]
    files = ("verified_files", "mismatched_files", "unchecked_files")
    verified, mismatched, unchecked = (found[key] for key in files)
    assert len(found["unchecked"]) == unchecked
    return verified, mismatched, unchecked


def failures(done: Done) -> dict[str, str]:
    failed = done.document["result"]["failed"]
    return {os.path.basename(one["path"]): one["error"] for one in failed}


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_whole_cache_is_verified_and_warm(cache: Path) -> None:
    blobs = list(map(str, (cache / "models--org--name" / "blobs").iterdir()))
    oracle.make_cold(blobs)
    done = verify(cache)
    assert done.code == 0, done
    jsonschema.validate(done.document, contract.VERIFIED)
    assert counts(done) == (9, 0, 0)
    total = sum(map(os.path.getsize, blobs))
    assert done.document["verification"]["verified_bytes"] == total
    assert done.document["result"]["bytes_read"] == total
    assert oracle.resident_bytes(blobs) == oracle.about(total)
    # What is warm is verified too.
    again = verify(cache)
    assert counts(again) == (9, 0, 0)
    assert again.document["decision"]["reason"] == "verify"
    assert again.document["result"]["engine"] == "read"
    assert again.document["warnings"] == []


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("name", "spoil", "algorithm"),
    [
        (SECOND, lambda path: flip(path, 2_000_000), "SHA-256"),
        (SECOND, truncate, "SHA-256"),
        (SECOND, extend, "SHA-256"),
        ("added_tokens.json", lambda path: flip(path, 0), "git blob SHA-1"),
        ("config.json", truncate, "git blob SHA-1"),
        ("config.json", extend, "git blob SHA-1"),
        ("added_tokens.json", lambda path: os.truncate(path, 0), "git blob SHA-1"),
    ],
)
def test_a_blob_that_is_not_what_its_name_says(
    cache: Path, name: str, spoil: Callable[[Path], None], algorithm: str
) -> None:
    blob = (snapshot(cache) / name).resolve()
    spoil(blob)
    done = verify(cache, "--allow-incomplete")
    assert done.code == 1, done
    found = etag_of(name, blob.read_bytes())
    expected = f"expected {algorithm} {blob.name} by its blob's name, found {found}"
    assert failures(done) == {name: expected}
    assert counts(done) == (8, 1, 0)
    assert done.document["result"]["complete"] is False
    assert done.errors.count("error: ") == 1
    assert f"/{name}: {expected}\n" in done.errors
    pages = -(-blob.stat().st_size // 4096) * 4096
    assert oracle.resident_bytes([str(blob)]) == oracle.about(pages)


def test_each_file_has_its_verdict(cache: Path) -> None:
    flip((snapshot(cache) / SECOND).resolve(), 2_000_000)
    found = verify(cache, "--verbose", "--max-bytes", "30M").document["files"]
    verdicts = {os.path.basename(one["path"]): one["verified"] for one in found}
    assert verdicts.pop(SECOND) is False
    assert verdicts.pop("config.json") is True
    assert set(verdicts.values()) <= {True, None}


def test_blobs_of_ollama(tmp_path: Path) -> None:
    layers = [("projector", PROJECTOR), ("model", MODEL), ("template", b"{{ .Prompt }}")]
    lay_ollama(tmp_path, TINY, ollama_manifest(tmp_path, layers))
    env = {"OLLAMA_MODELS": str(tmp_path)}
    asked = ("--verify", "--json", "--hub", "ollama", "tiny:1b")
    assert counts(run(*asked, env=env)) == (4, 0, 0)
    (blob,) = blobs_of(tmp_path, MODEL)
    flip(Path(blob), len(MODEL) - 1)
    done = run(*asked, env=env)
    assert (done.code, list(failures(done))) == (1, [os.path.basename(blob)])


def sha256sums(folder: Path, *flags: str) -> str:
    """Return the path of the list that sha256sum writes about the files of a folder."""
    if not shutil.which("sha256sum"):
        pytest.skip("needs sha256sum (coreutils)")
    path = folder.parent / "SHA256SUMS"
    names = sorted(os.listdir(folder))
    path.write_bytes(subprocess.check_output(["sha256sum", *flags, *names], cwd=folder))
    return str(path)


def test_a_list_of_checksums(small: Path) -> None:
    listed = sha256sums(small)
    with open(listed, "a", encoding="utf-8") as file:
        file.write(f"{'0' * 64}  other.bin\n")
    asked = ("--verify", "--checksums", listed, str(small))
    done = run("--json", *asked)
    assert (done.code, counts(done)) == (0, (len(os.listdir(small)), 0, 0)), done
    assert done.document["verification"]["ignored_lines"] == 1
    flip(small / SECOND, 5000)
    done = run(*asked)
    assert done.code == 1
    assert " in 7 of 8 files; 1 does not match; 1 line of --checksums " in done.lines["verified"]
    digest = hashlib.sha256((small / SECOND).read_bytes()).hexdigest()
    assert f" by line 4 of SHA256SUMS, found {digest}\n" in done.errors


def test_what_cannot_be_checked_is_counted_and_said(small: Path) -> None:
    done = run("--verify", "-v", str(small))
    assert done.code == 0, done
    assert done.lines["verified"] == (
        "0 bytes in 0 of 8 files; 5 not checked: no checksum is known; 3 not checked: no checksum "
        "is known, only the header was checked"
    )
    assert "warning: --verify: no checksum of any file is known" in done.errors
    assert f"{small}/config.json: not checked: no checksum is known\n" in done.output


def test_a_malformed_list_ends_the_run_before_anything_is_read(cold: str, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(f"{'0' * 64}  a\nnonsense\n")
    for more in ((), ("--", "echo", "started")):
        error = refused("--verify", "--checksums", str(listed), cold, *more)
        assert f"{listed}, line 2: expected 64 hex digits" in error
    assert oracle.resident_bytes([f"{cold}/{SECOND}"]) < MIB


def test_a_list_about_other_files_is_warned_of(small: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(f"{'0' * 64}  a\n")
    done = run("--verify", "--checksums", str(listed), str(small))
    assert done.code == 0
    assert "none of its names is a file of this checkpoint" in done.errors


def test_a_header_that_lies_fails_although_nobody_knows_a_checksum(small: Path) -> None:
    path = small / SECOND
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes(
        content[:8] + content[8 : 8 + size].replace(b"F16", b"F32") + content[8 + size :]
    )
    done = run("--verify", "--json", str(small))
    assert done.code == 1, done
    ((name, error),) = failures(done).items()
    assert name == SECOND
    assert error.startswith("its header is wrong: expected as many bytes of ")
    assert counts(done) == (0, 1, 7)


def test_each_rank_verifies_whole_files_of_its_share(cache: Path) -> None:
    found = []
    for rank in ("0", "1"):
        done = verify(cache, "--rank", rank, "--world-size", "2")
        share = done.document["share"]
        assert (share["split"], sum(counts(done))) == ("files", share["files"])
        found.append(counts(done))
    assert [sum(each) for each in zip(*found, strict=True)] == [9, 0, 0]


def test_a_limit_leaves_whole_files_out(cache: Path) -> None:
    for flags in (("--max-bytes", "4MiB"), ("--max-bytes", "4MiB", "--force", "--partial")):
        done = verify(cache, *flags)
        assert done.code == 0, done
        reasons = {
            os.path.basename(one["path"]): one["reason"]
            for one in done.document["verification"]["unchecked"]
        }
        assert reasons == dict.fromkeys(
            (SECOND, SECOND.replace("00002", "00003")), "it does not fit into the limit"
        )
        assert done.document["result"]["bytes_read"] <= 4 * MIB


def test_a_time_limit_leaves_the_rest_unchecked(cache: Path) -> None:
    done = verify(cache, "--time-limit", "2s", "--max-rate", "1M", "-t", "1")
    assert done.code == 0, done
    verified, mismatched, unchecked = counts(done)
    assert (verified + unchecked, mismatched) == (9, 0)
    assert unchecked > 0
    reasons = {one["reason"] for one in done.document["verification"]["unchecked"]}
    assert reasons == {"the run ended before it was read to its end"}
    assert done.document["result"]["complete"] is False


def test_what_was_resident_before_is_not_expected_twice(cache: Path) -> None:
    blobs = [str(path.resolve()) for path in sorted(snapshot(cache).iterdir())]
    oracle.make_cold(blobs)
    first = (snapshot(cache) / SECOND.replace("00002", "00001")).resolve()
    first.read_bytes()
    done = verify(cache, "--time-limit", "2s", "--max-rate", "1M", "-t", "1")
    assert done.document["result"]["complete"] is False
    assert done.document["warnings"] == []


def test_a_signal_ends_it_and_what_differs_is_still_said(cache: Path) -> None:
    flip((snapshot(cache) / "config.json").resolve(), 0)
    arguments = ("--verify", "--json", "--max-rate", "2M", "-t", "1", "--cache-dir", str(cache))
    with Running.start(*arguments, REPO) as running:
        running.await_line("10%")
        running.send(signal.SIGTERM)
        done = running.end()
    assert done.code == 143
    assert "config.json" in failures(done)
    assert counts(done)[2] > 0


def beside(cache: Path, *flags: str) -> Done:
    words = ("--verify", "--cache-dir", str(cache), *flags, REPO)
    return run(*words, "--", "sh", "-c", "echo started")


def test_command_starts_once_all_is_verified(cache: Path) -> None:
    done = beside(cache)
    assert (done.code, done.output) == (0, "started\n")
    assert "verified     " in done.errors


def test_command_does_not_start_where_a_file_differs(cache: Path) -> None:
    flip((snapshot(cache) / SECOND).resolve(), 2_000_000)
    done = beside(cache)
    assert (done.code, done.output) == (1, "")
    assert f"/{SECOND}: expected SHA-256 " in done.errors
    assert "COMMAND is not started; --best-effort starts it anyway" in done.errors
    # It does not wait for a verdict that does not matter, unless it is told to.
    done = beside(cache, "--best-effort", "--lead", "100%")
    assert (done.code, done.output) == (0, "started\n")


def test_command_starts_where_only_time_ran_out(cache: Path) -> None:
    done = beside(cache, "--time-limit", "1s", "--max-rate", "1M", "-t", "1")
    assert (done.code, done.output) == (0, "started\n")
    assert "not all is verified; starting COMMAND anyway" in done.errors


def test_a_warmer_that_dies_has_verified_nothing(cache: Path) -> None:
    arguments = ("--verify", "--max-rate", "1M", "--cache-dir", str(cache), REPO)
    with Running.start(*arguments, "--", "sh", "-c", "echo started") as running:
        running.await_line("10%")
        own = running.process.pid
        others = subprocess.run(
            ["pgrep", "-f", str(cache)], capture_output=True, text=True, check=True
        ).stdout.split()
        (warmer,) = {int(one) for one in others} - {own}
        os.kill(warmer, signal.SIGKILL)
        done = running.end()
    assert (done.code, done.output) == (1, "")
    assert "the warmer exited before all was verified" in done.errors


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (("--split", "bytes"), "expected --verify or --split bytes, found both"),
        (("--engine", "splice"), "expected --verify or --engine splice, found both"),
        (("--check",), "expected --verify or --check, found both"),
        (("--dry-run",), "expected --verify or --dry-run, found both"),
    ],
)
def test_what_does_not_go_together(flags: tuple[str, ...], found: str, tmp_path: Path) -> None:
    assert refused("--verify", *flags, str(tmp_path)).startswith(found)
    assert "expected --verify with --checksums" in refused("--checksums", "x", str(tmp_path))


def test_variables_give_way(small: Path) -> None:
    env: dict[str, Any] = {"PREFETCH_CLI_SPLIT": "bytes", "PREFETCH_CLI_ENGINE": "splice"}
    done = run("--verify", "--json", str(small), env=env)
    assert (done.code, done.document["share"]["split"]) == (0, "files"), done
