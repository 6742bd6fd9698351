"""Hub caches: huggingface_hub writes its own, ModelScope's are written by hand."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FILES = ("config.json", "model.safetensors", "original/params.json")

# Runs in a process of its own: huggingface_hub reads the environment at import, and a proxy or
# HF_HUB_OFFLINE in the caller's environment would keep it from the server.
_WRITER = """
import json, sys
import huggingface_hub
from huggingface_hub import file_download

supported = file_download.are_symlinks_supported
for step in json.load(sys.stdin):
    links = step.pop("symlinks")
    file_download.are_symlinks_supported = supported if links else lambda *_: False
    name = "hf_hub_download" if "filename" in step else "snapshot_download"
    try:
        getattr(huggingface_hub, name)(**step)
    except huggingface_hub.utils.EntryNotFoundError:
        pass
"""


def commit(name: str) -> str:
    """Return a commit of 40 hex digits, the same one for the same name."""
    return hashlib.sha1(name.encode()).hexdigest()


@dataclass(frozen=True)
class Download:
    """One call of huggingface_hub: a snapshot, or the one file `filename`."""

    cache: Path
    repo_id: str
    revision: str | None = None
    filename: str | None = None
    symlinks: bool = True


@dataclass
class FakeHub:
    """What the server has: the commit of each revision, the same for every repo."""

    revisions: Mapping[str, str]
    requests: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        if revision in self.revisions.values():
            return revision
        return self.revisions.get(revision)


def write_caches(hub: FakeHub, downloads: Sequence[Download], home: Path) -> None:
    """Have huggingface_hub itself write caches, from a server on 127.0.0.1 that serves `hub`."""
    steps = []
    for download in downloads:
        step = {"repo_id": download.repo_id, "cache_dir": str(download.cache)}
        step |= {} if download.revision is None else {"revision": download.revision}
        step |= {} if download.filename is None else {"filename": download.filename}
        steps.append({**step, "symlinks": download.symlinks})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    environ = {
        "HOME": str(home),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PATH": os.environ["PATH"],
    }
    try:
        subprocess.run(
            [sys.executable, "-c", _WRITER],
            input=json.dumps(steps),
            env=environ,
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        )
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{error.stderr}\n{hub.requests}") from error
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            hub.requests.append(format % args)

        def _answer(self) -> None:
            path = urlsplit(self.path).path
            for mark, answer in (
                ("/resolve/", self._file),
                ("/revision/", self._info),
                ("/tree/", self._tree),
            ):
                if mark in path:
                    rest = path.split(mark, 1)[1].split("/", 1)
                    found = hub.commit_of(unquote(rest[0]))
                    if found is None:
                        return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                    return answer(found, unquote(rest[1]) if len(rest) > 1 else "")
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _file(self, found: str, name: str) -> None:
            headers = {"X-Repo-Commit": found}
            if name not in FILES:
                return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            content = _content(found, name)
            etag = hashlib.sha1(content).hexdigest()
            return self._send(200, content, {**headers, "ETag": f'"{etag}"'})

        def _info(self, found: str, _: str) -> None:
            siblings = [{"rfilename": name} for name in FILES]
            self._send_json({"id": "x", "modelId": "x", "sha": found, "siblings": siblings})

        def _tree(self, found: str, _: str) -> None:
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": commit(name)}
                    for name in FILES
                    for content in [_content(found, name)]
                ]
            )

        def _send_json(self, document: object) -> None:
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


def _content(found: str, name: str) -> bytes:
    return f"{name} of {found}".encode()


def lay_huggingface(
    cache: Path,
    repo_id: str = "org/name",
    *,
    refs: Mapping[str, str | bytes] | None = None,
    commits: Sequence[str] = (),
) -> Path:
    """Write by hand what huggingface_hub would not, and return the repo's folder."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    for each in commits:
        snapshot = repo / "snapshots" / each
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    for name, content in (refs or {}).items():
        ref = repo / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_bytes(content if isinstance(content, bytes) else content.encode())
    return repo


def lay_modelscope(directory: Path, *, version: str | None = None) -> str:
    """Write a model as modelscope's `ModelFileSystemCache` leaves it, and return its directory.

    `version` is the text of `.mv`, which `save_model_version` writes last; the pickles `.mdl` and
    `.msc` are stand-ins that must never be loaded.
    """
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"x")
    (directory / ".mdl").write_bytes(b"cposix\nabort\n(tR.")
    (directory / ".msc").write_bytes(b"cposix\nabort\n(tR.")
    if version is not None:
        (directory / ".mv").write_text(version)
    return str(directory)
