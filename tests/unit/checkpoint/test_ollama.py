"""Names resolve as in Ollama, to the blobs that it reads; no manifest leads out of its store.

Ollama itself is no Python package, so its store is written by hand, after types/model/name.go,
manifest/manifest.go, manifest/paths.go and server/images.go.
"""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_cli.base.errors import CheckpointError, ExitCode
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import Hub, LoadFormat, Server
from prefetch_cli.checkpoint.locate import Source
from prefetch_cli.checkpoint.resolve import Checkpoint, resolve
from prefetch_cli.hubs import ollama
from prefetch_cli.hubs.ollama import parse_name
from tests.helpers.hub_caches import (
    OLLAMA_KIND,
    blobs_of,
    lay_blob,
    lay_ollama,
    ollama_manifest,
)
from tests.helpers.requests import request

TINY = "registry.ollama.ai/library/tiny/1b"


def gguf(size_bytes: int = 4096, *, name: str = "blk.0.ffn_up.weight") -> bytes:
    """Return a GGUF file with one tensor of F32."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text(name) + struct.pack("<IQIQ", 1, size_bytes // 4, 0, 0)
    head += bytes(-len(head) % 32)
    return head + bytes(size_bytes)


MODEL, PROJECTOR, ADAPTER, DRAFT = (gguf(4096 * number) for number in (4, 1, 2, 3))
TEMPLATE, PARAMS = b"{{ .Prompt }}", b'{"stop":["x"]}'
CONFIG = b'{"os":"linux"}'


def resolved(name: str, store: Path | None, **options: Any) -> Checkpoint:
    environ = options.pop("environ", {"HOME": "/nonexistent"})
    asked = request(name, cache_dir=store, **{"hub": Hub.OLLAMA, **options})
    return resolve(asked, environ, Monitor(), threads=2)


def refusal(name: str, store: Path | None, **options: Any) -> CheckpointError:
    """Return the error of a refused request, after checks that all errors must pass."""
    with pytest.raises(CheckpointError) as caught:
        resolved(name, store, **options)
    error = caught.value
    assert error.exit_code is ExitCode.CHECKPOINT
    assert error.message.isprintable()
    assert error.hint is None or error.hint.isprintable()
    return error


def weights(found: Checkpoint) -> list[str]:
    return [file.path for file in found.files if file.weight]


def others(found: Checkpoint) -> list[str]:
    return [file.path for file in found.files if not file.weight]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with one model of every kind of layer, in an order that no reader has."""
    layers = [
        ("license", b"MIT"),
        ("projector", PROJECTOR),
        ("draft", DRAFT),
        ("template", TEMPLATE),
        ("adapter", ADAPTER),
        ("model", MODEL),
        ("params", PARAMS),
        ("embed", b"ignored since 0.1.3"),
    ]
    lay_ollama(tmp_path, TINY, ollama_manifest(tmp_path, layers))
    return tmp_path


# Names


@pytest.mark.parametrize(
    ("text", "host", "namespace", "model", "tag"),
    [
        ("tiny", "registry.ollama.ai", "library", "tiny", "latest"),
        ("tiny:1b", "registry.ollama.ai", "library", "tiny", "1b"),
        ("tiny.2_x-y:1.5b", "registry.ollama.ai", "library", "tiny.2_x-y", "1.5b"),
        ("user/name:tag", "registry.ollama.ai", "user", "name", "tag"),
        ("host.example/user/name:tag", "host.example", "user", "name", "tag"),
        ("host:5000/user/name", "host:5000", "user", "name", "latest"),
        ("hf.co/org/name-GGUF:Q4_K_M", "hf.co", "org", "name-GGUF", "Q4_K_M"),
        ("_x", "registry.ollama.ai", "library", "_x", "latest"),
    ],
)
def test_the_parts_of_a_name(text: str, host: str, namespace: str, model: str, tag: str) -> None:
    assert parse_name(text) == ollama.Name(host, namespace, model, tag)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "x:", ":x", "/", "/x", "x/", "a//b", "a/b/c/d", ".", "..", "../x", "./x", "~/x"),
        *("-x", ".x", "x y", "x\n", "café", "a.b/c", "a/b/..", "x:..", "x:a/b", "x:a:b", "x@y"),
        *("x" * 81, f"x:{'y' * 81}", f"{'x' * 81}/y", f"{'x' * 351}/y/z", "x\0", "\udcff"),
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.parametrize("size", [1, 80])
def test_names_of_the_largest_size(size: int) -> None:
    assert parse_name(f"{'h' * 350}/{'n' * size}/{'m' * size}:{'t' * size}") is not None


