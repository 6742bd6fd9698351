"""GGUF: names -> models, by the rules of llama.cpp and vLLM; real files in folders and in a hub."""

import fnmatch
import os
import re
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint import gguf
from prefetch_cli.checkpoint.resolve import Checkpoint, resolve
from tests.helpers.gguf_files import write_gguf
from tests.helpers.requests import request

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUANTISATIONS = ["Q2_K", "Q4_0", "Q4_K_M", "IQ4_XS", "UD-Q4_K_XL", "Q8_0", "BF16", "F16", "MXFP4"]


def split(base: str, count: int) -> list[str]:
    return [f"{base}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def resolved(argument: str | Path, *, cache: Path | None = None, **given: Any) -> Checkpoint:
    asked = request(argument, cache_dir=cache, **given)
    return resolve(asked, {"HOME": "/nonexistent"}, Monitor(), threads=4)


def weights(found: Checkpoint, root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for file in found.files if file.weight]


def refusal(argument: str | Path, **given: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        resolved(argument, **given)
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return caught.value


def in_hub(cache: Path, repo: str, *names: str) -> Path:
    """Write a repo of GGUF files as huggingface_hub keeps it: links to blobs."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(names):
        kind = "mmproj" if "mmproj" in name else "imatrix" if "imatrix" in name else "model"
        blob = write_gguf(folder / "blobs" / f"{number:064x}", kind)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


# Names


def test_the_models_among_gguf_files() -> None:
    parts = split("big-Q4_K_M", 3)
    names = [
        "mmproj-F16.gguf",
        "m.MMPROJ-Q8.gguf",
        "imatrix.gguf",
        "small.gguf",
        *parts,
        "[r]x.gguf",
    ]
    models = gguf.models(names)
    assert list(models.values()) == ["[r]x.gguf", parts[0], "small.gguf"]
    for glob, first in models.items():
        assert fnmatch.filter(names, glob) == (parts if first == parts[0] else [first])


def test_the_parts_of_a_model_lie_in_one_folder() -> None:
    parts = [f"1-of-2/{name}" for name in split("x", 2)]
    assert gguf.parts(parts[1]) == parts
    assert gguf.models([*parts, "y/x-00001-of-00002.gguf"]) == {
        "1-of-2/x-*-of-00002.gguf": parts[0],
        "y/x-*-of-00002.gguf": "y/x-00001-of-00002.gguf",
    }


def test_gguf_files_that_are_not_parts_stand_alone() -> None:
    assert gguf.parts("model.gguf") == ["model.gguf"]
    assert gguf.models(["mmproj.gguf", "imatrix_unsloth.gguf"]) == {}


def test_a_draft_head_is_a_model_only_where_it_is_alone() -> None:
    assert list(gguf.models(["mtp-x.gguf", "x.gguf"]).values()) == ["x.gguf"]
    assert list(gguf.models(["eagle3-x.gguf"]).values()) == ["eagle3-x.gguf"]


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("Llama-3.2-3B-Instruct-IQ3_M.gguf", "IQ3_M"),
        ("big-UD-Q2_K_XL-00001-of-00003.gguf", "UD-Q2_K_XL"),
        ("tinyllama.q4_k_m.gguf", "q4_k_m"),
        ("gpt-oss-20b-mxfp4.gguf", "mxfp4"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("gguf/Q4_K_M/x.gguf", "Q4_K_M"),
        ("Q8_0.gguf", "Q8_0"),
        ("Qwen3-8B.gguf", None),
        ("model.gguf", None),
        ("Q4/model.safetensors/x.gguf", None),
    ],
)
def test_the_quantisation_in_a_name(name: str, quantisation: str | None) -> None:
    assert gguf.quantisation(name) == quantisation


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Q4_K_M", ["a-Q4_K_M.gguf", "a-UD-Q4_K_M.gguf"]),
        ("q4_k_m", ["a-Q4_K_M.gguf", "a-UD-Q4_K_M.gguf"]),
        ("UD-Q4_K_M", ["a-UD-Q4_K_M.gguf"]),
        ("F16", ["a-F16.gguf"]),
        ("BF16", ["BF16/b-00001-of-00002.gguf"]),
        ("A-f16.GGUF", ["a-F16.gguf"]),
        ("Q4", []),
        ("Q4_K", []),
        (".*", []),
    ],
)
def test_a_quantisation_is_a_whole_word_in_any_case(wanted: str, found: list[str]) -> None:
    models = [
        *("a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-F16.gguf"),
        "BF16/b-00001-of-00002.gguf",
    ]
    assert gguf.of_quantisation(models, wanted) == found


@given(
    st.lists(
        st.builds(
            "{}{}{}{}.gguf".format,
            st.sampled_from(["", "d/"]),
            st.sampled_from(["m", "m-it", "n-3.2"]),
            st.sampled_from([f"{mark}{name}" for mark in "-." for name in QUANTISATIONS]),
            st.sampled_from(["", "-00001-of-00002", "-imat"]),
        ),
        unique=True,
    ),
    st.sampled_from(QUANTISATIONS),
)
def test_of_several_the_first_is_that_of_vllm(models: list[str], wanted: str) -> None:
    """Its plugin's patterns; older releases have the same for folders."""
    patterns = [f"*{mark}{wanted}{rest}.gguf" for mark in "-." for rest in ("", "-*")]
    theirs = [name for name in models if any(fnmatch.fnmatchcase(name, one) for one in patterns)]
    theirs.sort(key=lambda name: (name.count("-"), name))
    assert gguf.of_quantisation(models, wanted) == theirs


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (None, "a-Q4_K_M.gguf"),
        ("q8_0", "Q8_0/a-Q8_0-00001-of-00002.gguf"),
        ("F16", "a-BF16.gguf"),
        ("UD-Q4_K_XL", "a-UD-Q4_K_XL.gguf"),
        ("Q4_K", None),
    ],
)
def test_llama_cpp_takes_the_first_path_that_its_search_finds(
    wanted: str | None, taken: str | None
) -> None:
    models = [
        *("a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf", "Q8_0/a-Q8_0-00001-of-00002.gguf"),
        *("a-F16.gguf", "a-BF16.gguf"),
    ]
    assert gguf.llama_cpp_choice(models, wanted) == taken


