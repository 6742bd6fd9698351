"""vLLM's redirects: read as vLLM does, for its users only, and bounded."""

import json
import os
from pathlib import Path

import pytest

from prefetch_cli.base.errors import CheckpointError
from prefetch_cli.base.progress import Monitor
from prefetch_cli.base.words import Server
from prefetch_cli.checkpoint.redirect import redirected
from prefetch_cli.checkpoint.resolve import resolve
from tests.helpers import checkpoints
from tests.helpers.requests import request

LARGEST = 1024 * 1024


def redirect(path: Path, name: str = "org/name", server: Server = Server.VLLM) -> str | None:
    return redirected(name, server, {"VLLM_MODEL_REDIRECT_PATH": str(path)})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"org/name": "/models/x", "b": "c"}', "/models/x"),
        ('{"org/other": "/models/x"}', None),
        ("org/name /models/x\n", "/models/x"),
        ("a b\n\n  org/name\t/models/x  \nc d", "/models/x"),
        ("org/name /models/a b\norg/name /models/c\n", "/models/c"),
        ("org/name /models/a\norg/name /models/c\n", "/models/c"),
        ("org/name\n", None),
        ("org/name /models/a b\n", None),
        ("", None),
        ("{}", None),
        ("{} \norg/name /models/x", "/models/x"),
        ('["org/name", "/models/x"]', None),
        ('{"org/name": 1}', None),
        ('{"org/name": ""}', None),
        ('{"org/name": "org/name"}', None),
        ("[" * 100_000, None),
        ("\0\udcff", None),
    ],
)
def test_a_file_is_read_as_by_vllm(tmp_path: Path, content: str, expected: str | None) -> None:
    path = tmp_path / "redirects"
    path.write_bytes(os.fsencode(content))
    assert redirect(path) == expected


@pytest.mark.parametrize("server", Server)
def test_only_vllm_has_redirects(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "redirects"
    path.write_text("org/name /models/x")
    expected = "/models/x" if server in (Server.VLLM, Server.AUTO) else None
    assert redirect(path, server=server) == expected


def test_no_variable_no_file_and_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert redirected("org/name", Server.VLLM, {}) is None
    assert redirected("org/name", Server.VLLM, {"VLLM_MODEL_REDIRECT_PATH": ""}) is None
    for path in (tmp_path, tmp_path / "absent", tmp_path / "fifo"):
        assert redirect(path) is None


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "redirects"
    path.write_bytes(b"org/name /models/x\n".ljust(LARGEST))
    assert redirect(path) == "/models/x"
    path.write_bytes(b"org/name /models/x\n".ljust(LARGEST + 1))
    with pytest.raises(CheckpointError, match="expected a list of models, found more than"):
        redirect(path)


def test_a_source_keeps_its_name_and_has_the_path_of_its_target(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    checkpoints.write_sharded(str(folder), shard_bytes=[1000])
    path = tmp_path / "redirects"
    path.write_text(json.dumps({"org/name": str(folder), str(tmp_path / "b"): str(folder)}))
    environ = {"HOME": "/nonexistent", "VLLM_MODEL_REDIRECT_PATH": str(path)}
    for name in ("org/name", str(tmp_path / "b")):
        found = resolve(request(name), environ, Monitor(), threads=1)
        [source] = found.sources
        assert (source.argument, source.kind, source.path) == (name, "directory", str(folder))
        assert source.redirect == str(folder)
        assert found.warnings == ()
        assert found.names == (name,)
    assert resolve(request(str(folder)), environ, Monitor(), threads=1).sources[0].redirect is None


def test_a_redirect_to_nothing_names_its_target(tmp_path: Path) -> None:
    path = tmp_path / "redirects"
    path.write_text("org/name /nonexistent/x")
    environ = {"HOME": "/nonexistent", "VLLM_MODEL_REDIRECT_PATH": str(path)}
    with pytest.raises(CheckpointError, match="/nonexistent/x: expected"):
        resolve(request("org/name"), environ, Monitor(), threads=1)