@settings(deadline=None)
@given(st.text(max_size=30) | st.text("ab./:_-", max_size=12))
def test_no_name_leads_out_of_the_store(text: str) -> None:
    name = parse_name(text)
    if name is not None:
        for part in (name.host, name.namespace, name.model, name.tag):
            assert "/" not in part
            assert part not in ("", ".", "..")
            assert not part.startswith(".")


# Where a name leads


@pytest.mark.parametrize(
    "name", ["tiny:1b", "library/tiny:1b", "registry.ollama.ai/library/tiny:1b"]
)
def test_a_name_leads_to_its_blobs_in_the_order_of_reading(store: Path, name: str) -> None:
    found = resolved(name, store)
    assert found.warnings == ()
    assert found.sources == (
        Source(
            name,
            "ollama",
            f"{store}/manifests/{TINY}",
            None,
            LoadFormat.GGUF,
            Server.OLLAMA,
        ),
    )
    assert weights(found) == blobs_of(store, MODEL, ADAPTER, DRAFT, PROJECTOR)
    assert others(found) == blobs_of(store, CONFIG, b"MIT", TEMPLATE, PARAMS)


@pytest.mark.parametrize(
    "name", ["TINY:1B", "Library/Tiny:1b", "Registry.Ollama.AI/library/tiny:1B"]
)
def test_upper_and_lower_case_are_the_same(store: Path, name: str) -> None:
    assert len(weights(resolved(name, store))) == 4


def test_the_exact_name_wins_over_another_case(store: Path) -> None:
    for tag, content in (("q4", MODEL), ("Q4", DRAFT)):
        manifest = ollama_manifest(store, [("model", content)])
        lay_ollama(store, f"hf.co/org/name/{tag}", manifest)
    assert weights(resolved("hf.co/org/name:Q4", store)) == blobs_of(store, DRAFT)
    assert weights(resolved("hf.co/org/name:q4", store)) == blobs_of(store, MODEL)


def test_the_server_implies_the_hub(store: Path) -> None:
    found = resolved("tiny:1b", store, hub=None, server=Server.OLLAMA)
    assert found.sources[0].kind == "ollama"
    assert "--hub ollama" in (refusal("tiny:1b", store, hub=None).hint or "")


@pytest.mark.parametrize("server", [Server.VLLM, Server.LLAMA_CPP])
def test_another_server_reads_the_same_blobs(store: Path, server: Server) -> None:
    found = resolved("tiny:1b", store, server=server)
    assert found.sources[0].server is Server.OLLAMA
    assert len(weights(found)) == 4


def test_the_default_tag(store: Path) -> None:
    error = refusal("tiny", store)
    assert error.message == (f"tiny: expected the tag latest in the Ollama store {store}, found 1b")
    assert error.hint == "give tiny:1b, or fetch it: `ollama pull tiny:latest`"
    lay_ollama(
        store, "registry.ollama.ai/library/tiny/latest", ollama_manifest(store, [("model", MODEL)])
    )
    assert weights(resolved("tiny", store)) == blobs_of(store, MODEL)
    assert "found 1b, latest" in refusal("tiny:7b", store).message


def test_a_model_that_is_not_there(store: Path) -> None:
    error = refusal("hf.co/org/name:Q4", store)
    assert f"or a model in the Ollama store {store}, found neither" in error.message
    assert "`ollama pull hf.co/org/name:Q4`" in (error.hint or "")