def test_llama_cpp_without_a_quantisation_has_defaults() -> None:
    assert gguf.llama_cpp_choice(["b-Q8_0.gguf", "a-Q2_K.gguf"], None) == "b-Q8_0.gguf"
    assert gguf.llama_cpp_choice(["b-Q6_K.gguf", "a-Q2_K.gguf"], None) == "a-Q2_K.gguf"
    assert gguf.llama_cpp_choice([], None) is None


@pytest.mark.parametrize(
    ("model", "projector"),
    [
        ("m-Q4_K_M.gguf", "mmproj-Q8_0.gguf"),
        ("m-BF16.gguf", "mmproj-BF16.gguf"),
        ("m.gguf", "mmproj-Q8_0.gguf"),
        ("a/m-Q4_K_M.gguf", "a/mmproj-F32.gguf"),
        ("b/m-F32-00001-of-00002.gguf", "mmproj-F32.gguf"),
        ("a/c/m-Q8_0.gguf", "a/mmproj-F32.gguf"),
    ],
)
def test_the_projector_is_the_nearest_one_as_llama_cpp_takes_it(model: str, projector: str) -> None:
    names = [
        *("mmproj-F16.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf", "mmproj-Q8_0.gguf"),
        *("a/mmproj-F32.gguf", "other/mmproj-Q4_0.gguf", model),
    ]
    assert gguf.projector(filter(gguf.is_projector, names), model) == projector
    assert gguf.projector(["other/mmproj.gguf"], model) is None


# Folders of quantisations


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub's cache with the usual layout of large repos, and one of small ones."""
    in_hub(
        tmp_path,
        "acme/Big-GGUF",
        *(f"{q}/Big-{q}{part}" for q in ("UD-Q2_K_XL", "Q4_K_M") for part in split("", 2)),
        "mmproj-F16.gguf",
        "mmproj-F32.gguf",
        "imatrix_unsloth.gguf",
    )
    in_hub(tmp_path, "acme/Small-GGUF", "S-Q4_K_M.gguf", "S-Q8_0.gguf", "S-BF16.gguf", "S-F16.gguf")
    return tmp_path


BIG_Q4 = [*(f"Q4_K_M/{name}" for name in split("Big-Q4_K_M", 2)), "mmproj-F16.gguf"]


def snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--acme--{name}" / "snapshots" / COMMIT


def test_folders_of_quantisations_are_listed_when_ambiguous(cache: Path) -> None:
    error = refusal("acme/Big-GGUF", cache=cache)
    found = re.findall(r"(\S+) \(8\.\d+ KiB\)", error.message)
    assert found == ["Q4_K_M", "UD-Q2_K_XL"]
    assert error.hint == "choose one: --include 'Q4_K_M/*', or acme/Big-GGUF:Q4_K_M"


@pytest.mark.parametrize("server", [Server.AUTO, Server.VLLM, Server.LLAMA_CPP])
@pytest.mark.parametrize("prefix", ["", "hf.co/", "huggingface.co/"])
def test_a_quantisation_of_a_repo_is_taken_with_its_projector(
    cache: Path, server: Server, prefix: str
) -> None:
    argument = f"{prefix}acme/Big-GGUF:Q4_K_M"
    found = resolved(argument, cache=cache, server=server)
    root = snapshot(cache, "Big-GGUF")
    assert (weights(found, root), found.warnings) == (BIG_Q4, ())
    (source,) = found.sources
    assert (source.argument, source.kind, source.path) == (argument, "huggingface", str(root))
    assert (source.revision, source.load_format) == (COMMIT, LoadFormat.GGUF)


def test_a_quantisation_of_a_directory(cache: Path) -> None:
    root = snapshot(cache, "Big-GGUF")
    for server in (Server.AUTO, Server.LLAMA_CPP, Server.OLLAMA):
        assert weights(resolved(f"{root}:q4_k_m", server=server), root) == BIG_Q4
    assert weights(resolved(f"{root}/Q4_K_M:Q4_K_M"), root) == BIG_Q4[:2]
    assert weights(resolved(f"{root}:Q4_K_M", exclude=("mmproj*",)), root) == BIG_Q4[:2]


def test_a_name_of_ollama_is_looked_up_in_its_store(cache: Path) -> None:
    error = refusal("hf.co/acme/Big-GGUF:Q4_K_M", cache=cache, server=Server.OLLAMA)
    assert "or a model in the Ollama store" in error.message


def test_globs_reach_into_folders(cache: Path) -> None:
    root = snapshot(cache, "Big-GGUF")
    for include in (("Q4_K_M/*",), ("*Q4_K_M*",), ("[!U]*/*",)):
        assert weights(resolved(root, include=include), root) == BIG_Q4[:2]
    assert weights(resolved(root, include=("Q4_K_M/*", "mmproj-F32*")), root) == [
        *BIG_Q4[:2],
        "mmproj-F32.gguf",
    ]
    assert weights(resolved(root, exclude=("UD-*",)), root) == BIG_Q4


def test_what_the_error_names_chooses(cache: Path) -> None:
    for name in ("Big-GGUF", "Small-GGUF"):
        root = snapshot(cache, name)
        error = refusal(root)
        labels = re.findall(r"(\S+) \([0-9.]+ KiB\)", error.message)
        assert len(labels) in (2, 4)
        taken = [weights(resolved(f"{root}:{label}"), root)[0] for label in labels]
        assert len(set(taken)) == len(labels)
        words = shlex.split((error.hint or "").removeprefix("choose one: --include "))
        assert weights(resolved(root, include=(words[0].rstrip(","),)), root)[0] == taken[0]
        assert weights(resolved(words[-1]), root)[0] == taken[0]


def test_a_file_of_a_repo(cache: Path) -> None:
    root = snapshot(cache, "Small-GGUF")
    for argument in ("acme/Small-GGUF/S-Q8_0.gguf", "hf.co/acme/Small-GGUF:S-Q8_0.gguf"):
        assert weights(resolved(argument, cache=cache), root) == ["S-Q8_0.gguf"]
    root = snapshot(cache, "Big-GGUF")
    argument = f"acme/Big-GGUF/{split('Big-Q4_K_M', 2)[0]}"
    assert weights(resolved(argument, cache=cache), root) == BIG_Q4
    assert "found only" in refusal("acme/Small-GGUF/S.gguf", cache=cache).message
    missing = refusal(f"{root}/S.gguf", cache=cache)
    assert missing.message.endswith("found no such path")


