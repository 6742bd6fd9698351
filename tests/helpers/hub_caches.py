"""Hub caches to search: huggingface_hub writes its own, the others are written by hand."""

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
from typing import Any
from urllib.parse import unquote, urlsplit

FILES = ("config.json", "model.safetensors", "original/params.json")

# Runs in a process of its own: huggingface_hub reads the environment when it is imported, and a
# proxy or HF_HUB_OFFLINE in the tester's environment would keep it from the server.
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
    """Return a commit of 40 hex digits that depends on the name only."""
    return hashlib.sha1(name.encode()).hexdigest()


@dataclass(frozen=True)
class Download:
    """One call of huggingface_hub: a snapshot, or the one file `filename`."""

    cache: Path
    repo_id: str
    revision: str | None = None
    filename: str | None = None
    local_dir: Path | None = None
    symlinks: bool = True


@dataclass
class FakeHub:
    """The server's content: the commit of each revision, the same for every repo."""

    revisions: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=lambda: dict.fromkeys(FILES, b""))
    stalls_at: str = ""  # the file of which only the first half ever comes
    stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)

    def content(self, commit: str, name: str) -> bytes:
        """Return what a file has; an empty one stands for a text that tells the commit."""
        return self.files[name] or _content(commit, name)

    def commit_of(self, revision: str) -> str | None:
        if revision in self.revisions.values():
            return revision
        return self.revisions.get(revision)


def write_caches(hub: FakeHub, downloads: Sequence[Download], home: Path) -> None:
    """Let huggingface_hub itself write caches, from a server of `hub` on 127.0.0.1.

    Where the hub stalls, huggingface_hub is killed, as a job is that runs out of time or memory.
    """
    steps = []
    for download in downloads:
        step = {"repo_id": download.repo_id, "cache_dir": str(download.cache)}
        step |= {} if download.revision is None else {"revision": download.revision}
        step |= {} if download.filename is None else {"filename": download.filename}
        step |= {} if download.local_dir is None else {"local_dir": str(download.local_dir)}
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
    server.daemon_threads = True
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if hub.stalls_at:
            assert writer.stdin is not None
            writer.stdin.write(json.dumps(steps))
            writer.stdin.close()
            assert hub.stalled.wait(timeout=60), hub.requests
            writer.kill()
            writer.wait()
        else:
            _, problem = writer.communicate(json.dumps(steps), timeout=60)
            assert writer.returncode == 0, f"{problem}\n{hub.requests}"
    finally:
        writer.kill()
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
            if name not in hub.files:
                return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            content = hub.content(found, name)
            etag = etag_of(name, content)
            return self._send(200, content, {**headers, "ETag": f'"{etag}"'}, name)

        def _info(self, found: str, _: str) -> None:
            siblings = [{"rfilename": name} for name in hub.files]
            self._send_json({"id": "x", "modelId": "x", "sha": found, "siblings": siblings})

        def _tree(self, found: str, _: str) -> None:
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": commit(name)}
                    for name in hub.files
                    for content in [hub.content(found, name)]
                ]
            )

        def _send_json(self, document: object) -> None:
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: Mapping[str, str], name: str = ""
        ) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET" and name and name == hub.stalls_at:
                self.wfile.write(body[: len(body) // 2])
                hub.stalled.set()
                self.connection.recv(1)  # until the other side is gone
            elif self.command == "GET":
                self.wfile.write(body)

    return Handler


def etag_of(name: str, content: bytes) -> str:
    """Return what the hub calls a file, and names its blob: weights are in LFS, the rest in git."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _content(found: str, name: str) -> bytes:
    return f"{name} of {found}".encode()


def lay_huggingface(
    cache: Path,
    repo_id: str = "org/name",
    *,
    refs: Mapping[str, str | bytes] | None = None,
    commits: Sequence[str] = (),
) -> Path:
    """Write what huggingface_hub itself would not, and return the repo's folder."""
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


OLLAMA_KIND = "application/vnd.ollama.image."
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def lay_blob(store: Path, content: bytes) -> str:
    """Write a blob as Ollama names it, and return its digest."""
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(content).hexdigest()
    (store / "blobs" / f"sha256-{name}").write_bytes(content)
    return f"sha256:{name}"


def ollama_manifest(store: Path, layers: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """Return a manifest of layers, each with its kind and content, and write their blobs."""

    def layer(kind: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": lay_blob(store, content), "size": len(content)}

    return {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": layer("application/vnd.docker.container.image.v1+json", b'{"os":"linux"}'),
        "layers": [layer(f"{OLLAMA_KIND}{kind}", content) for kind, content in layers],
    }


def lay_ollama(store: Path, name: str, manifest: object) -> str:
    """Write a manifest under `HOST/NAMESPACE/MODEL/TAG`, and return its path."""
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return str(path)


def blobs_of(store: Path, *contents: bytes) -> list[str]:
    """Return the paths that blobs with these contents have."""
    return [f"{store}/blobs/sha256-{hashlib.sha256(content).hexdigest()}" for content in contents]