def test_a_revision_is_no_tag(store: Path) -> None:
    error = refusal("tiny", store, revision="1b")
    assert "expected no --revision, found 1b" in error.message
    assert "NAME:TAG" in (error.hint or "")


def test_a_path_wins_over_a_name(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "tiny:1b").write_bytes(MODEL)
    monkeypatch.chdir(store)
    assert resolved("tiny:1b", store).sources[0].kind == "file"


# Where the store is


@pytest.mark.parametrize("value", ["{}", " {} ", '"{}"', "'{}'"])
def test_the_variable_names_the_store(store: Path, value: str) -> None:
    environ = {"HOME": "/nonexistent", "OLLAMA_MODELS": value.format(store)}
    assert len(weights(resolved("tiny:1b", None, environ=environ))) == 4


def test_the_users_store_comes_before_that_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, own = tmp_path / "service", tmp_path / "home" / ".ollama" / "models"
    monkeypatch.setattr(ollama, "_SERVICES_STORE", str(service))
    environ = {"HOME": str(tmp_path / "home"), "OLLAMA_MODELS": ""}

    error = refusal("tiny:1b", None, environ=environ)
    assert (
        f"in the Ollama store {own} or {service}, found no such path and no such cache"
        in error.message
    )
    for store in (service, own):
        lay_ollama(store, TINY, ollama_manifest(store, [("model", MODEL)]))
        found = resolved("tiny:1b", None, environ=environ)
        assert found.sources[0].path == f"{store}/manifests/{TINY}"
        assert "found neither" in refusal("other", None, environ=environ).message
    lay_ollama(service, f"{os.path.dirname(TINY)}/7b", {})
    assert "found 1b, 7b" in refusal("tiny", None, environ=environ).message


def test_the_systems_store_is_that_of_install_sh() -> None:
    assert ollama.default_caches({}) == ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
    assert ollama.default_caches({"OLLAMA_MODELS": "/x"}) == ("/x",)


# The newer tree of manifests


def lay_newer(store: Path, name: str, manifest: object) -> Path:
    """Write a manifest as a blob, and a link to it under its name."""
    digest = lay_blob(store, json.dumps(manifest).encode())
    link = store / "manifests-v2" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    blob = store / "blobs" / digest.replace(":", "-")
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def test_the_newer_manifest_wins_and_a_dangling_one_does_not(store: Path) -> None:
    manifest = ollama_manifest(store, [("model", DRAFT)])
    link = lay_newer(store, "ollama.com/library/tiny/1b", manifest)
    for name in ("tiny:1b", "ollama.com/library/tiny:1b"):
        found = resolved(name, store)
        assert found.sources[0].path == str(link)
        assert weights(found) == blobs_of(store, DRAFT)
    link.resolve().unlink()
    assert weights(resolved("tiny:1b", store))[0] == blobs_of(store, MODEL)[0]


def test_a_list_of_manifests_leads_to_that_for_linux(store: Path) -> None:
    for_mlx = ollama_manifest(store, [("tensor", ADAPTER)])
    for_llama = ollama_manifest(store, [("model", DRAFT)])
    reference = lay_blob(store, json.dumps(for_llama).encode())
    document = {
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": [
            {**for_mlx, "runner": "mlx"},
            {"runner": "LlamaCPP", "format": "gguf", "digest": reference},
        ],
    }
    lay_newer(store, "ollama.com/library/tiny/both", document)
    assert weights(resolved("tiny:both", store)) == blobs_of(store, DRAFT)
    lay_ollama(
        store,
        "registry.ollama.ai/library/tiny/mlx",
        {**document, "manifests": document["manifests"][:1]},
    )
    found = resolved("tiny:mlx", store)
    assert weights(found) == blobs_of(store, ADAPTER)
    assert found.sources[0].load_format is LoadFormat.SAFETENSORS