def test_two_models_of_one_quantisation_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "b-it-Q4_0.gguf"):
        write_gguf(tmp_path / name)
    error = refusal(tmp_path)
    assert "found 2: a-Q4_0.gguf (" in error.message
    assert error.hint == "choose one: --include a-Q4_0.gguf, or give the file itself"
    assert weights(resolved(f"{tmp_path}:Q4_0"), tmp_path) == ["a-Q4_0.gguf"]


def test_a_quantisation_beside_weights_in_other_formats(tmp_path: Path) -> None:
    """Kimi-Audio's extra folder is a checkpoint of its own, without quantisations."""
    config = '{"architectures": ["MoonshotKimiaForCausalLM"]}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "whisper-large-v3").mkdir()
    for folder in (tmp_path, tmp_path / "whisper-large-v3"):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    write_gguf(tmp_path / "m-Q4_0.gguf")
    found = resolved(f"{tmp_path}:Q4_0", server=Server.VLLM)
    assert weights(found, tmp_path) == ["m-Q4_0.gguf", "whisper-large-v3/model.safetensors"]


def test_a_quantisation_that_is_not_there(cache: Path) -> None:
    message = refusal("acme/Big-GGUF:Q8_0", cache=cache).message
    assert "expected a GGUF model of the quantisation Q8_0, found only Q4_K_M (" in message
    (cache / "empty").mkdir()
    assert "found no GGUF model" in refusal(f"{cache}/empty:Q4_K_M").message
    with_format = refusal("acme/Big-GGUF:Q4_K_M", cache=cache, load_format=LoadFormat.PT)
    assert "expected --load-format gguf for a quantisation, found pt" in with_format.message


def test_a_path_as_written_wins(cache: Path) -> None:
    root = snapshot(cache, "Small-GGUF")
    other = cache / "x:Q8_0"
    shutil.copytree(root, cache / "x")
    write_gguf(other / "S-Q2_K.gguf")
    assert weights(resolved(other), other) == ["S-Q2_K.gguf"]
    shutil.rmtree(other)
    assert weights(resolved(other), cache) == ["x/S-Q8_0.gguf"]
    error = refusal(f"{root}/S-Q8_0.gguf:Q8_0")
    assert "S-Q8_0.gguf:Q8_0: expected a file, a directory or a repo id" in error.message


def test_where_the_rules_differ_the_server_decides(cache: Path) -> None:
    root = snapshot(cache, "Small-GGUF")
    for server, taken in ((Server.VLLM, "S-F16.gguf"), (Server.LLAMA_CPP, "S-BF16.gguf")):
        found = resolved("acme/Small-GGUF:F16", cache=cache, server=server)
        assert (weights(found, root), found.warnings) == ([taken], ())
    found = resolved("acme/Small-GGUF:F16", cache=cache)
    assert weights(found, root) == ["S-F16.gguf"]
    assert found.warnings == (
        "acme/Small-GGUF: took S-F16.gguf for F16; llama.cpp takes S-BF16.gguf: give --server "
        "llama.cpp for that",
    )


def test_llama_cpp_chooses_from_a_repo_but_not_from_a_directory(cache: Path) -> None:
    for name, taken in (("Big-GGUF", BIG_Q4), ("Small-GGUF", ["S-Q4_K_M.gguf"])):
        root = snapshot(cache, name)
        found = resolved(f"acme/{name}", cache=cache, server=Server.LLAMA_CPP)
        assert weights(found, root) == taken
        assert "expected one GGUF model" in refusal(root, server=Server.LLAMA_CPP).message


def test_a_folder_that_alone_carries_the_quantisation(tmp_path: Path) -> None:
    for quantisation in ("Q4_K_M", "Q8_0"):
        write_gguf(tmp_path / "gguf" / quantisation / "model.gguf")
    for server in (Server.AUTO, Server.LLAMA_CPP):
        found = resolved(f"{tmp_path}:Q8_0", server=server)
        assert weights(found, tmp_path) == ["gguf/Q8_0/model.gguf"]
    assert "--include 'gguf/Q4_K_M/*'" in str(refusal(tmp_path).hint)


