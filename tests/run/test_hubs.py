"""Models by name, as users give them: each server's own variables, and Ollama's store."""

import os
from pathlib import Path

import pytest

from tests.helpers import checkpoints, oracle
from tests.helpers.command import refused, run
from tests.helpers.hub_caches import blobs_of, lay_ollama, ollama_manifest
from tests.unit.checkpoint.test_ollama import MODEL, PROJECTOR, TINY


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store of Ollama with one model."""
    layers = [("projector", PROJECTOR), ("model", MODEL), ("template", b"{{ .Prompt }}")]
    lay_ollama(tmp_path, TINY, ollama_manifest(tmp_path, layers))
    return tmp_path


def test_a_model_of_ollama_is_warmed(store: Path) -> None:
    blobs = blobs_of(store, MODEL, PROJECTOR)
    oracle.make_cold(blobs)
    env = {"OLLAMA_MODELS": str(store)}
    found = run("--json", "--force", "--hub", "ollama", "Tiny:1B", env=env).document
    assert found["checkpoint"]["sources"] == [
        {
            "argument": "Tiny:1B",
            "kind": "ollama",
            "path": f"{store}/manifests/{TINY}",
            "revision": None,
            "load_format": "gguf",
            "server": "ollama",
            "part": None,
        }
    ]
    assert found["checkpoint"]["total_bytes"] == sum(
        os.stat(path).st_size for path in (store / "blobs").iterdir()
    )
    assert found["result"]["complete"]
    assert oracle.resident_bytes(blobs) >= len(MODEL) + len(PROJECTOR)


def test_the_line_names_whose_model_it_is(store: Path) -> None:
    env = {"OLLAMA_MODELS": str(store)}
    done = run("--dry-run", "--server", "ollama", "tiny:1b", env=env)
    assert done.lines["checkpoint"] == "tiny:1b (as ollama reads it)"
    assert not done.errors


def test_the_model_that_ollama_is_told_to_run_is_warmed(store: Path) -> None:
    stand_in = store / "bin" / "ollama"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\n")
    stand_in.chmod(0o755)
    blobs = blobs_of(store, MODEL, PROJECTOR)
    oracle.make_cold(blobs)
    words = ["env", f"OLLAMA_MODELS={store}", str(stand_in), "run", "tiny:1b", "hello"]
    done = run("--force", "--lead", "100%", "--", *words)
    assert done.code == 0, done
    assert "tiny:1b (as ollama reads it, load format gguf, from COMMAND)" in done.errors
    assert oracle.resident_bytes(blobs) >= len(MODEL) + len(PROJECTOR)


def test_a_name_without_the_flag_that_it_needs(store: Path) -> None:
    line = refused("tiny:1b", code=3, env={"OLLAMA_MODELS": str(store)})
    assert line.endswith("the Ollama store has it: give tiny:1b --hub ollama")


def test_a_name_without_a_tag_lists_the_tags(store: Path) -> None:
    env = {"OLLAMA_MODELS": str(store)}
    line = refused("--hub", "ollama", "tiny", code=3, env=env)
    assert "expected the tag latest" in line
    assert "found 1b; give tiny:1b, or fetch it: `ollama pull tiny:latest`" in line


def test_a_blob_by_its_path(store: Path) -> None:
    [path] = blobs_of(store, MODEL)
    found = run("--json", "--dry-run", path).document
    assert found["checkpoint"]["total_bytes"] == len(MODEL)
    assert found["checkpoint"]["sources"][0]["load_format"] == "gguf"


def test_modelscope_by_the_variable_of_sglang(tmp_path: Path) -> None:
    folder = tmp_path / "ms" / "models" / "acme" / "Tiny"
    folder.mkdir(parents=True)
    checkpoints.write_sharded(str(folder), shard_bytes=[1000])
    env = {
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "SGLANG_USE_MODELSCOPE": "true",
    }
    done = run("--dry-run", "--json", "--server", "sglang", "acme/Tiny", env=env)
    assert done.document["checkpoint"]["sources"][0]["kind"] == "modelscope"
    line = refused("--server", "vllm", "acme/Tiny", code=3, env=env)
    assert "the ModelScope cache has it: give acme/Tiny --hub modelscope" in line


def test_a_redirect_of_vllm_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    checkpoints.write_sharded(str(folder), shard_bytes=[1000])
    path = tmp_path / "redirects"
    path.write_text(f"acme/Tiny {folder}\n")
    env = {"VLLM_MODEL_REDIRECT_PATH": str(path), "HF_HUB_CACHE": str(tmp_path / "hf")}
    done = run("--dry-run", "acme/Tiny", env=env)
    assert done.lines["checkpoint"] == f"acme/Tiny (as vllm reads it), redirected to {folder}"
    assert not done.errors
    found = run("--dry-run", "--json", "acme/Tiny", env=env).document
    [source] = found["checkpoint"]["sources"]
    assert (source["argument"], source["path"]) == ("acme/Tiny", str(folder))
    refused("--server", "sglang", "acme/Tiny", code=3, env=env)