@pytest.mark.parametrize(
    ("manifests", "expected"),
    [
        ([], "expected a manifest for ollama, llamacpp, mlx, found none"),
        ([{"runner": "cuda"}], "found cuda"),
        ([{"runner": "ollama", "digest": "sha256:../../x"}], "expected sha256 and 64 hex digits"),
        ([{"runner": "ollama", "digest": f"sha256:{'0' * 64}"}], "found no file"),
        ([{"runner": "ollama", "manifests": [{"runner": "ollama"}]}], "found no layers"),
    ],
)
def test_a_list_that_leads_nowhere(store: Path, manifests: Sequence[object], expected: str) -> None:
    document = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": manifests}
    lay_ollama(store, TINY, document)
    assert expected in refusal("tiny:1b", store).message


def test_a_split_model_and_a_model_of_tensors(store: Path) -> None:
    lay_ollama(
        store, TINY, ollama_manifest(store, [("model", MODEL), ("model", DRAFT), ("model", MODEL)])
    )
    assert weights(resolved("tiny:1b", store)) == blobs_of(store, MODEL, DRAFT)
    tensors = [("tensor; name=a; dtype=BF16", ADAPTER), ("json", b"{}"), ("tensor", DRAFT)]
    lay_ollama(store, TINY, ollama_manifest(store, tensors))
    found = resolved("tiny:1b", store)
    assert found.sources[0].load_format is LoadFormat.SAFETENSORS
    assert weights(found) == blobs_of(store, ADAPTER, DRAFT)
    assert others(found) == blobs_of(store, CONFIG, b"{}")


# What the user leaves out


def test_the_globs_are_on_the_names_of_blobs(store: Path) -> None:
    name = f"blobs/sha256-{hashlib.sha256(PROJECTOR).hexdigest()}"
    found = resolved("tiny:1b", store, exclude=(name,))
    assert weights(found) == blobs_of(store, MODEL, ADAPTER, DRAFT)
    assert "none that the globs leave in" in refusal("tiny:1b", store, exclude=("*",)).message


def test_only_the_weights(store: Path) -> None:
    assert others(resolved("tiny:1b", store, weights_only=True)) == []


# Incomplete blobs


def test_a_blob_of_another_size_is_incomplete(store: Path) -> None:
    [path] = blobs_of(store, MODEL)
    os.truncate(path, len(MODEL) + 1)  # the GGUF header alone would not tell
    message = refusal("tiny:1b", store).message
    name = os.path.relpath(path, store)
    assert f"found 1 file missing or cut short: {name} (its manifest promises " in message
    assert f"({len(MODEL):,} bytes), it has " in message
    found = resolved("tiny:1b", store, allow_incomplete=True)
    assert path in weights(found)


def test_a_blob_whose_download_has_not_ended(store: Path) -> None:
    [path] = blobs_of(store, MODEL)
    os.rename(path, f"{path}-partial")
    assert "(its download has not ended)" in refusal("tiny:1b", store).message
    assert "(its download has not ended)" in refusal(f"{path}-partial", None).message
    os.unlink(f"{path}-partial")
    assert "(not there)" in refusal("tiny:1b", store).message


def test_a_blob_that_lacks_what_its_own_header_promises(store: Path) -> None:
    manifest = ollama_manifest(store, [("model", MODEL[:-100])])
    lay_ollama(store, TINY, manifest)
    assert "its header promises" in refusal("tiny:1b", store).message


def test_a_small_blob_that_is_missing_too(store: Path) -> None:
    os.unlink(blobs_of(store, TEMPLATE)[0])
    assert "found 1 file missing" in refusal("tiny:1b", store).message


# Blobs by path


def test_a_blob_that_is_named_stands_for_itself(store: Path) -> None:
    [path] = blobs_of(store, MODEL)
    link = store / "link"
    link.symlink_to(path)
    for argument in (path, str(link)):
        found = resolved(argument, None, hub=None)
        assert weights(found) == [argument]
        source = found.sources[0]
        assert (source.kind, source.load_format) == ("file", LoadFormat.GGUF)
    os.truncate(path, len(MODEL) - 1)
    assert "its header promises" in refusal(str(link), None, hub=None).message


