"""`prefetch-cli -- vllm serve MODEL`: the whole command warms what COMMAND's words name.

The servers are stand-ins: scripts of the same names that print their words.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.command import Done, refused, run
from tests.helpers.hub_caches import commit

MIB = 1024 * 1024
STAND_INS = ("vllm", "sglang", "llama-server", "text-generation-launcher", "serve-something")

pytestmark = pytest.mark.skipif(
    oracle.oracle_name() is None, reason="needs fincore (util-linux) or vmtouch as the oracle"
)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with stand-ins for servers in `bin` and cold checkpoints beside it."""
    (tmp_path / "bin").mkdir()
    for name in STAND_INS:
        script = tmp_path / "bin" / name
        script.write_text('#!/bin/sh\necho "served: $*"\n')
        script.chmod(0o755)
    for name in ("model", "draft", "tokenizer", "other"):
        checkpoints.write_sharded(str(tmp_path / name), shard_bytes=[MIB, MIB])
    adapter = checkpoints.write_sharded(str(tmp_path / "adapter"), shard_bytes=[MIB])
    Path(adapter.weight_files[0]).rename(tmp_path / "adapter" / "adapter_model.safetensors")
    oracle.make_cold([str(path) for path in files(tmp_path)])
    return tmp_path


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def warmed(places: Path, *, cold: bool = False) -> set[str]:
    """Return the names of the weight files below a folder that are resident (or not at all)."""
    found = set()
    for path in files(places):
        if path.suffix in (".safetensors", ".gguf"):
            resident = oracle.resident_bytes([str(path)])
            if resident == 0 if cold else resident >= 0.99 * path.stat().st_size:
                found.add(f"{path.parent.name}/{path.name}")
    return found


def served(places: Path, *words: str, env: dict[str, str] | None = None) -> Done:
    path = f"{places}/bin:{os.environ['PATH']}"
    # The warmer ends with COMMAND, and these servers end at once.
    return run(
        "--force", "--lead", "100%", *words, env={"HOME": str(places), "PATH": path, **(env or {})}
    )


def lines(done: Done, label: str) -> list[str]:
    """Return the texts of the lines that the warmer wrote beside COMMAND."""
    texts = (line.removeprefix("prefetch-cli: ") for line in done.errors.splitlines())
    return [text[13:] for text in texts if text[:13].strip() == label]


SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def shards(*folders: str) -> set[str]:
    return {f"{folder}/{name}" for folder in folders for name in SHARDS}


def test_everything_that_a_server_is_told_to_read_is_warmed(places: Path) -> None:
    words = [
        *("vllm", "serve", f"{places}/model", "--tokenizer", f"{places}/tokenizer"),
        *("--enable-lora", "--lora-modules", f"a={places}/adapter"),
        *("--speculative-config", json.dumps({"model": f"{places}/draft", "method": "eagle3"})),
    ]
    done = served(places, "--", *words)
    assert (done.code, done.output) == (0, f"served: {' '.join(words[1:])}\n"), done
    assert warmed(places) == {*shards("model", "draft"), "adapter/adapter_model.safetensors"}
    assert warmed(places, cold=True) == shards("tokenizer", "other")
    assert lines(done, "checkpoint") == [
        f"{places}/tokenizer (only its config and tokenizer files, from COMMAND)",
        *(
            f"{places}/{name} (as vllm reads it, load format hf, from COMMAND)"
            for name in ("model", "draft", "adapter")
        ),
    ]
    tokenizer = [str(path) for path in (places / "tokenizer").glob("*.json")]
    assert oracle.resident_bytes(tokenizer) >= sum(map(os.path.getsize, tokenizer)) > 0


def both_layouts(folder: Path) -> None:
    """Add Mistral's own copy of the weights to a checkpoint."""
    (folder / "consolidated.safetensors").write_bytes((folder / SHARDS[0]).read_bytes())
    oracle.make_cold([str(path) for path in files(folder)])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vllm serve", {"model/consolidated.safetensors"}),
        ("vllm serve --load-format=hf", shards("model")),
        ("sglang serve --model-path", shards("model")),
        ("nice -n 1 sglang serve --model-path", shards("model")),
    ],
)
def test_the_command_says_by_whose_rules(
    places: Path, words: str, expected: set[str], *, given: bool
) -> None:
    both_layouts(places / "model")
    model = f"{places}/model"
    done = served(places, *([model] if given else []), "--", *words.split(), model)
    assert done.code == 0, done
    assert warmed(places) == expected