def test_the_only_model_below_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_gguf(tmp_path / "mmproj.gguf", "mmproj")
    write_gguf(tmp_path / "Q8_0" / "m.gguf")
    for load_format in (LoadFormat.AUTO, LoadFormat.GGUF):
        found = resolved(tmp_path, load_format=load_format)
        assert weights(found, tmp_path) == ["Q8_0/m.gguf", "mmproj.gguf"]
        assert [file.path for file in found.files if not file.weight] == [
            str(tmp_path / "config.json")
        ]
    for load_format in (LoadFormat.SAFETENSORS, LoadFormat.PT):
        assert "expected weight files" in refusal(tmp_path, load_format=load_format).message


def test_a_model_here_wins_over_those_below(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-Q4_0.gguf")
    write_gguf(tmp_path / "more" / "m-Q8_0.gguf")
    found = resolved(tmp_path)
    assert weights(found, tmp_path) == ["m-Q4_0.gguf"]
    assert "left out 1 weight file" in found.warnings[0]
    assert weights(resolved(f"{tmp_path}:Q8_0"), tmp_path) == ["more/m-Q8_0.gguf"]


def test_a_missing_part_in_a_folder_is_found(cache: Path) -> None:
    (snapshot(cache, "Big-GGUF") / BIG_Q4[1]).unlink()
    message = refusal("acme/Big-GGUF:Q4_K_M", cache=cache).message
    assert f"1 file missing or cut short: {BIG_Q4[1]} (not there)" in message


@pytest.mark.parametrize("suffix", [".incomplete", ".aria2", ".part"])
def test_an_unfinished_part_in_a_folder_is_found(cache: Path, suffix: str) -> None:
    root = snapshot(cache, "Big-GGUF")
    (root / f"{BIG_Q4[1]}{suffix}").touch()
    message = refusal("acme/Big-GGUF:Q4_K_M", cache=cache).message
    assert f"{BIG_Q4[1]} (its download has not ended)" in message
    (root / BIG_Q4[1]).unlink()
    message = refusal("acme/Big-GGUF:Q4_K_M", cache=cache).message
    assert f"{BIG_Q4[1]} (its download has not ended)" in message
    assert weights(resolved("acme/Big-GGUF:UD-Q2_K_XL", cache=cache), root)


# What is no model


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("mmproj-F16.gguf", "mmproj", "a projector"),
        ("vision.gguf", "mmproj", "a projector"),
        ("imatrix.gguf", "imatrix", "an importance matrix"),
        ("calibration.gguf", "imatrix", "an importance matrix"),
        ("lora.gguf", "adapter", "an adapter"),
    ],
)
def test_what_is_no_model_alone_is_refused_unless_it_is_named(
    tmp_path: Path, name: str, kind: str, what: str
) -> None:
    path = write_gguf(tmp_path / name, kind)
    message = refusal(tmp_path).message
    assert message.endswith(f"expected a GGUF model, found only {name} ({what})")
    assert weights(resolved(path), tmp_path) == [name]
    write_gguf(tmp_path / "folder" / "m-Q4_0.gguf")
    with_it = [name] if kind == "mmproj" else []
    assert weights(resolved(tmp_path), tmp_path) == ["folder/m-Q4_0.gguf", *with_it]


def test_an_old_projector_is_known_by_its_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "vit.gguf", None, architecture="clip")
    assert "found only vit.gguf (a projector)" in refusal(tmp_path).message
    write_gguf(tmp_path / "m.gguf", None)
    assert weights(resolved(tmp_path), tmp_path) == ["m.gguf", "vit.gguf"]


def test_an_adapter_beside_the_model_is_left_out_aloud(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-Q4_0.gguf")
    path = write_gguf(tmp_path / "a-Q4_0.gguf", "adapter")
    found = resolved(tmp_path)
    assert weights(found, tmp_path) == ["m-Q4_0.gguf"]
    assert found.warnings == (f"{path}: left out: an adapter; give it too to warm it",)
    assert weights(resolved(f"{tmp_path}:Q4_0"), tmp_path) == ["m-Q4_0.gguf"]


def test_special_files_among_gguf_files_do_not_hold_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    write_gguf(tmp_path / "m.gguf")
    assert "found 2" in refusal(tmp_path).message
    assert weights(resolved(tmp_path, include=("m*",)), tmp_path) == ["m.gguf"]