def test_what_does_not_begin_as_gguf_is_a_file_of_any_kind(store: Path) -> None:
    [path] = blobs_of(store, TEMPLATE)
    assert resolved(path, None, hub=None).sources[0].load_format is LoadFormat.ALL


# Hostile manifests


@pytest.mark.parametrize(
    "digest",
    [
        *("", "sha256:", "sha256:../../../etc/passwd", "../x", "/etc/passwd", "sha256:" + "g" * 64),
        *(
            "md5:" + "0" * 64,
            "sha256:" + "0" * 63,
            "sha256:" + "0" * 65,
            "sha256:" + "0" * 64 + "\n",
        ),
        *(None, 1, [], {}, "sha256/" + "0" * 64, "\x1b[2J"),
    ],
)
def test_a_digest_that_is_none(store: Path, digest: object) -> None:
    manifest = ollama_manifest(store, [("model", MODEL)])
    small = {"mediaType": f"{OLLAMA_KIND}params", "digest": digest, "size": 1}
    lay_ollama(store, TINY, {**manifest, "layers": [*manifest["layers"], small]})
    found = resolved("tiny:1b", store)
    assert weights(found) == blobs_of(store, MODEL)
    assert "its params is left out: expected a digest" in found.warnings[0]

    manifest["layers"][0]["digest"] = digest
    lay_ollama(store, TINY, manifest)
    assert "expected sha256 and 64 hex digits as digest" in refusal("tiny:1b", store).message


@pytest.mark.parametrize(
    "size", [None, -1, 0.5, True, "1", [], pytest.param(10**400, id="huge"), float("inf")]
)
def test_a_size_that_is_none_promises_nothing(store: Path, size: object) -> None:
    manifest = ollama_manifest(store, [("model", MODEL)])
    manifest["layers"][0]["size"] = size
    lay_ollama(store, TINY, manifest)
    assert weights(resolved("tiny:1b", store)) == blobs_of(store, MODEL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected JSON, found none"),
        ("{", "expected JSON, found none"),
        ("GGUF", "expected JSON, found none"),
        ("[]", "found no layers"),
        ("{}", "found no layers"),
        ('{"layers": {}}', "found no layers"),
        ('{"layers": [1, "x", null, []]}', "expected a model in"),
        ('{"config": {"digest": "sha256:' + "0" * 64 + '"}}', "found config"),
        ('{"layers": [' + "[" * 100_000, "far too large or nested"),
        ('{"layers": [' + "{}," * 100_001 + "{}]}", "far too large or nested"),
        (" " * (16 * 1024 * 1024 + 1), "far too large or nested"),
    ],
)
def test_a_manifest_that_is_none(store: Path, text: str, expected: str) -> None:
    (store / "manifests" / TINY).write_text(text)
    assert expected in refusal("tiny:1b", store).message


def test_a_manifest_that_is_no_file(store: Path) -> None:
    path = store / "manifests" / TINY
    path.unlink()
    os.mkfifo(path)
    assert "found neither" in refusal("tiny:1b", store).message
    path.unlink()
    path.mkdir()
    assert "found neither" in refusal("tiny:1b", store).message


def test_a_blob_that_is_no_file(store: Path) -> None:
    [path] = blobs_of(store, TEMPLATE)
    os.unlink(path)
    os.mkfifo(path)
    assert "expected a file, found a FIFO" in refusal("tiny:1b", store).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["layers", "config", "manifests", "mediaType", "digest", "size", "runner"]
            ),
            inner | st.sampled_from([f"{OLLAMA_KIND}model", f"sha256:{'0' * 64}", "sha256:../x"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(document=JSON)
def test_any_manifest_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, document: object
) -> None:
    store = tmp_path_factory.getbasetemp() / "any"
    lay_ollama(store, TINY, document)
    refusal("tiny:1b", store)  # none of the blobs is there