def test_a_checkpoint_that_is_given_wins_over_the_command(places: Path) -> None:
    done = served(places, f"{places}/other", "--", "vllm", "serve", f"{places}/model")
    assert done.code == 0, done
    assert warmed(places) == shards("other")
    assert lines(done, "checkpoint") == [f"{places}/other (as vllm reads it)"]


def test_a_repo_is_looked_up_where_the_server_looks(places: Path) -> None:
    repo = places / "own" / "models--org--m"
    folder = repo / "snapshots" / commit("a")
    folder.parent.mkdir(parents=True)
    (places / "model").rename(folder)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(commit("a"))
    serve = ["vllm", "serve", "org/m", "--revision", "v1"]
    for ours, place in (
        ([], [*serve, "--download-dir", f"{places}/own"]),
        ([], ["env", f"HF_HUB_CACHE={places}/own", *serve]),
        ([], ["bash", "-c", f"HF_HUB_CACHE={places}/own exec {' '.join(serve)}"]),
        (["--revision", "v1", "--cache-dir", f"{places}/own"], [*serve[:3], "--revision", "v9"]),
    ):
        oracle.make_cold([str(path) for path in files(places)])
        done = served(places, *ours, "--", *place)
        assert done.code == 0, done
        assert warmed(places) == {f"{commit('a')}/{name}" for name in SHARDS}
        (line,) = lines(done, "checkpoint")
        assert line.startswith(f"org/m at {commit('a')[:12]} (as vllm reads it")


def test_what_llama_server_reads_of_its_cache_is_warmed(places: Path, tmp_path: Path) -> None:
    folder = places / "hub" / "models--org--m" / "snapshots" / commit("a")
    folder.mkdir(parents=True)
    gguf = b"GGUF" + (3).to_bytes(4, "little") + bytes(24)  # version 3, without a tensor
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"):
        (folder / name).write_bytes(gguf)
    draft = tmp_path / "draft.gguf"
    draft.write_bytes(gguf)
    oracle.make_cold([*(str(path) for path in files(folder)), str(draft)])
    words = ["llama-server", "-hf", "org/m:q8_0", "-md", str(draft)]
    done = served(places, "--", *words, env={"LLAMA_CACHE": f"{places}/hub"})
    assert done.code == 0, done
    assert {name.partition("/")[2] for name in warmed(places)} == {
        "m-Q8_0.gguf",
        "mmproj-F16.gguf",
        "draft.gguf",
    }


def test_an_option_of_ours_wins_over_that_of_the_command(places: Path) -> None:
    both_layouts(places / "model")
    words = ["vllm", "serve", f"{places}/model", "--load-format", "mistral"]
    done = served(places, "--load-format", "hf", "--", *words)
    assert done.code == 0, done
    assert warmed(places / "model") == shards("model")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("serve-something /models/m", "no server that is known"),
        ("vllm serve --unknown value /models/m", "any may be the model (value, /models/m)"),
        ("vllm serve --config serve.yaml", "options are in serve.yaml, which is not read"),
        ("text-generation-launcher --port 80", "no model in the command"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_checkpoint(
    places: Path, words: str, found: str
) -> None:
    path = f"{places}/bin:{os.environ['PATH']}"
    error = refused("--", *words.split(), env={"PATH": path})
    assert error.startswith("expected CHECKPOINT, or a COMMAND that names it, found ")
    assert found in error
    assert error.endswith("; give CHECKPOINT in front of --")


def test_options_that_are_not_read_are_warned_about(places: Path) -> None:
    done = served(places, "--", "vllm", "serve", f"{places}/model", "--config", "serve.yaml")
    assert done.code == 0, done
    assert "warning: COMMAND's options in serve.yaml are not read" in done.errors
    assert warmed(places) == shards("model")


def test_where_only_libraries_can_be_warmed_that_is_said(places: Path) -> None:
    words: Sequence[str] = ("vllm", "serve", "--config", "serve.yaml")
    done = served(places, "--also", f"{places}/other", "--", *words)
    assert done.code == 0, done
    assert "warning: no checkpoint is warmed: found a command whose options are" in done.errors
    done = served(places, "--also", f"{places}/other", "--", "serve-something")
    assert (done.code, "warning" in done.errors) == (0, False), done


def test_a_model_that_is_not_there_keeps_the_server_from_starting(places: Path) -> None:
    error = refused("--", f"{places}/bin/vllm", "serve", f"{places}/no", code=3)
    assert f"{places}/no" in error
    done = served(places, "--best-effort", "--", "vllm", "serve", f"{places}/no")
    assert (done.code, done.output) == (0, f"served: serve {places}/no\n"), done
