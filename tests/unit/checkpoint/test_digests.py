"""What the names of blobs say, against git and hashlib."""

import hashlib
import shutil
import subprocess

import pytest

from prefetch_cli.checkpoint.digests import Algorithm, of_blob

SHA256 = hashlib.sha256(b"x").hexdigest()
SHA1 = hashlib.sha1(b"x").hexdigest()


@pytest.mark.parametrize(
    ("path", "algorithm", "digits"),
    [
        (f"/cache/models--org--name/blobs/{SHA256}", Algorithm.SHA256, SHA256),
        (f"/cache/models--org--name/blobs/{SHA1}", Algorithm.GIT_BLOB, SHA1),
        (f"/ollama/models/blobs/sha256-{SHA256}", Algorithm.SHA256, SHA256),
        (f"/ollama/models/blobs/sha256-{SHA256.upper()}", Algorithm.SHA256, SHA256),
    ],
)
def test_a_blob_is_named_after_its_content(path: str, algorithm: Algorithm, digits: str) -> None:
    digest = of_blob(path)
    assert digest is not None
    assert (digest.algorithm, digest.hexdigits) == (algorithm, digits)


@pytest.mark.parametrize(
    "path",
    [
        f"/models/{SHA256}",  # no folder of blobs
        f"/cache/blobs/{SHA256}.incomplete",
        f"/cache/blobs/sha256-{SHA256}-partial",
        f"/cache/blobs/{SHA256[1:]}",
        f"/cache/blobs/sha256-{SHA1}",
        "/cache/blobs/model.safetensors",
        f"/cache/blobs/{SHA256}\n",
    ],
)
def test_other_names_say_nothing(path: str) -> None:
    assert of_blob(path) is None


@pytest.mark.parametrize("content", [b"", b"{}\n", bytes(3_000_000)])
def test_small_files_are_hashed_as_git_does(content: bytes) -> None:
    if not shutil.which("git"):
        pytest.skip("needs git")
    asked = ["git", "hash-object", "--stdin"]
    known = subprocess.run(asked, input=content, capture_output=True, check=True).stdout.decode()
    digest = of_blob(f"/blobs/{known.strip()}")
    assert digest is not None
    hasher = digest.hasher(len(content))
    hasher.update(memoryview(content))
    assert hasher.hexdigest() == digest.hexdigits
