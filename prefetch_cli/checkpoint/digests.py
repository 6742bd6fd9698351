"""Digests of whole files: what a hub's cache says of a file by the name of its blob."""

import enum
import os
import re
from typing import NamedTuple, Protocol

_BLOBS = "blobs"  # the folder of blobs, in the caches of Hugging Face and of Ollama
_SHA256 = re.compile(r"(?:sha256-)?([0-9a-f]{64})", re.IGNORECASE)  # with the prefix: Ollama's
_SHA1 = re.compile(r"[0-9a-f]{40}")


class Hasher(Protocol):
    """What hashlib makes."""

    def update(self, content: memoryview, /) -> None:
        """Add to the content."""

    def hexdigest(self) -> str:
        """Return the digest of all content so far, in lower case."""


class Algorithm(enum.Enum):
    """How a digest is computed, in words."""

    SHA256 = "SHA-256"
    GIT_BLOB = "git blob SHA-1"


class Digest(NamedTuple):
    """The digest that a file should have, and who says so."""

    algorithm: Algorithm
    hexdigits: str  # lower case
    source: str  # in words, as in `expected ... by SOURCE`

    def hasher(self, size_bytes: int) -> Hasher:
        """Return a hasher for a file of this size."""
        # It loads OpenSSL, which only a run that hashes has to wait for.
        import hashlib  # noqa: PLC0415

        if self.algorithm is Algorithm.SHA256:
            return hashlib.sha256()
        # gitformat-loose: the object's header is hashed with the content.
        return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


def of_blob(real_path: str) -> Digest | None:
    """Return the digest in the name of a hub's blob, None where the file is no such blob.

    Hugging Face names a blob after its ETag: the SHA-256 of a file in LFS or Xet, else what git
    calls the blob (huggingface_hub, file_download.py). Ollama's are `sha256-` and the digest.
    """
    folder, name = os.path.split(real_path)
    if os.path.basename(folder) != _BLOBS:
        return None
    if match := _SHA256.fullmatch(name):
        return Digest(Algorithm.SHA256, match[1].lower(), "its blob's name")
    if _SHA1.fullmatch(name):
        return Digest(Algorithm.GIT_BLOB, name, "its blob's name")
    return None
