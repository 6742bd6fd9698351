"""What goes with one reference: a role, a load format, a cache, and COMMAND's environment."""

from pathlib import Path
from typing import Any

import pytest

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.request import Pick, Reference, Role
from prefetch_cli.checkpoint.resolve import Checkpoint, resolve
from tests.helpers import checkpoints
from tests.helpers.hub_caches import commit, lay_huggingface
from tests.helpers.requests import request


def resolved(*references: Reference, server: Server = Server.VLLM, **given: Any) -> Checkpoint:
    asked = request(*references, server=server, **given)
    return resolve(asked, {"HOME": "/nonexistent"}, Monitor(), threads=2)


def names(found: Checkpoint) -> list[str]:
    return [Path(file.path).name for file in found.files]


def test_of_a_tokenizer_only_config_and_tokenizer_files_are_read(tmp_path: Path) -> None:
    built = checkpoints.write_sharded(str(tmp_path / "m"), shard_bytes=[100, 100])
    found = resolved(Reference(built.directory, role=Role.TOKENIZER, inferred=True))
    assert [file.path for file in found.files] == list(built.side_files)
    (source,) = found.sources
    assert (source.role, source.inferred) == (Role.TOKENIZER, True)
    assert found.warnings == ()


def test_a_tokenizer_needs_no_weights_and_may_even_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer = Reference(str(tmp_path), role=Role.TOKENIZER)
    assert names(resolved(tokenizer)) == ["tokenizer.json"]
    assert names(resolved(tokenizer, weights_only=True)) == []
    with pytest.raises(CheckpointError, match=r"expected .* found"):
        resolved(tokenizer._replace(role=Role.MODEL))
    with pytest.raises(CheckpointError, match=r"expected .* found no such"):
        resolved(Reference(str(tmp_path / "no"), role=Role.TOKENIZER))


def test_a_tokenizer_of_a_hub_is_found_in_its_cache(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, "org/t", refs={"main": commit("a")}, commits=[commit("a")])
    found = resolved(Reference("org/t", role=Role.TOKENIZER, cache_dir=str(tmp_path)))
    assert names(found) == ["config.json"]
    assert found.sources[0].revision == commit("a")


def test_each_reference_may_have_its_own_load_format(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("model.bin", "model.pt"):
            (tmp_path / name / file).write_bytes(b"x")
    first = Reference(str(tmp_path / "a"), load_format=LoadFormat.PT)
    second = Reference(str(tmp_path / "b"))
    assert names(resolved(first, second, load_format=LoadFormat.NPCACHE)) == [
        "model.pt",
        "model.bin",
    ]


def test_the_cache_of_a_reference_comes_before_that_of_all(tmp_path: Path) -> None:
    for name in ("own", "all"):
        lay_huggingface(tmp_path / name, refs={"main": commit(name)}, commits=[commit(name)])
    tokenizer = Reference("org/name", role=Role.TOKENIZER, cache_dir=str(tmp_path / "own"))
    found = resolved(tokenizer, cache_dir=str(tmp_path / "all"))
    assert found.sources[0].revision == commit("own")


def test_names_are_looked_up_in_the_environment_of_the_command(tmp_path: Path) -> None:
    lay_huggingface(tmp_path, refs={"main": commit("a")}, commits=[commit("a")])
    tokenizer = Reference("org/name", role=Role.TOKENIZER)
    found = resolved(tokenizer, environ={"HF_HUB_CACHE": str(tmp_path)})
    assert found.sources[0].revision == commit("a")


def test_files_that_llama_cpp_would_choose_are_examined_as_others_are(tmp_path: Path) -> None:
    repo = lay_huggingface(tmp_path, refs={"main": commit("a")}, commits=[commit("a")])
    snapshot = repo / "snapshots" / commit("a")
    (snapshot / "m-Q4_K_M.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(24))
    reference = Reference("org/name:q4_k_m", cache_dir=str(tmp_path), pick=Pick())
    found = resolved(reference, server=Server.LLAMA_CPP)
    assert names(found) == ["m-Q4_K_M.gguf"]
    assert found.sources[0].load_format is LoadFormat.GGUF
    (snapshot / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="cut short"):
        resolved(reference, server=Server.LLAMA_CPP)


def test_notes_are_the_first_warnings(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    found = resolved(Reference(str(tmp_path)), notes=("noted",))
    assert found.warnings[0] == "noted"
    assert resolved(notes=("noted",)).warnings == ("noted",)


def test_what_command_names_beside_its_model_may_be_fetched_by_the_server(tmp_path: Path) -> None:
    built = checkpoints.write_sharded(str(tmp_path / "m"), shard_bytes=[100, 100])
    model = Reference(built.directory, inferred=True)
    draft = Reference("org/draft", inferred=True)
    tokenizer = Reference("org/tokenizer", role=Role.TOKENIZER, inferred=True)
    found = resolved(tokenizer, model, draft)
    assert [source.argument for source in found.sources] == [built.directory]
    assert [line.partition(":")[0] for line in found.warnings] == ["org/tokenizer", "org/draft"]
    assert found.warnings[0].endswith("left out, since COMMAND names it beside its model")
    # The model itself, and what the user names, must be there.
    for references in ((tokenizer, draft), (model, draft._replace(inferred=False))):
        with pytest.raises(CheckpointError, match="org/draft: expected"):
            resolved(*references)
